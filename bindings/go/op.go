package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
)

// op is something begun that one event ends.
type op struct {
	agent *Agent
	call  string
	token uint64 // its user_data
	id    uint64
	done  chan struct{}

	// Valid when done is closed.
	event raw
	err   error
}

// begin starts something; the event may come before the call has returned.
func (a *Agent) begin(call string, start func(token C.uint64_t, id *C.uint64_t) C.go_result) (*op, error) {
	a.mu.Lock()
	if a.ended != nil {
		a.mu.Unlock()
		return nil, a.ended
	}
	a.nextOp++
	o := &op{agent: a, call: call, token: a.nextOp, done: make(chan struct{})}
	a.ops[o.token] = o
	a.mu.Unlock()

	var id C.uint64_t
	if err := a.check(call, start(C.uint64_t(o.token), &id)); err != nil {
		a.take(o.token)
		return nil, err
	}
	o.id = uint64(id)
	return o, nil
}

// take is the op with this token, which is forgotten; nil if there is none.
func (a *Agent) take(token uint64) *op {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.ops[token]
	delete(a.ops, token)
	return o
}

func (o *op) finish(e raw, err error) {
	o.event, o.err = e, err
	close(o.done)
}

// Done is closed when the event has come that says that nothing touches the blocks any more, or the agent has ended.
func (o *op) Done() <-chan struct{} { return o.done }

// Cancel ends it early; Done still comes, when nothing touches the blocks any more. Of what has ended already it is an
// error, ErrBadHandle.
func (o *op) Cancel() error {
	return o.agent.check("kvlink_cancel", C.go_kvlink_cancel(o.agent.handle, C.uint64_t(o.id)))
}

// wait waits for the end, which a context that ends hastens. The event then says what really happened: also success.
func (o *op) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return o.err
	default:
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
	}
	// A failure says that the end has come already, and its event is on the way.
	_ = o.Cancel()
	<-o.done
	if errors.Is(o.err, ErrCancelled) {
		return because(o.err, ctx.Err())
	}
	return o.err
}

// because is the error with its cause; the error itself may be shared.
func because(err, cause error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	with := *e
	with.cause = cause
	return &with
}
