#!/usr/bin/env python3
"""What calls through the Python binding cost: lines `NAME NANOSECONDS`, each the median over batches.

call           statistics of an idle agent
poll           a poll that finds no event
blocks         expanding a request with lists of 4,096 block ids on both sides, from Python lists
blocks-numpy   the same from numpy arrays of uint32
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy

import kvlink

BLOCKS, BLOCK_TOKENS, HEADS, DIM = 4096, 16, 8, 64
BATCHES, BATCH_SECONDS = 31, 0.02


def cost(function: Callable[[], object]) -> float:
    """Nanoseconds of one call."""
    begin = time.perf_counter()
    calls = 0
    while time.perf_counter() - begin < BATCH_SECONDS:
        function()
        calls += 1
    times = []
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        for _ in range(calls):
            function()
        times.append((time.perf_counter_ns() - start) / calls)
    return statistics.median(times)


def layout() -> kvlink.Layout:
    """One layer of attention."""
    attention = kvlink.Attention(
        layers=[0], heads=HEADS, num_heads=HEADS, key_dim=DIM, value_dim=DIM, dtype=kvlink.DType.BF16, order="LBHNC"
    )
    nbytes = BLOCKS * BLOCK_TOKENS * HEADS * 2 * DIM * 2
    group = kvlink.Group(num_blocks=BLOCKS, block_tokens=BLOCK_TOKENS)
    return kvlink.Layout.from_pieces([attention], groups=[group], regions=[nbytes])


def main() -> None:
    """Measures and prints."""
    one = layout()
    plan = kvlink.Plan.compile([one], [one])
    assert plan is not None
    tokens = BLOCKS * BLOCK_TOKENS
    lists = [list(range(BLOCKS))]
    arrays = [numpy.arange(BLOCKS, dtype=numpy.uint32)]
    for ids in (lists, arrays):
        spans = plan.expand(ids, ids, tokens)
        assert [s.len for s in spans] == list(one.regions), "the result is one merged span"
    with kvlink.Agent(one, "cost") as agent:
        print(f"call {cost(agent.statistics):.1f}")
        print(f"poll {cost(lambda: agent.poll(0)):.1f}")
    print(f"blocks {cost(lambda: plan.expand(lists, lists, tokens)):.1f}")
    print(f"blocks-numpy {cost(lambda: plan.expand(arrays, arrays, tokens)):.1f}")


if __name__ == "__main__":
    main()
