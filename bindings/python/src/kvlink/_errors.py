"""Exceptions: a class per range of statuses, and one for each status that programs tell apart."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from ._abi import Status
from ._library import lib

if TYPE_CHECKING:
    from ._layout import Finding


class Error(Exception):
    """Anything that kvlink reports; `status` says what, the text names the thing and both values."""

    default = Status.INTERNAL

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        #: A `Status`, or the plain number where the library is newer than the package.
        self.status: int = self.default if status is None else status

    def __str__(self) -> str:
        return f"{status_text(self.status)}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.status)


class CallError(Error):
    """This call is wrong, or an object has ended meanwhile (-1 to -99)."""

    default = Status.INVALID_ARGUMENT


class HostError(Error):
    """Something of this host must be repaired (-100 to -199)."""

    default = Status.SYSTEM


class PeerError(Error):
    """The peer is gone, other, or incompatible (-200 to -299)."""

    default = Status.PROTOCOL


class TransferError(Error):
    """This transfer ended without success; everything else goes on (-300 to -399)."""

    default = Status.INCOMPLETE


class BackendError(Error):
    """A third-party library below a transport failed (-400 to -499)."""

    default = Status.BACKEND


class InternalError(Error):
    """A defect of kvlink (-500 to -599)."""


class InvalidArgument(CallError, ValueError):
    """An argument has a value that it cannot have."""


class BadHandle(CallError):
    """A handle or id that was closed, has ended, or belongs to another object."""

    default = Status.BAD_HANDLE


class InvalidLayout(CallError, ValueError):
    """A layout contradicts itself, overlaps or leaves its region, or an array cannot be described."""

    default = Status.INVALID_LAYOUT


class InvalidBlocks(CallError, ValueError):
    """A block list does not fit the layout or the token range."""

    default = Status.INVALID_BLOCKS


class LimitExceeded(CallError):
    """A configured or fixed limit would be exceeded."""

    default = Status.LIMIT


class WrongState(CallError):
    """The object is not in a state that allows this call."""

    default = Status.WRONG_STATE


class InvalidTicket(CallError, ValueError):
    """A malformed ticket."""

    default = Status.INVALID_TICKET


class NoMemory(HostError, MemoryError):
    """Memory could not be allocated or mapped."""

    default = Status.NO_MEMORY


class TransportUnavailable(HostError):
    """A required transport is not available."""

    default = Status.TRANSPORT_UNAVAILABLE


class Unreachable(PeerError, ConnectionError):
    """No connection to the peer could be made."""

    default = Status.UNREACHABLE


class PeerDead(PeerError, ConnectionError):
    """The peer stopped answering or closed its connection."""

    default = Status.PEER_DEAD


class Incompatible(PeerError):
    """The two layouts cannot be copied into one another."""

    default = Status.INCOMPATIBLE

    def __init__(self, message: str, status: int | None = None, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message, status)
        #: Every difference with both values, where the call compares layouts itself.
        self.findings = findings

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.status, self.findings)


class Cancelled(TransferError):
    """Cancelled by a caller, here or on the other side."""

    default = Status.CANCELLED


class Deadline(TransferError, TimeoutError):
    """The deadline passed."""

    default = Status.DEADLINE


class LeaseExpired(TransferError):
    """The source's lease ended first: the data must not be used."""

    default = Status.LEASE_EXPIRED


class UnknownRequest(TransferError):
    """The other side knows no such request."""

    default = Status.UNKNOWN_REQUEST


class Incomplete(TransferError):
    """The sender said `last`, but bytes are missing."""


class Quarantined(TransferError):
    """The end of all access could not be proven: the blocks must not be reused while this process lives."""

    default = Status.QUARANTINED


class Poisoned(InternalError):
    """A defect stopped the agent earlier: close it, and treat what was under way as failed."""

    default = Status.POISONED


_RANGES: list[type[Error]] = [CallError, HostError, PeerError, TransferError, BackendError, InternalError]
_CLASSES: dict[int, type[Error]] = {
    kind.default: kind
    for kind in (
        *(BadHandle, Cancelled, Deadline, Incompatible, Incomplete, InvalidArgument, InvalidBlocks, InvalidLayout),
        *(InvalidTicket, LeaseExpired, LimitExceeded, NoMemory, PeerDead, Poisoned, Quarantined),
        *(TransportUnavailable, UnknownRequest, Unreachable, WrongState),
    )
}


def status_text(status: int) -> str:
    """The library's short text for a status: "lease expired"."""
    text: bytes = lib.kvlink_status_text(status)
    return text.decode()


def error_of(status: int, message: str) -> Error:
    """The exception for a status."""
    kind = _CLASSES.get(status)
    if kind is None:
        kind = _RANGES[-status // 100] if -600 < status < 0 else Error
    known = status in Status._value2member_map_
    return kind(message, Status(status) if known else status)


def last_error() -> str:
    """The message of this thread's last failed call."""
    size = ctypes.c_size_t()
    buffer = ctypes.create_string_buffer(1024)
    if lib.kvlink_last_error(buffer, len(buffer), size) != 0:
        buffer = ctypes.create_string_buffer(size.value + 1)
        lib.kvlink_last_error(buffer, len(buffer), size)
    return buffer.value.decode(errors="replace")


def check(status: int) -> None:
    """Raises unless a call succeeded."""
    if status != 0:
        # The library's text begins with that of the status; `Error.__str__` has it too.
        raise error_of(status, last_error().removeprefix(f"{status_text(status)}: "))


def text_of(function: Any, *arguments: Any) -> str:
    """What a function of the form ``(..., buf, cap, len)`` copies out."""
    size = ctypes.c_size_t()
    buffer = ctypes.create_string_buffer(512)
    status = function(*arguments, buffer, len(buffer), size)
    while status == Status.BUFFER_TOO_SMALL:
        buffer = ctypes.create_string_buffer(size.value + 1)
        status = function(*arguments, buffer, len(buffer), size)
    check(status)
    return buffer.value.decode()
