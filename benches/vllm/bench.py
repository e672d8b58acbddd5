"""The same requests over NixlConnector and KVLinkConnector: from the prefill answer to the first token, bytes, steps.

Each pair of servers is started twice, in turns, and asked the same prompts. Best and median are printed: what else the
machine does makes requests slower, never faster.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_port
from servers import PREFILL, Server

LENGTHS = (100, 300, 600, 900)
REPEATS = 8
TURNS = 2


@dataclass
class Result:
    """What was measured of one connector."""

    #: Seconds from the prefill answer to the first token, by length.
    first: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in LENGTHS})
    alone: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in LENGTHS})
    nbytes: float = 0
    requests: int = 0
    steps: int = 0
    seconds: float = 0


CONNECTORS: dict[str, dict[str, Any]] = {
    "NixlConnector": {"connector": "TimedNixlConnector", "metric": "vllm:nixl_bytes_transferred_sum"},
    "KVLinkConnector": {"connector": "TimedKVLinkConnector", "metric": "vllm:kvlink_transfer_bytes_sum"},
}


def run(name: str, model: str, where: Path, result: Result) -> None:
    """One turn of one connector."""
    numbers = random.Random(7)
    what = CONNECTORS[name]
    timed = where / f"timed-{name}-{time.monotonic_ns()}"
    timed.mkdir(parents=True)
    servers = []
    for side, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        environment = {
            "KVLINK_TIMED": str(timed),
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
            "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{Path(__file__).parent}",
        }
        servers.append(
            Server(
                model,
                f"{name}-{side}",
                where,
                role=role,
                connector=what["connector"],
                module="timed",
                environment=environment,
            )
        )
    prefill, decode = servers
    with prefill.ready(), decode.ready():
        for length in LENGTHS:
            for i in range(REPEATS + 1):
                prompt = [numbers.randrange(256) for _ in range(length)]
                params = prefill.ask(prompt, 1, dict(PREFILL)).params
                begun = time.perf_counter()
                decode.ask(prompt, 1, params)
                seconds = time.perf_counter() - begun
                decode.ask(prompt[:17], 8)
                begun = time.perf_counter()
                decode.ask(prompt[:2], 1)
                if i:
                    # The first one warms up.
                    result.first[length].append(seconds)
                    result.alone[length].append(time.perf_counter() - begun)
        result.nbytes += decode.metric(what["metric"])
        result.requests += len(LENGTHS) * (REPEATS + 1)
    for file in timed.glob("*.json"):
        steps, seconds = json.loads(file.read_text())
        result.steps += steps
        result.seconds += seconds


def main() -> None:
    """Prints the comparison of every model."""
    where = Path(os.environ["KVLINK_TEST_DIR"]) / "bench"
    for model in sys.argv[1:] or ["llama", "granite"]:
        results = {name: Result() for name in CONNECTORS}
        for _ in range(TURNS):
            for name, result in results.items():
                run(name, model, where, result)
        nixl, kvlink = results["NixlConnector"], results["KVLinkConnector"]
        print(
            f"\n{model}: a prefill and a decode server on {os.cpu_count()} cores; best and median of {TURNS * REPEATS}"
        )
        print(f"  {'':34}{'NixlConnector':>18}{'KVLinkConnector':>18}{'ratio':>8}")
        for length in LENGTHS:
            for what, reduce in (("best", min), ("median", statistics.median)):
                a, b = (1e3 * reduce(r.first[length]) for r in (nixl, kvlink))
                print(f"  {f'first token, {length} tokens, {what}, ms':34}{a:18.1f}{b:18.1f}{a / b:8.2f}")
        a, b = (1e3 * min(min(times) for times in r.alone.values()) for r in (nixl, kvlink))
        print(f"  {'a request of two tokens, ms':34}{a:18.1f}{b:18.1f}{a / b:8.2f}")
        a, b = (r.nbytes / r.requests / 1024 for r in (nixl, kvlink))
        print(f"  {'moved a request, KiB':34}{a:18.1f}{b:18.1f}{a / b:8.2f}")
        a, b = (1e6 * r.seconds / r.steps for r in (nixl, kvlink))
        print(f"  {'connector in a step, us':34}{a:18.1f}{b:18.1f}{a / b:8.2f}", flush=True)


if __name__ == "__main__":
    main()
