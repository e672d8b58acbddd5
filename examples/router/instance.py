#!/usr/bin/env python3
"""A prefill or decode instance behind vLLM's router: an HTTP server whose "model" is a formula; its cache is real.

    instance.py --role prefill|decode --mode read|write --discovery HOST:PORT [--tp N] [--layer-seconds S]

The prefill instance computes the cache of a prompt layer by layer; the decode instance gets it through kvlink and
answers with a digest of what arrived, so that whoever asked can tell whether every byte is right. If the cache does not
come, it computes the cache itself: no request waits for ever. The ranks of an instance are agents of one process here;
each has its own heads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Awaitable, Iterable
from typing import Any

import numpy as np

import kvlink

LAYERS, HEADS, DIM, TOKENS, REQUESTS = 4, 8, 64, 512, 64
# Seconds after which a decode instance gives up on a prefill instance.
PATIENCE = 5.0
# Seconds after which a router has forgotten who left: its time to live, and one for rounding.
FAREWELL = 6.5


def cache_of(prompt: str, layer: int) -> Any:
    """What the model computes for one layer: (token, head, content)."""
    text = np.frombuffer(prompt.encode(), np.uint8).astype(np.uint32)
    place = np.arange(HEADS * 2 * DIM, dtype=np.uint32).reshape(1, HEADS, 2 * DIM)
    position = np.arange(len(text), dtype=np.uint32)
    return ((text * 257 + position * 31 + layer * 7919)[:, None, None] * (place * 2 + 1) >> 3).astype(np.uint16)


def digest(layers: list[Any]) -> str:
    """Of the whole cache of a prompt."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(layer).tobytes() for layer in layers)).hexdigest()


class Cache:
    """One rank's blocks: prefill instances store heads outside and blocks of 16, decode instances neither."""

    def __init__(self, role: str, rank: int, ranks: int) -> None:
        """Allocates and describes it."""
        self.order, self.block = ("LBHNC", 16) if role == "prefill" else ("LBNHC", 32)
        self.blocks, count = REQUESTS * TOKENS // self.block, HEADS // ranks
        self.heads = slice(rank * count, (rank + 1) * count)
        sizes = {"L": LAYERS, "B": self.blocks, "H": count, "N": self.block, "C": 2 * DIM}
        shape = tuple(sizes[axis] for axis in self.order)
        self.array: Any = np.frombuffer(kvlink.shared_memory(int(np.prod(shape)) * 2), np.uint16).reshape(shape)
        attention = kvlink.attention(
            self.array,
            self.order,
            layers=range(LAYERS),
            heads=HEADS,
            first_head=self.heads.start,
            dtype=kvlink.DType.BF16,
        )
        groups = [kvlink.Group(num_blocks=self.blocks, block_tokens=self.block)]
        self.layout = kvlink.Layout.from_pieces([attention], groups=groups)
        # The same memory as (layer, block, token, head, content).
        self.view = self.array.transpose([self.order.index(axis) for axis in "LBNHC"])

    def store(self, blocks: list[int], layer: int, values: Any) -> None:
        """Writes this rank's heads of a layer of a request."""
        mine = values[:, self.heads]
        padded = np.zeros((len(blocks) * self.block, *mine.shape[1:]), np.uint16)
        padded[: len(mine)] = mine
        self.view[layer, blocks] = padded.reshape(len(blocks), self.block, *mine.shape[1:])

    def load(self, blocks: list[int], layer: int, tokens: int) -> Any:
        """Reads this rank's heads of a layer of a request."""
        rows = self.view[layer, blocks]
        return rows.reshape(-1, *rows.shape[2:])[:tokens]


async def all_ended(operations: Iterable[Awaitable[Any]]) -> None:
    """Waits for every end, so that the blocks may be used again; then raises the first failure."""
    for end in await asyncio.gather(*operations, return_exceptions=True):
        if isinstance(end, BaseException):
            raise end


class Instance:
    """What both roles share: ranks, peers, and the HTTP server."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.options = o
        self.write = o.mode == "write"
        self.caches = [Cache(o.role, rank, o.tp) for rank in range(o.tp)]
        # The block ids of a request are the same on all ranks.
        self.free = list(range(self.caches[0].blocks))
        self.agents: list[kvlink.Agent] = []
        for rank, cache in enumerate(self.caches):
            leader = self.agents[0].address if rank else None
            agent = kvlink.Agent(
                cache.layout,
                f"{o.role}-{os.getpid()}",
                rank=rank,
                ranks=o.tp,
                leader=leader,
                heartbeat=0.5,
                transfer_timeout=PATIENCE,
            )
            agent.register_arrays()
            self.agents.append(agent)
        self.address = self.agents[0].address
        host, port = self.address.rsplit(":", 1)
        self.zmq_address = str(kvlink.ZmqAddress(host, int(port), int(port)))
        self.peers: dict[str, asyncio.Task[list[kvlink.Peer]]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def take(self, tokens: int) -> list[int]:
        """Blocks for a request."""
        count = -(-tokens // self.caches[0].block)
        if count > len(self.free):
            raise RuntimeError(f"{count} blocks are needed, {len(self.free)} are free")
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    async def meet(self, address: str, direction: kvlink.Direction) -> list[kvlink.Peer]:
        """The instance at an address, as each rank knows it. One that is gone is met anew: it may be back."""
        task = self.peers.get(address)
        stale = task is not None and task.done()
        if task is None or (stale and (task.exception() is not None or any(p.down for p in task.result()))):

            async def shake() -> list[kvlink.Peer]:
                return list(await asyncio.gather(*(a.handshake(address, direction) for a in self.agents)))

            task = self.peers[address] = asyncio.create_task(shake())
        return await asyncio.wait_for(asyncio.shield(task), PATIENCE)

    async def compute(self, prompt: str, blocks: list[int], layer: int) -> None:
        """The model's work."""
        await asyncio.sleep(self.options.layer_seconds)
        values = cache_of(prompt, layer)
        for cache in self.caches:
            cache.store(blocks, layer, values)

    async def complete(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Answers a completion request."""
        raise NotImplementedError

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One HTTP request, one answer."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            kind, status, answer = "application/json", "200 OK", b"{}"
            if head[0].startswith("POST "):
                body = json.loads(data)
                try:
                    said = await self.complete(body, headers.get("x-request-id", ""))
                    answer = json.dumps(said).encode()
                    if body.get("stream"):
                        kind, answer = "text/event-stream", stream_of(said)
                except (kvlink.Error, RuntimeError, TimeoutError) as e:
                    status, answer = "500 Internal Server Error", json.dumps({"error": str(e)}).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n"
                f"Connection: close\r\n\r\n".encode()
                + answer
            )
            await writer.drain()
        writer.close()

    async def run(self) -> None:
        """Serves until SIGTERM; then leaves the router before it leaves its requests."""
        leave = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
        async with contextlib.AsyncExitStack() as stack:
            for agent in self.agents:
                await stack.enter_async_context(agent)
                await agent.ready()
            server = await asyncio.start_server(self.respond, "127.0.0.1", 0)
            http = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            role = kvlink.Role.PREFILL if self.options.role == "prefill" else kvlink.Role.DECODE
            mode = kvlink.Mode.WRITE if self.write else kvlink.Mode.READ
            registration = self.agents[0].attach_router(
                self.options.discovery, role, mode, http, zmq_address=self.zmq_address, tp_size=self.options.tp
            )
            print(f"{self.options.role} {http} {self.address}", flush=True)
            await leave.wait()
            registration.detach()
            await asyncio.sleep(FAREWELL)


def stream_of(said: dict[str, Any]) -> bytes:
    """A completion as server-sent events, eight characters each."""
    text = said["choices"][0]["text"]
    pieces = [{**said, "choices": [{"index": 0, "text": text[i : i + 8]}]} for i in range(0, len(text), 8)]
    return "".join(f"data: {json.dumps(p)}\n\n" for p in pieces).encode() + b"data: [DONE]\n\n"


class Prefill(Instance):
    """Computes caches."""

    async def complete(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Computes a prompt's cache; sends it layer by layer, or offers it when it is complete."""
        prompt = body["prompt"]
        tokens = len(prompt.encode())
        params = kvlink.router_params(json.dumps(body["kv_transfer_params"]))
        blocks = self.take(tokens)
        if self.write:
            try:
                await self.push(prompt, params.transfer_id, blocks, request_id)
            finally:
                self.free += blocks
            return {}
        for layer in range(LAYERS):
            await self.compute(prompt, blocks, layer)
        lease = 2 * PATIENCE
        offers = [agent.offer(params.transfer_id, [blocks], tokens, lease=lease) for agent in self.agents]
        task = asyncio.create_task(self.release(offers, blocks))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # The ticket of one rank serves all.
        ticket, tp = offers[0].ticket, self.options.tp
        answer = kvlink.router_answer(params.transfer_id, self.zmq_address, ticket, tp_size=tp)
        return {"kv_transfer_params": json.loads(answer)}

    async def push(self, prompt: str, transfer_id: str, blocks: list[int], request_id: str) -> None:
        """Writes each layer as soon as it is computed to the decode instance that the request's id names."""
        to = kvlink.Route.parse(request_id).decode
        peers = await self.meet(f"{to.host}:{to.handshake}", kvlink.Direction.OUTBOUND)
        writes: list[kvlink.Transfer] = []
        try:
            for layer in range(LAYERS):
                await self.compute(prompt, blocks, layer)
                last, layers = layer + 1 == LAYERS, range(layer, layer + 1)
                for peer in peers:
                    tokens = len(prompt.encode())
                    writes.append(peer.write_blocks(transfer_id, [blocks], tokens, layers=layers, last=last))
        finally:
            await all_ended(writes)

    async def release(self, offers: list[kvlink.Offer], blocks: list[int]) -> None:
        """Frees the blocks when the decode instance has them, or never will."""
        with contextlib.suppress(kvlink.Error):
            await all_ended(offers)
        self.free += blocks


class Decode(Instance):
    """Gets caches."""

    async def complete(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Gets a prompt's cache and says its digest, and how it came."""
        prompt, way = body["prompt"], "received"
        tokens = len(prompt.encode())
        blocks = self.take(tokens)
        try:
            await self.fetch(body, tokens, blocks)
        except (kvlink.Error, TimeoutError) as e:
            way = f"computed, since {e}"
            for layer in range(LAYERS):
                await self.compute(prompt, blocks, layer)
        whole = [np.concatenate([c.load(blocks, i, tokens) for c in self.caches], 1) for i in range(LAYERS)]
        self.free += blocks
        route = kvlink.Route.parse(request_id)
        return {
            "choices": [{"index": 0, "text": digest(whole)}],
            "kvlink": {"cache": way, "prefill": route.prefill.handshake, "decode": route.decode.handshake},
        }

    async def fetch(self, body: dict[str, Any], tokens: int, blocks: list[int]) -> None:
        """Reads the cache, or lets it be written; either ends in time."""
        params = kvlink.router_params(json.dumps(body.get("kv_transfer_params") or {}))
        if self.write:
            accepts = (a.accept(params.transfer_id, [blocks], tokens, timeout=PATIENCE) for a in self.agents)
            return await all_ended(accepts)
        source = kvlink.ticket_info(params.ticket)
        peers = await self.meet(source.address, kvlink.Direction.INBOUND)
        return await all_ended(p.read_blocks(params.ticket, [blocks], timeout=PATIENCE) for p in peers)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=["prefill", "decode"], required=True)
    parser.add_argument("--mode", choices=["read", "write"], required=True)
    parser.add_argument("--discovery", required=True)
    parser.add_argument("--tp", type=int, default=1, choices=[1, 2, 4, 8], help="ranks")
    parser.add_argument("--layer-seconds", type=float, default=0.0)
    o = parser.parse_args()
    asyncio.run((Prefill if o.role == "prefill" else Decode)(o).run())


if __name__ == "__main__":
    main()
