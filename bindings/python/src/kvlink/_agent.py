"""Agents: one rank's endpoint."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import _abi
from ._abi import Direction, EventKind, Mode, Role, Status
from ._arrays import Memory, memory
from ._blocks import block_lists
from ._errors import BadHandle, Cancelled, Error, InvalidArgument, Poisoned, WrongState, check, text_of
from ._events import Event, Statistics, copied, event_of
from ._layout import Layout
from ._library import lib
from ._moriio import worker_of
from ._notifications import Notifications
from ._operations import Accept, Exchange, Handshake, Offer, Operation, Transfer
from ._peer import Peer, c_string, milliseconds, wake
from ._plan import token_range
from ._router import Registration, router_of

_DISABLE = {"shm": 1, "cma": 2, "tcp": 4}
_POLL_CAP = 64
# A poll without end returns to the interpreter this often, so that signals are handled.
_SLICE_MS = 200
_STATISTICS_SIZE = ctypes.sizeof(_abi.kvlink_statistics_t)
# The counters behind struct_size and reserved.
_counters = struct.Struct("=8x4Q").unpack_from
_poll = lib.kvlink_poll
_statistics = lib.kvlink_statistics

O = TypeVar("O", bound=Operation[Any])  # noqa: E741


class Agent:
    """One rank's endpoint: one thread, one listener.

    Events are served either by the event loop in which something of the agent is awaited, or by calls of `poll`; the
    first use decides. Use it in a ``with`` or ``async with`` statement, or close it.
    """

    def __init__(
        self,
        layout: Layout,
        instance: str,
        *,
        rank: int = 0,
        ranks: int = 1,
        listen: str | None = None,
        advertise: str | None = None,
        leader: str | None = None,
        allow_remote: bool = False,
        require_transport: str | None = None,
        disable: Iterable[str] = (),
        heartbeat: float | None = None,
        heartbeat_misses: int = 0,
        join_timeout: float | None = None,
        handshake_timeout: float | None = None,
        transfer_timeout: float | None = None,
        lease: float | None = None,
        max_transfers: int = 0,
        max_offers: int = 0,
        max_accepts: int = 0,
        max_peers: int = 0,
        max_events: int = 0,
        nixl_backend: str | None = None,
        nixl_params: Mapping[str, str] | None = None,
        nixl_library: str | None = None,
        nixl_patience: float | None = None,
        nixl_landing: int = 0,
        mori_backend: str | None = None,
        mori_library: str | None = None,
        mori_host: str | None = None,
        mori_devices: str | None = None,
        mori_port: int = 0,
        mori_qp_per_transfer: int = 0,
        mori_post_batch_size: int = 0,
        mori_num_workers: int = 0,
        mori_poll_mode: int = 0,
        mori_patience: float | None = None,
    ) -> None:
        """Starts an agent for a rank with this layout.

        Times are seconds; None and 0 are the library's defaults, see kvlink_agent_config_t in kvlink.h. `leader` is the
        address of rank 0, required on every other rank; `disable` names ways of the host transport
        ("shm", "cma", "tcp") that must not be used.
        """
        config = _abi.kvlink_agent_config_t(struct_size=ctypes.sizeof(_abi.kvlink_agent_config_t))
        params = None if nixl_params is None else "\n".join(f"{key}={value}" for key, value in nixl_params.items())
        texts = {
            "listen": listen,
            "advertise": advertise,
            "leader": leader,
            "require_transport": require_transport,
            "nixl_backend": nixl_backend,
            "nixl_params": params,
            "nixl_library": nixl_library,
            "mori_backend": mori_backend,
            "mori_library": mori_library,
            "mori_host": mori_host,
            "mori_devices": mori_devices,
        }
        for name, text in {"instance": instance, **texts}.items():
            if text is not None:
                setattr(config, name, c_string(name, text))
        numbers = {"rank": rank, "ranks": ranks, "heartbeat_misses": heartbeat_misses, "max_transfers": max_transfers}
        limits = {
            "max_offers": max_offers,
            "max_accepts": max_accepts,
            "max_peers": max_peers,
            "max_events": max_events,
            "nixl_landing": nixl_landing,
        }
        mori = {
            "mori_port": mori_port,
            "mori_qp_per_transfer": mori_qp_per_transfer,
            "mori_post_batch_size": mori_post_batch_size,
            "mori_num_workers": mori_num_workers,
            "mori_poll_mode": mori_poll_mode,
        }
        for name, number in {**numbers, **limits, **mori}.items():
            if not 0 <= number < 1 << 32:
                raise InvalidArgument(f"{name} is {number}")
            setattr(config, name, number)
        config.heartbeat_ms = milliseconds("heartbeat", heartbeat)
        config.join_timeout_ms = milliseconds("join_timeout", join_timeout)
        config.handshake_timeout_ms = milliseconds("handshake_timeout", handshake_timeout)
        config.transfer_timeout_ms = milliseconds("transfer_timeout", transfer_timeout)
        config.lease_ms = milliseconds("lease", lease)
        config.nixl_patience_ms = milliseconds("nixl_patience", nixl_patience)
        config.mori_patience_ms = milliseconds("mori_patience", mori_patience)
        config.allow_remote = allow_remote
        for way in disable:
            if way not in _DISABLE:
                raise InvalidArgument(f"disable has {way!r}, known are {', '.join(_DISABLE)}")
            config.host_disable |= _DISABLE[way]
        handle = ctypes.c_void_p()
        check(lib.kvlink_agent_create(config, layout._handle, ctypes.byref(handle)))

        self.layout = layout
        self.instance = instance
        self._handle: int = handle.value or 0
        self._pid = os.getpid()
        # Registered memory lives as long as the library may touch it, also if this object is dropped.
        self._memory: dict[int, Memory] = {}
        self._destroy = weakref.finalize(self, _destroy, self._handle, self._memory)
        self._keys = 0
        self._lock = threading.Lock()
        self._operations: dict[int, Operation[Any]] = {}
        self._peers: weakref.WeakValueDictionary[int, Peer] = weakref.WeakValueDictionary()
        self._ready: Event | None = None
        self._ready_waiting: set[asyncio.Future[None]] = set()
        self._notifications: Notifications | None = None
        self._registrations: dict[int, Registration] = {}
        #: Is told what workers of vLLM's MoRIIOConnector say; where an event loop takes the events, nobody else is.
        self.on_moriio: Callable[[Event], None] | None = None
        # Who takes events: nobody yet, an event loop, or callers of poll.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._polled = False
        self._fd = -1
        self._poll_lock = threading.Lock()
        self._events = (_abi.kvlink_event_t * _POLL_CAP)()
        self._count = ctypes.c_size_t()

    # Memory.

    def register(self, region: int, thing: Any) -> None:
        """Binds memory to a region of the layout: a buffer or an array, whose whole allocation is taken.

        The memory is kept alive until `deregister` or `close`. Waits for about as long as a slice of copying takes.
        """
        place = memory(thing)
        if place.device != "cpu":
            raise InvalidArgument(
                f"region {region} would be on {place.device}: only memory of the host can be registered"
            )
        if place.readonly:
            raise InvalidArgument(f"region {region} would be read-only memory ({place}); kvlink needs to write to it")
        if not 0 <= region < 1 << 32:
            raise InvalidArgument(f"region {region}")
        self._check(lib.kvlink_register(self._handle, region, place.address, place.nbytes))
        self._memory[region] = place

    def register_arrays(self) -> None:
        """Registers all memory that the layout was described from."""
        if not self.layout.memory:
            raise WrongState("the layout was not described from arrays: register each region")
        for region, place in enumerate(self.layout.memory):
            self.register(region, place)

    def deregister(self, region: int) -> None:
        """Takes a region away: what uses it ends, no byte of it is touched any more. The agent then moves nothing."""
        self._check(lib.kvlink_deregister(self._handle, region))
        self._memory.pop(region, None)

    # Requests.

    def handshake(self, address: str, direction: Direction = Direction.BOTH) -> Handshake:
        """Begins a handshake with the instance at an address of any of its ranks; awaiting it gives the peer."""
        operation = Handshake(self, f"handshake with {address}")
        peer = ctypes.c_uint64()
        to = c_string("address", address)
        self._begin(operation, lambda key: lib.kvlink_handshake(self._handle, to, direction, key, peer))
        operation.peer.id = peer.value
        self._peers[peer.value] = operation.peer
        return operation

    def offer(self, request: str, blocks: Sequence[Any], tokens: int, *, lease: float | None = None) -> Offer:
        """Offers a request's blocks under a lease: one list per group. Every rank of the source offers its own."""
        keep: list[Any] = []
        lists = block_lists(blocks, "blocks", keep)
        offer = _abi.kvlink_offer_t(
            struct_size=ctypes.sizeof(_abi.kvlink_offer_t),
            lease_ms=milliseconds("lease", lease),
            request=c_string("request", request),
            blocks=ctypes.addressof(lists),
            num_blocks=len(lists),
            tokens=token_range(0, None, tokens)[2],
        )
        return self._submit(Offer(self, f"offer of {request!r}"), lib.kvlink_offer, offer)

    def accept(
        self,
        request: str,
        blocks: Sequence[Any],
        tokens: int,
        *,
        token_begin: int = 0,
        timeout: float | None = None,
    ) -> Accept:
        """Accepts a request's data into this rank's blocks; awaiting it waits for the last byte of all source ranks."""
        keep: list[Any] = []
        lists = block_lists(blocks, "blocks", keep)
        begin, _, total = token_range(token_begin, None, tokens)
        accept = _abi.kvlink_accept_t(
            struct_size=ctypes.sizeof(_abi.kvlink_accept_t),
            timeout_ms=milliseconds("timeout", timeout),
            request=c_string("request", request),
            blocks=ctypes.addressof(lists),
            num_blocks=len(lists),
            token_begin=begin,
            tokens=total,
        )
        return self._submit(Accept(self, f"accept of {request!r}"), lib.kvlink_accept, accept)

    # Routers.

    def attach_router(
        self,
        discovery: str,
        role: Role,
        mode: Mode,
        http_address: str,
        *,
        zmq_address: str | None = None,
        dp_size: int = 1,
        tp_size: int = 1,
        beat: float | None = None,
    ) -> Registration:
        """Registers this instance with a router and keeps it registered, for one rank of an instance.

        `discovery` is the router's discovery address, `http_address` where the engine's HTTP server listens. Without a
        `zmq_address` the other instances find this agent's own address.
        """
        router = router_of(role, mode, discovery, http_address, zmq_address, (dp_size, tp_size), beat)
        with self._lock:
            self._keys += 1
            router.user_data = self._keys
        number, registration = ctypes.c_uint64(), Registration(self)
        self._registrations[router.user_data] = registration
        try:
            self._check(lib.kvlink_router_attach(self._handle, router, number))
        except BaseException:
            self._registrations.pop(router.user_data, None)
            raise
        registration.id = number.value
        return registration

    def _detach_router(self, registration: Registration) -> None:
        self._check(lib.kvlink_router_detach(self._handle, registration.id))
        self._registrations = {k: r for k, r in self._registrations.items() if r is not registration}

    # Workers of vLLM's MoRIIOConnector.

    def open_moriio(
        self,
        role: Role,
        *,
        handshake: Mapping[str, Any] | None = None,
        host: str | None = None,
        handshake_port: int = 0,
        notify_port: int = 0,
        dp: tuple[int, int] = (0, 1),
        tp: tuple[int, int] = (0, 1),
    ) -> None:
        """Opens the one worker that an agent can be opposite workers of vLLM's MoRIIOConnector.

        `handshake` is what it says on its handshake port, as docs/moriio.md has it; `dp` and `tp` are rank and size.
        What others say comes as events of the kind MORIIO without an operation, from `poll` and to `on_moriio`.
        """
        worker, _keep = worker_of(role, handshake, host, (handshake_port, notify_port), dp, tp)
        self._check(lib.kvlink_moriio_open(self._handle, worker))

    def close_moriio(self) -> None:
        """Closes it; exchanges that are under way are cancelled."""
        self._check(lib.kvlink_moriio_close(self._handle))

    def meet_moriio(self, address: str, *, timeout: float | None = None) -> Exchange:
        """Asks the worker whose handshake port is at `address` who it is; the outcome is its handshake."""
        where, time, number = c_string("address", address), milliseconds("timeout", timeout), ctypes.c_uint64()
        exchange = Exchange(self, f"handshake with {address}")
        self._begin(exchange, lambda key: lib.kvlink_moriio_meet(self._handle, where, time, key, number))
        exchange.id = number.value
        return exchange

    def send_moriio(self, address: str, message: Mapping[str, Any], *, timeout: float | None = None) -> Exchange:
        """Tells the worker whose notify port is at `address` something; it succeeds when the message has arrived."""
        where, time, number = c_string("address", address), milliseconds("timeout", timeout), ctypes.c_uint64()
        text = json.dumps(message).encode()
        exchange = Exchange(self, f"message to {address}")
        self._begin(
            exchange, lambda key: lib.kvlink_moriio_send(self._handle, where, text, len(text), time, key, number)
        )
        exchange.id = number.value
        return exchange

    def _transfer(self, function: Any, request: Any, what: str) -> Transfer:
        return self._submit(Transfer(self, what), function, request)

    def _submit(self, operation: O, function: Any, request: Any) -> O:
        number = ctypes.c_uint64()

        def call(key: int) -> int:
            request.user_data = key
            status: int = function(self._handle, request, number)
            return status

        self._begin(operation, call)
        operation.id = number.value
        return operation

    def _begin(self, operation: Operation[Any], call: Callable[[int], int]) -> None:
        """Starts an operation. It is known before the call: its event may come before the call returns."""
        with self._lock:
            self._keys += 1
            key = self._keys
        self._operations[key] = operation
        try:
            self._check(call(key))
        except BaseException:
            self._operations.pop(key, None)
            raise

    def _ticket(self, offer: int) -> bytes:
        return copied(lambda buffer, cap, size: lib.kvlink_ticket(self._handle, offer, buffer, cap, size))

    def _failed_blocks(self, transfer: int, group: int) -> list[int]:
        if not 0 <= group < 1 << 32:
            raise InvalidArgument(f"group {group}")
        count = ctypes.c_size_t()
        function = lib.kvlink_failed_blocks
        self._check(function(self._handle, transfer, group, None, 0, count), Status.BUFFER_TOO_SMALL)
        ids = (ctypes.c_uint32 * count.value)()
        self._check(function(self._handle, transfer, group, ids, len(ids), count))
        return list(ids)

    # Events.

    def poll(self, timeout: float | None = 0.0, max_events: int = _POLL_CAP) -> list[Event]:
        """Takes up to `max_events` events, oldest first; waits up to `timeout` seconds for the first (None: for ever).

        For engines that run a loop of their own. One thread polls at a time.
        """
        if self._loop is not None and not self._loop.is_closed():
            raise WrongState("an event loop serves this agent: await its operations instead of polling")
        if not 0 < max_events <= _POLL_CAP:
            max_events = self._cap(max_events)
        if timeout == 0:
            return self._take(0, max_events)
        left = None if timeout is None else milliseconds("timeout", timeout)
        while True:
            slice_ms = _SLICE_MS if left is None else min(left, _SLICE_MS)
            events = self._take(slice_ms, max_events)
            if left is not None:
                left -= slice_ms
            if events or left == 0:
                return events

    @staticmethod
    def _cap(max_events: int) -> int:
        if max_events < 1:
            raise InvalidArgument(f"max_events is {max_events}")
        return min(max_events, _POLL_CAP)

    def _take(self, timeout_ms: int, cap: int) -> list[Event]:
        if not self._poll_lock.acquire(False):
            if os.getpid() != self._pid:
                raise WrongState("the agent was made before a fork, by the parent process")
            raise WrongState("another thread polls this agent")
        try:
            self._polled = True
            status = _poll(self._handle, self._events, cap, timeout_ms, self._count)
            if status:
                self._check(status)
            count = self._count.value
            return [self._dispatch(self._events[i]) for i in range(count)] if count else []
        finally:
            self._poll_lock.release()

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable exactly while events wait. It is the agent's: neither read nor close it."""
        fd = ctypes.c_int()
        self._check(lib.kvlink_event_fd(self._handle, fd))
        return fd.value

    async def ready(self) -> None:
        """Waits until all ranks of the own instance are known."""
        if self._ready is None:
            loop = asyncio.get_running_loop()
            self._serve(loop)
            future = loop.create_future()
            self._ready_waiting.add(future)
            try:
                await future
            finally:
                self._ready_waiting.discard(future)
        if self._ready is not None and self._ready.error is not None:
            raise self._ready.error

    def notifications(self) -> Notifications:
        """The messages of peers' engines, for ``async for``; it ends when the agent is closed."""
        self._serve(asyncio.get_running_loop())
        assert self._notifications is not None
        return self._notifications

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets an event loop take the events."""
        if self._loop is loop:
            return
        if self._polled:
            raise WrongState("this agent is polled: look at the events that poll returns instead of awaiting")
        if self._loop is not None and not self._loop.is_closed():
            raise WrongState("another event loop serves this agent")
        self._fd = self.event_fd
        loop.add_reader(self._fd, self._drain)
        self._loop = loop
        self._notifications = Notifications()

    def _drain(self) -> None:
        """Takes some events; the descriptor stays readable while more wait."""
        try:
            check(_poll(self._handle, self._events, _POLL_CAP, 0, self._count))
        except Error as e:
            # The agent is of no more use: whoever waits is told.
            self._unserve()
            self._end_all(e)
            return
        for i in range(self._count.value):
            self._dispatch(self._events[i])

    def _dispatch(self, raw: Any) -> Event:
        operation = self._operations.pop(raw.user_data, None) if raw.user_data else None
        peer = None
        if isinstance(operation, Handshake):
            peer = operation.peer
            peer.id = raw.peer
            self._peers[raw.peer] = peer
        elif raw.peer:
            peer = self._peers.get(raw.peer)
            if peer is None:
                peer = self._peers[raw.peer] = Peer(self, raw.peer)
        event = event_of(raw, operation, peer)
        if operation is not None:
            operation.id = operation.id or raw.id
            operation._finish(event, self._loop)
        elif event.kind == EventKind.ROUTER:
            registration = self._registrations.get(raw.user_data)
            if registration is not None:
                registration.event = event
        elif event.kind == EventKind.MORIIO:
            if self.on_moriio is not None:
                self.on_moriio(event)
        elif event.kind == EventKind.READY:
            self._ready = event
            wake(self._ready_waiting)
        elif event.kind == EventKind.PEER_DOWN and peer is not None:
            peer._gone(event.error or Error("the peer is gone", Status.PEER_DEAD))
        elif event.kind == EventKind.NOTIFICATION and self._notifications is not None:
            self._notifications.put(event)
        elif event.kind == EventKind.AGENT_FAILED:
            self._end_all(Poisoned(event.error.message if event.error else str(event.payload)))
        return event

    def _end_all(self, error: Error) -> None:
        """Ends whatever waits for events that will not come."""
        event = Event(EventKind.AGENT_FAILED, None, None, None, 0, 0, b"", error)
        for key in list(self._operations):
            operation = self._operations.pop(key, None)
            if operation is not None:
                operation._finish(event, self._loop)
        if self._ready is None:
            self._ready = event
        wake(self._ready_waiting)
        for peer in list(self._peers.values()):
            if peer.down is None:
                peer._gone(error)
        if self._notifications is not None and self._loop is not None and not self._loop.is_closed():
            self._notifications.end()

    # The agent itself.

    @property
    def address(self) -> str:
        """The address that others reach this agent at, "host:port"."""
        try:
            return text_of(lib.kvlink_agent_address, self._handle)
        except BadHandle:
            raise self._closed() from None

    @property
    def ticket(self) -> bytes:
        """A ticket of no request, which names this instance: for `ticket_write`, when all regions are registered."""
        return self._ticket(0)

    def statistics(self) -> Statistics:
        """Counters since the agent's start."""
        raw = _abi.kvlink_statistics_t(_STATISTICS_SIZE)
        status = _statistics(self._handle, raw)
        if status:
            self._check(status)
        return tuple.__new__(Statistics, _counters(raw))

    def close(self) -> None:
        """Stops the agent, whatever runs; afterwards nothing touches registered memory, and what ran is cancelled.

        In a coroutine use `aclose`, which does not block the event loop.
        """
        if self._loop is not None and not self._loop.is_closed():
            running = asyncio._get_running_loop()
            if self._loop.is_running() and running is not self._loop:
                raise WrongState("an event loop serves this agent: close it there, with aclose()")
        self._unserve()
        self._destroy()
        self._end_all(Cancelled("the agent was closed"))

    async def aclose(self) -> None:
        """Closes the agent without blocking the event loop."""
        self._unserve()
        stopping = asyncio.get_running_loop().run_in_executor(None, self._destroy)
        interrupted = None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as e:
                # The memory may be touched until it has stopped: that comes first.
                interrupted = e
        self._end_all(Cancelled("the agent was closed"))
        if interrupted is not None:
            raise interrupted
        stopping.result()

    def _unserve(self) -> None:
        if self._loop is not None and not self._loop.is_closed() and self._fd >= 0:
            self._loop.remove_reader(self._fd)
        self._fd = -1

    @property
    def closed(self) -> bool:
        """Whether the agent was closed."""
        return not self._destroy.alive

    def _closed(self) -> BadHandle:
        return BadHandle(f"agent {self.instance!r} is closed" if self.closed else "the library does not know the agent")

    def _check(self, status: int, *fine: int) -> None:
        """Raises unless a call succeeded, or failed in a way that is fine."""
        if status == 0 or status in fine:
            return
        if status == Status.BAD_HANDLE and self.closed:
            raise self._closed()
        check(status)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        fork = f", of process {self._pid}" if os.getpid() != self._pid else ""
        return f"<kvlink.Agent {self.instance!r}{', closed' if self.closed else fork}>"


def _destroy(handle: int, memory: dict[int, Memory]) -> None:
    """Stops an agent; only then its memory may go."""
    check(lib.kvlink_agent_destroy(handle))
    memory.clear()
