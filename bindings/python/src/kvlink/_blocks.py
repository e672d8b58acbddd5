"""Block lists: any sequence of ids becomes the library's, without a step of Python for each id."""

from __future__ import annotations

import ctypes
import operator
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._abi import NO_BLOCK, kvlink_blocks_t
from ._errors import InvalidBlocks

_LIMIT = 1 << 32


@dataclass(frozen=True)
class Blocks:
    """The blocks of one group: ids by position, beginning at block position `first`."""

    ids: Any
    first: int = 0


def block_lists(lists: Sequence[Any], what: str, keep: list[Any]) -> Any:
    """A C array of block lists, one per group; what it points to is added to `keep`."""
    if isinstance(lists, str | bytes) or not hasattr(lists, "__len__"):
        raise InvalidBlocks(f"{what} is a {type(lists).__name__}, not a sequence of lists, one per group")
    found = (kvlink_blocks_t * len(lists))()
    keep.append(found)
    for group, (slot, ids) in enumerate(zip(found, lists, strict=True)):
        if isinstance(ids, Blocks):
            first = operator.index(ids.first)
            if not 0 <= first < 1 << 64:
                raise InvalidBlocks(f"{what}[{group}]: first is {first}")
            slot.first, ids = first, ids.ids
        slot.ids, slot.count, held = _ids(ids, f"{what}[{group}]")
        keep.append(held)
    return found


def _ids(ids: Any, what: str) -> tuple[int, int, Any]:
    """Address and number of 32-bit ids, and what keeps them alive."""
    kind = type(ids)
    if kind is list or kind is tuple or kind is range:
        return _of_array(_convert(ids, what))
    if kind is array:
        return _of_array(ids if ids.typecode == "I" else _convert(ids.tolist(), what))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(ids, numpy.ndarray):
        return _of_numpy(numpy, ids, what)
    if hasattr(ids, "data_ptr") and hasattr(ids, "element_size"):
        return _of_torch(ids, what)
    if isinstance(ids, int) or not hasattr(ids, "__len__"):
        raise InvalidBlocks(f"{what} is a {kind.__name__}, not a list of block ids")
    return _of_array(_convert(list(ids), what))


def _of_array(ids: array[int]) -> tuple[int, int, Any]:
    address, count = ids.buffer_info()
    return address, count, ids


def _convert(ids: Any, what: str) -> array[int]:
    try:
        return array("I", ids)
    except (OverflowError, TypeError):
        for position, value in enumerate(ids):
            if not isinstance(value, int) and not hasattr(value, "__index__"):
                kind = type(value).__name__
                raise InvalidBlocks(
                    f"{what}[{position}] is a {kind}, not a block id (a hole is kvlink.NO_BLOCK)"
                ) from None
            _refuse(int(value), position, what)
        raise


def _refuse(value: int, position: int, what: str) -> None:
    if not 0 <= value < _LIMIT:
        text = f"{what}[{position}] is {value}, a block id is within 0..{NO_BLOCK} (a hole is kvlink.NO_BLOCK)"
        raise InvalidBlocks(text)


def _of_numpy(numpy: Any, ids: Any, what: str) -> tuple[int, int, Any]:
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidBlocks(f"{what} is an array of {ids.ndim} dimensions of {ids.dtype}, not a list of integers")
    if ids.dtype.char != "I" or not ids.dtype.isnative:
        if ids.size and (ids.dtype.kind == "i" or ids.dtype.itemsize > 4):
            for position in (int(ids.argmin()), int(ids.argmax())):
                _refuse(int(ids[position]), position, what)
        ids = ids.astype(numpy.uint32)
    elif not ids.flags.c_contiguous:
        ids = numpy.ascontiguousarray(ids)
    return _numpy_address(ids), len(ids), ids


def _numpy_address(ids: Any) -> int:
    if not ids.flags.writeable or not len(ids):
        address: int = ids.__array_interface__["data"][0]
        return address
    # The same, in a third of the time.
    return ctypes.addressof(ctypes.c_char.from_buffer(ids))


def _of_torch(ids: Any, what: str) -> tuple[int, int, Any]:
    if str(ids.device) != "cpu":
        raise InvalidBlocks(f"{what} is on {ids.device}: copy the ids to the host first")
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype.is_complex:
        raise InvalidBlocks(f"{what} is a tensor of {ids.dim()} dimensions of {ids.dtype}, not a list of integers")
    if ids.element_size() != 4 or str(ids.dtype) == "torch.int32":
        # Not every operation exists for unsigned types; 64 bits hold all but the largest of them.
        wide = ids.long()
        if len(ids) > 0:
            for position in (int(wide.argmin()), int(wide.argmax())):
                _refuse(int(wide[position]), position, what)
        if ids.element_size() != 4:
            ids = wide.int()
    ids = ids.contiguous()
    return ids.data_ptr(), len(ids), ids
