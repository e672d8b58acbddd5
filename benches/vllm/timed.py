"""Connectors that measure themselves: seconds spent in the connector within steps that compute tokens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector

from kvlink.vllm import KVLinkConnector

STEP = (
    "handle_preemptions",
    "start_load_kv",
    "save_kv_layer",
    "wait_for_save",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
)


class Timed:
    """Wraps the calls of a worker's step."""

    _seconds = 0.0
    _computed = False
    _totals = (0, 0.0)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._seconds, self._computed = 0.0, False
        super().bind_connector_metadata(connector_metadata)  # type: ignore[misc]

    def clear_connector_metadata(self) -> None:
        super().clear_connector_metadata()  # type: ignore[misc]
        if self._computed:
            steps, seconds = self._totals
            self._totals = (steps + 1, seconds + self._seconds)
            where = Path(os.environ["KVLINK_TIMED"]) / f"{os.getpid()}.json"
            where.write_text(json.dumps(self._totals))


def _measured(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return getattr(super(Timed, self), name)(*args, **kwargs)
        finally:
            self._seconds += time.perf_counter() - begun
            self._computed |= name == "save_kv_layer"

    return call


for _name in STEP:
    setattr(Timed, _name, _measured(_name))


class TimedKVLinkConnector(Timed, KVLinkConnector):
    """kvlink's connector."""


class TimedNixlConnector(Timed, NixlConnector):
    """vLLM's NIXL connector."""
