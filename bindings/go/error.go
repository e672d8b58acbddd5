package kvlink

/*
#include "shim.h"
#include <stdlib.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"
)

// ErrClosed is the error of calls on an agent that was closed, and of what was under way then.
var ErrClosed = errors.New("kvlink: the agent is closed")

// Error is a call or an operation that failed.
type Error struct {
	// Call is the function of the C API that failed or began what failed.
	Call string
	// Status says why; errors.Is finds it and its class.
	Status Status
	// Message names the thing that was wrong and both values.
	Message string

	cause error
}

func (e *Error) Error() string {
	s, status := e.Call+": ", e.Status.Error()
	switch {
	case e.Message == "":
		s += status
	case strings.HasPrefix(e.Message, status): // a call's message begins with it, an event's does not
		s += e.Message
	default:
		s += status + ": " + e.Message
	}
	if e.cause != nil {
		s += " (" + e.cause.Error() + ")"
	}
	return s
}

// Unwrap gives the status and, if a context ended the operation, the context's error.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Status}
	}
	return []error{e.Status, e.cause}
}

// check turns the result of a call into an error.
func check(call string, r C.go_result) error {
	if r.status == C.KVLINK_OK {
		return nil
	}
	e := &Error{Call: call, Status: Status(r.status)}
	if r.text != nil {
		e.Message = C.GoString(r.text)
		C.free(unsafe.Pointer(r.text))
	}
	return e
}

func invalid(call, format string, args ...any) error {
	return &Error{Call: call, Status: ErrInvalidArgument, Message: fmt.Sprintf(format, args...)}
}

// text makes a Go string of a call that copies a text: it asks again with more room where the first guess was too small.
func text(call string, fill func(buf *C.char, cap C.size_t, len *C.size_t) C.go_result) (string, error) {
	for buf := make([]byte, 256); ; {
		var n C.size_t
		err := check(call, fill((*C.char)(unsafe.Pointer(&buf[0])), C.size_t(len(buf)), &n))
		if err == nil {
			return string(buf[:n]), nil
		}
		if !errors.Is(err, ErrBufferTooSmall) {
			return "", err
		}
		buf = make([]byte, n+1)
	}
}

// list does the same for a call that copies elements.
func list[T any](call string, out []T, fill func(at *T, cap C.size_t, n *C.size_t) C.go_result) ([]T, error) {
	for {
		var n C.size_t
		err := check(call, fill(unsafe.SliceData(out), C.size_t(len(out)), &n))
		if err == nil {
			return out[:n], nil
		}
		if !errors.Is(err, ErrBufferTooSmall) {
			return nil, err
		}
		out = make([]T, n)
	}
}

// fixed reads a NUL-terminated text of a fixed array.
func fixed(array []C.char) string {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(array))), len(array))
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
