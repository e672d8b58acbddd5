"""Block lists of every kind mean the same, and what is none is refused by position."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from support import attention_layout

import kvlink
from kvlink import Blocks, InvalidBlocks
from kvlink._blocks import block_lists

IDS = [3, 0, 2]


def plan() -> kvlink.Plan:
    _, layout = attention_layout("LBHNC", 16)
    found = kvlink.Plan.compile([layout], [layout])
    assert found is not None
    return found


def kinds() -> list[Any]:
    numbers = [np.array(IDS, kind) for kind in "bBhHiIlLqQ"]
    strided = np.array([3, 9, 0, 9, 2, 9], np.uint32)[::2]
    frozen = np.array(IDS, np.uint32)
    frozen.flags.writeable = False
    swapped = np.array(IDS, ">u4")
    arrays = [array(kind, IDS) for kind in "bBhHiIlLqQ"]
    return [
        IDS,
        tuple(IDS),
        dict.fromkeys(IDS),
        [np.int64(i) for i in IDS],
        strided,
        frozen,
        swapped,
        *numbers,
        *arrays,
    ]


def test_every_kind_of_list_gives_the_same_spans() -> None:
    compiled = plan()
    expected = list(compiled.expand([IDS], [[0, 1, 2]], 48))
    for ids in kinds():
        assert list(compiled.expand([ids], [range(3)], 48)) == expected, repr(ids)
        assert list(compiled.expand([Blocks(ids)], [range(3)], 48)) == expected, repr(ids)


def test_a_list_that_begins_later_leaves_out_what_is_here_already() -> None:
    compiled = plan()
    whole = list(compiled.expand([IDS], [[0, 1, 2]], 48, token_begin=16))
    assert list(compiled.expand([Blocks([0, 2], first=1)], [Blocks([1, 2], first=1)], 48, token_begin=16)) == whole


@pytest.mark.parametrize("ids", [np.array(IDS, np.uint32), array("I", IDS)])
def test_32_bit_ids_are_passed_without_copying(ids: Any) -> None:
    keep: list[Any] = []
    lists = block_lists([ids], "blocks", keep)
    address = ids.ctypes.data if isinstance(ids, np.ndarray) else ids.buffer_info()[0]
    assert lists[0].ids == address
    assert any(k is ids for k in keep), "kept alive"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, -1], r"blocks\[0\]\[1\] is -1, a block id is within 0\.\.4294967295"),
        ([0, 1 << 32], r"blocks\[0\]\[1\] is 4294967296"),
        ([0, 1.5], r"blocks\[0\]\[1\] is a float, not a block id"),
        ([0, None], r"blocks\[0\]\[1\] is a NoneType"),
        (array("q", [0, -1]), r"blocks\[0\]\[1\] is -1"),
        (np.array([0, 7, -3], np.int32), r"blocks\[0\]\[2\] is -3"),
        (np.array([0, 1 << 40], np.int64), r"blocks\[0\]\[1\] is 1099511627776"),
        (np.array([0.0]), "of float64, not a list of integers"),
        (np.zeros([2, 2], np.uint32), "an array of 2 dimensions"),
        (7, "is a int, not a list of block ids"),
    ],
)
def test_what_is_no_block_id_is_refused(ids: Any, message: str) -> None:
    with pytest.raises(InvalidBlocks, match=message):
        block_lists([ids], "blocks", [])


def test_the_library_s_refusals_name_group_and_position() -> None:
    with pytest.raises(InvalidBlocks, match="4") as caught:
        plan().expand([[4]], [[0]], 16)
    assert caught.value.status == kvlink.Status.INVALID_BLOCKS
    with pytest.raises(InvalidBlocks, match="not a sequence of lists"):
        plan().expand("0", [[0]], 16)
    with pytest.raises(kvlink.InvalidArgument, match="token_end is 0"):
        plan().expand([[0]], [[0]], 16, token_end=0)
    with pytest.raises(kvlink.InvalidArgument, match=r"range\(0, 4, 2\)"):
        plan().expand([[0]], [[0]], 16, layers=range(0, 4, 2))


def test_empty_lists_are_lists() -> None:
    empties: list[Any] = [[], np.array([], np.uint32), np.array([], np.int64), array("I")]
    for empty in empties:
        assert len(plan().expand([empty], [empty], 0)) == 0
