package kvlink

/*
#cgo noescape go_kvlink_poll
#cgo nocallback go_kvlink_poll
#include "shim.h"
*/
import "C"

import (
	"errors"

	"kvlink/internal/hook"
)

// Event is what happens without a call that waits for it: a [Notification], [PeerDown],
// [RouterState], [MoriioMessage] or [AgentFailed].
type Event interface{ event() }

// Notification is a message of a peer's engine.
type Notification struct {
	Peer Peer
	Rank uint32
	Data []byte
}

// PeerDown: nothing can be done with this peer any more; let it go with Disconnect.
type PeerDown struct {
	Peer Peer
	Rank uint32 // or AllRanks
	Err  error
}

// AgentFailed: a defect of kvlink stopped the agent. It has ended as if closed, and everything under way fails with Err.
type AgentFailed struct {
	Err error
}

func (Notification) event() {}
func (PeerDown) event()     {}
func (AgentFailed) event()  {}

// eventReserve is room in the channel for what is not a notification.
const eventReserve = 64

// Events is the channel of events, in the order in which they happened; it is closed when the agent has ended.
//
// The channel has room for Config.MaxEvents notifications. Whoever does not read it stops nothing else: when it is full,
// a peer that notifies is cut off (as by the library, when notifications come faster than they are taken), and of other
// events the oldest are discarded.
func (a *Agent) Events() <-chan Event { return a.events }

// report never blocks, so that neither the ends of operations nor Close wait for whoever reads the channel.
// Only the agent's goroutine sends.
func (a *Agent) report(e Event) {
	for {
		select {
		case a.events <- e:
			return
		default:
		}
		select {
		case <-a.events:
		default:
		}
	}
}

// raw is an event with its payload copied.
type raw struct {
	kind    uint32
	status  Status
	id      uint64
	peer    uint64
	bytes   uint64
	spans   uint64
	payload []byte
	rank    uint32
}

func (r *raw) err(call string) error {
	if r.status == OK {
		return nil
	}
	return &Error{Call: call, Status: r.status, Message: string(r.payload)}
}

// run takes events until the agent is closed or fails, and then ends it.
//
// It sleeps in the runtime's poller, which needs no thread for an agent. The poller is edge-triggered, which is enough:
// it is armed before poll empties the queue, and the descriptor is written whenever the queue stops being empty.
func (a *Agent) run() {
	var failed error
	err := a.wait.Read(func(uintptr) bool {
		failed = a.poll()
		return failed != nil
	})
	a.mu.Lock()
	closing := a.closing
	a.mu.Unlock()
	if closing {
		a.end(ErrClosed)
		return
	}
	if err != nil {
		failed = &Error{Call: "kvlink_poll", Status: ErrSystem, Message: err.Error()}
	}
	_ = a.fd.Close() // a second close, by Close, does no harm
	a.report(AgentFailed{failed})
	a.end(failed)
}

// end destroys the agent, and only then fails what is under way: nothing touches its blocks any more.
func (a *Agent) end(cause error) {
	a.polling.Lock() // payloads of a poll die with the agent
	err := check("kvlink_agent_destroy", C.go_kvlink_agent_destroy(a.handle))
	a.polling.Unlock()
	a.mu.Lock()
	a.closing = true
	if a.ended = cause; err != nil {
		a.ended = errors.Join(cause, err)
	}
	for token, o := range a.ops {
		delete(a.ops, token)
		o.finish(raw{}, a.ended)
	}
	a.mu.Unlock()
	close(a.events)
	close(a.done)
}

func init() { hook.Poll = func(agent any) error { return agent.(*Agent).poll() } }

// poll takes all events that wait; an error means that the agent has failed.
func (a *Agent) poll() error {
	a.polling.Lock()
	defer a.polling.Unlock()
	for {
		var n C.size_t
		r := C.go_kvlink_poll(a.handle, &a.batch[0], C.size_t(len(a.batch)), 0, &n)
		if r.status != C.KVLINK_OK {
			return a.check("kvlink_poll", r)
		}
		for i := range a.batch[:n] {
			if err := a.dispatch(&a.batch[i]); err != nil {
				return err
			}
		}
		// Fewer than asked for: the queue was empty.
		if int(n) < len(a.batch) {
			return nil
		}
	}
}

func (a *Agent) dispatch(c *C.kvlink_event_t) error {
	e := raw{
		kind:    uint32(c.kind),
		status:  Status(c.status),
		id:      uint64(c.id),
		peer:    uint64(c.peer),
		bytes:   uint64(c.bytes),
		spans:   uint64(c.spans),
		payload: C.GoBytes(c.payload, C.int(c.payload_len)),
		rank:    uint32(c.rank),
	}
	switch e.kind {
	case C.KVLINK_EVENT_READY:
		a.readyErr = e.err("kvlink_agent_create")
		close(a.ready)
	case C.KVLINK_EVENT_HANDSHAKE, C.KVLINK_EVENT_TRANSFER, C.KVLINK_EVENT_RELEASED, C.KVLINK_EVENT_RECEIVED:
		if o := a.take(uint64(c.user_data)); o != nil {
			o.finish(e, e.err(o.call))
		}
	case C.KVLINK_EVENT_NOTIFICATION:
		a.notified(e)
	case C.KVLINK_EVENT_PEER_DOWN:
		a.report(PeerDown{a.peer(e.peer), e.rank, e.err("kvlink_poll")})
	case C.KVLINK_EVENT_ROUTER:
		a.report(RouterState{Registration{a, e.id}, e.err("kvlink_router_attach")})
	case C.KVLINK_EVENT_MORIIO:
		if o := a.take(uint64(c.user_data)); o != nil {
			o.finish(e, e.err(o.call))
		} else if err := e.err("kvlink_poll"); err != nil {
			a.said(MoriioMessage{nil, err})
		} else {
			a.said(MoriioMessage{e.payload, nil})
		}
	case C.KVLINK_EVENT_AGENT_FAILED:
		return e.err("kvlink_poll")
	}
	return nil
}

func (a *Agent) notified(e raw) {
	peer := a.peer(e.peer)
	if len(a.events) < a.limit {
		a.report(Notification{peer, e.rank, e.payload})
		return
	}
	// A peer that is gone already was cut off for an earlier notification.
	if peer.Disconnect() == nil {
		a.report(PeerDown{peer, e.rank, &Error{Call: "kvlink_poll", Status: ErrLimit,
			Message: "notifications wait for the engine, no more are taken"}})
	}
}
