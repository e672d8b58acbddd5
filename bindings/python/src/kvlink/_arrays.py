"""Arrays as memory: where an element lies, and the allocation around it. Nothing is imported for it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _shared
from ._abi import DType
from ._errors import InvalidArgument, InvalidLayout

# By the name that numpy, ml_dtypes and torch give a type. uint16 has none: it needs saying what it stands for.
_DTYPES = {
    "float64": DType.F64,
    "float32": DType.F32,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e5m2": DType.F8_E5M2,
    "int32": DType.I32,
    "int8": DType.I8,
    "uint8": DType.U8,
}
DTYPE_BYTES = {
    DType.F64: 8,
    DType.F32: 4,
    DType.F16: 2,
    DType.BF16: 2,
    DType.F8_E4M3: 1,
    DType.F8_E5M2: 1,
    DType.I32: 4,
    DType.I8: 1,
    DType.U8: 1,
}


@dataclass(frozen=True, eq=False)
class Memory:
    """A byte range, and what keeps it alive."""

    address: int
    nbytes: int
    owner: object
    device: str = "cpu"
    readonly: bool = False

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.address + self.nbytes

    def __str__(self) -> str:
        place = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.address:#x}..{self.end:#x}{place}"


@dataclass(frozen=True, eq=False)
class Strided:
    """An array: its first element, and bytes from neighbour to neighbour along each axis."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    dtype: str
    storage: Memory

    def span(self) -> tuple[int, int]:
        """First byte, and one past the last byte of any element; strides are not negative."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.address, self.address + last + self.itemsize

    def element(self, override: DType | None) -> DType:
        """The kvlink type of the elements, or the one that the caller says they stand for."""
        if override is None:
            found = _DTYPES.get(self.dtype)
            if found is None:
                known = ", ".join(_DTYPES)
                raise InvalidLayout(
                    f"dtype {self.dtype} has no kvlink type (known are {known}): say dtype=kvlink.DType..."
                )
            return found
        wanted = DTYPE_BYTES.get(override, self.itemsize)
        if wanted != self.itemsize:
            text = f"dtype={override.name} has {wanted} bytes, the array's {self.dtype} has {self.itemsize}"
            raise InvalidLayout(text)
        return override


def strided(array: Any) -> Strided:
    """An array of torch, numpy, or anything that speaks an array interface, DLPack or the buffer protocol."""
    if hasattr(array, "data_ptr") and hasattr(array, "element_size"):
        return _torch(array)
    for name, device in (("__array_interface__", "cpu"), ("__cuda_array_interface__", "cuda")):
        interface = getattr(array, name, None)
        if interface is not None:
            return _interface(array, interface, device)
    if hasattr(array, "__dlpack__"):
        return _dlpack(array)
    return _buffer(array)


def memory(thing: Any) -> Memory:
    """The whole allocation that an array or buffer lies in, as it is registered."""
    return thing if isinstance(thing, Memory) else strided(thing).storage


def _storage(thing: object, start: int, end: int, *, device: str = "cpu", readonly: bool = False) -> Memory:
    """The allocation of kvlink_shared_alloc around these bytes, or just the bytes."""
    found = _shared.around(start, end) if device == "cpu" else None
    start, end = found or (start, end)
    return Memory(start, end - start, thing, device, readonly)


def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, below = [], itemsize
    for n in reversed(shape):
        strides.append(below)
        below *= n
    return tuple(reversed(strides))


def _bounds(address: int, shape: Iterable[int], strides: Iterable[int], itemsize: int) -> tuple[int, int]:
    """First byte, and one past the last, for strides of any sign."""
    steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 0]
    return address + sum(s for s in steps if s < 0), address + sum(s for s in steps if s > 0) + itemsize


def _torch(tensor: Any) -> Strided:
    size = int(tensor.element_size())
    # untyped_storage came with torch 2.0.
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
    device, begin, length = str(tensor.device), int(storage.data_ptr()), int(storage.nbytes())
    if begin == 0:
        raise InvalidArgument(f"a tensor of {length} bytes on {device} has no memory")
    place = _storage(tensor, begin, begin + length, device=device)
    strides = tuple(int(s) * size for s in tensor.stride())
    name = str(tensor.dtype).removeprefix("torch.")
    return Strided(int(tensor.data_ptr()), tuple(map(int, tensor.shape)), strides, size, name, place)


def _interface(array: Any, interface: dict[str, Any], device: str) -> Strided:
    address, readonly = interface["data"]
    shape = tuple(interface["shape"])
    size = int(interface["typestr"][2:])
    strides = tuple(interface.get("strides") or _dense(shape, size))
    # The interface calls bfloat16 and its like void; numpy's type has their name.
    name = str(getattr(getattr(array, "dtype", None), "name", None) or _typestr_name(interface["typestr"]))
    if interface["typestr"].startswith(">") and size > 1:
        raise InvalidLayout(f"dtype {name} is big-endian, caches are little-endian")
    start, end = _bounds(address, shape, strides, size)
    if device == "cpu":
        start, end = _numpy_allocation(array, start, end)
    return Strided(
        address, shape, strides, size, name, _storage(array, start, end, device=device, readonly=bool(readonly))
    )


def _typestr_name(typestr: str) -> str:
    kind = {"f": "float", "i": "int", "u": "uint"}.get(typestr[1])
    return f"{kind}{int(typestr[2:]) * 8}" if kind else typestr


def _numpy_allocation(array: Any, start: int, end: int) -> tuple[int, int]:
    """What a view is a view of: the outermost array, or the buffer below that."""
    owner = array
    while hasattr(getattr(owner, "base", None), "__array_interface__"):
        owner = owner.base
    candidates = [owner]
    numpy, base = sys.modules.get("numpy"), getattr(owner, "base", None)
    if numpy is not None and base is not None:
        # Where there is no buffer of plain bytes, the outermost array will do.
        with contextlib.suppress(TypeError, ValueError, BufferError):
            candidates.append(numpy.frombuffer(base, numpy.uint8))
    for candidate in candidates:
        interface = candidate.__array_interface__
        size = int(interface["typestr"][2:])
        strides = interface.get("strides") or _dense(interface["shape"], size)
        low, high = _bounds(interface["data"][0], interface["shape"], strides, size)
        start, end = min(start, low), max(end, high)
    return start, end


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


# A prototype of our own: the attributes of `ctypes.pythonapi` are everybody's.
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# Of dlpack.h: type codes, and the devices whose memory the host can address.
_DL_NAMES = {0: "int{}", 1: "uint{}", 2: "float{}", 4: "bfloat16", 10: "float8_e4m3fn", 12: "float8_e5m2"}
_DL_HOST = {1, 3}


def _dlpack(array: Any) -> Strided:
    capsule = array.__dlpack__()
    # The capsule is not consumed: it lets go of the array when it is collected; `array` itself is kept.
    tensor = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    size = (tensor.bits * tensor.lanes + 7) // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(s * size for s in tensor.strides[: tensor.ndim]) if tensor.strides else _dense(shape, size)
    address = (tensor.data or 0) + tensor.byte_offset
    device = "cpu" if tensor.device_type in _DL_HOST else f"device {tensor.device_type}:{tensor.device_id}"
    name = _DL_NAMES.get(tensor.code, f"DLPack code {tensor.code}").format(tensor.bits)
    start, end = _bounds(address, shape, strides, size)
    return Strided(address, shape, strides, size, name, _storage(array, start, end, device=device))


def _buffer(thing: Any) -> Strided:
    try:
        view = memoryview(thing)
    except TypeError:
        kinds = "an array (torch, numpy, an array interface, DLPack) nor a buffer"
        raise InvalidArgument(f"{type(thing).__name__} is neither {kinds}") from None
    if view.readonly:
        raise InvalidArgument(f"{type(thing).__name__} is read-only; kvlink needs memory that it may write to")
    if not view.c_contiguous:
        raise InvalidArgument(f"a buffer of {type(thing).__name__} with strides {view.strides} is not contiguous")
    if view.nbytes == 0:
        raise InvalidArgument(f"{type(thing).__name__} is empty")
    # The export keeps the buffer from being resized or freed for as long as `held` lives.
    held = (ctypes.c_char * view.nbytes).from_buffer(view)
    address = ctypes.addressof(held)
    name = {"f": "float32", "d": "float64", "e": "float16", "i": "int32", "b": "int8"}.get(view.format, "uint8")
    shape, strides = (view.shape, view.strides) if view.shape is not None else ((view.nbytes,), (1,))
    return Strided(
        address, tuple(shape), tuple(strides or ()), view.itemsize, name, _storage(held, address, address + view.nbytes)
    )
