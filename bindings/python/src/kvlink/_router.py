"""Life behind a router of vLLM's `moriio` protocol: see docs/router.md."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._abi import (
    ALL_RANKS,
    Mode,
    Role,
    Status,
    kvlink_route_t,
    kvlink_router_answer_t,
    kvlink_router_params_t,
    kvlink_router_t,
)
from ._errors import InvalidArgument, check, text_of
from ._events import Event
from ._library import lib
from ._peer import c_string, milliseconds

if TYPE_CHECKING:
    from ._agent import Agent

# Room for the ticket of a request of some thousand blocks.
_TICKET = 1 << 14


@dataclass(frozen=True)
class ZmqAddress:
    """Where an instance is reached by the other kind of instance."""

    host: str
    handshake: int
    notify: int

    def __str__(self) -> str:
        """As it travels: "host:10.0.0.1,handshake:6301,notify:61005"."""
        host = c_string("host", self.host)
        return text_of(lib.kvlink_router_zmq_address, host, *u32(handshake=self.handshake, notify=self.notify))


@dataclass(frozen=True)
class Route:
    """Which instances a router chose for a request."""

    prefill: ZmqAddress
    decode: ZmqAddress
    #: 32 hexadecimal digits that tell the request from others.
    unique: str

    @classmethod
    def parse(cls, request_id: str) -> Route:
        """From a request id of the router, or what vLLM made of one."""
        c = kvlink_route_t(ctypes.sizeof(kvlink_route_t))
        check(lib.kvlink_route_parse(c_string("request_id", request_id), c))
        prefill = ZmqAddress(c.prefill_host.decode(), c.prefill_handshake, c.prefill_notify)
        return cls(prefill, ZmqAddress(c.decode_host.decode(), c.decode_handshake, c.decode_notify), c.unique.decode())

    def __str__(self) -> str:
        """As a router writes it."""
        hosts = {"prefill_host": self.prefill.host, "decode_host": self.decode.host, "unique": self.unique}
        c = kvlink_route_t(ctypes.sizeof(kvlink_route_t))
        for name, text in hosts.items():
            room = getattr(kvlink_route_t, name).size
            value = c_string(name, text)
            if len(value) >= room:
                raise InvalidArgument(f"{name} has {len(value)} bytes, at most {room - 1}")
            setattr(c, name, value)
        c.prefill_handshake, c.prefill_notify = u32(
            prefill_handshake=self.prefill.handshake, prefill_notify=self.prefill.notify
        )
        c.decode_handshake, c.decode_notify = u32(
            decode_handshake=self.decode.handshake, decode_notify=self.decode.notify
        )
        return text_of(lib.kvlink_route_format, c)


@dataclass(frozen=True)
class RouterParams:
    """What `kv_transfer_params` of a request say."""

    do_remote_decode: bool
    do_remote_prefill: bool
    transfer_id: str
    remote_dp_size: int
    #: None: not said.
    remote_tp_size: int | None
    remote_dp_rank: int | None
    #: The prefill side's ticket; empty in WRITE mode.
    ticket: bytes


def router_params(json: str | bytes) -> RouterParams:
    """Reads the JSON text of `kv_transfer_params`."""
    text = json.encode() if isinstance(json, str) else json
    c = kvlink_router_params_t(ctypes.sizeof(kvlink_router_params_t))
    ticket, size = ctypes.create_string_buffer(_TICKET), ctypes.c_size_t()
    status = lib.kvlink_router_params(text, len(text), c, ticket, len(ticket), size)
    if status == Status.BUFFER_TOO_SMALL:
        ticket = ctypes.create_string_buffer(size.value)
        status = lib.kvlink_router_params(text, len(text), c, ticket, len(ticket), size)
    check(status)
    return RouterParams(
        do_remote_decode=bool(c.do_remote_decode),
        do_remote_prefill=bool(c.do_remote_prefill),
        transfer_id=c.transfer_id.decode(),
        remote_dp_size=c.remote_dp_size,
        remote_tp_size=c.remote_tp_size or None,
        remote_dp_rank=None if c.remote_dp_rank == ALL_RANKS else c.remote_dp_rank,
        ticket=ticket.raw[: size.value],
    )


def router_answer(
    transfer_id: str, zmq_address: str, ticket: bytes, *, dp_rank: int = 0, dp_size: int = 1, tp_size: int = 1
) -> str:
    """The JSON text of a prefill instance's `kv_transfer_params` in READ mode."""
    held = ctypes.c_char_p(ticket)
    ranks = u32(dp_rank=dp_rank, dp_size=dp_size, tp_size=tp_size)
    c = kvlink_router_answer_t(
        struct_size=ctypes.sizeof(kvlink_router_answer_t),
        dp_rank=ranks[0],
        dp_size=ranks[1],
        tp_size=ranks[2],
        transfer_id=c_string("transfer_id", transfer_id),
        zmq_address=c_string("zmq_address", zmq_address),
        ticket=ctypes.cast(held, ctypes.c_void_p),
        ticket_len=len(ticket),
    )
    return text_of(lib.kvlink_router_answer, c)


def router_port(base: int, *, dp_rank: int = 0, dp_size: int = 1, tp_rank: int = 0, tp_size: int = 1) -> int:
    """The port of a rank, as vLLM's connector counts; refused where ranks would share one."""
    port = ctypes.c_uint32()
    numbers = u32(base=base, dp_rank=dp_rank, dp_size=dp_size, tp_rank=tp_rank, tp_size=tp_size)
    check(lib.kvlink_router_port(*numbers, port))
    return port.value


class Registration:
    """An instance registered with a router; made by `Agent.attach_router`.

    What becomes of it comes as events of the kind ROUTER, from `Agent.poll` too.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.id = 0
        #: The last event: its `error` is None while the router's socket takes the heartbeats. None before the first.
        self.event: Event | None = None

    def detach(self) -> None:
        """Ends it. The router forgets the instance after its time to live, until then it may still send requests."""
        self._agent._detach_router(self)


def router_of(
    role: Role,
    mode: Mode,
    discovery: str,
    http_address: str,
    zmq_address: str | None,
    sizes: tuple[int, int],
    beat: float | None,
) -> kvlink_router_t:
    """The struct that registers an instance."""
    dp_size, tp_size = u32(dp_size=sizes[0], tp_size=sizes[1])
    return kvlink_router_t(
        struct_size=ctypes.sizeof(kvlink_router_t),
        role=role,
        mode=mode,
        beat_ms=milliseconds("beat", beat),
        dp_size=dp_size,
        tp_size=tp_size,
        discovery=c_string("discovery", discovery),
        http_address=c_string("http_address", http_address),
        zmq_address=None if zmq_address is None else c_string("zmq_address", zmq_address),
    )


def u32(**numbers: int) -> list[int]:
    for name, number in numbers.items():
        if not 0 <= number < 1 << 32:
            raise InvalidArgument(f"{name} is {number}")
    return list(numbers.values())
