package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"time"
	"unsafe"
)

// Transfer is a read or a write under way.
type Transfer struct {
	*op
	groups int // whose blocks a failed read names
}

// Result is what a transfer or an accept moved.
type Result struct {
	Bytes uint64
	Spans uint64
	// Failed has, for each group, the blocks that a failed read left without valid data: just those must be recomputed.
	// If it is nil after a failure, none of the blocks can be relied on.
	Failed [][]uint32
}

// ReadParams says what a sink reads.
type ReadParams struct {
	Ticket     []byte        // the source's
	Blocks     []Blocks      // where the data goes, one list per group
	TokenBegin uint64        // what lies before is here already
	TokenEnd   uint64        // 0: all that is offered
	LayerFirst uint32        //
	LayerCount uint32        // 0: all
	Timeout    time.Duration // 0: the agent's default
}

// WriteParams says what a source writes: a part of a request (layers, a chunk of tokens).
type WriteParams struct {
	Request    string        // that the destination accepts
	Blocks     []Blocks      // where the data lies: lists of the whole request so far, one per group
	TokenBegin uint64        // of this chunk
	TokenEnd   uint64        // 0: TokenTotal; state goes with the writes whose TokenEnd is TokenTotal
	TokenTotal uint64        // tokens of the whole request
	LayerFirst uint32        //
	LayerCount uint32        // 0: all
	Last       bool          // this source's last write of the request
	Aux        []byte        // side payload of up to 1 MiB, with the last write only
	Timeout    time.Duration // 0: the agent's default
}

// Read reads an offered request into this rank's blocks and waits. Without an error all bytes are here and were valid.
// If the context ends, the read is cancelled and its end awaited: when Read returns, nothing writes to the blocks.
func (p Peer) Read(ctx context.Context, params ReadParams) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	t, err := p.StartRead(params)
	if err != nil {
		return Result{}, err
	}
	return t.Wait(ctx)
}

// Write writes to all ranks of the peer that need it and waits until they have taken it.
// If the context ends, the write is cancelled and its end awaited: when Write returns, the blocks may be reused.
func (p Peer) Write(ctx context.Context, params WriteParams) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	t, err := p.StartWrite(params)
	if err != nil {
		return Result{}, err
	}
	return t.Wait(ctx)
}

// StartRead begins a Read. If it returns an error, nothing was begun.
func (p Peer) StartRead(params ReadParams) (*Transfer, error) {
	const call = "kvlink_read_blocks"
	pin := pins{call: call}
	defer pin.release()
	c := C.kvlink_read_t{
		struct_size: C.sizeof_kvlink_read_t,
		timeout_ms:  pin.millis("timeout", params.Timeout),
		peer:        C.uint64_t(p.id),
		ticket:      pin.bytes(params.Ticket),
		ticket_len:  C.size_t(len(params.Ticket)),
		blocks:      pin.blocks(params.Blocks),
		num_blocks:  C.size_t(len(params.Blocks)),
		token_begin: C.uint64_t(params.TokenBegin),
		token_end:   C.uint64_t(params.TokenEnd),
		layer_first: C.uint32_t(params.LayerFirst),
		layer_count: C.uint32_t(params.LayerCount),
	}
	return p.start(&pin, len(params.Blocks), func(token C.uint64_t, id *C.uint64_t) C.go_result {
		c.user_data = token
		return C.go_kvlink_read_blocks(p.agent.handle, &c, id)
	})
}

// StartWrite begins a Write. The blocks must not change until the transfer is Done.
func (p Peer) StartWrite(params WriteParams) (*Transfer, error) {
	pin := pins{call: "kvlink_write_blocks"}
	defer pin.release()
	c := C.kvlink_write_t{
		struct_size: C.sizeof_kvlink_write_t,
		timeout_ms:  pin.millis("timeout", params.Timeout),
		peer:        C.uint64_t(p.id),
		request:     pin.text("request", params.Request),
		blocks:      pin.blocks(params.Blocks),
		num_blocks:  C.size_t(len(params.Blocks)),
		token_begin: C.uint64_t(params.TokenBegin),
		token_end:   C.uint64_t(params.TokenEnd),
		token_total: C.uint64_t(params.TokenTotal),
		layer_first: C.uint32_t(params.LayerFirst),
		layer_count: C.uint32_t(params.LayerCount),
		last:        flag(params.Last),
		aux:         pin.bytes(params.Aux),
		aux_len:     C.size_t(len(params.Aux)),
	}
	return p.start(&pin, 0, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		c.user_data = token
		return C.go_kvlink_write_blocks(p.agent.handle, &c, id)
	})
}

func (p Peer) start(pin *pins, groups int, run func(C.uint64_t, *C.uint64_t) C.go_result) (*Transfer, error) {
	if p.agent == nil {
		return nil, p.check(pin.call, nil)
	}
	if pin.err != nil {
		return nil, pin.err
	}
	o, err := p.agent.begin(pin.call, run)
	if err != nil {
		return nil, err
	}
	return &Transfer{op: o, groups: groups}, nil
}

// Wait waits for the transfer's end. If the context ends, the transfer is cancelled and its end awaited.
func (t *Transfer) Wait(ctx context.Context) (Result, error) {
	err := t.wait(ctx)
	r := Result{Bytes: t.event.bytes, Spans: t.event.spans}
	if err != nil && t.groups > 0 {
		r.Failed = t.failed()
	}
	return r, err
}

// failed is nil if the library does not know (any more): the agent has ended, or it failed for too many reads since.
func (t *Transfer) failed() [][]uint32 {
	out := make([][]uint32, t.groups)
	for g := range out {
		ids, err := list("kvlink_failed_blocks", make([]uint32, 64), func(at *uint32, cap C.size_t, n *C.size_t) C.go_result {
			return C.go_kvlink_failed_blocks(t.agent.handle, C.uint64_t(t.id), C.uint32_t(g),
				(*C.uint32_t)(unsafe.Pointer(at)), cap, n)
		})
		if err != nil {
			return nil
		}
		out[g] = ids
	}
	return out
}
