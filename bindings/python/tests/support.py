"""Layouts and agents for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import kvlink

LAYERS, HEADS, ROW, TOKENS = 2, 4, 64, 64


def attention_layout(order: str, block_tokens: int, *, shared: bool = False) -> tuple[Any, kvlink.Layout]:
    """An attention cache in an array, and its layout."""
    extents = {"L": LAYERS, "B": TOKENS // block_tokens, "H": HEADS, "N": block_tokens, "C": ROW}
    shape = [extents[letter] for letter in order]
    count = int(np.prod(shape))
    memory: Any = kvlink.shared_memory(2 * count) if shared else bytearray(2 * count)
    array = np.frombuffer(memory, np.uint16).reshape(shape)
    pieces = kvlink.attention(array, order, layers=range(LAYERS), heads=HEADS, dtype=kvlink.DType.BF16)
    groups = [kvlink.Group(num_blocks=extents["B"], block_tokens=block_tokens)]
    return array, kvlink.Layout.from_pieces([pieces], groups=groups)


def tokens_of(array: Any, order: str, ids: Sequence[int]) -> Any:
    """The cache of a request as (layer, token, head, content)."""
    blocks = np.transpose(array, [order.index(letter) for letter in "LBNHC"])[:, list(ids)]
    return blocks.reshape(LAYERS, -1, HEADS, ROW)


class Pair:
    """A prefill and a decode agent of unlike layouts in one process."""

    FROM, TO = [2, 0, 3, 1], [1, 0]

    def __init__(self, *, shared: bool = False, **config: Any) -> None:
        self.source, source_layout = attention_layout("LBHNC", 16, shared=shared)
        self.target, target_layout = attention_layout("LBNHC", 32, shared=shared)
        self.source[:] = np.arange(self.source.size, dtype=np.uint16).reshape(self.source.shape)
        self.prefill = kvlink.Agent(source_layout, "prefill", **config)
        self.decode = kvlink.Agent(target_layout, "decode", **config)
        self.prefill.register_arrays()
        self.decode.register_arrays()

    def arrived(self) -> bool:
        """Whether the decode side has what the prefill side has."""
        source = tokens_of(self.source, "LBHNC", self.FROM)
        return bool((tokens_of(self.target, "LBNHC", self.TO) == source).all())

    def offer(self, request: str = "r", **more: Any) -> kvlink.Offer:
        return self.prefill.offer(request, [self.FROM], TOKENS, **more)

    async def __aenter__(self) -> Pair:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.decode.aclose()
        await self.prefill.aclose()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.decode.close()
        self.prefill.close()


def wait_event(agent: kvlink.Agent, kind: kvlink.EventKind) -> kvlink.Event:
    """Polls until an event of a kind comes."""
    for _ in range(1000):
        for event in agent.poll(0.03):
            if event.kind == kind:
                return event
    raise AssertionError(f"no {kind.name} within 30 s")


def python(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter, which must end by itself."""
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **more}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
