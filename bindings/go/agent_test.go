package kvlink

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"
)

func TestManyGoroutinesAtOnePair(t *testing.T) {
	source, sink, from, _ := newPair(t, testDesc(testLayers, testBlocks, 8), Config{})
	var wg sync.WaitGroup
	for i := range testBlocks {
		wg.Go(func() {
			for j := range 40 {
				request := name(i*1000 + j)
				o, err := source.Offer(OfferParams{Request: request, Blocks: blocksOf(uint32(i)), Tokens: testBlockTokens})
				if err != nil {
					t.Error(err)
					return
				}
				ticket, err := o.Ticket()
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithCancel(context.Background())
				if j%4 == 0 {
					go cancel()
				}
				_, err = from.Read(ctx, ReadParams{Ticket: ticket, Blocks: blocksOf(uint32(i))})
				cancel()
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if err == nil {
					err = o.Released(context.Background())
				} else if err = o.Cancel(); err == nil || errors.Is(err, ErrBadHandle) {
					<-o.Done()
					err = nil
				}
				if err != nil {
					t.Error(err)
				}
				runtime.GC()
			}
		})
	}
	wg.Wait()
	if n := len(sink.ops) + len(source.ops); n != 0 {
		t.Fatalf("%d operations are remembered", n)
	}
}

func TestWhoDoesNotReadEventsStopsNothingElse(t *testing.T) {
	const room = 4
	source, sink, _, to := newPair(t, testDesc(testLayers, testBlocks, 8), Config{MaxEvents: room})
	deadline := patience(t)
	for i := range room {
		must(t, to.Notify(AllRanks, []byte("x"), nil))
		for len(sink.events) <= i {
			must(t, deadline.Err())
			runtime.Gosched()
		}
	}
	must(t, to.Notify(AllRanks, []byte("one too many"), nil))
	if _, ok := nextEvent(t, source.Agent).(PeerDown); !ok {
		t.Fatal("the source was not told")
	}
	// Operations go on meanwhile.
	_, ticket := offerOf(t, source, "r", 16, 0)
	again := connect(t, sink, source, Inbound)
	_, err := again.Read(patience(t), ReadParams{Ticket: ticket, Blocks: blocksOf(0)})
	must(t, err)
	for range room {
		if e, ok := nextEvent(t, sink.Agent).(Notification); !ok || string(e.Data) != "x" {
			t.Fatalf("%+v", e)
		}
	}
	if e, ok := nextEvent(t, sink.Agent).(PeerDown); !ok || !errors.Is(e.Err, ErrLimit) {
		t.Fatalf("%+v", e)
	}
}

func TestOldEventsGiveWay(t *testing.T) {
	a := &Agent{events: make(chan Event, 2)}
	for rank := range uint32(5) {
		a.report(PeerDown{Rank: rank})
	}
	if first, second := <-a.events, <-a.events; first.(PeerDown).Rank != 3 || second.(PeerDown).Rank != 4 {
		t.Fatal(first, second)
	}
}

// What the goroutine does when the library says that the agent has failed; here its descriptor is taken from it.
func TestAFailedAgentEndsWhatIsUnderWay(t *testing.T) {
	a := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "a"})
	accept, err := a.Accept(AcceptParams{Request: "r", Blocks: blocksOf(0), Tokens: 16})
	must(t, err)
	must(t, a.fd.Close())
	_, _, err = accept.Received(patience(t))
	mustBe(t, err, ErrSystem)
	if e, ok := nextEvent(t, a.Agent).(AgentFailed); !ok || !errors.Is(e.Err, ErrSystem) {
		t.Fatalf("%+v", e)
	}
	if _, open := <-a.Events(); open {
		t.Fatal("the channel of events is open")
	}
	_, err = a.Statistics()
	mustBe(t, err, ErrSystem)
	must(t, a.Close())
}

func TestMappedMemoryCanBeRegistered(t *testing.T) {
	desc := testDesc(testLayers, testBlocks, 8)
	m, err := syscall.Mmap(-1, 0, int(desc.RegionBytes[0]), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(t, err)
	a, err := NewAgent(newLayoutOf(t, desc), Config{Instance: "a"})
	must(t, err)
	mustBe(t, a.RegisterMemory(0, unsafe.Pointer(&m[0]), 1), ErrInvalidArgument)
	must(t, a.RegisterMemory(0, unsafe.Pointer(&m[0]), uintptr(len(m))))
	mustBe(t, a.RegisterMemory(0, unsafe.Pointer(&m[0]), uintptr(len(m))), ErrWrongState)
	must(t, a.Ready(patience(t)))
	must(t, a.Deregister(0))
	mustBe(t, a.Deregister(0), ErrWrongState)
	must(t, a.Close())
	must(t, syscall.Munmap(m))
}

// An agent that has ended leaves no goroutine, thread or descriptor.
func TestAgentsLeaveNothingBehind(t *testing.T) {
	layout := newLayoutOf(t, testDesc(testLayers, testBlocks, 8))
	cycle := func() {
		a, err := NewAgent(layout, Config{Instance: "a"})
		must(t, err)
		must(t, a.Close())
	}
	cycle() // what the runtime and the library keep for good
	goroutines, descriptors, threads := runtime.NumGoroutine(), entries(t, "fd"), kvlinkThreads(t)
	for range 50 {
		cycle()
	}
	if n := entries(t, "fd"); n != descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
	if n := kvlinkThreads(t); n != threads {
		t.Errorf("%d threads of the library, %d before", n, threads)
	}
	// A goroutine that has done its last thing may still be counted for a moment.
	for deadline := patience(t); runtime.NumGoroutine() > goroutines; runtime.Gosched() {
		if deadline.Err() != nil {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
}

func entries(t *testing.T, of string) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/" + of)
	must(t, err)
	return len(list)
}

func kvlinkThreads(t *testing.T) (n int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		comm, err := os.ReadFile("/proc/self/task/" + task.Name() + "/comm")
		if err == nil && strings.HasPrefix(string(comm), "kvlink") {
			n++
		}
	}
	return n
}
