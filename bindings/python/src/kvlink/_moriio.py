"""Workers opposite those of vLLM's MoRIIOConnector: see docs/moriio.md."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import Any

from ._abi import Role, kvlink_moriio_t
from ._peer import c_string
from ._router import u32


def worker_of(
    role: Role,
    handshake: Mapping[str, Any] | None,
    host: str | None,
    ports: tuple[int, int],
    dp: tuple[int, int],
    tp: tuple[int, int],
) -> tuple[kvlink_moriio_t, object]:
    """The struct that opens a worker, and what must live as long."""
    text = b"" if handshake is None else json.dumps(handshake).encode()
    buffer = ctypes.create_string_buffer(text, len(text))
    handshake_port, notify_port = u32(handshake_port=ports[0], notify_port=ports[1])
    dp_rank, dp_size, tp_rank, tp_size = u32(dp_rank=dp[0], dp_size=dp[1], tp_rank=tp[0], tp_size=tp[1])
    worker = kvlink_moriio_t(
        struct_size=ctypes.sizeof(kvlink_moriio_t),
        role=role,
        handshake_port=handshake_port,
        notify_port=notify_port,
        dp_rank=dp_rank,
        dp_size=dp_size,
        tp_rank=tp_rank,
        tp_size=tp_size,
        host=None if host is None else c_string("host", host),
        handshake=ctypes.addressof(buffer) if text else None,
        handshake_len=len(text),
    )
    return worker, buffer
