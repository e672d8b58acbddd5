"""What stands in front of real servers: the real vllm-router, and vLLM's own example proxies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ports import free_port
from servers import ROOT, Refused, Server, ask
from test_equal import TOKENS, assert_equal

START_SECONDS = 60


@contextmanager
def running(log: Path, command: Sequence[str]) -> Iterator[None]:
    """A process that ends with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def router(logs: Path, *arguments: str) -> Iterator[str]:
    """vllm-router; yields where it answers."""
    port, metrics = free_port(), free_port()
    command = [
        os.environ["KVLINK_ROUTER"],
        "--host=127.0.0.1",
        f"--port={port}",
        f"--prometheus-port={metrics}",
        "--vllm-pd-disaggregation",
        "--policy=round_robin",
        *arguments,
    ]
    with running(logs / f"router-{arguments[0].strip('-')}.log", command):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def nixl_proxy(logs: Path, prefills: Sequence[Server], decodes: Sequence[Server]) -> Iterator[str]:
    """The toy proxy of NixlConnector's tests; yields where it answers."""
    port = free_port()
    source = Path(os.environ["KVLINK_VLLM_SOURCE"], "src/tests/v1/kv_connector/nixl_integration/toy_proxy_server.py")
    command = [sys.executable, str(source), f"--port={port}"]
    for role, servers in (("prefiller", prefills), ("decoder", decodes)):
        command += [f"--{role}-hosts", *["127.0.0.1"] * len(servers)]
        command += [f"--{role}-ports", *[str(server.port) for server in servers]]
    with running(logs / "nixl-proxy.log", command):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def moriio_proxy(logs: Path, discovery: int) -> Iterator[str]:
    """MoRIIOConnector's toy proxy, where servers register; yields where it answers."""
    port, where = free_port(), Path(os.environ["KVLINK_VLLM_SOURCE"])
    script = ROOT / "tests" / "router" / "toy_proxy.py"
    command = [str(where / "bin" / "python"), str(script), str(where / "src"), str(port), str(discovery)]
    with running(logs / "moriio-proxy.log", command):
        yield f"http://127.0.0.1:{port}"


def first_answer(url: str, prompt: list[int]) -> None:
    """Waits until a proxy answers, and knows servers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            # Of the two tokens MoRIIOConnector's toy proxy asks the decode server for one.
            ask(url, prompt, 2)
        except (OSError, Refused):
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)
        else:
            return


def ask_all(url: str, prompts: list[list[int]], decode: Server, *, kept: int = 0, stream: bool = False) -> None:
    """Every prompt through a proxy, which keeps some of the tokens asked for, is what a decode server says alone.

    Among them one of a single token, of which nothing is to be moved.
    """
    for prompt in ([7], *prompts):
        assert_equal(ask(url, prompt, TOKENS + kept, stream=stream), decode.ask(prompt, TOKENS), 1e-3)
