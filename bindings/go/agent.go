package kvlink

/*
#cgo noescape go_kvlink_statistics
#cgo nocallback go_kvlink_statistics
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Agent is one rank's endpoint. It lives until Close: the collector never ends it.
type Agent struct {
	handle *C.kvlink_agent_t
	fd     *os.File        // our copy of the event descriptor
	wait   syscall.RawConn // of fd
	events chan Event
	limit  int // notifications that may wait in events

	readyErr error // valid when ready is closed
	ready    chan struct{}
	done     chan struct{} // closed when the agent has ended

	polling sync.Mutex
	batch   [64]C.kvlink_event_t // of the poll under way

	mu      sync.Mutex
	closing bool
	ended   error // why, once nothing touches registered memory any more
	ops     map[uint64]*op
	nextOp  uint64
}

// NewAgent starts an agent for a rank with this layout; the layout may be closed afterwards. Peers can reach it once all
// regions are registered and all ranks of the instance have joined (Ready).
func NewAgent(layout *Layout, config Config) (*Agent, error) {
	p := pins{call: "kvlink_agent_create"}
	defer p.release()
	c := p.config(&config)
	if p.err != nil {
		return nil, p.err
	}
	a := &Agent{limit: 1 << 16, ready: make(chan struct{}), done: make(chan struct{}), ops: make(map[uint64]*op)}
	if config.MaxEvents != 0 {
		a.limit = int(config.MaxEvents)
	}
	a.events = make(chan Event, a.limit+eventReserve)
	if err := check(p.call, C.go_kvlink_agent_create(c, handles([]*Layout{layout})[0], &a.handle)); err != nil {
		return nil, err
	}
	if err := a.watch(); err != nil {
		_ = check("kvlink_agent_destroy", C.go_kvlink_agent_destroy(a.handle))
		return nil, err
	}
	go a.run()
	return a, nil
}

// watch gives the event descriptor to the runtime's poller. The poller closes what it was given, and the descriptor belongs
// to the library: it gets a copy.
func (a *Agent) watch() error {
	var fd C.int
	if err := a.check("kvlink_event_fd", C.go_kvlink_event_fd(a.handle, &fd)); err != nil {
		return err
	}
	dup, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return &Error{Call: "kvlink_event_fd", Status: ErrSystem, Message: fmt.Sprintf("fcntl(F_DUPFD_CLOEXEC): %v", errno)}
	}
	a.fd = os.NewFile(dup, "kvlink events")
	// Fails if the poller does not take it.
	err := a.fd.SetReadDeadline(time.Time{})
	if err == nil {
		a.wait, err = a.fd.SyscallConn()
	}
	if err != nil {
		_ = a.fd.Close() // the first error says more
		return &Error{Call: "kvlink_event_fd", Status: ErrSystem, Message: err.Error()}
	}
	return nil
}

// Close stops the agent and waits until nothing touches registered memory any more; then everything that was under way
// fails with ErrClosed and the channel of Events is closed. Peers see the agent as dead. A second Close waits likewise and
// does nothing else.
func (a *Agent) Close() error {
	a.mu.Lock()
	first := !a.closing
	a.closing = true
	a.mu.Unlock()
	if first {
		_ = a.fd.Close() // wakes the loop, which ends the agent; fails only if the loop did so already
	}
	<-a.done
	return nil
}

// check turns the result of a call into an error.
func (a *Agent) check(call string, r C.go_result) error {
	if r.status == C.KVLINK_OK {
		return nil
	}
	return a.reason(check(call, r))
}

// reason is why the agent has ended, if that is why a call failed.
func (a *Agent) reason(err error) error {
	if !errors.Is(err, ErrBadHandle) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return a.ended
	}
	return err
}

// Ready waits until all ranks of the own instance are known, so that peers can shake hands.
func (a *Agent) Ready(ctx context.Context) error {
	select {
	case <-a.ready:
		return a.readyErr
	case <-a.done:
		return a.ended
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Address is where others reach this agent, "host:port".
func (a *Agent) Address() (string, error) {
	s, err := text("kvlink_agent_address", func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_agent_address(a.handle, buf, cap, n)
	})
	return s, a.reason(err)
}

// Register binds shared memory to a region of the layout.
func (a *Agent) Register(region uint32, memory *SharedMemory) error {
	if memory == nil {
		return &Error{Call: "kvlink_register", Status: ErrNullPointer, Message: fmt.Sprintf("memory of region %d is nil", region)}
	}
	memory.mu.Lock()
	defer memory.mu.Unlock()
	return a.RegisterMemory(region, memory.at, uintptr(memory.n))
}

// RegisterMemory binds memory of mmap or of C to a region of the layout. It must stay mapped, readable and writable until
// Deregister or Close has returned. Memory of Go's heap must not be given: the library uses it between calls.
func (a *Agent) RegisterMemory(region uint32, memory unsafe.Pointer, n uintptr) error {
	return a.check("kvlink_register", C.go_kvlink_register(a.handle, C.uint32_t(region), memory, C.size_t(n)))
}

// Deregister takes a region away. Whatever uses it ends; when the call returns no byte of it is written any more, nor read
// as valid data, and it may be freed. The agent moves nothing afterwards.
func (a *Agent) Deregister(region uint32) error {
	return a.check("kvlink_deregister", C.go_kvlink_deregister(a.handle, C.uint32_t(region)))
}

// Statistics are counters since the agent's start.
type Statistics struct {
	Bytes     uint64 // moved by completed transfers and accepts
	Spans     uint64 // moved by completed transfers
	Transfers uint64 // and accepts that completed
	Failures  uint64 // of transfers, accepts and handshakes
}

// Statistics gives the agent's counters.
func (a *Agent) Statistics() (Statistics, error) {
	var c C.kvlink_statistics_t
	c.struct_size = C.sizeof_kvlink_statistics_t
	if err := a.check("kvlink_statistics", C.go_kvlink_statistics(a.handle, &c)); err != nil {
		return Statistics{}, err
	}
	return Statistics{
		Bytes:     uint64(c.bytes),
		Spans:     uint64(c.spans),
		Transfers: uint64(c.transfers),
		Failures:  uint64(c.failures),
	}, nil
}
