package kvlink

/*
#include "shim.h"
*/
import "C"

// DType is an element type.
type DType uint32

// Element types. Opaque is a record that is moved whole.
const (
	Opaque DType = C.KVLINK_DTYPE_OPAQUE
	F32    DType = C.KVLINK_DTYPE_F32
	F16    DType = C.KVLINK_DTYPE_F16
	BF16   DType = C.KVLINK_DTYPE_BF16
	F8E4M3 DType = C.KVLINK_DTYPE_F8_E4M3
	F8E5M2 DType = C.KVLINK_DTYPE_F8_E5M2
	I8     DType = C.KVLINK_DTYPE_I8
	U8     DType = C.KVLINK_DTYPE_U8
	F64    DType = C.KVLINK_DTYPE_F64
	I32    DType = C.KVLINK_DTYPE_I32
)

// GroupKind says how block lists of a group are read.
type GroupKind uint32

const (
	// Paged: entry j holds the tokens j * block tokens and following.
	Paged GroupKind = C.KVLINK_GROUP_PAGED
	// Ring: the list is a ring of blocks per request.
	Ring GroupKind = C.KVLINK_GROUP_RING
	// Slots: no token axis; entry j is the j-th state slot of the request.
	Slots GroupKind = C.KVLINK_GROUP_SLOTS
)

// Reach says which tokens before the end of a request a group still needs.
type Reach uint32

const (
	// Full: all.
	Full Reach = C.KVLINK_REACH_FULL
	// Window: the last ReachTokens.
	Window Reach = C.KVLINK_REACH_WINDOW
	// Chunk: the chunk of ReachTokens that the last token lies in.
	Chunk Reach = C.KVLINK_REACH_CHUNK
)

// Direction says which way a handshake prepares.
type Direction uint32

const (
	// Both: data may go either way.
	Both Direction = C.KVLINK_DIRECTION_BOTH
	// Inbound: we read from the peer, or accept its writes.
	Inbound Direction = C.KVLINK_DIRECTION_INBOUND
	// Outbound: we write to the peer.
	Outbound Direction = C.KVLINK_DIRECTION_OUTBOUND
)

// HostWay is a set of ways of the host transport.
type HostWay uint32

const (
	SharedMemoryWay HostWay = 1 << iota // "host/shm"
	CrossProcessWay                     // "host/cma"
	TCPWay                              // "host/tcp"
)
