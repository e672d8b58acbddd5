#!/usr/bin/env python3
"""A decode rank: it fetches the KV cache of requests from a prefill instance, or has it written into its blocks.

    decode.py --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--transport NAME]

Commands on the standard input:
    connect ADDRESS                 READ mode: shakes hands with a prefill instance
    read REQUEST TICKET BLOCKS      READ mode: fetches an offered request
    accept REQUEST TOKENS BLOCKS    WRITE mode: names the blocks that a prefill instance writes to
    quit
"""

from __future__ import annotations

import argparse
import sys

from engine import Engine, Request, block_lists, options, say

import kvlink


class Decode(Engine):
    """One decode rank."""

    def __init__(self, o: argparse.Namespace) -> None:
        super().__init__(o)
        self.peer: kvlink.Peer | None = None

    def on_command(self, words: list[str]) -> None:
        """Does what a line of the input says."""
        match words:
            case ["connect", address]:
                self.peer = self.agent.handshake(address, kvlink.Direction.INBOUND).peer
            case ["read", name, ticket, blocks]:
                assert self.peer is not None, "connect comes first"
                request = Request(name, block_lists(blocks))
                self.requests[self.peer.read_blocks(bytes.fromhex(ticket), request.blocks)] = request
            case ["accept", name, tokens, blocks]:
                request = Request(name, block_lists(blocks))
                self.requests[self.agent.accept(name, request.blocks, int(tokens))] = request
                say(f"accepted {name}")
            case _:
                raise SystemExit(f"decode: cannot do {words}")

    def on_event(self, event: kvlink.Event) -> None:
        """Takes an event of the agent."""
        if event.operation not in self.requests:
            return self.common_event(event)
        request = self.requests.pop(event.operation)
        request.add(event)
        if event.error is not None and isinstance(event.operation, kvlink.Transfer):
            # Just the blocks that a failed read left without valid data must be recomputed.
            for group in range(len(self.agent.layout.groups)):
                count = len(event.operation.failed_blocks(group))
                print(f"  group {group}: {count} blocks are not valid", file=sys.stderr)
        # From here on the model may decode: all bytes are in place, and nothing writes to the blocks any more.
        say(f"received {request.name} {request.figures()} aux={event.payload.decode()}")
        return None


if __name__ == "__main__":
    decode = Decode(options("decode"))
    decode.serve(decode.on_command, decode.on_event)
