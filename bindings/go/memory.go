package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"sync"
	"unsafe"
)

// SharedMemory is zeroed memory that kvlink peers on this host can map: the fastest path between processes.
//
// It lives until Close; the collector never frees it, because slices of it do not keep it alive.
type SharedMemory struct {
	mu sync.Mutex
	at unsafe.Pointer // nil: freed
	n  int
}

// NewSharedMemory allocates n bytes.
func NewSharedMemory(n int) (*SharedMemory, error) {
	const call = "kvlink_shared_alloc"
	if n < 0 {
		return nil, invalid(call, "%d bytes", n)
	}
	var at unsafe.Pointer
	if err := check(call, C.go_kvlink_shared_alloc(C.size_t(n), &at)); err != nil {
		return nil, err
	}
	return &SharedMemory{at: at, n: n}, nil
}

// Bytes is the memory, nil after Close. The slice must not be used after Close.
func (m *SharedMemory) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		return nil
	}
	return unsafe.Slice((*byte)(m.at), m.n)
}

// Close frees the memory once no region uses it; a second Close does nothing.
func (m *SharedMemory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		return nil
	}
	at := m.at
	m.at = nil
	return check("kvlink_shared_free", C.go_kvlink_shared_free(at))
}
