package kvlink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestReadMovesTheBytes(t *testing.T) {
	for _, transport := range []string{"host/shm", "host/tcp"} {
		t.Run(transport, func(t *testing.T) {
			config := Config{RequireTransport: transport}
			if transport == "host/tcp" {
				config.HostDisable = SharedMemoryWay | CrossProcessWay
			}
			source, sink, peer, _ := newPair(t, testDesc(testLayers, testBlocks, 8), config)
			fill(source.memory.Bytes())
			offer, ticket := offerOf(t, source, "r", 40, 5, 0, 7)

			like, err := source.Ticket()
			must(t, err)
			written, err := WriteTicket(like, OfferParams{Request: "r", Blocks: blocksOf(5, 0, 7), Tokens: 40})
			must(t, err)
			if !bytes.Equal(written, ticket) {
				t.Fatalf("%x, not %x", written, ticket)
			}
			info, err := ParseTicket(ticket)
			must(t, err)
			address, err := source.Address()
			must(t, err)
			if info.Address != address || info.Instance != "source" || info.Request != "r" || info.Tokens != 40 {
				t.Fatalf("%+v", info)
			}
			text, err := peer.EffectiveTransport()
			must(t, err)
			if !strings.Contains(text, transport) {
				t.Fatalf("%q does not say %s", text, transport)
			}

			// 48 tokens: whole blocks can be compared.
			must(t, offer.Cancel())
			mustBe(t, offer.Released(patience(t)), ErrCancelled)
			offer, ticket = offerOf(t, source, "r", 48, 5, 0, 7)
			result, err := peer.Read(patience(t), ReadParams{Ticket: ticket, Blocks: blocksOf(1, 2, 6)})
			must(t, err)
			if result.Bytes != 3*testLayers*testBlockBytes || result.Spans == 0 || result.Failed != nil {
				t.Fatalf("%+v", result)
			}
			must(t, offer.Released(patience(t)))
			sameBlocks(t, source, sink, []uint32{5, 0, 7}, []uint32{1, 2, 6})

			s, err := sink.Statistics()
			must(t, err)
			if s.Bytes != result.Bytes || s.Transfers != 1 || s.Spans != result.Spans {
				t.Fatalf("%+v", s)
			}
		})
	}
}

func TestLayerWiseWriteMovesTheBytes(t *testing.T) {
	source, sink, _, peer := newPair(t, testDesc(testLayers, testBlocks, 8), Config{})
	fill(source.memory.Bytes())
	accept, err := sink.Accept(AcceptParams{Request: "w", Blocks: blocksOf(3, 4), Tokens: 32})
	must(t, err)
	for layer := range uint32(testLayers) {
		params := WriteParams{Request: "w", Blocks: blocksOf(6, 1), TokenTotal: 32, LayerFirst: layer, LayerCount: 1}
		if params.Last = layer == testLayers-1; params.Last {
			params.Aux = []byte("token=7")
		}
		_, err := peer.Write(patience(t), params)
		must(t, err)
	}
	result, aux, err := accept.Received(patience(t))
	must(t, err)
	if string(aux) != "token=7" || result.Bytes != 2*testLayers*testBlockBytes {
		t.Fatalf("%+v, aux %q", result, aux)
	}
	sameBlocks(t, source, sink, []uint32{6, 1}, []uint32{3, 4})
}

func TestNotificationsComeInOrderAndAfterTheirTransfer(t *testing.T) {
	source, sink, from, to := newPair(t, testDesc(testLayers, testBlocks, 8), Config{})
	const n = 500
	for i := range n {
		must(t, to.Notify(AllRanks, binary.BigEndian.AppendUint32(nil, uint32(i)), nil))
	}
	for i := range n {
		e, ok := nextEvent(t, sink.Agent).(Notification)
		if !ok || binary.BigEndian.Uint32(e.Data) != uint32(i) {
			t.Fatalf("event %d is %+v", i, e)
		}
	}

	offer, ticket := offerOf(t, source, "r", 16, 0)
	transfer, err := from.StartRead(ReadParams{Ticket: ticket, Blocks: blocksOf(0)})
	must(t, err)
	after := from.Notify(0, []byte("after"), transfer)
	_, err = transfer.Wait(patience(t))
	must(t, err)
	if after != nil { // the transfer was faster
		mustBe(t, after, ErrBadHandle)
		must(t, from.Notify(0, []byte("after"), nil))
	}
	if e, ok := nextEvent(t, source.Agent).(Notification); !ok || string(e.Data) != "after" {
		t.Fatalf("%+v", e)
	}
	must(t, offer.Released(patience(t)))
}

// A cache that takes a while to move, and a way on which nothing moves before the other side has read a message.
func slowPair(t *testing.T) (source, sink rank, from, to Peer, ids []uint32) {
	const blocks = 512
	config := Config{RequireTransport: "host/tcp", HostDisable: SharedMemoryWay | CrossProcessWay}
	source, sink, from, to = newPair(t, testDesc(32, blocks, 64), config) // 134 MB a side
	for id := range uint32(blocks) {
		ids = append(ids, id)
	}
	return source, sink, from, to, ids
}

// awaitBytes waits until the first bytes have come into zeroed memory.
func awaitBytes(t *testing.T, r rank) {
	t.Helper()
	memory := r.memory.Bytes()
	for deadline := patience(t); ; runtime.Gosched() {
		for at := 0; at < len(memory); at += testBlockBytes {
			if memory[at] != 0 {
				return
			}
		}
		must(t, deadline.Err())
	}
}

// mark writes into every block what the source does not have: a byte that comes later is seen, however soon it comes.
func mark(r rank) {
	memory := r.memory.Bytes()
	for at := 0; at < len(memory); at += testBlockBytes {
		memory[at] = 2
	}
}

func mustBeMarked(t *testing.T, r rank) {
	t.Helper()
	memory := r.memory.Bytes()
	for at := 0; at < len(memory); at += testBlockBytes {
		if memory[at] != 2 {
			t.Fatalf("byte %d came after the end", at)
		}
	}
}

func TestCancelledReadTouchesNothingAfterwards(t *testing.T) {
	source, sink, peer, to, ids := slowPair(t)
	memory := source.memory.Bytes()
	for i := range memory {
		memory[i] = 1
	}
	_, ticket := offerOf(t, source, "r", uint64(len(ids)*testBlockTokens), ids...)
	ctx, cancel := context.WithCancel(context.Background())
	transfer, err := peer.StartRead(ReadParams{Ticket: ticket, Blocks: blocksOf(ids...)})
	must(t, err)
	awaitBytes(t, sink)
	cancel()
	result, err := transfer.Wait(ctx)
	mark(sink)
	mustBe(t, err, ErrCancelled)
	mustBe(t, err, context.Canceled)
	mustBe(t, err, ClassTransfer)
	if len(result.Failed) != 1 || len(result.Failed[0]) != len(ids) {
		t.Fatalf("%d lists of failed blocks", len(result.Failed))
	}
	// The same connection brings this message, behind all that was under way.
	must(t, to.Notify(AllRanks, nil, nil))
	nextEvent(t, sink.Agent)
	mustBeMarked(t, sink)
}

func TestAContextThatHasEndedBeginsNothing(t *testing.T) {
	_, sink, from, to := newPair(t, testDesc(testLayers, testBlocks, 8), Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := from.Read(ctx, ReadParams{})
	mustBe(t, err, context.Canceled)
	_, err = to.Write(ctx, WriteParams{})
	mustBe(t, err, context.Canceled)
	_, err = sink.Handshake(ctx, "127.0.0.1:1", Inbound)
	mustBe(t, err, context.Canceled)
}

func TestContextsEndOffersAcceptsWritesAndHandshakes(t *testing.T) {
	source, sink, _, to := newPair(t, testDesc(testLayers, testBlocks, 8), Config{})
	offer, _ := offerOf(t, source, "r", 16, 0)
	accept, err := sink.Accept(AcceptParams{Request: "a", Blocks: blocksOf(1), Tokens: 16})
	must(t, err)
	write, err := to.StartWrite(WriteParams{Request: "nobody accepts this", Blocks: blocksOf(0), TokenTotal: 16, Last: true})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err = offer.Released(ctx)
	mustBe(t, err, ErrCancelled)
	mustBe(t, err, context.DeadlineExceeded)
	_, _, err = accept.Received(ctx)
	mustBe(t, err, ErrCancelled)
	mustBe(t, err, context.DeadlineExceeded)
	_, err = write.Wait(ctx)
	mustBe(t, err, ErrCancelled)
	mustBe(t, err, context.DeadlineExceeded)
	mustBe(t, offer.Cancel(), ErrBadHandle)

	// An agent whose instance is not complete: its handshakes wait.
	layout := newLayoutOf(t, testDesc(testLayers, testBlocks, 8))
	lonely, err := NewAgent(layout, Config{Instance: "lonely", Ranks: 2})
	must(t, err)
	defer func() { must(t, lonely.Close()) }()
	address, err := sink.Address()
	must(t, err)
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = lonely.Handshake(ctx, address, Inbound)
	mustBe(t, err, context.DeadlineExceeded)
	mustBe(t, lonely.Ready(ctx), context.DeadlineExceeded)
}

func TestCloseDuringTransfers(t *testing.T) {
	source, sink, from, _, ids := slowPair(t)
	memory := source.memory.Bytes()
	for i := range memory {
		memory[i] = 1
	}
	var wg sync.WaitGroup
	var ended sync.Once
	for i := range 8 {
		_, ticket := offerOf(t, source, name(i), uint64(len(ids)*testBlockTokens), ids...)
		transfer, err := from.StartRead(ReadParams{Ticket: ticket, Blocks: blocksOf(ids...)})
		must(t, err)
		wg.Go(func() {
			_, err := transfer.Wait(patience(t))
			if !errors.Is(err, ErrClosed) {
				t.Errorf("it ended before: %v", err)
			}
			ended.Do(func() { mark(sink) })
		})
	}
	awaitBytes(t, sink)
	for range 2 {
		wg.Go(func() {
			if err := sink.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustBeMarked(t, sink)

	_, err := sink.Statistics()
	mustBe(t, err, ErrClosed)
	_, err = sink.Accept(AcceptParams{Request: "r", Blocks: blocksOf(0), Tokens: 16})
	mustBe(t, err, ErrClosed)
	_, err = sink.Handshake(patience(t), "127.0.0.1:1", Inbound)
	mustBe(t, err, ErrClosed)
	_, err = from.EffectiveTransport()
	mustBe(t, err, ErrClosed)
	mustBe(t, from.Disconnect(), ErrClosed)
	mustBe(t, from.Notify(0, []byte("x"), nil), ErrClosed)
	mustBe(t, sink.Register(0, sink.memory), ErrClosed)
	mustBe(t, sink.Deregister(0), ErrClosed)
	_, err = sink.Address()
	mustBe(t, err, ErrClosed)
	if _, open := <-sink.Events(); open {
		t.Fatal("the channel of events is open")
	}

	// The source sees the sink as dead: its offers wait for others, and can be withdrawn.
	if e, ok := nextEvent(t, source.Agent).(PeerDown); !ok || !errors.Is(e.Err, ClassPeer) {
		t.Fatalf("%+v", e)
	}
}
