"""Models that no CPU runs: layouts from the tensors that vLLM's own allocation makes, and every byte that is moved.

What a rank stores is written here from vLLM's definitions alone: this does not ask kvlink where an element lies.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models import path_of
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum as Kind
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    SparseCacheRole,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

import kvlink
from kvlink.vllm.layout import Place, derive
from kvlink.vllm.states import Share

TOKENS, BLOCKS = 1500, 12
BF16, F32, U8 = torch.bfloat16, torch.float32, torch.uint8
# Integers of the width of an element, so that no number is rounded.
RAW = {BF16: torch.int16, F32: torch.int32, U8: torch.uint8}


def elements(seed: int, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """A tensor of the model, the same for everybody who asks."""
    random = torch.Generator().manual_seed(seed)
    raw = RAW[dtype]
    limit = 256 if raw is U8 else 1 << (15 if raw is torch.int16 else 31)
    return torch.randint(0, limit, shape, generator=random, dtype=torch.int64).to(raw)


@dataclass(frozen=True)
class Layer:
    """A cache of the model: its spec at a size of tensor parallelism, and how a rank writes its share of a request."""

    name: str
    spec: Callable[[int], Any]
    write: Callable[[torch.Tensor, list[int], int, int], None]
    #: Tokens of a kernel block.
    kernel: int | None = None


def cut(whole: torch.Tensor, axis: int, rank: int, ranks: int) -> torch.Tensor:
    """A rank's share of an axis: an equal part, or a copy where there are more ranks than elements."""
    count = whole.shape[axis]
    return whole.narrow(axis, rank * count // ranks, max(1, count // ranks))


def by_token(cache: torch.Tensor, ids: list[int], values: torch.Tensor, first: int = 0) -> None:
    """Writes [head, token, content] of a request, from a token on, into a view [kernel block, head, token, content]."""
    kernels, size = cache.shape[0] // BLOCKS, cache.shape[2]
    for begin in range(first // size * size, TOKENS, size):
        block, kernel = divmod(begin // size, kernels)
        low, high = max(begin, first), min(begin + size, TOKENS)
        cache[ids[block] * kernels + kernel, :, low - begin : high - begin] = values[:, low:high]


def attention(index: int, heads: int, dim: int, block: Callable[[int], int], window: int = 0) -> Layer:
    whole = elements(index, heads, TOKENS, 2 * dim)

    def spec(tp: int) -> Any:
        common = {"block_size": block(tp), "num_kv_heads": max(1, heads // tp), "head_size": dim, "dtype": BF16}
        return SlidingWindowSpec(sliding_window=window, **common) if window else FullAttentionSpec(**common)

    def write(cache: torch.Tensor, ids: list[int], rank: int, tp: int) -> None:
        # The next token sees itself and the window's others.
        by_token(cache.view(torch.int16), ids, cut(whole, 0, rank, tp), TOKENS - window + 1 if window else 0)

    return Layer(f"model.layers.{index}.self_attn.attn", spec, write)


def latent(index: int, block: Callable[[int], int], *, kernel: int = 64, packed: bool = False) -> Layer:
    dtype, size = (U8, 656) if packed else (BF16, 576)
    whole = elements(index, 1, TOKENS, size, dtype=dtype)

    def spec(tp: int) -> Any:
        form = {"cache_dtype_str": "fp8_ds_mla", "state_content_bytes": 656} if packed else {}
        return MLAAttentionSpec(block_size=block(tp), num_kv_heads=1, head_size=576, dtype=dtype, **form)

    def write(cache: torch.Tensor, ids: list[int], rank: int, tp: int) -> None:
        by_token(cache.view(RAW[dtype]), ids, whole)

    return Layer(f"model.layers.{index}.self_attn.attn", spec, write, kernel)


def indexer(index: int, block: int) -> Layer:
    """DeepSeek-V3.2's: in a kernel block first all keys of 128 bytes, then all their scales."""
    keys, scales = (elements(1000 * n + index, TOKENS, size, dtype=U8) for n, size in ((1, 128), (2, 4)))

    def spec(tp: int) -> Any:
        return MLAAttentionSpec(
            block_size=block, num_kv_heads=1, head_size=132, dtype=U8, cache_role=SparseCacheRole.INDEXER
        )

    def write(cache: torch.Tensor, ids: list[int], rank: int, tp: int) -> None:
        size = cache.shape[2]
        flat = cache.flatten(1)
        for begin in range(0, TOKENS, size):
            at, n = ids[begin // size], min(size, TOKENS - begin)
            flat[at, : n * 128] = keys[begin : begin + n].flatten()
            flat[at, size * 128 : size * 128 + n * 4] = scales[begin : begin + n].flatten()

    return Layer(f"model.layers.{index}.self_attn.indexer.k_cache", spec, write)


def recurrent(
    index: int,
    kind: Kind,
    shapes: Callable[[int], tuple[tuple[int, ...], ...]],
    sections: list[tuple[int, int]],
    page: Callable[[int], int],
    block: Callable[[int], int],
) -> Layer:
    """A convolution of sections (units of width channels each), and a state."""
    (channels, rows), state = shapes(1)
    assert channels == sum(units * width for units, width in sections)
    convs = [elements(100 * index + i, units, width, rows) for i, (units, width) in enumerate(sections)]
    whole = elements(100 * index + 50, *state, dtype=F32)

    def spec(tp: int) -> Any:
        return MambaSpec(
            block_size=block(tp),
            shapes=shapes(tp),
            dtypes=(BF16, F32),
            page_size_padded=page(tp),
            mamba_type=kind,
        )

    def write(cache: torch.Tensor, ids: list[int], rank: int, tp: int) -> None:
        conv = torch.cat([cut(section, 0, rank, tp).flatten(0, 1) for section in convs])
        parts = (conv.contiguous(), cut(whole, 0, rank, tp).contiguous())
        raw = torch.cat([part.view(torch.int8).flatten() for part in parts])
        assert raw.numel() == cache[0].numel()
        cache[ids[0]] = raw.view(cache[0].shape)

    return Layer(f"model.layers.{index}.mixer", spec, write)


def kimi_linear() -> list[Layer]:
    """Kimi-Linear-48B: 20 layers of KDA and 7 of MLA share pages; the block size depends on TP."""

    def shapes(tp: int) -> Any:
        (a, b), state = Shapes.kda_state_shape(tp, 32, 128)
        return (max(a, b), min(a, b)), state

    def block(tp: int) -> int:
        (channels, rows), state = shapes(tp)
        return 128 * -(-(channels * rows * 2 + state[0] * state[1] * state[2] * 4) // (128 * 1152))

    assert [block(tp) for tp in (1, 2, 4, 8)] == [1920, 1024, 512, 256]
    full = {3, 7, 11, 15, 19, 23, 26}
    return [
        latent(i, block)
        if i in full
        else recurrent(i, Kind.GDN_ATTN, shapes, [(4096, 1)] * 3, lambda tp: block(tp) * 1152, block)
        for i in range(27)
    ]


def mamba2(groups: int, heads: int, kv_heads: int, kinds: str) -> list[Layer]:
    """Layers of Mamba2 (M) and of attention (A) that share pages, as in Nemotron-H and Granite-4.0-H."""

    def shapes(tp: int) -> Any:
        (a, b), state = Shapes.mamba2_state_shape(tp, heads * 64, groups, heads, 64, 128, 4)
        return (max(a, b), min(a, b)), state

    def token(tp: int) -> int:
        return max(1, kv_heads // tp) * 2 * 128 * 2

    def block(tp: int) -> int:
        (channels, rows), state = shapes(tp)
        return 16 * -(-(channels * rows * 2 + state[0] * state[1] * state[2] * 4) // (16 * token(tp)))

    sections = [(heads, 64), (groups, 128), (groups, 128)]
    return [
        attention(i, kv_heads, 128, block)
        if kind == "A"
        else recurrent(i, Kind.MAMBA2, shapes, sections, lambda tp: block(tp) * token(tp), block)
        for i, kind in enumerate(kinds)
    ]


MODELS: dict[str, tuple[int, Callable[[], list[Layer]]]] = {
    "kimi-linear": (1, kimi_linear),
    "nemotron-h": (8, lambda: mamba2(8, 128, 8, "MMAMMMAMMA")),
    "granite-4-h": (4, lambda: mamba2(1, 128, 4, "MMMAMM")),
    "deepseek-v3.2": (
        1,
        lambda: [layer for i in range(6) for layer in (latent(i, lambda tp: 64, packed=True), indexer(i, 64))],
    ),
    "gemma-3": (4, lambda: [attention(i, 4, 128, lambda tp: 16, 0 if i % 6 == 5 else 128) for i in range(12)]),
}


@pytest.fixture(scope="module")
def engine() -> Any:
    """VLLM's configuration, as its engine has it."""
    arguments = EngineArgs(
        model=str(path_of("llama")), dtype="float32", max_model_len=1600, num_gpu_blocks_override=BLOCKS,
        enforce_eager=True, enable_prefix_caching=False,
    )  # fmt: skip
    return arguments.create_engine_config()


@dataclass
class Rank:
    """One rank's memory and layout."""

    config: KVCacheConfig
    caches: dict[str, torch.Tensor]
    layout: kvlink.Layout

    @property
    def bytes(self) -> torch.Tensor:
        """The whole allocation."""
        storage = next(iter(self.caches.values())).untyped_storage()
        return torch.empty(0, dtype=U8).set_(storage)

    def blocks(self, seed: int) -> list[list[int]]:
        """Blocks of a request, by group: no group has those of another one."""
        free = itertools.cycle(torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist())
        lists = []
        for group in self.layout.groups:
            count = 1 if group.kind == kvlink.GroupKind.SLOTS else -(-TOKENS // group.block_tokens)
            lists.append([next(free) for _ in range(count)])
        used = [i for ids in lists for i in ids]
        assert len(used) == len(set(used)), f"{BLOCKS} blocks are not enough"
        return lists

    def write(self, layers: list[Layer], blocks: list[list[int]], rank: int, tp: int) -> None:
        """Puts a request there."""
        group = {name: i for i, g in enumerate(self.config.transfer_groups) for name in g.layer_names}
        for layer in layers:
            layer.write(self.caches[layer.name], blocks[group[layer.name]], rank, tp)


def instance(engine: Any, layers: list[Layer], kv_heads: int, tp: int, order: KVCacheLayout) -> list[Rank]:
    """All ranks, as vLLM allocates them."""
    specs = {layer.name: layer.spec(tp) for layer in layers}
    states = [layer.spec(1).shapes for layer in layers if isinstance(layer.spec(1), MambaSpec)]
    kernels = {layer.name: layer.kernel for layer in layers}
    ranks = []
    engine.cache_config.kv_cache_layout = order.name
    with set_current_vllm_config(engine):
        for rank in range(tp):
            config = get_kv_cache_configs(engine, [specs], [1 << 34])[0]
            sizes = [kernels[g.layer_names[0]] or specs[g.layer_names[0]].block_size for g in config.kv_cache_groups]
            caches = allocate_kv_cache(config, torch.device("cpu"), order, sizes)
            place = Place("m", Share(rank, tp), kv_heads, False, whole_states=states[0] if states else None)
            ranks.append(Rank(config, caches, derive(caches, config, place, {})))
    return ranks


def move(sources: list[Rank], lists: list[list[int]], targets: list[Rank], rank: int, into: list[list[int]]) -> int:
    """Copies a request to one rank, by kvlink's plans; returns the bytes."""
    layouts = [r.layout for r in sources], [r.layout for r in targets]
    moved = 0
    for source, place in enumerate(sources):
        plan = kvlink.Plan.compile(*layouts, source, rank)
        if plan is None:
            continue
        src, dst = place.bytes.data_ptr(), targets[rank].bytes.data_ptr()
        for span in plan.expand(lists, into, TOKENS):
            ctypes.memmove(dst + span.dst_offset, src + span.src_offset, span.len)
            moved += span.len
    return moved


CASES = [
    ("kimi-linear", 2, 2, "LBHNC", "LBHNC"),
    ("kimi-linear", 4, 2, "LBHNC", "LBHNC"),
    ("kimi-linear", 2, 4, "LBHNC", "LBHNC"),
    ("nemotron-h", 2, 4, "LBHNC", "LBHNC"),
    ("nemotron-h", 4, 2, "LBNHC", "LBHNC"),
    ("granite-4-h", 1, 2, "LBHNC", "LBHNC"),
    ("granite-4-h", 2, 1, "LBHNC", "LBNHC"),
    ("deepseek-v3.2", 1, 2, "LBHNC", "LBHNC"),
    ("deepseek-v3.2", 2, 1, "LBHNC", "LBHNC"),
    ("gemma-3", 2, 4, "LBHNC", "LBNHC"),
]


@pytest.mark.parametrize(("model", "p", "d", "from_order", "to_order"), CASES)
def test_every_byte_of_a_request_arrives(
    model: str, p: int, d: int, from_order: str, to_order: str, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv_heads, make = MODELS[model]
    blocks = 1200 if model in ("deepseek-v3.2", "gemma-3") else 24
    monkeypatch.setattr(f"{__name__}.BLOCKS", blocks)
    monkeypatch.setattr(engine.cache_config, "num_gpu_blocks_override", blocks)
    layers = make()
    prefill = instance(engine, layers, kv_heads, p, KVCacheLayout[from_order])
    decode = instance(engine, layers, kv_heads, d, KVCacheLayout[to_order])
    assert len(prefill[0].layout.groups) == len(decode[0].layout.groups)
    lists, into = prefill[0].blocks(1), decode[0].blocks(2)
    for number, rank in enumerate(prefill):
        rank.bytes.fill_(0xEE)
        rank.write(layers, lists, number, p)
    for number, rank in enumerate(decode):
        rank.bytes.fill_(0xAA)
        rank.write(layers, into, number, d)
        wanted = rank.bytes.clone()
        rank.bytes.fill_(0xAA)
        assert move(prefill, lists, decode, number, into) > 0
        assert torch.equal(rank.bytes, wanted)
