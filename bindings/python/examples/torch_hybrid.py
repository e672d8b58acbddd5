#!/usr/bin/env python3
"""Two processes move the cache of a hybrid model held in torch tensors (on the CPU, bfloat16), and check it.

As numpy_hybrid.py, with keys and values in two planes, and in each page a convolution's state beside the recurrent one.
"""

from __future__ import annotations

import asyncio
import sys

import torch

import kvlink

HEADS, DIM, STATE, CHANNELS, ROWS, TOKENS = 8, 64, (16, 32), 96, 3, 256
SLOTS = kvlink.Group(kind=kvlink.GroupKind.SLOTS, num_blocks=4)
CONV_BYTES, STATE_BYTES = CHANNELS * ROWS * 2, HEADS * STATE[0] * STATE[1] * 4


class Cache:
    """One rank's cache: tensors that are views of one storage."""

    def __init__(self, block_tokens: int) -> None:
        """Allocates and describes it."""
        blocks = TOKENS // block_tokens + 4
        page, plane = CONV_BYTES + STATE_BYTES, 2 * blocks * block_tokens * HEADS * DIM * 2
        memory = torch.frombuffer(kvlink.shared_memory(2 * SLOTS.num_blocks * page + 2 * plane), dtype=torch.uint8)
        pages, planes = memory.split([2 * SLOTS.num_blocks * page, 2 * plane])
        pages = pages.view(2, SLOTS.num_blocks, page)
        self.conv = pages[..., :CONV_BYTES].view(torch.bfloat16).unflatten(-1, (CHANNELS, ROWS))
        self.state = pages[..., CONV_BYTES:].view(torch.float32).unflatten(-1, (HEADS, *STATE))
        self.kv = planes.view(torch.bfloat16).view(2, 2, blocks, block_tokens, HEADS, DIM)
        third = kvlink.Section(units=HEADS, width=CHANNELS // 3 // HEADS, first=0, count=HEADS)
        self.layout = kvlink.Layout.from_pieces(
            [
                kvlink.convolution(self.conv, "LBDR", layers=[0, 2], sections=[third] * 3, group=0),
                kvlink.state(self.state, "LBHCC", layers=[0, 2], heads=HEADS, group=0),
                kvlink.attention(self.kv, "KLBNHC", layers=[1, 3], heads=HEADS, group=1),
            ],
            groups=[SLOTS, kvlink.Group(num_blocks=blocks, block_tokens=block_tokens)],
        )


def content() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the model computed: both processes know it, to check."""
    numbers = torch.Generator().manual_seed(7)
    conv = torch.randn(2, CHANNELS, ROWS, generator=numbers).bfloat16()
    state = torch.randn(2, HEADS, *STATE, generator=numbers)
    return conv, state, torch.randn(2, 2, TOKENS, HEADS, DIM, generator=numbers).bfloat16()


async def prefill() -> None:
    """Writes a request to the address that it reads from the standard input, layer by layer."""
    cache = Cache(16)
    slot, blocks = 3, torch.arange(2, 2 + TOKENS // 16).flip(0)
    cache.conv[:, slot], cache.state[:, slot], kv = content()
    cache.kv[:, :, blocks] = kv.unflatten(2, (len(blocks), 16))
    async with kvlink.Agent(cache.layout, "prefill") as agent:
        agent.register_arrays()
        peer = await agent.handshake(sys.stdin.readline().strip(), kvlink.Direction.OUTBOUND)
        writes = [
            peer.write_blocks(
                "request",
                [[slot], blocks],
                TOKENS,
                layers=range(i, i + 1),
                last=i == 3,
                payload=b"42" if i == 3 else b"",
            )
            for i in range(4)
        ]
        for write in writes:
            await write


async def decode() -> None:
    """Accepts the request into blocks of its own and checks every element."""
    cache = Cache(32)
    slot, blocks = 1, torch.arange(TOKENS // 32, dtype=torch.int32)
    async with kvlink.Agent(cache.layout, "decode") as agent:
        agent.register_arrays()
        await agent.ready()
        accept = agent.accept("request", [[slot], blocks], TOKENS)
        source = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "prefill", stdin=asyncio.subprocess.PIPE
        )
        assert source.stdin is not None
        source.stdin.write(agent.address.encode() + b"\n")
        received = await accept
        print(f"{received.nbytes} bytes, first token {received.payload.decode()}")
        code = await source.wait()
    conv, state, kv = content()
    right = cache.conv[:, slot].equal(conv) and cache.state[:, slot].equal(state)
    right = right and cache.kv[:, :, blocks.long()].flatten(2, 3).equal(kv)
    if code != 0 or not right:
        raise SystemExit("the caches differ")
    print("all elements are right")


if __name__ == "__main__":
    asyncio.run(prefill() if sys.argv[1:] == ["prefill"] else decode())
