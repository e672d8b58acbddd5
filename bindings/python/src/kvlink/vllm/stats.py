"""What vLLM's own statistics and Prometheus metrics say about the connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)
from vllm.v1.metrics.utils import create_metric_per_engine

_HISTOGRAMS = {
    "seconds": ("kvlink_transfer_seconds", "Time of a transfer.", [0.0005 * 2**i for i in range(16)]),
    "bytes": ("kvlink_transfer_bytes", "Bytes of a transfer.", [2.0 ** (10 + 2 * i) for i in range(13)]),
    "spans": ("kvlink_transfer_spans", "Contiguous copies of a transfer.", [4.0**i for i in range(11)]),
}
_COUNTERS = {
    "failed_transfers": ("kvlink_failed_transfers", "Transfers that failed."),
    "failed_handshakes": ("kvlink_failed_handshakes", "Handshakes that failed."),
    "expired_leases": ("kvlink_expired_leases", "Prefilled requests that were not read in time."),
}


@dataclass
class KVLinkStats(KVConnectorStats):
    """Measurements since they were last taken."""

    def __post_init__(self) -> None:
        if not self.data:
            self.reset()

    def reset(self) -> None:
        self.data: dict[str, Any] = {**{name: [] for name in _HISTOGRAMS}, **dict.fromkeys(_COUNTERS, 0)}

    def transfer(self, seconds: float, nbytes: int, spans: int) -> None:
        """Adds a transfer that succeeded."""
        for name, value in (("seconds", seconds), ("bytes", nbytes), ("spans", spans)):
            self.data[name].append(value)

    def count(self, what: str) -> None:
        """Adds one to a counter."""
        self.data[what] += 1

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            self.data[name] += value
        return self

    def reduce(self) -> dict[str, int | float]:
        seconds, nbytes = self.data["seconds"], sum(self.data["bytes"])
        n = len(seconds)
        return {
            "Num successful transfers": n,
            "Avg transfer time (ms)": round(1e3 * sum(seconds) / n, 3) if n else 0,
            "Max transfer time (ms)": round(1e3 * max(seconds), 3) if n else 0,
            "MB": round(nbytes / 2**20, 3),
            "Avg spans": round(sum(self.data["spans"]) / n, 1) if n else 0,
            **{name.replace("_", " ").capitalize(): self.data[name] for name in _COUNTERS},
        }

    def is_empty(self) -> bool:
        return not any(self.data.values())


class KVLinkPromMetrics(KVConnectorPromMetrics):
    """The measurements as Prometheus metrics."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._histograms = {
            key: create_metric_per_engine(
                self._histogram_cls(name=f"vllm:{name}", documentation=text, buckets=buckets, labelnames=labelnames),
                self.per_engine_labelvalues,
            )
            for key, (name, text, buckets) in _HISTOGRAMS.items()
        }
        self._counters = {
            key: create_metric_per_engine(
                self._counter_cls(name=f"vllm:{name}", documentation=text, labelnames=labelnames),
                self.per_engine_labelvalues,
            )
            for key, (name, text) in _COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for key, histogram in self._histograms.items():
            for value in transfer_stats_data[key]:
                histogram[engine_idx].observe(value)
        for key, counter in self._counters.items():
            counter[engine_idx].inc(transfer_stats_data[key])
