#!/usr/bin/env python3
"""Shows kvlink behind the real vllm-router: instances join, leave and crash under load, and every answer is checked.

demo.py [read] [write]
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from instance import LAYERS, PATIENCE, cache_of, digest

HERE = Path(__file__).parent
# An answer that takes longer than this counts as hanging: twice the instances' patience, and time for the machine.
HANGING = 4 * PATIENCE


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Service:
    """The router and its instances."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.port, self.discovery = free_port(), free_port()
        self.processes: list[subprocess.Popen[str]] = []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--prometheus-port", str(free_port())]
        options += ["--policy", "round_robin", "--vllm-pd-disaggregation", "--kv-connector", "moriio"]
        options += ["--vllm-discovery-address", f"127.0.0.1:{self.discovery}"]
        command = [str(Path(sys.executable).with_name("vllm-router")), *options]
        self.processes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log, text=True))

    def instance(self, role: str) -> tuple[subprocess.Popen[str], int]:
        """Starts one; returns it with the port that request ids name it by."""
        command = [sys.executable, str(HERE / "instance.py"), "--role", role, "--mode", self.mode]
        command += ["--discovery", f"127.0.0.1:{self.discovery}", "--layer-seconds", "0.05"]
        command += ["--tp", "4" if role == "prefill" else "2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{role} did not start")
        return process, int(line.rsplit(":", 1)[1])

    def ask(self, prompt: str, *, stream: bool = False) -> tuple[str, dict[str, Any]]:
        """One completion: "right", "wrong", the HTTP status of a refusal, or "hanging"; and what the instance said."""
        body = {"model": "m", "prompt": prompt, "max_tokens": 8, "stream": stream}
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=HANGING) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as e:
            return str(e.code), {}
        except TimeoutError:
            return "hanging", {}
        except (urllib.error.URLError, ConnectionError) as e:
            return ("hanging" if isinstance(getattr(e, "reason", e), TimeoutError) else "no router"), {}
        lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")] if stream else [text]
        said = [json.loads(line) for line in lines]
        got = "".join(s["choices"][0]["text"] for s in said)
        wanted = digest([cache_of(prompt, layer) for layer in range(LAYERS)])
        return ("right" if got == wanted else "wrong"), said[0]["kvlink"]

    def load(self, count: int, name: str) -> tuple[Counter[str], list[dict[str, Any]]]:
        """Many completions at once."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            prompts = [f"{name} {i} " + "tell me more " * (i % 20) for i in range(count)]
            ends = list(pool.map(self.ask, prompts))
        return Counter(end for end, _ in ends), [said for _, said in ends if said]

    def until(self, what: str, right: Any) -> None:
        """Waits for the router to see what is so."""
        begin = time.monotonic()
        while not right():
            if time.monotonic() - begin > 60:
                raise SystemExit(f"the router does not see that {what}")
            time.sleep(0.2)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        if kind is not None:
            self.log.seek(0)
            print("the router's last words:", *self.log.readlines()[-20:], sep="\n  ")
        self.log.close()


def expect(what: str, good: bool, detail: object) -> None:
    """Says how a part ended; the first that is not right ends the demo."""
    print(f"  {what}: {detail}", flush=True)
    if not good:
        raise SystemExit("that is not right")


def demo(mode: str) -> None:
    """All of it in one mode."""
    print(f"{mode.upper()} mode, TP 4 -> TP 2")
    with Service(mode) as s:
        prefills = [s.instance("prefill") for _ in range(2)]
        for _ in range(2):
            s.instance("decode")
        s.until("instances are there", lambda: s.ask("hello")[0] == "right")

        ends, said = s.load(40, "first")
        ways = Counter((one["prefill"], one["decode"]) for one in said if one["cache"] == "received")
        good = ends == {"right": 40} and ways.total() == 40
        expect("40 requests, every byte checked", good, f"{dict(ends)}, {len(ways)} pairs of instances")
        expect("a stream", (end := s.ask("a stream of words", stream=True)[0]) == "right", end)

        third, port = s.instance("prefill")
        s.until("a third joined", lambda: s.ask("join")[1].get("prefill") == port)
        expect("a prefill instance joins", True, "it serves")
        third.send_signal(signal.SIGTERM)
        total: Counter[str] = Counter()
        while third.poll() is None:
            total += s.load(8, "leave")[0]
        expect("it leaves under load", set(total) == {"right"}, dict(total))

        victim, port = prefills[0]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            begin = time.monotonic()
            under_way = pool.submit(s.load, 40, "crash")
            time.sleep(0.3)
            victim.send_signal(signal.SIGKILL)
            ends, said = under_way.result()
            seconds = time.monotonic() - begin
        computed = sum(one["cache"] != "received" for one in said)
        good = ends["hanging"] == ends["wrong"] == ends["no router"] == 0 and ends.total() == 40
        expect(
            "a prefill instance is killed under load, none hangs",
            good,
            f"{dict(ends)}, {computed} computed anew, {seconds:.0f} s",
        )
        s.until("it is gone", lambda: s.load(8, "after")[0] == {"right": 8})
        ends, said = s.load(16, "afterwards")
        good = ends == {"right": 16} and all(one["prefill"] != port for one in said)
        expect("afterwards", good, dict(ends))


if __name__ == "__main__":
    os.environ.setdefault("OPENAI_API_KEY", "none")
    for wanted in sys.argv[1:] or ["read", "write"]:
        demo(wanted)
    print("all right")
