// Decode is a decode rank: it fetches the KV cache of requests from a prefill instance, or has it written into its blocks.
//
//	decode [--layout FILE] [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--transport NAME]
//
// Without --layout it describes a small hybrid model by hand; see layoutByHand.
//
// Commands on the standard input:
//
//	connect ADDRESS                 READ mode: shakes hands with a prefill instance
//	read REQUEST TICKET BLOCKS      READ mode: fetches an offered request
//	accept REQUEST TOKENS BLOCKS    WRITE mode: names the blocks that a prefill instance writes to
//	quit
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"log"

	"kvlink"
	"kvlink/examples/internal/engine"
)

type decode struct {
	*engine.Engine
	peer kvlink.Peer
}

func (d *decode) read(request, ticket string, blocks []kvlink.Blocks) {
	bytes, err := hex.DecodeString(ticket)
	engine.Check(err)
	begin := engine.Now()
	transfer, err := d.peer.StartRead(kvlink.ReadParams{Ticket: bytes, Blocks: blocks})
	engine.Check(err)
	go func() {
		result, err := transfer.Wait(context.Background())
		// The blocks that a failed read left without valid data: just those must be recomputed.
		for group, ids := range result.Failed {
			log.Printf("  group %d: %d blocks are not valid", group, len(ids))
		}
		report(request, begin, result, nil, err)
	}()
}

func (d *decode) accept(request string, tokens uint64, blocks []kvlink.Blocks) {
	begin := engine.Now()
	accept, err := d.Accept(kvlink.AcceptParams{Request: request, Blocks: blocks, Tokens: tokens})
	engine.Check(err)
	engine.Say("accepted %s", request)
	go func() {
		result, aux, err := accept.Received(context.Background())
		report(request, begin, result, aux, err)
	}()
}

// report: from here on the model may decode; all bytes are in place, and nothing writes to the blocks any more.
func report(request string, begin int64, result kvlink.Result, aux []byte, err error) {
	end := engine.Now()
	if errors.Is(err, kvlink.ErrClosed) {
		return
	}
	if err != nil {
		log.Printf("request %s: %v", request, err)
	}
	engine.Say("received %s status=%d bytes=%d spans=%d begin=%d end=%d aux=%s", request, engine.Status(err),
		result.Bytes, result.Spans, begin, end, aux)
}

func (d *decode) command(words []string) {
	switch {
	case len(words) == 2 && words[0] == "connect":
		d.peer = d.Connect(words[1], kvlink.Inbound)
	case len(words) == 4 && words[0] == "read":
		d.read(words[1], words[2], engine.Blocks(words[3]))
	case len(words) == 4 && words[0] == "accept":
		d.accept(words[1], engine.Tokens(words[2]), engine.Blocks(words[3]))
	default:
		log.Fatalf("decode: cannot do %q with %d words", words[0], len(words))
	}
}

func main() {
	options := engine.Parse()
	var layout *kvlink.Layout
	if options.Layout == "" {
		layout = layoutByHand(options)
	} else {
		layout = options.LoadLayout()
	}
	d := &decode{Engine: engine.Start(options, layout)}
	engine.Check(layout.Close())
	engine.Serve(d.command)
	d.Stop()
}
