"""Keys and values as kvlink tensors, where a backend packs them within a block of one head."""

from __future__ import annotations

from typing import Any

import kvlink
from kvlink import Axis, Extent, Part, Tensor
from kvlink._pieces import View

from .cells import Plane


def packed(
    cache: Any,
    parts: tuple[Plane, Plane],
    heads: kvlink.Section,
    num_blocks: int,
    *,
    layer: int,
    role: str,
    group: int,
) -> list[Tensor]:
    """The tensors of one layer: one if keys and values have one stride along their content, as rows have, else two."""
    array = kvlink.strided(cache)
    size, kernels = array.itemsize, cache.shape[0] // num_blocks
    view = View(array, num_blocks, kernels * cache.shape[2])
    rows = all(len(plane.content) == 1 for plane in parts)
    boxes: list[Part] = []
    begin = 0
    for plane in parts:
        content = [Extent(begin, n, stride * size) for n, stride in plane.content]
        boxes.append(
            Part(
                extents=(Extent(heads.first, heads.count, array.strides[1]), *content),
                offset=plane.offset * size,
                block_stride=array.strides[0] * kernels,
                view=view,
                **_tokens(plane, kernels, array.strides[0], size, f"layer {layer} ({role})"),
            )
        )
        begin += content[0].len if rows else 0
    head = Axis("head", heads.units)
    common: dict[str, Any] = {"layer": layer, "group": group, "dtype": array.element(None), "element_bytes": size}
    if rows:
        return [Tensor(role=role, axes=(head, Axis("content", begin)), parts=tuple(boxes), **common)]
    return [
        Tensor(role=f"{role} {what}", axes=(head, *_axes(box)), parts=(box,), **common)
        for what, box in zip(("keys", "values"), boxes, strict=True)
    ]


def _axes(box: Part) -> list[Axis]:
    """One axis for every dimension of the content."""
    return [Axis(f"content {i}", extent.len) for i, extent in enumerate(box.extents[1:])]


def _tokens(plane: Plane, kernels: int, kernel_stride: int, size: int, what: str) -> dict[str, int]:
    """How tokens lie in a block: at one stride, or at two, in tiles."""
    steps = [(n, stride * size) for n, stride in plane.tokens]
    if kernels > 1:
        steps.insert(0, (kernels, kernel_stride))
    if len(steps) > 2:
        raise ValueError(f"{what}: tokens of a block lie at {len(steps)} strides {steps}, at most two are understood")
    if len(steps) == 1:
        return {"token_stride": steps[0][1]}
    return {"token_stride": steps[1][1], "tile_tokens": steps[1][0], "tile_stride": steps[0][1]}
