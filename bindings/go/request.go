package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"time"
	"unsafe"
)

// Offer is a request whose blocks others may read, under a lease.
type Offer struct{ *op }

// Accept is a request whose data others may write.
type Accept struct{ *op }

// OfferParams says what a source offers.
type OfferParams struct {
	Request string        // 1 to 255 bytes, unique among the agent's offers
	Blocks  []Blocks      // one list per group
	Tokens  uint64        // of the request
	Lease   time.Duration // 0: the agent's default
}

// AcceptParams says what a sink accepts.
type AcceptParams struct {
	Request    string        // 1 to 255 bytes, unique among the agent's accepts
	Blocks     []Blocks      // where the data goes, one list per group
	TokenBegin uint64        // what lies before is here already
	Tokens     uint64        // of the whole request
	Timeout    time.Duration // 0: the agent's default
}

// Offer offers a request's blocks. Every rank of the source instance offers its own.
func (a *Agent) Offer(params OfferParams) (*Offer, error) {
	pin := pins{call: "kvlink_offer"}
	defer pin.release()
	var c C.kvlink_offer_t = pin.offer(params)
	if pin.err != nil {
		return nil, pin.err
	}
	o, err := a.begin(pin.call, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		c.user_data = token
		return C.go_kvlink_offer(a.handle, &c, id)
	})
	if err != nil {
		return nil, err
	}
	return &Offer{o}, nil
}

func (p *pins) offer(params OfferParams) C.kvlink_offer_t {
	return C.kvlink_offer_t{
		struct_size: C.sizeof_kvlink_offer_t,
		lease_ms:    p.millis("lease", params.Lease),
		request:     p.text("request", params.Request),
		blocks:      p.blocks(params.Blocks),
		num_blocks:  C.size_t(len(params.Blocks)),
		tokens:      C.uint64_t(params.Tokens),
	}
}

// Ticket is a ticket of no request, from which WriteTicket makes others.
func (a *Agent) Ticket() ([]byte, error) { return a.ticket(0) }

func (a *Agent) ticket(offer uint64) ([]byte, error) {
	ticket, err := list("kvlink_ticket", make([]byte, 512), func(at *byte, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_ticket(a.handle, C.uint64_t(offer), unsafe.Pointer(at), cap, n)
	})
	return ticket, a.reason(err)
}

// WriteTicket writes the ticket of an offer that another process makes, for a scheduler whose workers have the agents.
// It is like another ticket of the source, and the ranks make the offer before it is used, as the first one of its request.
func WriteTicket(like []byte, params OfferParams) ([]byte, error) {
	pin := pins{call: "kvlink_ticket_write"}
	defer pin.release()
	c := pin.offer(params)
	if pin.err != nil {
		return nil, pin.err
	}
	return list(pin.call, make([]byte, 512), func(at *byte, cap C.size_t, n *C.size_t) C.go_result {
		from := unsafe.Pointer(unsafe.SliceData(like))
		return C.go_kvlink_ticket_write(from, C.size_t(len(like)), &c, unsafe.Pointer(at), cap, n)
	})
}

// Ticket is what a sink needs to read the offer: opaque bytes. One ticket serves all ranks of both instances if the block
// ids are the same on all ranks of the source.
func (o *Offer) Ticket() ([]byte, error) { return o.agent.ticket(o.id) }

// Released waits until the blocks may be reused. Without an error all consumers have the data; with ErrLeaseExpired or
// ErrCancelled those that had not finished are told that their data is stale.
// If the context ends, the offer is withdrawn and its end awaited. To wait without that, use Done.
func (o *Offer) Released(ctx context.Context) error { return o.wait(ctx) }

// Accept accepts a request's data into this rank's blocks. Every rank of the destination instance accepts its own.
func (a *Agent) Accept(params AcceptParams) (*Accept, error) {
	pin := pins{call: "kvlink_accept"}
	defer pin.release()
	c := C.kvlink_accept_t{
		struct_size: C.sizeof_kvlink_accept_t,
		timeout_ms:  pin.millis("timeout", params.Timeout),
		request:     pin.text("request", params.Request),
		blocks:      pin.blocks(params.Blocks),
		num_blocks:  C.size_t(len(params.Blocks)),
		token_begin: C.uint64_t(params.TokenBegin),
		tokens:      C.uint64_t(params.Tokens),
	}
	if pin.err != nil {
		return nil, pin.err
	}
	o, err := a.begin(pin.call, func(token C.uint64_t, id *C.uint64_t) C.go_result {
		c.user_data = token
		return C.go_kvlink_accept(a.handle, &c, id)
	})
	if err != nil {
		return nil, err
	}
	return &Accept{o}, nil
}

// Received waits until the last byte of all source ranks is here, or never will be; then nothing writes to the blocks any
// more. Without an error all of it is here, and aux is the side payload of the last write.
// If the context ends, the accept is cancelled and its end awaited. To wait without that, use Done.
func (c *Accept) Received(ctx context.Context) (result Result, aux []byte, err error) {
	if err := c.wait(ctx); err != nil {
		return Result{}, nil, err
	}
	return Result{Bytes: c.event.bytes, Spans: c.event.spans}, c.event.payload, nil
}

// TicketInfo is what a ticket says.
type TicketInfo struct {
	Rank        uint32 // that issued it
	Incarnation uint64 // the process that issued it
	Tokens      uint64 // offered
	Address     string // for a handshake with the source
	Instance    string // of the source
	Request     string
}

// ParseTicket says what a ticket contains, without an agent.
func ParseTicket(ticket []byte) (TicketInfo, error) {
	var c C.kvlink_ticket_info_t
	c.struct_size = C.sizeof_kvlink_ticket_info_t
	r := C.go_kvlink_ticket_info(unsafe.Pointer(unsafe.SliceData(ticket)), C.size_t(len(ticket)), &c)
	if err := check("kvlink_ticket_info", r); err != nil {
		return TicketInfo{}, err
	}
	return TicketInfo{
		Rank:        uint32(c.rank),
		Incarnation: uint64(c.incarnation),
		Tokens:      uint64(c.tokens),
		Address:     fixed(c.address[:]),
		Instance:    fixed(c.instance[:]),
		Request:     fixed(c.request[:]),
	}, nil
}
