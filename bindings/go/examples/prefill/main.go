// Prefill is a prefill rank: it has the KV cache of requests and lets a decode instance read it, or writes it there.
//
//	prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N] [--transport NAME]
//
// Commands on the standard input:
//
//	offer REQUEST TOKENS BLOCKS    READ mode: prints the ticket that a decode rank reads with
//	connect ADDRESS                WRITE mode: shakes hands with a decode instance
//	write REQUEST TOKENS BLOCKS    WRITE mode: writes layer by layer to that instance
//	quit
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log"

	"kvlink"
	"kvlink/examples/internal/engine"
)

type prefill struct {
	*engine.Engine
	layers uint32
	peer   kvlink.Peer
}

func (p *prefill) offer(request string, tokens uint64, blocks []kvlink.Blocks) {
	begin := engine.Now()
	offer, err := p.Offer(kvlink.OfferParams{Request: request, Blocks: blocks, Tokens: tokens})
	engine.Check(err)
	// The ticket travels with the request, in an HTTP body say: it is opaque, and any text encoding will do.
	ticket, err := offer.Ticket()
	engine.Check(err)
	engine.Say("ticket %s %s", request, hex.EncodeToString(ticket))
	go func() {
		err := offer.Released(context.Background())
		if errors.Is(err, kvlink.ErrClosed) {
			return
		}
		if err != nil {
			log.Printf("offer of %s: %v", request, err)
		}
		engine.Say("released %s status=%d begin=%d end=%d", request, engine.Status(err), begin, engine.Now())
	}()
}

func (p *prefill) write(request string, tokens uint64, blocks []kvlink.Blocks) {
	begin := engine.Now()
	var transfers []*kvlink.Transfer
	for layer := range p.layers {
		// Here a real engine computes the layer and waits until the device has written it.
		params := kvlink.WriteParams{Request: request, Blocks: blocks, TokenTotal: tokens, LayerFirst: layer, LayerCount: 1}
		if params.Last = layer+1 == p.layers; params.Last {
			// What else the decode rank needs to go on: the first sampled token, say.
			params.Aux = fmt.Appendf(nil, "token=%d", tokens*7%32000)
		}
		t, err := p.peer.StartWrite(params)
		engine.Check(err)
		transfers = append(transfers, t)
	}
	go func() {
		var sum kvlink.Result
		var failed error
		for _, t := range transfers {
			result, err := t.Wait(context.Background())
			if errors.Is(err, kvlink.ErrClosed) {
				return
			}
			if err != nil {
				log.Printf("write of %s: %v", request, err)
				failed = errors.Join(failed, err)
			}
			sum.Bytes += result.Bytes
			sum.Spans += result.Spans
		}
		// Only now may the blocks be reused.
		engine.Say("wrote %s status=%d bytes=%d spans=%d begin=%d end=%d", request, engine.Status(failed), sum.Bytes,
			sum.Spans, begin, engine.Now())
	}()
}

func (p *prefill) command(words []string) {
	switch {
	case len(words) == 4 && words[0] == "offer":
		p.offer(words[1], engine.Tokens(words[2]), engine.Blocks(words[3]))
	case len(words) == 2 && words[0] == "connect":
		p.peer = p.Connect(words[1], kvlink.Outbound)
	case len(words) == 4 && words[0] == "write":
		p.write(words[1], engine.Tokens(words[2]), engine.Blocks(words[3]))
	default:
		log.Fatalf("prefill: cannot do %q with %d words", words[0], len(words))
	}
}

func main() {
	options := engine.Parse()
	if options.Layout == "" {
		log.Fatal("usage: prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N]" +
			" [--transport NAME]")
	}
	layout := options.LoadLayout()
	p := &prefill{Engine: engine.Start(options, layout), layers: options.Layers}
	engine.Check(layout.Close())
	engine.Serve(p.command)
	p.Stop()
}
