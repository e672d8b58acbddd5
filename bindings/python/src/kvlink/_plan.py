"""Plans: what one rank takes from another, for engines that move the bytes themselves."""

from __future__ import annotations

import ctypes
import operator
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ._abi import Status, kvlink_plan_request_t, kvlink_span_t
from ._blocks import block_lists
from ._errors import Incompatible, InvalidArgument, check, text_of
from ._layout import Layout, handles
from ._library import lib

_expand = lib.kvlink_plan_expand
_REQUEST_SIZE = ctypes.sizeof(kvlink_plan_request_t)


class Span(NamedTuple):
    """One contiguous copy."""

    src_offset: int
    dst_offset: int
    len: int
    src_region: int
    dst_region: int


class Spans(Sequence[Span]):
    """The copies of a request. ``numpy()`` gives all of them without copying."""

    def __init__(self, raw: Any, count: int) -> None:
        self._raw = raw
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._span(i) for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"span {index} of {self._count}")
        return self._span(index % self._count)

    def __iter__(self) -> Iterator[Span]:
        return map(self._span, range(self._count))

    def _span(self, index: int) -> Span:
        s = self._raw[index]
        return Span(s.src_offset, s.dst_offset, s.len, s.src_region, s.dst_region)

    def numpy(self) -> Any:
        """A structured array with the fields of `Span`. Needs numpy."""
        import numpy

        return numpy.ctypeslib.as_array(self._raw)[: self._count]


class Plan:
    """A compiled and proven plan of one rank pair. Immutable; calls on one plan take turns."""

    def __init__(self, handle: int) -> None:
        """Takes over a handle of the library; use `compile`."""
        self._handle = handle
        self._room = 64
        weakref.finalize(self, lib.kvlink_plan_destroy, handle).atexit = False

    @classmethod
    def compile(
        cls, sources: Sequence[Layout], destinations: Sequence[Layout], source: int = 0, destination: int = 0
    ) -> Plan | None:
        """Compiles and proves what rank `destination` takes from rank `source`; None if there is nothing.

        `sources` and `destinations` are the layouts of all ranks of either instance, by rank. An `Incompatible` lists
        every difference in its `findings`.
        """
        src, dst, handle = handles(sources), handles(destinations), ctypes.c_void_p()
        _ranks(source, destination)
        status = lib.kvlink_plan_create(src, len(src), dst, len(dst), source, destination, ctypes.byref(handle))
        try:
            check(status)
        except Incompatible as e:
            e.findings = Layout.check(sources, destinations, destination)
            raise
        return cls(handle.value) if handle.value else None

    def expand(
        self,
        source_blocks: Sequence[Any],
        destination_blocks: Sequence[Any],
        tokens: int,
        *,
        token_begin: int = 0,
        token_end: int | None = None,
        layers: range | None = None,
    ) -> Spans:
        """The copies of a request of `tokens` tokens, merged where neighbours touch on both sides.

        Block lists are sequences of one list per group: lists, tuples, ranges, arrays of any integer type, `Blocks`.
        """
        keep: list[Any] = []
        src = block_lists(source_blocks, "source_blocks", keep)
        dst = block_lists(destination_blocks, "destination_blocks", keep)
        first, count = layer_range(layers)
        begin, end, total = token_range(token_begin, token_end, tokens)
        request = kvlink_plan_request_t(
            _REQUEST_SIZE, first, count, 0, begin, end, total, ctypes.addressof(src), len(src),
            ctypes.addressof(dst), len(dst),
        )  # fmt: skip
        number = ctypes.c_size_t()
        room = self._room
        while True:
            spans = (kvlink_span_t * room)()
            status = _expand(self._handle, request, spans, room, number)
            if status != Status.BUFFER_TOO_SMALL:
                break
            # The next request of this plan is probably like this one.
            self._room = room = number.value
        if status:
            check(status)
        return Spans(spans, number.value)

    def explain(self) -> str:
        """What the plan does: ranks, average run, and whether its runs should be packed."""
        return text_of(lib.kvlink_plan_explain, self._handle)

    def __repr__(self) -> str:
        return f"<kvlink.Plan: {self.explain()}>"


def _ranks(*ranks: int) -> None:
    for rank in ranks:
        if not 0 <= rank < 1 << 32:
            raise InvalidArgument(f"rank {rank}")


def layer_range(layers: range | None) -> tuple[int, int]:
    """First layer and number of layers; none given are all."""
    if layers is None:
        return 0, 0
    if layers.step != 1 or not 0 <= layers.start < layers.stop < 1 << 32:
        raise InvalidArgument(f"layers {layers} is not a range of neighbouring layers")
    return layers.start, len(layers)


def token_range(begin: int, end: int | None, total: int) -> tuple[int, int, int]:
    """Tokens as the library takes them, for which the end 0 is that of the request."""
    begin, total = operator.index(begin), operator.index(total)
    for name, value in (("token_begin", begin), ("tokens", total)):
        if not 0 <= value <= sys.maxsize:
            raise InvalidArgument(f"{name} is {value}")
    if end is None:
        return begin, 0, total
    if not 0 < end <= sys.maxsize:
        raise InvalidArgument(f"token_end is {end}")
    return begin, operator.index(end), total
