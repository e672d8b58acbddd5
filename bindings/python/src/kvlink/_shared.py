"""Memory that kvlink peers on this host can map."""

from __future__ import annotations

import ctypes
import weakref

from ._errors import InvalidArgument, check
from ._library import lib

# Live allocations, to find the whole one around an array.
_live: dict[int, int] = {}


def shared_memory(nbytes: int) -> memoryview:
    """Zeroed memory that peers on this host can map: the fastest path between processes.

    ``numpy.frombuffer(m, dtype)`` and ``torch.frombuffer(m, dtype=...)`` are further views of it. It is freed with the
    last of them; while a region uses it, it stays.
    """
    if nbytes <= 0:
        raise InvalidArgument(f"shared memory of {nbytes} bytes")
    pointer = ctypes.c_void_p()
    check(lib.kvlink_shared_alloc(nbytes, ctypes.byref(pointer)))
    address = pointer.value or 0
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    _live[address] = nbytes
    # At the interpreter's exit others may still look at it; the system frees it then.
    weakref.finalize(memory, _free, address).atexit = False
    return memoryview(memory).cast("B")


def _free(address: int) -> None:
    del _live[address]
    check(lib.kvlink_shared_free(address))


def around(start: int, end: int) -> tuple[int, int] | None:
    """The allocation that holds these bytes."""
    for address, nbytes in _live.copy().items():
        if address <= start and end <= address + nbytes:
            return address, address + nbytes
    return None
