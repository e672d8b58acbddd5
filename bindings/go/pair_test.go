package kvlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A small cache: 4 layers in one region, 8 blocks of 16 tokens.
const (
	testLayers      = 4
	testBlocks      = 8
	testBlockTokens = 16
	testBlockBytes  = 2 * testBlockTokens * (8 + 8) * 2
	testBytes       = testLayers * testBlocks * testBlockBytes
)

func testDesc(layers, blocks uint32, dim uint64) LayoutDesc {
	ids := make([]uint32, layers)
	for i := range ids {
		ids[i] = uint32(i)
	}
	block := 2 * testBlockTokens * 2 * dim * 2
	return LayoutDesc{
		Model:       "test",
		RegionBytes: []uint64{uint64(layers) * uint64(blocks) * block},
		Groups:      []Group{{Kind: Paged, BlockTokens: testBlockTokens, NumBlocks: blocks}},
		Attention: []Attention{{
			Layers: ids, Order: "LBHNC", Heads: 2, NumHeads: 2, KeyDim: dim, ValueDim: dim, DType: BF16,
		}},
	}
}

// rank is an agent with its memory.
type rank struct {
	*Agent
	memory *SharedMemory
}

func newLayoutOf(t testing.TB, desc LayoutDesc) *Layout {
	t.Helper()
	l, err := NewLayout(desc)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

func newRank(t testing.TB, desc LayoutDesc, config Config) rank {
	t.Helper()
	a, err := NewAgent(newLayoutOf(t, desc), config)
	must(t, err)
	m, err := NewSharedMemory(int(desc.RegionBytes[0]))
	must(t, err)
	t.Cleanup(func() {
		must(t, a.Close())
		must(t, m.Close())
	})
	must(t, a.Register(0, m))
	must(t, a.Ready(patience(t)))
	return rank{a, m}
}

// newPair is a source and a sink, and the sink's and the source's view of the other.
func newPair(t testing.TB, desc LayoutDesc, config Config) (source, sink rank, from, to Peer) {
	t.Helper()
	config.Instance = "source"
	source = newRank(t, desc, config)
	config.Instance = "sink"
	sink = newRank(t, desc, config)
	return source, sink, connect(t, sink, source, Inbound), connect(t, source, sink, Outbound)
}

func connect(t testing.TB, from, to rank, direction Direction) Peer {
	t.Helper()
	address, err := to.Address()
	must(t, err)
	p, err := from.Handshake(patience(t), address, direction)
	must(t, err)
	return p
}

// patience bounds a wait that must end; it decides nothing else.
func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

// fill writes bytes that differ from block to block and layer to layer.
func fill(memory []byte) {
	for i := range memory {
		memory[i] = byte(i*7 + i/testBlockBytes*13 + 1)
	}
}

// block is the bytes of a block in a layer of the test cache.
func block(memory []byte, layer, id int) []byte {
	at := (layer*testBlocks + id) * testBlockBytes
	return memory[at : at+testBlockBytes]
}

// sameBlocks checks all layers: the sink's blocks have the source's bytes, all others are zero.
func sameBlocks(t testing.TB, source, sink rank, from, to []uint32) {
	t.Helper()
	src, dst := source.memory.Bytes(), sink.memory.Bytes()
	for layer := range testLayers {
		want := make(map[int][]byte)
		for i := range to {
			want[int(to[i])] = block(src, layer, int(from[i]))
		}
		for id := range testBlocks {
			if want[id] == nil {
				want[id] = make([]byte, testBlockBytes)
			}
			if !bytes.Equal(block(dst, layer, id), want[id]) {
				t.Fatalf("layer %d block %d has other bytes than expected", layer, id)
			}
		}
	}
}

func blocksOf(ids ...uint32) []Blocks { return []Blocks{{IDs: ids}} }

func offerOf(t testing.TB, r rank, request string, tokens uint64, ids ...uint32) (*Offer, []byte) {
	t.Helper()
	o, err := r.Offer(OfferParams{Request: request, Blocks: blocksOf(ids...), Tokens: tokens})
	must(t, err)
	ticket, err := o.Ticket()
	must(t, err)
	return o, ticket
}

func nextEvent(t testing.TB, a *Agent) Event {
	t.Helper()
	select {
	case e, ok := <-a.Events():
		if !ok {
			t.Fatal("the agent has ended")
		}
		return e
	case <-patience(t).Done():
		t.Fatal("no event")
	}
	return nil
}

func name(i int) string { return fmt.Sprintf("request-%d", i) }
