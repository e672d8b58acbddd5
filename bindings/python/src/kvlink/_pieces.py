"""What layouts are made of. Names and meanings are those of the structs in kvlink.h; sizes and strides are bytes."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral
from typing import Any, ClassVar, SupportsIndex

from . import _abi
from ._abi import DType, GroupKind, ReachKind
from ._arrays import Strided
from ._errors import InvalidLayout


@dataclass(frozen=True, kw_only=True)
class Group:
    """A KV-cache group: one block-id space, the same on all ranks of an instance."""

    C: ClassVar = _abi.kvlink_group_t
    num_blocks: int
    block_tokens: int = 1
    kind: GroupKind = GroupKind.PAGED
    reach: ReachKind = ReachKind.FULL
    reach_tokens: int = 0
    context_size: int = 1
    context_rank: int = 0
    context_interleave: int = 1


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Paged attention keys and values of several layers in one allocation."""

    C: ClassVar = _abi.kvlink_attention_t
    layers: Sequence[int]
    heads: int
    num_heads: int
    key_dim: int
    value_dim: int
    dtype: DType
    first_head: int = 0
    order: str = "LBHNC"
    role: str = "kv"
    group: int = 0
    region: int = 0
    offset: int = 0
    block_stride: int = 0
    layer_stride: int = 0
    planes: bool = False
    value_region: int = 0
    value_offset: int = 0
    kernel_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record per token, equal on all tensor-parallel ranks, of several layers."""

    C: ClassVar = _abi.kvlink_record_t
    layers: Sequence[int]
    role: str
    dtype: DType
    elements: int = 1
    element_bytes: int = 0
    group: int = 0
    region: int = 0
    offset: int = 0
    block_stride: int = 0
    layer_stride: int = 0
    token_stride: int = 0


@dataclass(frozen=True)
class Section:
    """Channels or heads, sharded by themselves: `units` of `width` elements; this rank has `count` from `first`."""

    C: ClassVar = _abi.kvlink_section_t
    units: int
    width: int
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class State:
    """Convolution and recurrent state per request of several layers."""

    C: ClassVar = _abi.kvlink_state_t
    layers: Sequence[int]
    group: int
    slot_stride: int
    layer_stride: int
    region: int = 0
    conv: Sequence[Section] = ()
    conv_offset: int = 0
    conv_rows: int = 0
    conv_rows_outside: bool = False
    conv_dtype: DType = DType.OPAQUE
    state: Section = Section(0, 0, 0, 0)
    state_offset: int = 0
    state_dtype: DType = DType.OPAQUE


@dataclass(frozen=True)
class Axis:
    """A global axis of a tensor; `common`: only indices that both sides have are moved."""

    C: ClassVar = _abi.kvlink_axis_t
    name: str
    extent: int
    common: bool = False


@dataclass(frozen=True)
class Extent:
    """The interval of an axis that a part stores, and bytes between neighbours."""

    C: ClassVar = _abi.kvlink_extent_t
    begin: int
    len: int
    stride: int


@dataclass(frozen=True)
class View:
    """The array that a part is described from, and the size of the group that it has room for."""

    array: Strided
    num_blocks: int
    block_tokens: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A strided box of a tensor inside one region; with a `view`, the offset is relative to that array."""

    C: ClassVar = _abi.kvlink_part_t
    extents: Sequence[Extent]
    block_stride: int
    token_stride: int = 0
    offset: int = 0
    region: int = 0
    tile_tokens: int = 0
    tile_stride: int = 0
    view: View | None = None


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A cache tensor as this rank stores it; (layer, role) names it."""

    C: ClassVar = _abi.kvlink_tensor_t
    layer: int
    role: str
    dtype: DType
    axes: Sequence[Axis]
    parts: Sequence[Part]
    group: int = 0
    element_bytes: int = 0


Piece = Attention | Record | State | Tensor


def uints(kind: Any, values: Sequence[int], what: str) -> Any:
    """A C array of unsigned integers."""
    return (kind * len(values))(*(_uint(kind, value, f"{what}[{i}]") for i, value in enumerate(values)))


def _uint(kind: Any, value: SupportsIndex, what: str) -> int:
    number, limit = operator.index(value), 1 << 8 * ctypes.sizeof(kind)
    if not 0 <= number < limit:
        raise InvalidLayout(f"{what} is {number}, not within 0..{limit - 1}")
    return number


def to_c(piece: Any, keep: list[Any], what: str) -> Any:
    """The C struct of a piece. What it points to is added to `keep`; numbers that do not fit are errors, not cut."""
    c = piece.C()
    keep.append(c)
    sizes = {name: kind for name, kind, *_ in piece.C._fields_}
    for field in fields(piece):
        name, value = field.name, getattr(piece, field.name)
        label = f"{what}.{name}"
        if name not in sizes:
            continue
        if isinstance(value, str):
            if "\0" in value:
                raise InvalidLayout(f"{label} has a NUL in {value!r}")
            setattr(c, name, value.encode())
        elif is_dataclass(value):
            setattr(c, name, to_c(value, keep, label))
        elif isinstance(value, Integral):
            setattr(c, name, _uint(sizes[name], value, label))
        else:
            array = array_of(value, keep, label)
            setattr(c, name, ctypes.addressof(array))
            if f"num_{name}" in sizes:
                setattr(c, f"num_{name}", len(value))
    if isinstance(piece, Tensor):
        for i, part in enumerate(piece.parts):
            if len(part.extents) != len(piece.axes):
                raise InvalidLayout(f"{what}.parts[{i}] has {len(part.extents)} extents for {len(piece.axes)} axes")
    return c


def array_of(values: Sequence[Any], keep: list[Any], what: str) -> Any:
    """A C array of pieces or of 32-bit numbers, kept."""
    if len(values) > 0 and is_dataclass(values[0]):
        structs = [to_c(v, keep, f"{what}[{i}]") for i, v in enumerate(values)]
        array = (type(structs[0]) * len(structs))(*structs)
    else:
        array = uints(ctypes.c_uint32, values, what)
    keep.append(array)
    return array
