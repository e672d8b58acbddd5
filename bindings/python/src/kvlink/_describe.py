"""Cache tensors described from arrays: every axis has a letter, offsets and strides come from the array itself.

Letters: L layer, B block or slot, T kernel block inside a block, N token, H head, C content, D channel, R row,
K key or value. A letter that is repeated is one axis that the array has in several dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._abi import DType
from ._arrays import strided
from ._errors import InvalidLayout
from ._pieces import Axis, Extent, Part, Section, Tensor, View

_NAMES = {
    "L": "layer",
    "B": "block",
    "T": "kernel block",
    "N": "token",
    "H": "head",
    "C": "content",
    "D": "channel",
    "R": "row",
    "K": "key/value",
}


class _Axes:
    """Extent and byte stride by letter."""

    def __init__(self, what: str, array: Any, axes: str, allowed: str, required: str) -> None:
        self.what, self.array = what, strided(array)
        shape, strides = self.array.shape, self.array.strides
        if len(axes) != len(shape):
            self.refuse(f"axes {axes!r} name {len(axes)} dimensions, the array has {len(shape)}: {shape}")
        for letter in axes:
            if letter not in allowed:
                self.refuse(f"axes {axes!r}: {letter!r} is none of {allowed!r}")
        for letter in required:
            if letter not in axes:
                self.refuse(f"axes {axes!r} lack {letter!r} ({_NAMES[letter]})")
        self._found: dict[str, tuple[int, int]] = {}
        for letter, extent, stride in zip(axes, shape, strides, strict=True):
            if extent == 0:
                self.refuse(f"axis {letter} ({_NAMES[letter]}) is empty in shape {shape}")
            if stride < 0 and extent > 1:
                self.refuse(f"axis {letter} ({_NAMES[letter]}) has the negative stride {stride}")
            self._found[letter] = self._merge(letter, (extent, abs(stride)), axes)

    def refuse(self, why: str) -> None:
        raise InvalidLayout(f"{self.what}: {why}")

    def _merge(self, letter: str, inner: tuple[int, int], axes: str) -> tuple[int, int]:
        outer = self._found.get(letter)
        if outer is None or outer[0] == 1:
            return inner
        (n, stride), (m, below) = outer, inner
        if m == 1:
            return outer
        if stride != m * below:
            text = f"the dimensions {letter} of {axes!r} are not one axis: strides {stride} and {below}, {m} elements"
            self.refuse(f"{text} of the inner one")
        return n * m, below

    def __contains__(self, letter: str) -> bool:
        return letter in self._found

    def extent(self, letter: str) -> int:
        return self._found.get(letter, (1, 0))[0]

    def stride(self, letter: str) -> int:
        return self._found.get(letter, (1, 0))[1]

    def expect(self, letter: str, wanted: int, why: str) -> None:
        if self.extent(letter) != wanted:
            have = self.extent(letter)
            self.refuse(f"axis {letter} ({_NAMES[letter]}) has {have} elements, {why} {wanted}")

    def part(self, layer: int, offset: int, extents: Sequence[Extent]) -> Part:
        """The part of the `layer`-th layer of the array; `offset` is relative to the array."""
        tokens, tiles = self.extent("N"), self.extent("T")
        return Part(
            extents=extents,
            offset=layer * self.stride("L") + offset,
            block_stride=self.stride("B"),
            token_stride=self.stride("N"),
            tile_tokens=tokens if "T" in self else 0,
            tile_stride=self.stride("T"),
            view=View(self.array, self.extent("B"), tokens * tiles),
        )

    def layers(self, layers: Sequence[int]) -> Sequence[int]:
        self.expect("L", len(layers), "layers has")
        return layers


def attention(
    array: Any,
    axes: str,
    *,
    layers: Sequence[int],
    heads: int,
    first_head: int = 0,
    values: Any = None,
    group: int = 0,
    role: str = "kv",
    dtype: DType | None = None,
) -> list[Tensor]:
    """Attention keys and values.

    `axes` are letters of L, B, T, N, H, C and K. Without K a content row is key and value packed, or, with `values`,
    the key: that second array of the same axes then has the values. `layers` are the global indices along L, `heads`
    those of the model, of which the array has some from `first_head`.
    """
    what = f"{role} of layers {list(layers)}"
    a = _Axes(what, array, axes, "LBTNHCK", "BNHC")
    content = a.extent("C")
    planes: list[tuple[_Axes, int, int]] = [(a, 0, 0)]
    if "K" in a:
        a.expect("K", 2, "keys and values are")
        if values is not None:
            a.refuse("values are given apart, but the axes have K")
        planes.append((a, a.stride("K"), content))
    elif values is not None:
        v = _Axes(f"values of {what}", values, axes, "LBTNHC", "BNHC")
        for letter in "LBTNH":
            v.expect(letter, a.extent(letter), "that of the keys has")
        if v.array.dtype != a.array.dtype:
            v.refuse(f"dtype {v.array.dtype}, that of the keys is {a.array.dtype}")
        planes.append((v, 0, content))
    total = planes[-1][2] + planes[-1][0].extent("C")
    element = a.array.element(dtype)
    if first_head + a.extent("H") > heads:
        a.refuse(f"heads {first_head}..{first_head + a.extent('H')} of a model with {heads}")
    return [
        Tensor(
            layer=layer,
            role=role,
            group=group,
            dtype=element,
            element_bytes=a.array.itemsize,
            axes=(Axis("head", heads), Axis("content", total)),
            parts=tuple(p.part(i, offset, _rows(p, first_head, begin)) for p, offset, begin in planes),
        )
        for i, layer in enumerate(a.layers(layers))
    ]


def _rows(a: _Axes, first_head: int, begin: int) -> tuple[Extent, Extent]:
    return (
        Extent(first_head, a.extent("H"), a.stride("H")),
        Extent(begin, a.extent("C"), a.stride("C")),
    )


def record(
    array: Any,
    axes: str,
    *,
    layers: Sequence[int],
    role: str,
    group: int = 0,
    dtype: DType | None = None,
) -> list[Tensor]:
    """One record per token, equal on all tensor-parallel ranks: MLA latents, indexer keys.

    `axes` are letters of L, B, T, N and C. With ``dtype=DType.OPAQUE`` a record is moved whole; `role` names the form.
    """
    a = _Axes(f"{role} of layers {list(layers)}", array, axes, "LBTNC", "BNC")
    content, unit = a.extent("C"), a.stride("C")
    size = a.array.itemsize
    if dtype is DType.OPAQUE:
        if content > 1 and unit != size:
            a.refuse(f"an opaque record must be contiguous, its {content} elements of {size} bytes are {unit} apart")
        content, size = 1, content * size
        unit = size
    element = a.array.element(dtype)
    return [
        Tensor(
            layer=layer,
            role=role,
            group=group,
            dtype=element,
            element_bytes=size,
            axes=(Axis("content", content),),
            parts=(a.part(i, 0, (Extent(0, content, unit),)),),
        )
        for i, layer in enumerate(a.layers(layers))
    ]


def state(
    array: Any,
    axes: str,
    *,
    layers: Sequence[int],
    heads: int,
    first_head: int = 0,
    group: int = 0,
    role: str = "state",
    dtype: DType | None = None,
) -> list[Tensor]:
    """Recurrent state, one slot per request; `axes` are letters of L, B (slot), H and C, as in ``"BHCC"``."""
    a = _Axes(f"{role} of layers {list(layers)}", array, axes, "LBHC", "BHC")
    if first_head + a.extent("H") > heads:
        a.refuse(f"heads {first_head}..{first_head + a.extent('H')} of a model with {heads}")
    return [
        Tensor(
            layer=layer,
            role=role,
            group=group,
            dtype=a.array.element(dtype),
            element_bytes=a.array.itemsize,
            axes=(Axis("head", heads), Axis("content", a.extent("C"))),
            parts=(a.part(i, 0, _rows(a, first_head, 0)),),
        )
        for i, layer in enumerate(a.layers(layers))
    ]


def convolution(
    array: Any,
    axes: str,
    *,
    layers: Sequence[int],
    sections: Sequence[Section],
    group: int = 0,
    role: str = "conv",
    dtype: DType | None = None,
) -> list[Tensor]:
    """Convolution state, one slot per request. `axes` are letters of L, B (slot), D (channel) and R (row).

    The channels are `sections` one after the other (``[q|k|v]``, ``[x|B|C]``), each sharded by itself.
    """
    a = _Axes(f"{role} of layers {list(layers)}", array, axes, "LBDR", "BDR")
    a.expect("D", sum(s.count * s.width for s in sections), "the sections have")
    tensors = []
    for i, layer in enumerate(a.layers(layers)):
        parts, local, below = [], 0, 0
        for s in sections:
            channels = Extent(below + s.first * s.width, s.count * s.width, a.stride("D"))
            parts.append(a.part(i, local * a.stride("D"), (channels, Extent(0, a.extent("R"), a.stride("R")))))
            local += s.count * s.width
            below += s.units * s.width
        tensors.append(
            Tensor(
                layer=layer,
                role=role,
                group=group,
                dtype=a.array.element(dtype),
                element_bytes=a.array.itemsize,
                axes=(Axis("channel", below), Axis("row", a.extent("R"), common=True)),
                parts=tuple(parts),
            )
        )
    return tensors
