package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"math"
	"runtime"
	"strings"
	"time"
	"unsafe"
)

// pins holds what a struct for C points to, for the time of one call: the library copies it and keeps no pointer.
type pins struct {
	pinner runtime.Pinner
	call   string
	err    error
}

func (p *pins) release() { p.pinner.Unpin() }

// text is a NUL-terminated copy; NULL for "".
func (p *pins) text(name, s string) *C.char {
	if s == "" {
		return nil
	}
	if at := strings.IndexByte(s, 0); at >= 0 && p.err == nil {
		p.err = invalid(p.call, "%s %q has a NUL at byte %d", name, s, at)
	}
	b := append(make([]byte, 0, len(s)+1), s...)
	return (*C.char)(unsafe.Pointer(pin(p, append(b, 0))))
}

// millis rounds up: the library counts whole milliseconds.
func (p *pins) millis(name string, d time.Duration) C.uint32_t {
	ms := d.Milliseconds()
	if d%time.Millisecond > 0 {
		ms++
	}
	if (d < 0 || ms > math.MaxUint32) && p.err == nil {
		p.err = invalid(p.call, "%s is %v, not between 0 and %d ms", name, d, uint32(math.MaxUint32))
	}
	return C.uint32_t(ms)
}

func (p *pins) u32(s []uint32) *C.uint32_t { return (*C.uint32_t)(unsafe.Pointer(pin(p, s))) }

func (p *pins) u64(s []uint64) *C.uint64_t { return (*C.uint64_t)(unsafe.Pointer(pin(p, s))) }

func (p *pins) bytes(s []byte) unsafe.Pointer { return unsafe.Pointer(pin(p, s)) }

// pin is the first element of s, which stays where it is until release; NULL for an empty list.
func pin[T any](p *pins, s []T) *T {
	if len(s) == 0 {
		return nil
	}
	p.pinner.Pin(&s[0])
	return &s[0]
}

// convert makes a list of C's structs.
func convert[G, T any](p *pins, from []G, to func(*G) T) *T {
	if len(from) == 0 {
		return nil
	}
	out := make([]T, len(from))
	for i := range from {
		out[i] = to(&from[i])
	}
	return pin(p, out)
}

// Blocks are the blocks of one group of one request.
type Blocks struct {
	// IDs by position; NoBlock is a hole. State groups: slot ids.
	IDs []uint32
	// First is the block position of the first id: the list begins at token First * block tokens of this rank.
	First uint64
}

func (p *pins) blocks(lists []Blocks) *C.kvlink_blocks_t {
	return convert(p, lists, func(b *Blocks) C.kvlink_blocks_t {
		return C.kvlink_blocks_t{ids: p.u32(b.IDs), count: C.size_t(len(b.IDs)), first: C.uint64_t(b.First)}
	})
}
