"""Real vLLM servers, and the questions that a proxy asks them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import MODELS, path_of
from ports import free_port

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kvlink"
START_SECONDS = 300
ANSWER_SECONDS = 120
# Two servers share two cores, and nothing is fetched.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "vllm-compiled" / "inductor"),
    "VLLM_CACHE_ROOT": str(CACHE / "vllm-compiled" / "vllm"),
    "PYTHONPATH": f"{ROOT / 'bindings' / 'python' / 'src'}:{Path(__file__).parent}",
    "KVLINK_LIBRARY": os.environ.get("KVLINK_LIBRARY", str(ROOT / "target" / "release" / "libkvlink.so")),
}


@dataclass
class Answer:
    """What a server said."""

    tokens: list[int]
    #: Log-probability of each token.
    logprobs: list[float]
    #: What a prefill server hands to the decode server.
    params: dict[str, Any] | None


class Refused(Exception):
    """A server answered with an error."""


class Server:
    """A `vllm serve` process."""

    def __init__(
        self,
        model: str,
        name: str,
        logs: Path,
        *,
        role: str = "kv_both",
        connector: str = "KVLinkConnector",
        module: str | None = "kvlink.vllm",
        extra: dict[str, Any] | None = None,
        transfer: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        prefix_caching: bool = False,
        port: int | None = None,
    ) -> None:
        """Starts it; `ready` waits for it."""
        what = MODELS[model]
        self.name = name
        self.port = port or free_port()
        self.log = logs / f"{name}.log"
        config: dict[str, Any] = {
            "kv_connector": connector,
            "kv_role": role,
            "kv_buffer_device": "cpu",
            "kv_connector_extra_config": extra or {},
            **(transfer or {}),
        }
        if module:
            config["kv_connector_module_path"] = module
        command = [
            str(Path(sys.executable).parent / "vllm"),
            "serve",
            str(path_of(model)),
            "--served-model-name=tiny",
            "--host=127.0.0.1",
            f"--port={self.port}",
            "--enforce-eager",
            "--max-model-len=1024",
            "--max-num-seqs=8",
            "--seed=0",
            "--kv-cache-memory-bytes=134217728",
            f"--dtype={what.dtype}",
            "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching",
            f"--kv-transfer-config={json.dumps(config)}",
            *what.arguments,
            *arguments,
        ]
        python_path = ENVIRONMENT["PYTHONPATH"] + (f":{what.plugins}" if what.plugins else "")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **ENVIRONMENT,
                    "PYTHONPATH": python_path,
                    **what.environment,
                    **(environment or {}),
                },
                # A group of its own: the server's processes end together.
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> Server:
        """Waits until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"{self.name} did not start within {START_SECONDS} s:\n{self.tail()}")

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.text().splitlines()[-lines:])

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def ask(
        self,
        prompt: Sequence[int],
        tokens: int,
        params: dict[str, Any] | None = None,
        *,
        request_id: str | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Answer:
        """The greedy continuation of a prompt."""
        return ask(self.url, prompt, tokens, params, request_id=request_id, timeout=timeout)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a Prometheus metric over all samples that have these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            text = response.read().decode()
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(r"([a-zA-Z_:0-9]+)(\{.*\})? ([-+.e0-9]+)", line)
            if found and found[1] == name and all(f'{k}="{v}"' in (found[2] or "") for k, v in labels.items()):
                total += float(found[3])
        return total

    def loaded_tokens(self) -> int:
        """Prompt tokens that came from other instances."""
        return int(self.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer"))

    def stop(self) -> None:
        """Ends it, and waits for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """Ends all of its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def ask(
    url: str,
    prompt: Sequence[int],
    tokens: int,
    params: dict[str, Any] | None = None,
    *,
    request_id: str | None = None,
    timeout: float = ANSWER_SECONDS,
    stream: bool = False,
) -> Answer:
    """The greedy continuation of a prompt, from a server or from a router in front of some, whole or streamed."""
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }
    if params is not None:
        body["kv_transfer_params"] = params
    headers = {"Content-Type": "application/json"}
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            parts = _events(response.read().decode()) if stream else [json.load(response)]
    except urllib.error.HTTPError as e:
        raise Refused(f"{url}: {e.code} {e.read().decode(errors='replace')}") from e
    answer = Answer([], [], None)
    for part in parts:
        if "error" in part or part["choices"][0]["finish_reason"] == "error":
            raise Refused(f"{url}: the request ended with an error: {part}")
        choice = part["choices"][0]
        answer.tokens += choice["token_ids"]
        answer.logprobs += choice["logprobs"]["token_logprobs"]
        answer.params = part.get("kv_transfer_params")
    return answer


def _events(text: str) -> list[dict[str, Any]]:
    """The parts of a streamed answer, which has one or more, and an end."""
    *parts, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert parts, f"not a stream: {text}"
    assert end == "[DONE]", f"not a whole stream: {text}"
    return [json.loads(part) for part in parts]


PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def disaggregated(prefill: Server, decode: Server, prompt: Sequence[int], tokens: int) -> Answer:
    """What a proxy does with a request in READ mode."""
    params = prefill.ask(prompt, 1, dict(PREFILL)).params
    assert params is not None
    return decode.ask(prompt, tokens, params)
