package kvlink

/*
#include "shim.h"
*/
import "C"

// Status says why a call or an operation failed. It is an error: errors.Is(err, kvlink.ErrPeerDead).
// docs/errors.md says what to do about each.
type Status int32

// Statuses. The library may know more; judge an unknown one by its Class.
const (
	OK Status = C.KVLINK_OK

	ErrInvalidArgument Status = C.KVLINK_E_INVALID_ARGUMENT
	ErrNullPointer     Status = C.KVLINK_E_NULL_POINTER
	ErrStructSize      Status = C.KVLINK_E_STRUCT_SIZE
	ErrUnknownEnum     Status = C.KVLINK_E_UNKNOWN_ENUM
	ErrBadHandle       Status = C.KVLINK_E_BAD_HANDLE
	ErrInvalidLayout   Status = C.KVLINK_E_INVALID_LAYOUT
	ErrInvalidBlocks   Status = C.KVLINK_E_INVALID_BLOCKS
	ErrLimit           Status = C.KVLINK_E_LIMIT
	ErrBufferTooSmall  Status = C.KVLINK_E_BUFFER_TOO_SMALL
	ErrWrongState      Status = C.KVLINK_E_WRONG_STATE
	ErrInvalidTicket   Status = C.KVLINK_E_INVALID_TICKET
	ErrDuplicate       Status = C.KVLINK_E_DUPLICATE

	ErrNoMemory             Status = C.KVLINK_E_NO_MEMORY
	ErrSystem               Status = C.KVLINK_E_SYSTEM
	ErrPermission           Status = C.KVLINK_E_PERMISSION
	ErrTransportUnavailable Status = C.KVLINK_E_TRANSPORT_UNAVAILABLE
	ErrAddress              Status = C.KVLINK_E_ADDRESS

	ErrUnreachable  Status = C.KVLINK_E_UNREACHABLE
	ErrPeerDead     Status = C.KVLINK_E_PEER_DEAD
	ErrIncompatible Status = C.KVLINK_E_INCOMPATIBLE
	ErrVersion      Status = C.KVLINK_E_VERSION
	ErrProtocol     Status = C.KVLINK_E_PROTOCOL
	ErrIncarnation  Status = C.KVLINK_E_INCARNATION
	ErrRefused      Status = C.KVLINK_E_REFUSED

	ErrCancelled      Status = C.KVLINK_E_CANCELLED
	ErrDeadline       Status = C.KVLINK_E_DEADLINE
	ErrLeaseExpired   Status = C.KVLINK_E_LEASE_EXPIRED
	ErrUnknownRequest Status = C.KVLINK_E_UNKNOWN_REQUEST
	ErrIncomplete     Status = C.KVLINK_E_INCOMPLETE
	ErrQuarantined    Status = C.KVLINK_E_QUARANTINED

	ErrBackend  Status = C.KVLINK_E_BACKEND
	ErrInternal Status = C.KVLINK_E_INTERNAL
	ErrPoisoned Status = C.KVLINK_E_POISONED
)

// Error is the status's constant text: "lease expired".
func (s Status) Error() string { return C.GoString(C.kvlink_status_text(C.int32_t(s))) }

// Class is the class of the status, 0 for OK and for values outside of all ranges.
func (s Status) Class() Class {
	if s >= 0 || s <= -600 {
		return 0
	}
	return Class(-s/100) + 1
}

// Is makes errors.Is(err, kvlink.ClassPeer) true for every status of that class.
func (s Status) Is(target error) bool {
	c, ok := target.(Class)
	return ok && c != 0 && c == s.Class()
}

// Class says what must be repaired. It is an error for errors.Is only.
type Class int32

// Classes.
const (
	// ClassCall: this call; the program is wrong, or an object has ended meanwhile.
	ClassCall Class = iota + 1
	// ClassHost: this host's memory, descriptors, rights or addresses.
	ClassHost
	// ClassPeer: the peer is gone, other, or incompatible.
	ClassPeer
	// ClassTransfer: this transfer; everything else goes on.
	ClassTransfer
	// ClassBackend: a third-party library below a transport.
	ClassBackend
	// ClassDefect: kvlink itself.
	ClassDefect
)

func (c Class) Error() string {
	names := [...]string{"no failure", "wrong call", "failure of this host", "failure of the peer", "failed transfer",
		"failure of a backend", "defect of kvlink"}
	if c < 0 || int(c) >= len(names) {
		return "unknown class"
	}
	return names[c]
}
