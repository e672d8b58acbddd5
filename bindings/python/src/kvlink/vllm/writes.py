"""WRITE: layers go to the decode instance while the model computes the next ones."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import kvlink

from .layout import layer_of
from .log import logger
from .metadata import Write
from .peers import NO_LAYERS, Peers
from .stats import KVLinkStats


@dataclass
class _Request:
    """A request that is written."""

    id: str
    #: Layers of the current chunk that are written, or wait to be.
    layers: set[int] = field(default_factory=set)
    #: Writes that wait for the handshake, and those under way with the time of their start.
    waiting: int = 0
    under_way: dict[kvlink.Operation[Any], float] = field(default_factory=dict)
    #: Nothing is added any more: it was written to its end, failed, or is not wanted.
    complete: bool = False
    stopped: bool = False

    @property
    def busy(self) -> bool:
        """Whether its blocks are, or will be, read."""
        return bool(self.waiting or self.under_way)


class Writes:
    """All requests that this rank writes. Whose blocks are not read any more is added to `sent`."""

    def __init__(self, peers: Peers, layers: Iterable[int], stats: KVLinkStats, sent: set[str]) -> None:
        self._peers = peers
        self._layers = sorted(layers)
        self._stats = stats
        self._sent = sent
        self._requests: dict[str, _Request] = {}
        self._owners: dict[kvlink.Operation[Any], _Request] = {}

    @property
    def pending(self) -> bool:
        """Whether anything is not finished."""
        return bool(self._requests)

    def layer(self, write: Write, name: str) -> None:
        """Writes one layer of a chunk, which the model has just computed."""
        number, _ = layer_of(name)
        request = self._of(write.request_id)
        if number not in request.layers:
            request.layers.add(number)
            self._write(write, request, range(number, number + 1))

    def finish(self, write: Write) -> None:
        """Writes the layers of a chunk that had no hook; ends the request with its last chunk."""
        request = self._of(write.request_id)
        for layers in _runs(n for n in self._layers if n not in request.layers):
            self._write(write, request, layers)
        request.layers.clear()
        if write.token_end == write.tokens:
            self._write(write, request, NO_LAYERS, last=True)
            request.complete = True
            self._settle(request)

    def cancel(self, request_id: str) -> None:
        """Ends a request's writes early, unless they have ended."""
        request = self._requests.get(request_id)
        if request is None:
            return
        request.complete = True
        self._stop(request)
        self._settle(request)

    def preempt(self, request_id: str) -> _Request | None:
        """Takes a request's blocks away; they are free when what is returned is not busy any more."""
        return self._requests.pop(request_id, None)

    def give_up(self, request: _Request) -> None:
        """Ends what is still under way for a request that was preempted."""
        if request.busy:
            self._stop(request)

    def abandon(self) -> None:
        """Ends everything: no more events will come."""
        self._sent.update(self._requests)
        self._requests.clear()
        self._owners.clear()

    def ended(self, operation: kvlink.Operation[Any], event: kvlink.Event) -> None:
        """A write has ended."""
        request = self._owners.pop(operation, None)
        if request is None:
            return
        begun = request.under_way.pop(operation)
        if event.error is None:
            if event.nbytes:
                self._stats.transfer(time.perf_counter() - begun, event.nbytes, event.spans)
        else:
            self._failed(request, event.error)
        self._settle(request)

    def _of(self, request_id: str) -> _Request:
        return self._requests.setdefault(request_id, _Request(request_id))

    def _write(self, write: Write, request: _Request, layers: range, *, last: bool = False) -> None:
        if request.stopped:
            return
        request.waiting += 1

        def begin(peer: kvlink.Peer) -> None:
            if not request.stopped:
                operation = peer.write_blocks(
                    write.name,
                    write.blocks,
                    write.tokens,
                    token_begin=write.token_begin,
                    token_end=write.token_end,
                    layers=layers,
                    last=last,
                )
                request.under_way[operation] = time.perf_counter()
                self._owners[operation] = request
            request.waiting -= 1
            self._settle(request)

        def fail(error: kvlink.Error) -> None:
            request.waiting -= 1
            self._failed(request, error)
            self._settle(request)

        self._peers.use(write.address, kvlink.Direction.OUTBOUND, begin, fail)

    def _failed(self, request: _Request, error: kvlink.Error) -> None:
        if not request.stopped:
            self._stats.count("failed_transfers")
            logger.error("request %s was not written: %s", request.id, error)
            self._stop(request)

    @staticmethod
    def _stop(request: _Request) -> None:
        request.stopped = True
        for operation in request.under_way:
            operation.cancel()

    def _settle(self, request: _Request) -> None:
        """Tells when nobody reads the request's blocks any more."""
        if request.complete and not request.busy and self._requests.pop(request.id, None) is not None:
            self._sent.add(request.id)


def _runs(numbers: Iterable[int]) -> Iterator[range]:
    """Neighbouring numbers as ranges."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield range(found[0], found[-1] + 1)
