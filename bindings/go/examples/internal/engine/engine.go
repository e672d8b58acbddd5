// Package engine is what both example engines share: start-up, commands, block lists, output.
package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"kvlink"
)

// Engine is one rank: its agent, and the cache memory that an engine would own.
type Engine struct {
	*kvlink.Agent
	memory []*kvlink.SharedMemory
}

// Start starts the agent and registers zeroed memory for every region; it prints the address, the regions, and later
// "ready".
func Start(o *Options, layout *kvlink.Layout) *Engine {
	agent, err := kvlink.NewAgent(layout, kvlink.Config{
		Instance:         o.Instance,
		Rank:             o.Rank,
		Ranks:            o.Ranks,
		Leader:           o.Leader,
		RequireTransport: o.Transport,
		HostDisable:      betterWays(o.Transport),
	})
	Check(err)
	e := &Engine{Agent: agent}
	address, err := agent.Address()
	Check(err)
	Say("address %s", address)

	regions, err := layout.Regions()
	Check(err)
	for i, n := range regions {
		m, err := kvlink.NewSharedMemory(int(n))
		Check(err)
		Check(agent.Register(uint32(i), m))
		e.memory = append(e.memory, m)
		Say("region %d %p %d", i, unsafe.SliceData(m.Bytes()), n)
	}
	go e.events()
	go func() {
		err := agent.Ready(context.Background())
		if errors.Is(err, kvlink.ErrClosed) {
			return
		}
		Check(err)
		Say("ready")
	}()
	return e
}

func (e *Engine) events() {
	for event := range e.Events() {
		switch event := event.(type) {
		case kvlink.PeerDown:
			Say("peer-down %s", Message(event.Err))
		case kvlink.AgentFailed:
			log.Fatal(event.Err)
		}
	}
}

// Stop ends the agent first: nothing touches the memory afterwards.
func (e *Engine) Stop() {
	Check(e.Close())
	for _, m := range e.memory {
		Check(m.Close())
	}
}

// Connect shakes hands and prints which transport is in effect for each rank, and why not a better one.
func (e *Engine) Connect(address string, direction kvlink.Direction) kvlink.Peer {
	peer, err := e.Handshake(context.Background(), address, direction)
	Check(err)
	text, err := peer.EffectiveTransport()
	Check(err)
	Say("linked %s", strings.ReplaceAll(text, "\n", ";"))
	return peer
}

// Serve runs the commands of the standard input until "quit" or its end.
func Serve(command func(words []string)) {
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadString('\n')
		words := strings.Fields(line)
		if err == io.EOF || len(words) == 1 && words[0] == "quit" {
			return
		}
		Check(err)
		if len(words) > 0 {
			command(words)
		}
	}
}

var output sync.Mutex

// Say prints one line at once.
func Say(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	_, err := fmt.Printf(format+"\n", args...)
	Check(err)
}

// Check ends the program if there is an error.
func Check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// Status is the number of an operation's end, which is 0 or the library's status.
func Status(err error) int {
	var status kvlink.Status
	if err != nil && !errors.As(err, &status) {
		log.Fatal(err)
	}
	return int(status)
}

// Message is the library's sentence in an error.
func Message(err error) string {
	var e *kvlink.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// Now is CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a host.
func Now() int64 {
	const clockMonotonic = 1
	var t syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	if errno != 0 {
		log.Fatal("clock_gettime: ", errno)
	}
	return t.Nano()
}
