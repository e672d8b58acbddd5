"""Where an attention backend puts keys and values inside a block of one head.

Backends may pack them as their kernels like it: transposed, or interleaved for matrix units. On the host the backend is
asked: its own cache update writes numbers into a scratch cache, and where they land is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: A dimension: extent, and elements from neighbour to neighbour.
Dims = list[tuple[int, int]]
# Small integers survive every floating point type of a cache.
_BASE = 8


@dataclass(frozen=True)
class Plane:
    """Keys, or values: the first element's offset, and the dimensions of tokens and of content, outermost first."""

    offset: int
    tokens: Dims
    content: Dims


def planes(layer: Any, spec: Any, kernel_tokens: int) -> tuple[Plane, Plane] | None:
    """What the backend of a layer does with keys and with values; None if it cannot be asked."""
    update = getattr(getattr(layer, "impl", None), "do_kv_cache_update", None)
    if update is None:
        return None
    heads, sizes = spec.num_kv_heads, (spec.head_size, spec.head_size_v)
    cache = torch.zeros(2, heads, kernel_tokens, sum(sizes), dtype=spec.dtype)
    slots = torch.arange(kernel_tokens, 2 * kernel_tokens)
    compute = spec.dtype if spec.dtype.is_floating_point else torch.float32

    def written(value: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """The block of one head after every element (plane, token, content) was given a number below _BASE."""
        cache.zero_()
        key, values = (value(p).to(compute).unsqueeze(1).expand(-1, heads, -1).contiguous() for p in (0, 1))
        update(layer, key, values, cache, slots)
        return cache[1, 0].flatten().to(torch.float32).round().long()

    def digit(number: Callable[[int], torch.Tensor], weight: int) -> Callable[[int], torch.Tensor]:
        return lambda p: number(p) // weight % _BASE

    def coordinate(number: Callable[[int], torch.Tensor], limit: int) -> torch.Tensor:
        """For every place the number of the element that lies there, digit by digit."""
        found, weight = torch.zeros(kernel_tokens * sum(sizes), dtype=torch.long), 1
        while weight < limit:
            found += weight * written(digit(number, weight))
            weight *= _BASE
        return found

    def grid(axis: int, plane: int) -> torch.Tensor:
        numbers = torch.arange(kernel_tokens if axis == 0 else sizes[plane])
        return (numbers[:, None] if axis == 0 else numbers[None, :]).expand(kernel_tokens, sizes[plane])

    plane = coordinate(lambda p: torch.full((kernel_tokens, sizes[p]), p), 2)
    token = coordinate(lambda p: grid(0, p), kernel_tokens)
    content = coordinate(lambda p: grid(1, p), max(sizes))
    found = []
    for p, size in enumerate(sizes):
        places = torch.full((kernel_tokens, size), -1)
        at = (plane == p).nonzero().flatten()
        places[token[at], content[at]] = at
        found.append(_plane(places.tolist(), f"{'keys' if p == 0 else 'values'} of {type(layer.impl).__name__}"))
    return found[0], found[1]


def _plane(places: list[list[int]], what: str) -> Plane:
    origin = places[0][0]
    by_token, by_content = [row[0] - origin for row in places], [at - origin for at in places[0]]
    for t, row in enumerate(places):
        for c, at in enumerate(row):
            if at != origin + by_token[t] + by_content[c]:
                raise ValueError(f"{what}: token {t}, element {c} lies at {at}, which no strides explain")
    return Plane(origin, dimensions(by_token, what), dimensions(by_content, what))


def dimensions(offsets: Sequence[int], what: str) -> Dims:
    """The dimensions, outermost first, whose strides give these offsets."""
    n = len(offsets)
    if n == 1:
        return [(1, 0)]
    stride, run = offsets[1], 2
    while run < n and offsets[run] == run * stride:
        run += 1
    if run == n:
        return [(n, stride)]
    if n % run or any(offsets[i] != offsets[i - i % run] + offsets[i % run] for i in range(n)):
        raise ValueError(f"{what}: offsets {list(offsets[: run + 2])}... are not those of strides")
    return [*dimensions(offsets[::run], what), (run, stride)]
