package kvlink

// LayoutDesc is everything that describes one rank's cache. docs/layout.md explains the forms; zero means default.
type LayoutDesc struct {
	Model       string   // "": not compared with the peer's
	RegionBytes []uint64 // bytes of each region
	Groups      []Group
	Attention   []Attention
	Records     []Record
	States      []State
	Tensors     []Tensor // anything else
}

// Group is one block-id space, the same on all ranks of an instance.
type Group struct {
	Kind              GroupKind
	BlockTokens       uint32 // tokens of this rank in one block; 1 for slots
	NumBlocks         uint32 // block ids are below this
	Reach             Reach
	ReachTokens       uint64 // of the window or chunk
	ContextSize       uint32 // context-parallel size; 0 and 1: not parallel
	ContextRank       uint32
	ContextInterleave uint32 // tokens of one interleaved chunk; 0: 1
}

// Attention is paged keys and values of several layers in one allocation.
type Attention struct {
	Layers       []uint32 // global indices, in storage order
	Role         string   // "": "kv"
	Order        string   // a permutation of "LBHNC", outermost first; "": "LBHNC"
	Group        uint32
	Region       uint32
	Offset       uint64
	BlockStride  uint64 // 0: dense
	LayerStride  uint64 // 0: dense
	Heads        uint64 // KV heads of the model
	FirstHead    uint64 // of this rank
	NumHeads     uint64 // of this rank
	KeyDim       uint64
	ValueDim     uint64
	Planes       bool // keys and values in two planes, values at ValueRegion and ValueOffset
	ValueRegion  uint32
	ValueOffset  uint64
	KernelTokens uint32 // tokens of a kernel block inside a block; 0: the whole block
	DType        DType
}

// Record is one record per token, equal on all tensor-parallel ranks, of several layers.
type Record struct {
	Layers       []uint32
	Role         string // names the format: "mla", "fp8_ds_mla", "indexer"
	Group        uint32
	Region       uint32
	Offset       uint64
	BlockStride  uint64 // 0: dense
	LayerStride  uint64 // 0: dense
	TokenStride  uint64 // 0: dense
	Elements     uint64 // of a record; 0: 1
	DType        DType
	ElementBytes uint32 // 0: those of the type
}

// Section is one section of convolution channels, sharded or replicated by itself.
type Section struct {
	Units uint64 // of the model: heads, groups, channels
	Width uint64 // channels of one unit
	First uint64 // unit of this rank
	Count uint64 // units of this rank
}

// State is convolution and recurrent state per request of several layers.
type State struct {
	Layers          []uint32
	Group           uint32 // of kind Slots
	Region          uint32
	ConvOffset      uint64 // of slot 0 of the first layer
	StateOffset     uint64
	SlotStride      uint64
	LayerStride     uint64
	Conv            []Section // none: no convolution state
	ConvRows        uint64    // kernel - 1 + speculative tokens
	ConvRowsOutside bool
	ConvDType       DType
	State           Section // heads and elements of one; Count 0: no recurrent state
	StateDType      DType
}

// Tensor is a cache tensor as this rank stores it.
type Tensor struct {
	Layer        uint32
	Group        uint32
	DType        DType
	ElementBytes uint32 // 0: those of the type
	Role         string
	Axes         []Axis // at most 4; the token axis is not listed
	Parts        []Part // logically disjoint boxes
}

// Axis is a global axis of a tensor.
type Axis struct {
	Name   string // equal on both sides
	Extent uint64
	Common bool // only indices that both sides have are moved
}

// Part is a strided box of a tensor.
type Part struct {
	Region      uint32
	TileTokens  uint32 // 0: no tiles
	Offset      uint64
	BlockStride uint64
	TokenStride uint64
	TileStride  uint64
	Extents     []Extent // one per axis
}

// Extent is the interval of an axis that a part stores.
type Extent struct {
	Begin  uint64
	Len    uint64
	Stride uint64 // bytes between neighbours
}
