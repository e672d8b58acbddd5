package kvlink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestStatusesHaveTextsAndClasses(t *testing.T) {
	for status, class := range map[Status]Class{
		ErrInvalidArgument: ClassCall, ErrDuplicate: ClassCall, ErrNoMemory: ClassHost, ErrPeerDead: ClassPeer,
		ErrRefused: ClassPeer, ErrCancelled: ClassTransfer, ErrBackend: ClassBackend, ErrPoisoned: ClassDefect,
		-299: ClassPeer, -599: ClassDefect,
	} {
		if status.Class() != class || !errors.Is(status, class) || !errors.Is(status, status) {
			t.Errorf("%d is of class %v, not %v", status, status.Class(), class)
		}
	}
	for _, status := range []Status{OK, 1, -600} {
		if status.Class() != 0 || errors.Is(status, Class(0)) {
			t.Errorf("%d is of class %v", status, status.Class())
		}
	}
	if ErrLeaseExpired.Error() != "lease expired" || errors.Is(ErrPeerDead, ErrRefused) || errors.Is(ErrPeerDead, ClassCall) {
		t.Error("statuses are confused")
	}
}

func TestErrorsCarryStatusMessageAndCause(t *testing.T) {
	_, err := LayoutFromJSON([]byte(`{"surely": "not"}`))
	var e *Error
	if !errors.As(err, &e) || e.Call != "kvlink_layout_from_json" || e.Message == "" {
		t.Fatalf("%#v", err)
	}
	if !strings.Contains(err.Error(), e.Message) || strings.Count(err.Error(), e.Status.Error()) != 1 {
		t.Fatal(err)
	}
	with := because(fmt.Errorf("wrapped: %w", err), context.Canceled)
	if !errors.Is(with, context.Canceled) || !errors.Is(with, e.Status) || errors.Is(err, context.Canceled) {
		t.Fatal(with)
	}
}

// Each goroutine's error must be its own, although threads are shared: the message names what it passed.
func TestMessagesBelongToTheirCalls(t *testing.T) {
	layout := newLayoutOf(t, testDesc(testLayers, testBlocks, 8))
	agent, err := NewAgent(layout, Config{Instance: "a"})
	must(t, err)
	defer func() { must(t, agent.Close()) }()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			for j := range 50 {
				region := uint32(1000 + i*50 + j)
				err := agent.Deregister(region)
				if err == nil || !strings.Contains(err.Error(), fmt.Sprint(region)) {
					t.Errorf("region %d: %v", region, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestTextsWithNULAndBadTimesAreRefused(t *testing.T) {
	layout := newLayoutOf(t, testDesc(testLayers, testBlocks, 8))
	_, err := NewAgent(layout, Config{Instance: "a\x00b"})
	mustBe(t, err, ErrInvalidArgument)
	_, err = NewAgent(layout, Config{Instance: "a", Lease: -1})
	mustBe(t, err, ErrInvalidArgument)
	_, err = NewAgent(layout, Config{})
	mustBe(t, err, ClassCall)
	_, err = NewAgent(nil, Config{Instance: "a"})
	mustBe(t, err, ClassCall)
	desc := testDesc(testLayers, testBlocks, 8)
	desc.Attention[0].Order = "L\x00"
	_, err = NewLayout(desc)
	mustBe(t, err, ErrInvalidArgument)
	_, err = Peer{}.EffectiveTransport()
	mustBe(t, err, ErrBadHandle)
	_, err = Peer{}.StartRead(ReadParams{})
	mustBe(t, err, ErrBadHandle)
	mustBe(t, Peer{}.Notify(0, nil, nil), ErrBadHandle)
}
