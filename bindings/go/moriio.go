package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"time"
)

// Moriio is a worker as workers of vLLM's MoRIIOConnector shall see it; docs/moriio.md says more.
type Moriio struct {
	Role          Role
	HandshakePort uint16 // first of the instance; 0: nobody can ask
	NotifyPort    uint16 // first of the instance; 0: nobody can tell
	DPRank        uint32 // on this host
	DPSize        uint32 // on this host; 0: 1
	TPRank        uint32
	TPSize        uint32 // 0: 1
	Host          string // to listen on; "": 127.0.0.1
	Handshake     []byte // JSON: what it says on its handshake port
}

// MoriioMessage is what a worker of vLLM's MoRIIOConnector said, or why it cannot be understood.
type MoriioMessage struct {
	JSON []byte
	Err  error
}

func (MoriioMessage) event() {}

// said never discards a message silently: workers count them.
func (a *Agent) said(m MoriioMessage) {
	if len(a.events) < a.limit {
		a.report(m)
		return
	}
	// A worker that is closed already was closed for an earlier message.
	if a.CloseMoriio() == nil {
		a.report(MoriioMessage{nil, &Error{Call: "kvlink_poll", Status: ErrLimit,
			Message: "messages wait for the engine, the worker was closed"}})
	}
}

// OpenMoriio opens the one worker that an agent can be opposite workers of vLLM's MoRIIOConnector. What they say comes as
// MoriioMessage; when the channel of events is full, the worker is closed.
func (a *Agent) OpenMoriio(m Moriio) error {
	pin := pins{call: "kvlink_moriio_open"}
	defer pin.release()
	c := C.kvlink_moriio_t{
		struct_size:    C.sizeof_kvlink_moriio_t,
		role:           C.uint32_t(m.Role),
		handshake_port: C.uint32_t(m.HandshakePort),
		notify_port:    C.uint32_t(m.NotifyPort),
		dp_rank:        C.uint32_t(m.DPRank),
		dp_size:        C.uint32_t(m.DPSize),
		tp_rank:        C.uint32_t(m.TPRank),
		tp_size:        C.uint32_t(m.TPSize),
		host:           pin.text("Host", m.Host),
		handshake:      pin.bytes(m.Handshake),
		handshake_len:  C.size_t(len(m.Handshake)),
		user_data:      0,
	}
	if pin.err != nil {
		return pin.err
	}
	return a.check(pin.call, C.go_kvlink_moriio_open(a.handle, &c))
}

// CloseMoriio closes it; exchanges that are under way are cancelled.
func (a *Agent) CloseMoriio() error {
	return a.check("kvlink_moriio_close", C.go_kvlink_moriio_close(a.handle))
}

// MeetMoriio asks the worker whose handshake port is at address who it is; its handshake is JSON. A timeout of 0 is 10
// seconds.
func (a *Agent) MeetMoriio(ctx context.Context, address string, timeout time.Duration) ([]byte, error) {
	pin := pins{call: "kvlink_moriio_meet"}
	defer pin.release()
	c, ms := pin.text("address", address), pin.millis("timeout", timeout)
	return a.exchange(ctx, &pin, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		return C.go_kvlink_moriio_meet(a.handle, c, ms, token, id)
	})
}

// SendMoriio tells the worker whose notify port is at address something, JSON; it returns when the message has arrived.
// With ErrPeerDead it may have, and is not sent again. A timeout of 0 is 10 seconds.
func (a *Agent) SendMoriio(ctx context.Context, address string, message []byte, timeout time.Duration) error {
	pin := pins{call: "kvlink_moriio_send"}
	defer pin.release()
	c, ms, data := pin.text("address", address), pin.millis("timeout", timeout), pin.bytes(message)
	_, err := a.exchange(ctx, &pin, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		return C.go_kvlink_moriio_send(a.handle, c, data, C.size_t(len(message)), ms, token, id)
	})
	return err
}

func (a *Agent) exchange(ctx context.Context, pin *pins, start func(C.uint64_t, *C.uint64_t) C.go_result) ([]byte, error) {
	if pin.err != nil {
		return nil, pin.err
	}
	o, err := a.begin(pin.call, start)
	if err != nil {
		return nil, err
	}
	err = o.wait(ctx)
	return o.event.payload, err
}
