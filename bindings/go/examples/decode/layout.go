package main

import (
	"kvlink"
	"kvlink/examples/internal/engine"
)

// layoutByHand is a hybrid of four layers: 0 and 2 keep recurrent state per request, 1 and 3 attention keys and values per
// token. An engine fills these structs from what it knows when it has allocated its cache.
func layoutByHand(o *engine.Options) *kvlink.Layout {
	const (
		blockTokens, numBlocks, numSlots            = 32, 24, 4
		allHeads, headDim                           = 8, 64
		allStateHeads, stateWidth, convWidth, convs = 8, 256, 16, 3
	)
	// Tensor parallelism is nothing but the interval of heads that this rank keeps: first and count.
	rank := uint64(o.Rank)
	heads, stateHeads := allHeads/uint64(o.Ranks), allStateHeads/uint64(o.Ranks)

	convBytes := 3 * stateHeads * convWidth * convs * 2 // bf16
	stateBytes := stateHeads * stateWidth * 4           // f32

	// Convolution channels are three sections, [q|k|v], each split by heads by itself.
	conv := kvlink.Section{Units: allStateHeads, Width: convWidth, First: rank * stateHeads, Count: stateHeads}

	// Region 0: for each layer, slots of [convolution | recurrent state].
	state := kvlink.State{
		Layers:      []uint32{0, 2},
		Group:       0,
		Region:      0,
		StateOffset: convBytes,
		SlotStride:  convBytes + stateBytes,
		LayerStride: (convBytes + stateBytes) * numSlots,
		Conv:        []kvlink.Section{conv, conv, conv},
		ConvRows:    convs,
		ConvDType:   kvlink.BF16,
		State:       kvlink.Section{Units: allStateHeads, Width: stateWidth, First: rank * stateHeads, Count: stateHeads},
		StateDType:  kvlink.F32,
	}

	// Region 1: for each layer, blocks of [head][token][key|value]. Other engines order this otherwise ("LBNHC" has tokens
	// outside of heads); both sides may differ.
	attention := kvlink.Attention{
		Layers:    []uint32{1, 3},
		Order:     "LBHNC",
		Group:     1,
		Region:    1,
		Heads:     allHeads,
		FirstHead: rank * heads,
		NumHeads:  heads,
		KeyDim:    headDim,
		ValueDim:  headDim,
		DType:     kvlink.BF16,
	}

	layout, err := kvlink.NewLayout(kvlink.LayoutDesc{
		Model: "tiny-hybrid",
		RegionBytes: []uint64{
			state.LayerStride * 2,
			2 * numBlocks * heads * blockTokens * (headDim + headDim) * 2,
		},
		// A group is one block-id space. The state's is indexed by slots, one per request; attention's by token blocks.
		Groups: []kvlink.Group{
			{Kind: kvlink.Slots, BlockTokens: 1, NumBlocks: numSlots},
			{Kind: kvlink.Paged, BlockTokens: blockTokens, NumBlocks: numBlocks},
		},
		States:    []kvlink.State{state},
		Attention: []kvlink.Attention{attention},
	})
	engine.Check(err)
	return layout
}
