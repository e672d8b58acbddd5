"""What an agent reports."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ._abi import ALL_RANKS, EventKind, Status, kvlink_offer_t, kvlink_ticket_info_t
from ._blocks import block_lists
from ._errors import Error, check, error_of
from ._library import lib
from ._peer import Peer, c_string
from ._plan import token_range

if TYPE_CHECKING:
    from ._operations import Operation


@dataclass(eq=False)
class Event:
    """One event. If it failed, `error` says why and `payload` is empty."""

    #: An `EventKind`, or the plain number where the library is newer than the package.
    kind: int
    #: The operation that it ends, if any.
    operation: Operation[Any] | None
    #: The peer that it is about, if any.
    peer: Peer | None
    #: The peer's rank that it is about; None: all, or none.
    rank: int | None
    #: Bytes moved, and for transfers the spans.
    nbytes: int
    spans: int
    #: A notification's message, an accept's side payload, or for a handshake the transports in effect.
    payload: bytes
    error: Error | None


class Notification(NamedTuple):
    """A message from the engine at one rank of a peer."""

    peer: Peer | None
    rank: int | None
    data: bytes


class Moved(NamedTuple):
    """What a transfer moved."""

    nbytes: int
    spans: int


class Received(NamedTuple):
    """What arrived for an accept, with the side payload of the last write."""

    nbytes: int
    spans: int
    payload: bytes


class Statistics(NamedTuple):
    """Counters since the agent's start."""

    #: Bytes moved by completed transfers and accepts.
    nbytes: int
    #: Spans moved by completed transfers.
    spans: int
    #: Transfers and accepts that completed.
    transfers: int
    #: Transfers, accepts and handshakes that failed.
    failures: int


@dataclass(frozen=True)
class TicketInfo:
    """What a ticket says."""

    rank: int
    incarnation: int
    tokens: int
    #: Address for a handshake with the source.
    address: str
    instance: str
    request: str


def ticket_info(ticket: bytes) -> TicketInfo:
    """What a ticket contains, without an agent."""
    info = kvlink_ticket_info_t(ctypes.sizeof(kvlink_ticket_info_t))
    check(lib.kvlink_ticket_info(ticket, len(ticket), info))
    texts = (info.address.decode(), info.instance.decode(), info.request.decode())
    return TicketInfo(info.rank, info.incarnation, info.tokens, *texts)


def ticket_write(like: bytes, request: str, blocks: Sequence[Any], tokens: int) -> bytes:
    """The ticket of an offer that another process makes: that of a scheduler whose workers have the agents.

    `like` is a ticket of the source (`Agent.ticket`); the ranks make this offer before the ticket is used, as the first
    one of its request id.
    """
    keep: list[Any] = []
    lists = block_lists(blocks, "blocks", keep)
    offer = kvlink_offer_t(
        struct_size=ctypes.sizeof(kvlink_offer_t),
        request=c_string("request", request),
        blocks=ctypes.addressof(lists),
        num_blocks=len(lists),
        tokens=token_range(0, None, tokens)[2],
    )
    return copied(lambda buffer, cap, size: lib.kvlink_ticket_write(like, len(like), offer, buffer, cap, size))


def copied(call: Callable[[Any, int, Any], int]) -> bytes:
    """Bytes that a call copies into a buffer, which it is given a second time if the first was too small."""
    size, buffer = ctypes.c_size_t(), ctypes.create_string_buffer(1024)
    status = call(buffer, len(buffer), size)
    if status == Status.BUFFER_TOO_SMALL:
        buffer = ctypes.create_string_buffer(size.value)
        status = call(buffer, len(buffer), size)
    check(status)
    return buffer.raw[: size.value]


def event_of(raw: Any, operation: Operation[Any] | None, peer: Peer | None) -> Event:
    """An event with a copy of its payload, which the library frees at the next poll."""
    payload = ctypes.string_at(raw.payload, raw.payload_len) if raw.payload_len else b""
    error = None
    if raw.status != 0:
        error, payload = error_of(raw.status, payload.decode(errors="replace")), b""
    known = raw.kind in EventKind._value2member_map_
    return Event(
        kind=EventKind(raw.kind) if known else raw.kind,
        operation=operation,
        peer=peer,
        rank=None if raw.rank == ALL_RANKS else raw.rank,
        nbytes=raw.bytes,
        spans=raw.spans,
        payload=payload,
        error=error,
    )
