"""Torch tensors on the CPU: described, registered, moved, and as block lists."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import kvlink
from kvlink import Group, InvalidLayout, Layout

GROUPS = [Group(num_blocks=8, block_tokens=16)]


def described(tensor: Any, axes: str) -> Layout:
    pieces = kvlink.attention(tensor, axes, layers=[3, 5], heads=8, first_head=4)
    return Layout.from_pieces([pieces], groups=GROUPS)


@pytest.mark.parametrize("order", ["LBHNC", "LBNHC", "BLHNC"])
def test_a_tensor_is_described_as_the_array_of_its_memory(order: str) -> None:
    sizes = {"L": 2, "B": 8, "N": 16, "H": 4, "C": 64}
    tensor = torch.zeros([sizes[axis] for axis in order], dtype=torch.float16)
    assert json.loads(described(tensor, order).to_json()) == json.loads(described(tensor.numpy(), order).to_json())
    view = tensor.permute([order.index(axis) for axis in "BNLHC"])
    assert json.loads(described(view, "BNLHC").to_json()) == json.loads(described(tensor, order).to_json())


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "bf16"),
        (torch.float8_e4m3fn, "f8_e4m3"),
        (torch.float8_e5m2, "f8_e5m2"),
        (torch.float32, "f32"),
        (torch.int8, "i8"),
    ],
)
def test_types(dtype: Any, name: str) -> None:
    tensor = torch.zeros(2, 8, 4, 16, 64).to(dtype)
    element = json.loads(described(tensor, "LBHNC").to_json())["tensors"][0]["element"]
    assert element == {"dtype": name, "bytes": tensor.element_size()}


def test_views_of_one_storage_are_one_region_also_beside_numpy() -> None:
    storage = torch.zeros(2, 2, 8, 16, 4, 32, dtype=torch.float16)
    keys, values = storage[0], storage[1].numpy()
    pieces = kvlink.attention(keys, "LBNHC", values=values, layers=[3, 5], heads=8)
    layout = Layout.from_pieces([pieces], groups=GROUPS)
    assert layout.regions == (storage.nbytes,)
    assert layout.memory[0].address == storage.data_ptr()


def test_what_cannot_be_described() -> None:
    with pytest.raises(InvalidLayout, match="strides overlap"):
        described(torch.zeros(2, 8, 1, 16, 64, dtype=torch.float16).expand(2, 8, 4, 16, 64), "LBHNC")
    with pytest.raises(InvalidLayout, match="float8_e4m3fnuz has no kvlink type"):
        described(torch.zeros(2, 8, 4, 16, 64).to(torch.float8_e4m3fnuz), "LBHNC")
    meta = torch.zeros(2, 8, 4, 16, 64, dtype=torch.float16, device="meta")
    with pytest.raises(kvlink.InvalidArgument, match="meta"):
        described(meta, "LBHNC")


def test_block_lists() -> None:
    tensor = torch.zeros(2, 8, 4, 16, 64, dtype=torch.float16)
    plan = kvlink.Plan.compile([described(tensor, "LBHNC")], [described(tensor, "LBHNC")])
    assert plan is not None
    ids = [3, 0, 2]
    expected = list(plan.expand([ids], [range(3)], 48))
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint32, torch.int64):
        assert list(plan.expand([torch.tensor(ids, dtype=dtype)], [range(3)], 48)) == expected, dtype
    assert list(plan.expand([torch.tensor([3, 9, 0, 9, 2, 9])[::2]], [range(3)], 48)) == expected
    with pytest.raises(kvlink.InvalidBlocks, match=r"source_blocks\[0\]\[1\] is -1"):
        plan.expand([torch.tensor([0, -1])], [range(3)], 32)
    with pytest.raises(kvlink.InvalidBlocks, match="not a list of integers"):
        plan.expand([torch.tensor([0.0])], [range(3)], 16)


def test_dlpack_says_the_same_as_the_tensor() -> None:
    tensor = torch.zeros(2, 8, 4, 16, 64, dtype=torch.bfloat16)

    class Capsule:
        def __dlpack__(self) -> Any:
            return tensor.__dlpack__()

    ours, theirs = kvlink.strided(Capsule()), kvlink.strided(tensor)
    assert (ours.address, ours.shape, ours.strides) == (theirs.address, theirs.shape, theirs.strides)
    assert (ours.itemsize, ours.dtype) == (theirs.itemsize, theirs.dtype)


def test_shared_memory_becomes_a_tensor() -> None:
    memory = kvlink.shared_memory(4096)
    tensor = torch.frombuffer(memory, dtype=torch.bfloat16)
    tensor[0] = 1.0
    assert np.frombuffer(memory, np.uint16)[0] == 0x3F80
    assert kvlink.strided(tensor[8:]).storage.nbytes == 4096
