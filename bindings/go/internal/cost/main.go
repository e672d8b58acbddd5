// Cost prints what a call from Go costs, in nanoseconds, each the median over batches:
//
//	call NS      statistics of an idle agent
//	poll NS      one poll that finds no event
//	blocks NS    expansion of a request of 4,096 consecutive blocks on both sides, from []uint32 into one span
package main

import (
	"fmt"
	"log"
	"slices"
	"time"

	"kvlink"
	"kvlink/internal/hook"
)

const (
	batches   = 101
	numBlocks = 4096
	tokens    = 16
	heads     = 8
	dim       = 64
	blockSize = heads * tokens * (dim + dim) * 2
)

func median(name string, runs int, run func() error) {
	times := make([]float64, batches)
	for i := range times {
		begin := time.Now()
		for range runs {
			check(run())
		}
		times[i] = float64(time.Since(begin).Nanoseconds()) / float64(runs)
	}
	slices.Sort(times)
	fmt.Printf("%s %.1f\n", name, times[batches/2])
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	layout, err := kvlink.NewLayout(kvlink.LayoutDesc{
		RegionBytes: []uint64{numBlocks * blockSize},
		Groups:      []kvlink.Group{{Kind: kvlink.Paged, BlockTokens: tokens, NumBlocks: numBlocks}},
		Attention: []kvlink.Attention{{
			Layers: []uint32{0}, Order: "LBHNC", Heads: heads, NumHeads: heads, KeyDim: dim, ValueDim: dim, DType: kvlink.BF16,
		}},
	})
	check(err)
	agent, err := kvlink.NewAgent(layout, kvlink.Config{Instance: "cost"})
	check(err)
	median("call", 1000, func() error {
		_, err := agent.Statistics()
		return err
	})
	median("poll", 1000, func() error { return hook.Poll(agent) })
	check(agent.Close())

	layouts := []*kvlink.Layout{layout}
	plan, err := kvlink.NewPlan(layouts, layouts, 0, 0)
	check(err)
	ids := make([]uint32, numBlocks)
	for i := range ids {
		ids[i] = uint32(i)
	}
	lists := []kvlink.Blocks{{IDs: ids}}
	request := kvlink.PlanRequest{TokenTotal: numBlocks * tokens, SourceBlocks: lists, DestinationBlocks: lists}
	var spans []kvlink.Span
	median("blocks", 100, func() error {
		spans, err = plan.AppendSpans(spans[:0], request)
		return err
	})
	if len(spans) != 1 || spans[0].Len != numBlocks*blockSize {
		log.Fatalf("expected one span of %d bytes, got %v", numBlocks*blockSize, spans)
	}
	check(plan.Close())
	check(layout.Close())
}
