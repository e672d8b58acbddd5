// Package kvlink moves KV cache between the prefill and decode instances of an LLM service.
//
// A [Layout] describes one rank's cache. An [Agent] is one rank's endpoint; [Agent.Handshake] gives a [Peer].
// A source offers blocks ([Agent.Offer]) and a sink reads them with the ticket ([Peer.Read]); or a sink accepts a request
// ([Agent.Accept]) and a source writes to it ([Peer.Write]). A [Plan] gives the spans to move without any agent.
//
// # When blocks may be reused
//
// A call that waits for a transfer, an offer or an accept returns only when nothing touches its blocks any more: also if
// its context ends (the operation is cancelled, and its end is still awaited) and if the agent is closed. The one exception
// says so: errors.Is(err, ErrQuarantined).
//
// # Memory
//
// Regions are memory of C: [SharedMemory], or memory from mmap or malloc. Go's heap cannot be registered, because the
// library reads and writes a region between calls, where the collector knows nothing of it. Everything else that is passed
// in, block lists and texts, is copied before a call returns.
//
// # Goroutines
//
// All methods may be called by any goroutine, also while another closes the object.
package kvlink

/*
#cgo pkg-config: kvlink
#cgo CFLAGS: -std=c99 -Wall -Wextra
#include "shim.h"
*/
import "C"

// NoBlock is a block list entry that holds nothing: a position outside a window, say.
const NoBlock uint32 = C.KVLINK_NO_BLOCK

// AllRanks stands for all ranks of a peer.
const AllRanks uint32 = C.KVLINK_ALL_RANKS

// Version is the version of the library, "major.minor.patch".
func Version() string { return C.GoString(C.kvlink_version()) }
