"""Layouts: immutable descriptions of one rank's cache, from JSON, from numbers, or from arrays."""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from . import _abi
from ._abi import GroupKind, ReachKind, Status
from ._arrays import Memory, Strided, memory
from ._errors import InvalidArgument, InvalidLayout, check, text_of
from ._library import lib
from ._pieces import Attention, Group, Piece, Record, State, Tensor, array_of, uints


@dataclass(frozen=True)
class Finding:
    """One incompatibility of two sides: what, and both values."""

    subject: str
    field: str
    destination: str
    source: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.field} destination {self.destination}, source {self.source}"


class Layout:
    """A cache layout. Immutable; may be shared by threads."""

    def __init__(self, handle: int, regions: tuple[Memory, ...] = ()) -> None:
        """Takes over a handle of the library; use `from_json` or `from_pieces`."""
        self._handle = handle
        #: The memory of each region, where the layout was described from arrays; otherwise empty.
        self.memory = regions
        weakref.finalize(self, lib.kvlink_layout_destroy, handle).atexit = False

    @classmethod
    def from_json(cls, description: str | bytes | dict[str, Any]) -> Layout:
        """A layout from JSON: a complete description, or a model geometry with a placement."""
        if isinstance(description, dict):
            description = json.dumps(description)
        text = description.encode() if isinstance(description, str) else description
        handle = ctypes.c_void_p()
        check(lib.kvlink_layout_from_json(text, len(text), ctypes.byref(handle)))
        return cls(handle.value or 0)

    @classmethod
    def from_pieces(
        cls,
        pieces: Iterable[Piece | Sequence[Piece]],
        *,
        groups: Sequence[Group],
        regions: Sequence[Any] | None = None,
        model: str = "",
    ) -> Layout:
        """A layout from pieces, single ones or lists as `attention`, `record`, `state` and `convolution` return them.

        `regions` are sizes in bytes, or the memory itself. Left out, they are the allocations that the arrays lie in:
        views of one allocation are in one region.
        """
        flat: list[Piece] = []
        for piece in pieces:
            flat.extend([piece] if isinstance(piece, Attention | Record | State | Tensor) else piece)
        given = None if regions is None else [int(r) if isinstance(r, Integral) else memory(r) for r in regions]
        places = _allocations(flat) if given is None else given
        flat = [_resolve(p, places, groups) if isinstance(p, Tensor) else p for p in flat]
        handle = _create(flat, groups, [p if isinstance(p, int) else p.nbytes for p in places], model)
        memories = tuple(p for p in places if isinstance(p, Memory))
        return cls(handle, memories if len(memories) == len(places) else ())

    @property
    def regions(self) -> tuple[int, ...]:
        """Bytes that each region needs."""
        return tuple(_listed(lib.kvlink_layout_regions, self._handle, ctypes.c_uint64))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of block lists."""
        found = _listed(lib.kvlink_layout_groups, self._handle, _abi.kvlink_group_t)
        names = [name for name, *_ in _abi.kvlink_group_t._fields_ if name not in ("kind", "reach", "reserved")]
        return tuple(
            Group(kind=GroupKind(g.kind), reach=ReachKind(g.reach), **{name: getattr(g, name) for name in names})
            for g in found
        )

    def to_json(self) -> str:
        """The complete description as JSON: what kvlink understood."""
        return text_of(lib.kvlink_layout_explain, self._handle)

    @staticmethod
    def check(sources: Sequence[Layout], destinations: Sequence[Layout], rank: int = 0) -> tuple[Finding, ...]:
        """Every reason why destination rank `rank` cannot get its cache from the source instance; none if it can.

        `sources` and `destinations` are the layouts of all ranks of either instance, by rank.
        """
        count, cap = ctypes.c_size_t(), 16
        src, dst = handles(sources), handles(destinations)
        while True:
            found = (_abi.kvlink_finding_t * cap)()
            status = lib.kvlink_layout_check(src, len(src), dst, len(dst), _rank(rank), found, cap, count)
            if status not in (Status.OK, Status.INCOMPATIBLE):
                check(status)
            if count.value <= cap:
                break
            cap = count.value
        names = ("subject", "field", "destination", "source")
        return tuple(Finding(*(getattr(f, n).decode() for n in names)) for f in found[: count.value])

    def __repr__(self) -> str:
        return f"<kvlink.Layout: {len(self.groups)} groups, regions of {list(self.regions)} bytes>"


def handles(layouts: Sequence[Layout]) -> Any:
    """A C array of handles."""
    for i, layout in enumerate(layouts):
        if not isinstance(layout, Layout):
            raise InvalidArgument(f"layout of rank {i} is a {type(layout).__name__}")
    return (ctypes.c_void_p * len(layouts))(*(layout._handle for layout in layouts))


def _rank(rank: int) -> int:
    if not 0 <= rank < 1 << 32:
        raise InvalidArgument(f"rank {rank}")
    return rank


def _listed(function: Any, handle: int, kind: Any) -> Any:
    count = ctypes.c_size_t()
    status = function(handle, None, 0, count)
    if status not in (Status.OK, Status.BUFFER_TOO_SMALL):
        check(status)
    found = (kind * count.value)()
    check(function(handle, found, len(found), count))
    return found


def _create(pieces: list[Piece], groups: Sequence[Group], sizes: list[int], model: str) -> int:
    desc, keep = _abi.kvlink_layout_desc_t(), list[Any]()
    desc.struct_size = ctypes.sizeof(desc)
    desc.model = model.encode()
    regions = uints(ctypes.c_uint64, sizes, "regions")
    desc.region_bytes, desc.num_regions = ctypes.addressof(regions), len(sizes)
    lists: list[tuple[str, Sequence[Any]]] = [("groups", groups)]
    for name, kind in (("attention", Attention), ("records", Record), ("states", State), ("tensors", Tensor)):
        lists.append((name, [p for p in pieces if isinstance(p, kind)]))
    for name, entries in lists:
        if entries:
            setattr(desc, name, ctypes.addressof(array_of(entries, keep, name)))
            setattr(desc, f"num_{name}", len(entries))
    handle = ctypes.c_void_p()
    check(lib.kvlink_layout_create(desc, ctypes.byref(handle)))
    return handle.value or 0


def _allocations(pieces: list[Piece]) -> list[Memory | int]:
    """The allocations of the arrays, in order of first use; what overlaps is one."""
    used = [part.view.array for p in pieces if isinstance(p, Tensor) for part in p.parts if part.view is not None]
    merged: list[Memory] = []
    for m in sorted((a.storage for a in used), key=lambda m: (m.device, m.address)):
        last = merged[-1] if merged else None
        if last is not None and last.device == m.device and m.address < last.end:
            end, readonly = max(last.end, m.end), last.readonly or m.readonly
            owner = last.owner if last.owner is m.owner else (last.owner, m.owner)
            merged[-1] = Memory(last.address, end - last.address, owner, m.device, readonly)
        else:
            merged.append(m)
    order = [_find(a, merged) for a in used]
    return [merged[i] for i in dict.fromkeys(i for i in order if i is not None)]


def _find(array: Strided, places: Sequence[Memory | int]) -> int | None:
    start, end = array.span()
    for i, place in enumerate(places):
        if isinstance(place, int):
            continue
        if place.device == array.storage.device and place.address <= start and end <= place.end:
            return i
    return None


def _resolve(tensor: Tensor, places: Sequence[Memory | int], groups: Sequence[Group]) -> Tensor:
    """A tensor with its parts in numbered regions."""
    parts = []
    for part in tensor.parts:
        if part.view is None:
            parts.append(part)
            continue
        what, array = f"{tensor.role} of layer {tensor.layer}", part.view.array
        if not 0 <= tensor.group < len(groups):
            raise InvalidLayout(f"{what}: group {tensor.group} of {len(groups)}")
        group = groups[tensor.group]
        for name, have, want in (
            ("blocks", part.view.num_blocks, group.num_blocks),
            ("tokens per block", part.view.block_tokens, group.block_tokens),
        ):
            if have != want:
                raise InvalidLayout(f"{what}: the array has {have} {name}, group {tensor.group} has {want}")
        region = _find(array, places)
        place = None if region is None else places[region]
        if region is None or not isinstance(place, Memory):
            start, end = array.span()
            listed = ", ".join(str(p) for p in places if isinstance(p, Memory)) or "none is memory"
            raise InvalidLayout(f"{what}: the array at {start:#x}..{end:#x} lies in none of the regions ({listed})")
        offset = array.address - place.address + part.offset
        parts.append(replace(part, region=region, offset=offset, view=None))
    return replace(tensor, parts=tuple(parts))
