"""Peers: instances that an agent has shaken hands with."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._abi import ALL_RANKS, kvlink_read_t, kvlink_write_t
from ._blocks import block_lists
from ._errors import Error, InvalidArgument, text_of
from ._library import lib
from ._plan import layer_range, token_range

if TYPE_CHECKING:
    from ._agent import Agent
    from ._operations import Transfer

# Seconds that fit into 32 bits of milliseconds.
_LONGEST = 4_294_967


class Peer:
    """A remote instance."""

    def __init__(self, agent: Agent, peer_id: int) -> None:
        """Made by `Agent.handshake`."""
        self._agent = agent
        self._waiting: set[asyncio.Future[None]] = set()
        self.id = peer_id
        #: Why the peer is gone; None as far as is known it is there.
        self.down: Error | None = None

    def read_blocks(
        self,
        ticket: bytes,
        blocks: Sequence[Any],
        *,
        token_begin: int = 0,
        token_end: int | None = None,
        layers: range | None = None,
        timeout: float | None = None,
    ) -> Transfer:
        """Reads an offered request into this rank's blocks: one list per group.

        What lies before `token_begin` is here already. Succeeds when all bytes are here and were valid; otherwise
        `Transfer.failed_blocks` names the blocks that are not.
        """
        keep: list[Any] = []
        lists = block_lists(blocks, "blocks", keep)
        first, count = layer_range(layers)
        begin, end, _ = token_range(token_begin, token_end, 0)
        held = ctypes.c_char_p(ticket)
        read = kvlink_read_t(
            struct_size=ctypes.sizeof(kvlink_read_t),
            timeout_ms=milliseconds("timeout", timeout),
            peer=self.id,
            ticket=ctypes.cast(held, ctypes.c_void_p),
            ticket_len=len(ticket),
            blocks=ctypes.addressof(lists),
            num_blocks=len(lists),
            token_begin=begin,
            token_end=end,
            layer_first=first,
            layer_count=count,
        )
        return self._agent._transfer(lib.kvlink_read_blocks, read, f"read from peer {self.id:#x}")

    def write_blocks(
        self,
        request: str,
        blocks: Sequence[Any],
        tokens: int,
        *,
        token_begin: int = 0,
        token_end: int | None = None,
        layers: range | None = None,
        last: bool = False,
        payload: bytes = b"",
        timeout: float | None = None,
    ) -> Transfer:
        """Writes a part of a request (layers, a chunk of tokens) to all ranks of the peer that need it.

        The source's blocks must not change until it has ended. `tokens` are those of the whole request; `last` marks
        this rank's last write of the request, which may carry a side payload of up to 1 MiB.
        """
        keep: list[Any] = []
        lists = block_lists(blocks, "blocks", keep)
        first, count = layer_range(layers)
        begin, end, total = token_range(token_begin, token_end, tokens)
        held = ctypes.c_char_p(payload)
        write = kvlink_write_t(
            struct_size=ctypes.sizeof(kvlink_write_t),
            timeout_ms=milliseconds("timeout", timeout),
            peer=self.id,
            request=c_string("request", request),
            blocks=ctypes.addressof(lists),
            num_blocks=len(lists),
            token_begin=begin,
            token_end=end,
            token_total=total,
            layer_first=first,
            layer_count=count,
            last=last,
            aux=ctypes.cast(held, ctypes.c_void_p),
            aux_len=len(payload),
        )
        return self._agent._transfer(lib.kvlink_write_blocks, write, f"write of {request!r}")

    def notify(self, data: bytes, *, rank: int | None = None, after: Transfer | None = None) -> None:
        """Sends a message of up to 1 MiB to the engine at one rank, or at all linked ranks.

        With `after` it leaves when that transfer has completed, to the ranks that it dealt with, and not if it fails.
        """
        to = ALL_RANKS if rank is None else rank
        if not 0 <= to <= ALL_RANKS:
            raise InvalidArgument(f"rank {rank}")
        behind = 0 if after is None else after.id
        self._agent._check(lib.kvlink_notify(self._agent._handle, self.id, to, data, len(data), behind))

    @property
    def transport(self) -> str:
        """One line per linked rank ("rank 0: host/shm"), with the reasons why better ones were not chosen."""
        return text_of(lib.kvlink_effective_transport, self._agent._handle, self.id)

    def disconnect(self) -> None:
        """Lets the peer go: what runs with it fails, its sessions close."""
        self._agent._check(lib.kvlink_disconnect(self._agent._handle, self.id))

    async def wait_down(self) -> Error:
        """Waits until the peer is gone; returns why. Nothing can be done with it afterwards but to disconnect."""
        if self.down is None:
            loop = asyncio.get_running_loop()
            self._agent._serve(loop)
            future = loop.create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
        assert self.down is not None
        return self.down

    def _gone(self, error: Error) -> None:
        self.down = error
        wake(self._waiting)

    def __repr__(self) -> str:
        return f"<kvlink.Peer {self.id:#x}{'' if self.down is None else ', gone'}>"


def wake(waiting: set[asyncio.Future[None]]) -> None:
    """Ends what coroutines wait for, but for those whose event loop has ended."""
    for future in waiting:
        if not future.done() and not future.get_loop().is_closed():
            future.set_result(None)


def milliseconds(name: str, seconds: float | None) -> int:
    """Seconds as the library takes them; None is its default, and what is shorter than a millisecond is one."""
    if seconds is None:
        return 0
    if not 0 < seconds <= _LONGEST:
        raise InvalidArgument(f"{name} is {seconds} s, not within 0..{_LONGEST}")
    return max(1, round(seconds * 1000))


def c_string(name: str, text: str) -> bytes:
    """A text as the library takes it."""
    if "\0" in text:
        raise InvalidArgument(f"{name} has a NUL in {text!r}")
    return text.encode()
