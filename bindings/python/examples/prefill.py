#!/usr/bin/env python3
"""A prefill rank: it has the KV cache of requests and lets a decode instance read it, or writes it there.

    prefill.py --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N] [--transport NAME]

Commands on the standard input:
    offer REQUEST TOKENS BLOCKS    READ mode: prints the ticket that a decode rank reads with
    connect ADDRESS                WRITE mode: shakes hands with a decode instance
    write REQUEST TOKENS BLOCKS    WRITE mode: writes layer by layer to that instance
    quit
"""

from __future__ import annotations

import argparse

from engine import Engine, Request, block_lists, options, say

import kvlink


class Prefill(Engine):
    """One prefill rank."""

    def __init__(self, o: argparse.Namespace) -> None:
        super().__init__(o)
        self.layers: int = o.layers
        self.peer: kvlink.Peer | None = None

    def offer(self, name: str, tokens: int, blocks: str) -> None:
        """Offers a request and prints its ticket: opaque, it travels with the request, in any text encoding."""
        request = Request(name, block_lists(blocks))
        offer = self.agent.offer(name, request.blocks, tokens)
        self.requests[offer] = request
        say(f"ticket {name} {offer.ticket.hex()}")

    def write(self, name: str, tokens: int, blocks: str) -> None:
        """Writes a request layer by layer."""
        assert self.peer is not None, "connect comes first"
        request = Request(name, block_lists(blocks), pending=self.layers)
        for layer in range(self.layers):
            # Here a real engine computes the layer and waits until the device has written it.
            last = layer + 1 == self.layers
            # What else the decode rank needs to go on: the first sampled token, say.
            payload = b"token=%d" % (tokens * 7 % 32000) if last else b""
            transfer = self.peer.write_blocks(
                name, request.blocks, tokens, layers=range(layer, layer + 1), last=last, payload=payload
            )
            self.requests[transfer] = request

    def on_command(self, words: list[str]) -> None:
        """Does what a line of the input says."""
        match words:
            case ["offer", name, tokens, blocks]:
                self.offer(name, int(tokens), blocks)
            case ["connect", address]:
                self.peer = self.agent.handshake(address, kvlink.Direction.OUTBOUND).peer
            case ["write", name, tokens, blocks]:
                self.write(name, int(tokens), blocks)
            case _:
                raise SystemExit(f"prefill: cannot do {words}")

    def on_event(self, event: kvlink.Event) -> None:
        """Takes an event of the agent."""
        if event.operation not in self.requests:
            return self.common_event(event)
        request = self.requests.pop(event.operation)
        if request.add(event):
            # Only now may the blocks be reused.
            done = "released" if isinstance(event.operation, kvlink.Offer) else "wrote"
            say(f"{done} {request.name} {request.figures()}")
        return None


if __name__ == "__main__":
    prefill = Prefill(options("prefill"))
    prefill.serve(prefill.on_command, prefill.on_event)
