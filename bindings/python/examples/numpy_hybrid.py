#!/usr/bin/env python3
"""Two processes move the cache of a hybrid model held in numpy arrays, and check it.

Layers 0 and 2 keep recurrent state per request, layers 1 and 3 keys and values per token. The prefill process stores
blocks of 16 tokens with heads outside, the decode process blocks of 32 with tokens outside. kvlink learns all that
from the shapes and strides.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np

import kvlink

HEADS, DIM, STATE, TOKENS = 8, 64, (32, 32), 256
SLOTS = kvlink.Group(kind=kvlink.GroupKind.SLOTS, num_blocks=4)


class Cache:
    """One rank's cache: two arrays in one allocation that peers on this host can map."""

    def __init__(self, order: str, block_tokens: int) -> None:
        """Allocates and describes it."""
        blocks = TOKENS // block_tokens + 4
        sizes = {"L": 2, "B": blocks, "H": HEADS, "N": block_tokens, "C": 2 * DIM}
        kv_shape, state_shape = tuple(sizes[axis] for axis in order), (2, SLOTS.num_blocks, HEADS, *STATE)
        kv_bytes, state_bytes = int(np.prod(kv_shape)) * 2, int(np.prod(state_shape)) * 4
        memory = kvlink.shared_memory(kv_bytes + state_bytes)
        self.order = order
        self.kv = np.frombuffer(memory[:kv_bytes], np.float16).reshape(kv_shape)
        self.state = np.frombuffer(memory[kv_bytes:], np.float32).reshape(state_shape)
        self.layout = kvlink.Layout.from_pieces(
            [
                kvlink.state(self.state, "LBHCC", layers=[0, 2], heads=HEADS, group=0),
                kvlink.attention(self.kv, order, layers=[1, 3], heads=HEADS, group=1),
            ],
            groups=[SLOTS, kvlink.Group(num_blocks=blocks, block_tokens=block_tokens)],
        )

    def request(self, slot: int, blocks: list[int]) -> tuple[Any, Any]:
        """A request's state, and its keys and values as (layer, block, token, head, content)."""
        kv = self.kv.transpose([self.order.index(axis) for axis in "LBNHC"])
        return self.state[:, slot], kv[:, blocks]


def content() -> tuple[Any, Any]:
    """What the model computed: both processes know it, to check."""
    numbers = np.random.default_rng(7)
    state = numbers.standard_normal((2, HEADS, *STATE), np.float32)
    return state, numbers.standard_normal((2, TOKENS, HEADS, 2 * DIM), np.float32).astype(np.float16)


async def prefill() -> None:
    """Offers a request; its ticket goes to the standard output."""
    cache = Cache("LBHNC", 16)
    slot, blocks = 3, list(range(2, 2 + TOKENS // 16))[::-1]
    state, kv = content()
    cache.state[:, slot] = state
    cache.kv[:, blocks] = kv.reshape(2, len(blocks), 16, HEADS, 2 * DIM).swapaxes(2, 3)
    async with kvlink.Agent(cache.layout, "prefill") as agent:
        agent.register_arrays()
        offer = agent.offer("request", [[slot], blocks], TOKENS)
        print(offer.ticket.hex(), flush=True)
        await offer.released()


async def decode() -> None:
    """Fetches the request into blocks of its own and checks every element."""
    cache = Cache("LBNHC", 32)
    slot, blocks = 1, np.arange(TOKENS // 32, dtype=np.uint32)
    source = await asyncio.create_subprocess_exec(sys.executable, __file__, "prefill", stdout=asyncio.subprocess.PIPE)
    assert source.stdout is not None
    ticket = bytes.fromhex((await source.stdout.readline()).decode())
    async with kvlink.Agent(cache.layout, "decode") as agent:
        agent.register_arrays()
        peer = await agent.handshake(kvlink.ticket_info(ticket).address, kvlink.Direction.INBOUND)
        moved = await peer.read_blocks(ticket, [[slot], blocks])
        print(f"{moved.nbytes} bytes in {moved.spans} spans over {peer.transport}")
    state, kv = cache.request(slot, list(blocks))
    wanted_state, wanted_kv = content()
    right = (state == wanted_state).all() and (kv.reshape(wanted_kv.shape) == wanted_kv).all()
    if await source.wait() != 0 or not right:
        raise SystemExit("the caches differ")
    print("all elements are right")


if __name__ == "__main__":
    asyncio.run(prefill() if sys.argv[1:] == ["prefill"] else decode())
