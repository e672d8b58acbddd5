"""A rank's kvlink layout, from the tensors and cache groups that vLLM hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    CircularBufferSpec,
    KVCacheConfig,
    KVCacheSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    SparseCacheRole,
    UniformTypeKVCacheSpecs,
)

import kvlink
from kvlink import DType, Group, GroupKind, ReachKind, Tensor

from .cells import planes
from .packed import packed
from .states import Share, state_tensors


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its instance, and what its tensors do not say."""

    model: str
    tp: Share
    #: KV heads of the model.
    kv_heads: int
    #: Whether convolution states keep their rows outside of their channels.
    conv_rows_outside: bool
    context: Share = field(default_factory=lambda: Share(0, 1))
    context_interleave: int = 1
    #: State shapes of the model on a single rank, where it tells them.
    whole_states: tuple[tuple[int, ...], ...] | None = None


def derive(caches: Mapping[str, Any], config: KVCacheConfig, place: Place, layers: Mapping[str, Any]) -> kvlink.Layout:
    """The layout of all transferable groups; `layers` are vLLM's attention layers by name."""
    tensors: list[Tensor] = []
    groups: list[Group] = []
    for index, group in enumerate(config.transfer_groups):
        if group.host_resident:
            raise ValueError(
                f"group {index} ({group.layer_names[0]}, ...) is resident on the host beside a device pool"
            )
        specs = group.kv_cache_spec
        uniform = specs.kv_cache_specs if isinstance(specs, UniformTypeKVCacheSpecs) else None
        groups.append(_group(next(iter(uniform.values())) if uniform else specs, config.num_blocks, place))
        seen: set[int] = set()
        for name in group.layer_names:
            cache = caches[name]
            address = (cache[0] if isinstance(cache, list | tuple) else cache).data_ptr()
            # Layers that share their cache with another one of the group have nothing of their own.
            if address not in seen:
                seen.add(address)
                spec = uniform[name] if uniform else specs
                tensors += _layer(name, cache, spec, index, config.num_blocks, place, layers.get(name))
    return kvlink.Layout.from_pieces([tensors], groups=groups, model=place.model)


def state_groups(config: KVCacheConfig) -> list[int | None]:
    """For each transferable group the scratch slots behind a request's state; None if it has tokens."""
    specs = [g.kv_cache_spec for g in config.transfer_groups]
    firsts = [next(iter(s.kv_cache_specs.values())) if isinstance(s, UniformTypeKVCacheSpecs) else s for s in specs]
    return [s.num_speculative_blocks if isinstance(s, MambaSpec) else None for s in firsts]


def _group(spec: KVCacheSpec, num_blocks: int, place: Place) -> Group:
    if isinstance(spec, MambaSpec):
        return Group(kind=GroupKind.SLOTS, num_blocks=num_blocks)
    reach, tokens = ReachKind.FULL, 0
    if isinstance(spec, SlidingWindowSpec):
        # The next token sees itself, and so many before it.
        reach, tokens = ReachKind.WINDOW, max(1, spec.sliding_window - 1 + spec.extra_retained_tokens)
    elif isinstance(spec, ChunkedLocalAttentionSpec):
        reach, tokens = ReachKind.CHUNK, spec.attention_chunk_size
    context = place.context if spec.dcp_sharded else Share(0, 1)
    return Group(
        num_blocks=num_blocks,
        block_tokens=spec.block_size,
        reach=reach,
        reach_tokens=tokens,
        context_size=context.ranks,
        context_rank=context.rank,
        context_interleave=place.context_interleave,
    )


def _layer(
    name: str, cache: Any, spec: KVCacheSpec, group: int, num_blocks: int, place: Place, layer: Any
) -> list[Tensor]:
    index, role = layer_of(name)
    if isinstance(spec, MambaSpec):
        return state_tensors(
            cache,
            spec,
            place.tp,
            layer=index,
            role=role,
            group=group,
            rows_outside=place.conv_rows_outside,
            whole=place.whole_states,
        )
    if not isinstance(spec, AttentionSpec) or isinstance(spec, CircularBufferSpec):
        raise ValueError(f"{name}: caches of {type(spec).__name__} are not understood")
    if spec.tokens_per_state != 1:
        raise ValueError(f"{name}: {spec.tokens_per_state} tokens per state, only 1 is understood")
    # Kernel blocks subdivide a block.
    kernels, rest = divmod(cache.shape[0], num_blocks)
    if rest:
        raise ValueError(f"{name}: {cache.shape[0]} kernel blocks are not a multiple of {num_blocks} blocks")
    blocks = cache.unflatten(0, (num_blocks, kernels)) if kernels > 1 else cache
    axes = "BTHNC" if kernels > 1 else "BHNC"
    common: dict[str, Any] = {"layers": [index], "group": group}
    if isinstance(spec, MLAAttentionSpec) or spec.head_size_v == 0:
        return _records(blocks.select(-3, 0), axes.replace("H", ""), spec, role, common)
    if spec.kv_quant_mode not in (KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR) or spec.num_head_slots is not None:
        raise ValueError(f"{name}: where the {spec.kv_quant_mode.name} cache format keeps its scales is not understood")
    heads = _heads(name, spec, place)
    parts = planes(layer, spec, cache.shape[2]) if cache.device.type == "cpu" else None
    if parts is None:
        return kvlink.attention(blocks, axes, heads=heads.units, first_head=heads.first, role=role, **common)
    return packed(cache, parts, heads, num_blocks, layer=index, role=role, group=group)


def layer_of(name: str) -> tuple[int, str]:
    """The layer's number, and its name without it: what tells caches of one layer apart."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdecimal()]
    if len(numbers) != 1:
        raise ValueError(f"layer {name!r} has {len(numbers)} numbers in its name, one is needed")
    at = numbers[0]
    return int(words[at]), ".".join(words[:at] + words[at + 1 :])


def _heads(name: str, spec: AttentionSpec, place: Place) -> kvlink.Section:
    """This rank's KV heads: split over the ranks, or repeated where there are more ranks than heads."""
    local, total = spec.num_kv_heads, spec.max_tp_shards or place.kv_heads
    if local > 1 or place.tp.ranks == 1 or total >= place.tp.ranks:
        return place.tp.even(local)
    if place.tp.ranks % total:
        raise ValueError(f"{name}: {total} KV heads are not spread evenly over {place.tp.ranks} ranks")
    return kvlink.Section(total, 1, place.tp.rank * total // place.tp.ranks, 1)


def _records(cache: Any, axes: str, spec: AttentionSpec, role: str, common: dict[str, Any]) -> list[Tensor]:
    """Records per token that all ranks hold alike."""
    if isinstance(spec, MLAAttentionSpec) and spec.cache_role == SparseCacheRole.INDEXER:
        return _indexer(cache, axes, role, common)
    packed = spec.state_content_bytes is not None or not cache.dtype.is_floating_point
    form = f"{role} {getattr(spec, 'cache_dtype_str', None)}" if packed else role
    return kvlink.record(cache, axes, role=form, dtype=DType.OPAQUE if packed else None, **common)


def _indexer(cache: Any, axes: str, role: str, common: dict[str, Any]) -> list[Tensor]:
    """Keys of a sparse indexer: in every kernel block all keys, then all their scales, one f32 for 128 elements."""
    tokens, size = cache.shape[-2:]
    keys = size * 128 // 132
    if cache.element_size() != 1 or keys % 128 or size != keys + keys // 32:
        raise ValueError(f"{role}: {size} elements of {cache.dtype} are no keys with a scale for each 128")
    flat = cache.flatten(-2)
    parts = {"keys": flat[..., : tokens * keys], "scales": flat[..., tokens * keys :]}
    return [
        tensor
        for what, part in parts.items()
        for tensor in kvlink.record(
            part.unflatten(-1, (tokens, -1)), axes, role=f"{role} {what}", dtype=DType.OPAQUE, **common
        )
    ]
