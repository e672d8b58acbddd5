"""Ports for servers that tests and demos start."""

from __future__ import annotations

import socket

_HELD: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else is given while this process runs: a socket that does not listen holds it.

    A server that sets SO_REUSEADDR may listen there.
    """
    held = socket.socket()
    _HELD.append(held)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return int(held.getsockname()[1])
