package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"unsafe"
)

// Peer is another instance, as one agent knows it. Peers can be compared; the zero Peer is none.
type Peer struct {
	agent *Agent
	id    uint64
}

func (a *Agent) peer(id uint64) Peer {
	if id == 0 {
		return Peer{}
	}
	return Peer{a, id}
}

func (p Peer) check(call string, run func(a *C.kvlink_agent_t) C.go_result) error {
	if p.agent == nil {
		return &Error{Call: call, Status: ErrBadHandle, Message: "the zero Peer"}
	}
	return p.agent.check(call, run(p.agent.handle))
}

// Handshake links with the instance at address, "host:port" of any of its ranks, best the first. Success means that the
// layouts fit and all ranks that the plans need are linked. Before the own instance is complete it waits for that.
// A context that ends lets the peer go.
func (a *Agent) Handshake(ctx context.Context, address string, direction Direction) (Peer, error) {
	const call = "kvlink_handshake"
	if err := ctx.Err(); err != nil {
		return Peer{}, err
	}
	pin := pins{call: call}
	defer pin.release()
	c := pin.text("address", address)
	if pin.err != nil {
		return Peer{}, pin.err
	}
	o, err := a.begin(call, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		return C.go_kvlink_handshake(a.handle, c, C.uint32_t(direction), token, id)
	})
	if err != nil {
		return Peer{}, err
	}
	p := Peer{a, o.id}
	select {
	case <-o.done:
	case <-ctx.Done():
		// No blocks are involved: nothing needs to be waited for. A failure says that the peer is gone already.
		_ = p.Disconnect()
		a.take(o.token)
		return Peer{}, &Error{Call: call, Status: ErrCancelled, Message: address, cause: ctx.Err()}
	}
	if o.err != nil {
		return Peer{}, o.err
	}
	return p, nil
}

// Disconnect lets the peer go: what runs with it fails, its sessions close.
func (p Peer) Disconnect() error {
	return p.check("kvlink_disconnect", func(a *C.kvlink_agent_t) C.go_result {
		return C.go_kvlink_disconnect(a, C.uint64_t(p.id))
	})
}

// EffectiveTransport has one line for each linked rank ("rank 0: host/shm"), with the reasons why better ones were not
// chosen.
func (p Peer) EffectiveTransport() (string, error) {
	if p.agent == nil {
		return "", p.check("kvlink_effective_transport", nil)
	}
	s, err := text("kvlink_effective_transport", func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_effective_transport(p.agent.handle, C.uint64_t(p.id), buf, cap, n)
	})
	return s, p.agent.reason(err)
}

// Notify sends a message of up to 1 MiB to the engine at one rank of the peer, or at all linked ranks (AllRanks).
// Messages to one rank arrive in order. With after (or nil) the message leaves when that transfer has completed, to the
// ranks that it dealt with, and not at all if it fails.
func (p Peer) Notify(rank uint32, data []byte, after *Transfer) error {
	var id C.uint64_t
	if after != nil {
		id = C.uint64_t(after.id)
	}
	return p.check("kvlink_notify", func(a *C.kvlink_agent_t) C.go_result {
		at := unsafe.Pointer(unsafe.SliceData(data))
		return C.go_kvlink_notify(a, C.uint64_t(p.id), C.uint32_t(rank), at, C.size_t(len(data)), id)
	})
}
