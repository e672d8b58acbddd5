package kvlink

/*
#cgo noescape go_kvlink_plan_expand
#cgo nocallback go_kvlink_plan_expand
#include "shim.h"
*/
import "C"

import (
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe"
)

// Plan is a compiled and proven plan of one rank pair. Immutable.
type Plan struct {
	handle  *C.kvlink_plan_t
	closed  atomic.Bool
	cleanup runtime.Cleanup
}

// NewPlan compiles and proves what destination rank `destination` takes from source rank `source`; both sides are the
// layouts of all ranks of an instance. If the two ranks have nothing to exchange, the plan is Empty.
func NewPlan(sources, destinations []*Layout, source, destination uint32) (*Plan, error) {
	defer runtime.KeepAlive(sources)
	defer runtime.KeepAlive(destinations)
	s, d := handles(sources), handles(destinations)
	var handle *C.kvlink_plan_t
	r := C.go_kvlink_plan_create(unsafe.SliceData(s), C.size_t(len(s)), unsafe.SliceData(d), C.size_t(len(d)),
		C.uint32_t(source), C.uint32_t(destination), &handle)
	if err := check("kvlink_plan_create", r); err != nil {
		return nil, err
	}
	p := &Plan{handle: handle}
	if handle != nil {
		p.cleanup = runtime.AddCleanup(p, func(h *C.kvlink_plan_t) { _ = check("kvlink_plan_destroy", C.go_kvlink_plan_destroy(h)) }, handle)
	}
	return p, nil
}

// Close destroys the plan; a second Close does nothing. The collector does the same later for a plan that was forgotten.
func (p *Plan) Close() error {
	if !p.closed.CompareAndSwap(false, true) {
		return nil
	}
	p.cleanup.Stop()
	defer runtime.KeepAlive(p)
	return check("kvlink_plan_destroy", C.go_kvlink_plan_destroy(p.handle))
}

// Empty says that the two ranks have nothing to exchange.
func (p *Plan) Empty() bool { return p.handle == nil }

// Explain is a text that says what the plan does: ranks, average run, whether its runs should be packed and why.
func (p *Plan) Explain() (string, error) {
	defer runtime.KeepAlive(p)
	if p.Empty() {
		return "nothing to exchange", nil
	}
	return text("kvlink_plan_explain", func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_plan_explain(p.handle, buf, cap, n)
	})
}

// PlanRequest says what to expand. Block lists have one entry per group of the layout.
type PlanRequest struct {
	LayerFirst        uint32
	LayerCount        uint32 // 0: all
	TokenBegin        uint64
	TokenEnd          uint64 // 0: TokenTotal
	TokenTotal        uint64 // tokens of the whole request; state is moved if TokenEnd is TokenTotal
	SourceBlocks      []Blocks
	DestinationBlocks []Blocks
}

// Span is one contiguous copy. It has the form of the C struct, so that spans are written in place.
type Span struct {
	SrcOffset uint64
	DstOffset uint64
	Len       uint64
	SrcRegion uint32
	DstRegion uint32
}

// A compile-time proof: an array of negative length does not compile.
var (
	_ [unsafe.Sizeof(Span{}) - C.sizeof_kvlink_span_t]struct{}
	_ [C.sizeof_kvlink_span_t - unsafe.Sizeof(Span{})]struct{}
)

// AppendSpans expands a request into spans, merged where neighbours touch on both sides, and appends them to dst: give
// it back its last result, cut to length 0, and nothing is allocated for spans.
func (p *Plan) AppendSpans(dst []Span, request PlanRequest) ([]Span, error) {
	defer runtime.KeepAlive(p)
	if p.Empty() {
		return dst, nil
	}
	pin := pins{call: "kvlink_plan_expand"}
	defer pin.release()
	c := C.kvlink_plan_request_t{
		struct_size:            C.sizeof_kvlink_plan_request_t,
		layer_first:            C.uint32_t(request.LayerFirst),
		layer_count:            C.uint32_t(request.LayerCount),
		token_begin:            C.uint64_t(request.TokenBegin),
		token_end:              C.uint64_t(request.TokenEnd),
		token_total:            C.uint64_t(request.TokenTotal),
		source_blocks:          pin.blocks(request.SourceBlocks),
		num_source_blocks:      C.size_t(len(request.SourceBlocks)),
		destination_blocks:     pin.blocks(request.DestinationBlocks),
		num_destination_blocks: C.size_t(len(request.DestinationBlocks)),
	}
	for dst = slices.Grow(dst, 1); ; {
		room := dst[len(dst):cap(dst)]
		var n C.size_t
		at := (*C.kvlink_span_t)(unsafe.Pointer(&room[:1][0]))
		err := check(pin.call, C.go_kvlink_plan_expand(p.handle, &c, at, C.size_t(cap(room)), &n))
		if err == nil {
			return dst[:len(dst)+int(n)], nil
		}
		if !errors.Is(err, ErrBufferTooSmall) {
			return dst, err
		}
		dst = slices.Grow(dst, int(n))
	}
}
