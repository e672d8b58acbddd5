package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"errors"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Layout is one rank's cache layout. Immutable.
type Layout struct {
	handle  *C.kvlink_layout_t
	closed  atomic.Bool
	cleanup runtime.Cleanup
}

// NewLayout makes a layout from a description. ErrInvalidLayout lists all contradictions.
func NewLayout(desc LayoutDesc) (*Layout, error) {
	p := pins{call: "kvlink_layout_create"}
	defer p.release()
	c := p.layout(&desc)
	if p.err != nil {
		return nil, p.err
	}
	var handle *C.kvlink_layout_t
	r := C.go_kvlink_layout_create(c, &handle)
	return newLayout(handle, check(p.call, r))
}

// LayoutFromJSON makes a layout from JSON: a complete description, or a model geometry with a placement (docs/layout.md).
func LayoutFromJSON(json []byte) (*Layout, error) {
	var handle *C.kvlink_layout_t
	at := (*C.char)(unsafe.Pointer(unsafe.SliceData(json)))
	r := C.go_kvlink_layout_from_json(at, C.size_t(len(json)), &handle)
	return newLayout(handle, check("kvlink_layout_from_json", r))
}

func newLayout(handle *C.kvlink_layout_t, err error) (*Layout, error) {
	if err != nil {
		return nil, err
	}
	l := &Layout{handle: handle}
	l.cleanup = runtime.AddCleanup(l, func(h *C.kvlink_layout_t) { _ = check("kvlink_layout_destroy", C.go_kvlink_layout_destroy(h)) }, handle)
	return l, nil
}

// Close destroys the layout; agents and plans made from it keep what they need. A second Close does nothing.
// The collector does the same later for a layout that was forgotten.
func (l *Layout) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return nil
	}
	l.cleanup.Stop()
	defer runtime.KeepAlive(l)
	return check("kvlink_layout_destroy", C.go_kvlink_layout_destroy(l.handle))
}

// JSON is the complete description of the layout: what kvlink understood.
func (l *Layout) JSON() (string, error) {
	defer runtime.KeepAlive(l)
	return text("kvlink_layout_explain", func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_layout_explain(l.handle, buf, cap, n)
	})
}

// Regions gives the bytes that each region needs.
func (l *Layout) Regions() ([]uint64, error) {
	defer runtime.KeepAlive(l)
	return list("kvlink_layout_regions", make([]uint64, 8), func(at *uint64, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_layout_regions(l.handle, (*C.uint64_t)(at), cap, n)
	})
}

// Groups gives kind, size and reach of each group.
func (l *Layout) Groups() ([]Group, error) {
	defer runtime.KeepAlive(l)
	c, err := list("kvlink_layout_groups", make([]C.kvlink_group_t, 8),
		func(at *C.kvlink_group_t, cap C.size_t, n *C.size_t) C.go_result {
			return C.go_kvlink_layout_groups(l.handle, at, cap, n)
		})
	groups := make([]Group, len(c))
	for i := range c {
		groups[i] = groupOf(&c[i])
	}
	return groups, err
}

// Finding is one incompatibility of two sides.
type Finding struct {
	Subject     string // the thing: "layer 3 state"
	Field       string // its field: "dtype"
	Destination string // the destination's value
	Source      string // the source's value
}

// CheckLayouts says whether destination rank `rank` can get its cache from the source instance; both sides are the
// layouts of all ranks of an instance. With ErrIncompatible come the findings.
func CheckLayouts(sources, destinations []*Layout, rank uint32) ([]Finding, error) {
	defer runtime.KeepAlive(sources)
	defer runtime.KeepAlive(destinations)
	const call = "kvlink_layout_check"
	s, d := handles(sources), handles(destinations)
	for c := make([]C.kvlink_finding_t, 16); ; {
		var n C.size_t
		err := check(call, C.go_kvlink_layout_check(unsafe.SliceData(s), C.size_t(len(s)), unsafe.SliceData(d),
			C.size_t(len(d)), C.uint32_t(rank), &c[0], C.size_t(len(c)), &n))
		if !errors.Is(err, ErrIncompatible) {
			return nil, err
		}
		if int(n) > len(c) {
			c = make([]C.kvlink_finding_t, n)
			continue
		}
		out := make([]Finding, n)
		for i := range out {
			f := &c[i]
			out[i] = Finding{fixed(f.subject[:]), fixed(f.field[:]), fixed(f.destination[:]), fixed(f.source[:])}
		}
		return out, err
	}
}

// handles has NULL for a nil layout, which the library refuses.
func handles(layouts []*Layout) []*C.kvlink_layout_t {
	out := make([]*C.kvlink_layout_t, len(layouts))
	for i, l := range layouts {
		if l != nil {
			out[i] = l.handle
		}
	}
	return out
}
