"""What both example engines share: the command line, the start, block lists, and an event loop around `Agent.poll`."""

from __future__ import annotations

import argparse
import os
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvlink

# Ways of the host transport that are better than the wanted one: a peer that could use them would.
BETTER = {None: "", "host/shm": "", "host/cma": "shm", "host/tcp": "shm cma"}


@dataclass(eq=False)
class Request:
    """A request that is under way."""

    name: str
    blocks: list[list[int]]
    pending: int = 1
    status: int = 0
    nbytes: int = 0
    spans: int = 0
    begin: int = field(default_factory=time.monotonic_ns)

    def add(self, event: kvlink.Event) -> bool:
        """Adds the event of one of its transfers; returns whether it was the last."""
        self.nbytes += event.nbytes
        self.spans += event.spans
        if event.error is not None:
            print(f"request {self.name}: {event.error}", file=sys.stderr)
            self.status = self.status or event.error.status
        self.pending -= 1
        return self.pending == 0

    def figures(self) -> str:
        """What it came to, as the driver of the demo reads it."""
        end = time.monotonic_ns()
        return f"status={self.status:d} bytes={self.nbytes} spans={self.spans} begin={self.begin} end={end}"


def block_lists(text: str) -> list[list[int]]:
    """Reads "5,7,9/1/2": ids 5, 7, 9 in group 0, 1 in group 1, 2 in group 2."""
    return [[int(i) for i in ids.split(",")] if ids else [] for ids in text.split("/")]


def say(line: str) -> None:
    """Prints one line at once."""
    print(line, flush=True)


def options(program: str) -> argparse.Namespace:
    """Parses the command line: who this rank is."""
    parser = argparse.ArgumentParser(program)
    parser.add_argument("--layout", type=Path, required=True, help="JSON file")
    parser.add_argument("--instance", default=program)
    parser.add_argument("--leader", help="address of rank 0; on every other rank")
    parser.add_argument("--transport", choices=[t for t in BETTER if t])
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--layers", type=int, default=0, help="of the model")
    return parser.parse_args()


class Engine:
    """One rank: its agent, and the cache memory that an engine would own."""

    def __init__(self, o: argparse.Namespace) -> None:
        """Starts the agent and registers zeroed memory for every region; prints the address and the regions."""
        layout = kvlink.Layout.from_json(o.layout.read_bytes())
        self.agent = kvlink.Agent(
            layout,
            o.instance,
            rank=o.rank,
            ranks=o.ranks,
            leader=o.leader,
            require_transport=o.transport,
            disable=BETTER[o.transport].split(),
        )
        self.requests: dict[kvlink.Operation[Any] | None, Request] = {}
        say(f"address {self.agent.address}")
        for index, nbytes in enumerate(layout.regions):
            memory = kvlink.shared_memory(nbytes)
            self.agent.register(index, memory)
            say(f"region {index} {kvlink.strided(memory).address:#x} {nbytes}")

    def common_event(self, event: kvlink.Event) -> None:
        """Deals with what both engines are told alike."""
        match event.kind:
            case kvlink.EventKind.READY:
                say("ready")
            case kvlink.EventKind.HANDSHAKE:
                if event.error is not None:
                    raise event.error
                # Which transport is in effect for each rank, and why not a better one.
                say("linked " + event.payload.decode().replace("\n", ";"))
            case kvlink.EventKind.PEER_DOWN:
                say(f"peer-down {event.error}")
            case kvlink.EventKind.AGENT_FAILED:
                raise SystemExit(f"the agent failed: {event.error}")

    def serve(self, on_command: Callable[[list[str]], None], on_event: Callable[[kvlink.Event], None]) -> None:
        """Serves the standard input and the agent's events until "quit" or the end of the input."""
        with self.agent, selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.buffer, selectors.EVENT_READ)
            selector.register(self.agent.event_fd, selectors.EVENT_READ)
            rest = b""
            while True:
                for key, _ in selector.select():
                    if key.fd != sys.stdin.fileno():
                        # The descriptor stays readable while more events wait.
                        for event in self.agent.poll(0):
                            on_event(event)
                        continue
                    data = os.read(key.fd, 1 << 16)
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        if line == b"quit":
                            return
                        on_command(line.decode().split())
                    if not data:
                        return
