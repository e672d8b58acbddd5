"""Where vLLM's CPU attention packs keys and values is found by asking it, and what no strides explain is refused."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvlink.vllm.cells import Dims, dimensions, planes


class Backend:
    """vLLM's own kernel of an instruction set, behind the interface of an attention backend."""

    def __init__(self, isa: str) -> None:
        self.isa = isa

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        blocks, heads, tokens, _ = cache.shape
        keys, values = cache.view(blocks, heads, 2 * tokens, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(key, value, keys, values, slots, self.isa)


def offsets(dims: Dims) -> list[int]:
    """The offset of every element, from its dimensions."""
    return [
        sum(i * s for i, (_, s) in zip(at, dims, strict=True)) for at in itertools.product(*(range(n) for n, _ in dims))
    ]


@pytest.mark.parametrize(
    ("isa", "dtype", "tokens", "size"),
    [
        ("vec", torch.float32, 128, 32),
        ("vec", torch.float16, 64, 64),
        ("vec16", torch.float32, 16, 32),
        ("amx", torch.bfloat16, 96, 64),
    ],
)
def test_elements_are_where_the_backend_put_them(isa: str, dtype: torch.dtype, tokens: int, size: int) -> None:
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this machine has no AMX")
    layer = SimpleNamespace(impl=Backend(isa))
    spec = FullAttentionSpec(block_size=tokens, num_kv_heads=2, head_size=size, dtype=dtype)
    found = planes(layer, spec, tokens)
    assert found is not None
    cache = torch.zeros(2, 2, tokens, 2 * size, dtype=dtype)
    both = torch.randn(2, tokens, 2, size).to(dtype)
    layer.impl.do_kv_cache_update(layer, *both, cache, torch.arange(tokens, 2 * tokens))
    for plane, wanted in zip(found, both, strict=True):
        by_token, by_content = torch.tensor(offsets(plane.tokens)), torch.tensor(offsets(plane.content))
        places = plane.offset + by_token[:, None] + by_content[None, :]
        for head in range(2):
            assert torch.equal(cache[1, head].flatten()[places], wanted[:, head])


def test_a_backend_that_cannot_be_asked_is_taken_at_its_word() -> None:
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32)
    assert planes(None, spec, 16) is None


def test_offsets_that_are_not_strides_are_refused() -> None:
    assert dimensions([0, 2, 32, 34, 64, 66], "x") == [(3, 32), (2, 2)]
    with pytest.raises(ValueError, match="x: offsets"):
        dimensions([0, 1, 5, 9], "x")
