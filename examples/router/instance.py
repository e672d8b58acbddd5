#!/usr/bin/env python3
"""A prefill or decode instance behind vLLM's router: an HTTP server whose "model" is a formula; its cache is real.

    instance.py --role prefill|decode --mode read|write --discovery HOST:PORT [--layer-seconds S]

The prefill instance computes the cache of a prompt layer by layer; the decode instance gets it through kvlink and
answers with a digest of what arrived, so that whoever asked can tell whether every byte is right. If the cache does not
come, it computes the cache itself: no request waits for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
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
    """Blocks of keys and values: prefill instances store heads outside and blocks of 16, decode instances neither."""

    def __init__(self, role: str) -> None:
        """Allocates and describes it."""
        self.order, self.block = ("LBHNC", 16) if role == "prefill" else ("LBNHC", 32)
        self.free = list(range(REQUESTS * TOKENS // self.block))
        sizes = {"L": LAYERS, "B": len(self.free), "H": HEADS, "N": self.block, "C": 2 * DIM}
        shape = tuple(sizes[axis] for axis in self.order)
        self.array: Any = np.frombuffer(kvlink.shared_memory(int(np.prod(shape)) * 2), np.uint16).reshape(shape)
        attention = kvlink.attention(self.array, self.order, layers=range(LAYERS), heads=HEADS, dtype=kvlink.DType.BF16)
        groups = [kvlink.Group(num_blocks=len(self.free), block_tokens=self.block)]
        self.layout = kvlink.Layout.from_pieces([attention], groups=groups)
        # The same memory as (layer, block, token, head, content).
        self.view = self.array.transpose([self.order.index(axis) for axis in "LBNHC"])

    def take(self, tokens: int) -> list[int]:
        """Blocks for a request."""
        count = -(-tokens // self.block)
        if count > len(self.free):
            raise RuntimeError(f"{count} blocks are needed, {len(self.free)} are free")
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def store(self, blocks: list[int], layer: int, values: Any) -> None:
        """Writes a layer of a request."""
        padded = np.zeros((len(blocks) * self.block, HEADS, 2 * DIM), np.uint16)
        padded[: len(values)] = values
        self.view[layer, blocks] = padded.reshape(len(blocks), self.block, HEADS, 2 * DIM)

    def load(self, blocks: list[int], layer: int, tokens: int) -> Any:
        """Reads a layer of a request."""
        return self.view[layer, blocks].reshape(-1, HEADS, 2 * DIM)[:tokens]


class Instance:
    """What both roles share: cache, agent, peers, and the HTTP server."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.write = o.mode == "write"
        self.layer_seconds: float = o.layer_seconds
        self.cache = Cache(o.role)
        self.agent = kvlink.Agent(self.cache.layout, o.role, heartbeat=0.5, transfer_timeout=PATIENCE)
        self.agent.register_arrays()
        host, port = self.agent.address.rsplit(":", 1)
        self.zmq_address = str(kvlink.ZmqAddress(host, int(port), int(port)))
        self.peers: dict[str, asyncio.Task[kvlink.Peer]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.options = o

    async def peer(self, address: str, direction: kvlink.Direction) -> kvlink.Peer:
        """The instance at an address. One that is gone is met anew: it may have been restarted."""
        task = self.peers.get(address)
        if task is None or (task.done() and (task.exception() is not None or task.result().down is not None)):

            async def meet() -> kvlink.Peer:
                return await self.agent.handshake(address, direction)

            task = self.peers[address] = asyncio.create_task(meet())
        return await asyncio.wait_for(asyncio.shield(task), PATIENCE)

    async def compute(self, prompt: str, blocks: list[int], layer: int) -> None:
        """The model's work."""
        await asyncio.sleep(self.layer_seconds)
        self.cache.store(blocks, layer, cache_of(prompt, layer))

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
        async with self.agent:
            await self.agent.ready()
            server = await asyncio.start_server(self.respond, "127.0.0.1", 0)
            http = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            role = kvlink.Role.PREFILL if self.options.role == "prefill" else kvlink.Role.DECODE
            mode = kvlink.Mode.WRITE if self.write else kvlink.Mode.READ
            registration = self.agent.attach_router(
                self.options.discovery, role, mode, http, zmq_address=self.zmq_address
            )
            print(f"{self.options.role} {http} {self.agent.address}", flush=True)
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
        params = kvlink.router_params(json.dumps(body["kv_transfer_params"]))
        blocks = self.cache.take(len(prompt.encode()))
        try:
            if self.write:
                return await self.push(prompt, params, blocks, request_id)
            for layer in range(LAYERS):
                await self.compute(prompt, blocks, layer)
            offer = self.agent.offer(params.transfer_id, [blocks], len(prompt.encode()), lease=2 * PATIENCE)
        except BaseException:
            self.cache.free += blocks
            raise
        task = asyncio.create_task(self.release(offer, blocks))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return {
            "kv_transfer_params": json.loads(kvlink.router_answer(params.transfer_id, self.zmq_address, offer.ticket))
        }

    async def push(
        self, prompt: str, params: kvlink.RouterParams, blocks: list[int], request_id: str
    ) -> dict[str, Any]:
        """Writes each layer as soon as it is computed to the decode instance that the request's id names."""
        to = kvlink.Route.parse(request_id).decode
        peer = await self.peer(f"{to.host}:{to.handshake}", kvlink.Direction.OUTBOUND)
        writes = []
        for layer in range(LAYERS):
            await self.compute(prompt, blocks, layer)
            write = peer.write_blocks(
                params.transfer_id,
                [blocks],
                len(prompt.encode()),
                layers=range(layer, layer + 1),
                last=layer + 1 == LAYERS,
            )
            writes.append(write)
        # All have ended before the blocks are used again, also if one has failed.
        ends = await asyncio.gather(*writes, return_exceptions=True)
        self.cache.free += blocks
        blocks.clear()
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return {}

    async def release(self, offer: kvlink.Offer, blocks: list[int]) -> None:
        """Frees the blocks when the decode instance has them, or never will."""
        with contextlib.suppress(kvlink.Error):
            await offer.released()
        self.cache.free += blocks


class Decode(Instance):
    """Gets caches."""

    async def complete(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Gets a prompt's cache and says its digest, and how it came."""
        prompt, way = body["prompt"], "received"
        tokens = len(prompt.encode())
        blocks = self.cache.take(tokens)
        try:
            await self.fetch(body, tokens, blocks)
        except (kvlink.Error, TimeoutError) as e:
            way = f"computed, since {e}"
            for layer in range(LAYERS):
                await self.compute(prompt, blocks, layer)
        text = digest([self.cache.load(blocks, layer, tokens) for layer in range(LAYERS)])
        self.cache.free += blocks
        route = kvlink.Route.parse(request_id)
        return {
            "choices": [{"index": 0, "text": text}],
            "kvlink": {"cache": way, "prefill": route.prefill.handshake, "decode": route.decode.handshake},
        }

    async def fetch(self, body: dict[str, Any], tokens: int, blocks: list[int]) -> None:
        """Reads the cache, or lets it be written; either ends in time."""
        params = kvlink.router_params(json.dumps(body.get("kv_transfer_params") or {}))
        if self.write:
            await self.agent.accept(params.transfer_id, [blocks], tokens, timeout=PATIENCE)
            return
        source = kvlink.ticket_info(params.ticket)
        peer = await self.peer(source.address, kvlink.Direction.INBOUND)
        await peer.read_blocks(params.ticket, [blocks], timeout=PATIENCE)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=["prefill", "decode"], required=True)
    parser.add_argument("--mode", choices=["read", "write"], required=True)
    parser.add_argument("--discovery", required=True)
    parser.add_argument("--layer-seconds", type=float, default=0.0)
    o = parser.parse_args()
    asyncio.run((Prefill if o.role == "prefill" else Decode)(o).run())


if __name__ == "__main__":
    main()
