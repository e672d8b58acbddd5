#!/usr/bin/env python3
"""Shows kvlink behind the real vllm-router: instances join, leave and crash under load, and every answer is checked.

demo.py NATIVE [read] [write]

NATIVE is the program that instance.cpp becomes: instances in C++ and in Python serve in one fleet.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instance import LAYERS, PATIENCE, cache_of, digest
from ports import free_port

HERE = Path(__file__).parent
# An answer that takes longer than this counts as hanging: twice the instances' patience, and time for the machine.
HANGING = 4 * PATIENCE


def post(address: str, body: dict[str, Any], request_id: str = "") -> tuple[str, str]:
    """A completion request: "200" and the answer, the status of a refusal, "hanging", or "nobody" if none listens."""
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    request = urllib.request.Request(f"http://{address}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=HANGING) as answer:
            return "200", answer.read().decode()
    except urllib.error.HTTPError as e:
        return str(e.code), ""
    except TimeoutError:
        return "hanging", ""
    except (urllib.error.URLError, ConnectionError) as e:
        return ("hanging" if isinstance(getattr(e, "reason", e), TimeoutError) else "nobody"), ""


def judge(prompt: str, said: list[dict[str, Any]]) -> str:
    """Whether an answer, in one or more pieces, is that of the model."""
    got = "".join(s["choices"][0]["text"] for s in said)
    return "right" if got == digest([cache_of(prompt, layer) for layer in range(LAYERS)]) else "wrong"


@dataclass
class Instance:
    """A running instance; `port` is what request ids name it by."""

    process: subprocess.Popen[str]
    language: str
    http: str
    port: int


class Service:
    """The router and its instances."""

    def __init__(self, mode: str, native: str) -> None:
        self.mode, self.native = mode, native
        self.port, self.discovery = free_port(), free_port()
        self.processes: list[subprocess.Popen[str]] = []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.processes.append(subprocess.Popen(self.router(), stdout=self.log, stderr=self.log, text=True))

    def router(self) -> list[str]:
        """The router's command."""
        command = [str(Path(sys.executable).with_name("vllm-router")), "--policy", "round_robin"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--prometheus-port", str(free_port())]
        command += ["--vllm-pd-disaggregation", "--kv-connector", "moriio"]
        return [*command, "--vllm-discovery-address", f"127.0.0.1:{self.discovery}"]

    def instance(self, role: str, language: str) -> Instance:
        """Starts one."""
        program = [self.native] if language == "C++" else [sys.executable, str(HERE / "instance.py")]
        command = [*program, "--role", role, "--mode", self.mode, "--discovery", f"127.0.0.1:{self.discovery}"]
        command += ["--layer-seconds", "0.05", "--tp", "4" if role == "prefill" else "2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{role} in {language} did not start")
        _, http, address = line.split()
        return Instance(process, language, http, int(address.rsplit(":", 1)[1]))

    def ask(self, prompt: str, *, stream: bool = False) -> tuple[str, dict[str, Any]]:
        """One completion: "right", "wrong", or why there is no answer; and what the instance said."""
        body = {"model": "m", "prompt": prompt, "max_tokens": 8, "stream": stream}
        end, text = post(f"127.0.0.1:{self.port}", body)
        if end != "200":
            return end, {}
        lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")] if stream else [text]
        said = [json.loads(line) for line in lines]
        return judge(prompt, said), said[0]["kvlink"]

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


def orphans(s: Service, victim: Instance, decodes: list[Instance]) -> list[tuple[Instance, dict[str, Any], str]]:
    """Requests as the router sends them to decode instances, whose prefill instance is about to die."""
    parts = []
    for i, decode in enumerate(decodes):
        tx = f"tx-{i:032x}"
        at = [f"host:127.0.0.1,handshake:{port},notify:{port}" for port in (victim.port, decode.port)]
        request_id = f"___prefill_addr_{at[0]}___decode_addr_{at[1]}_{i:032x}"
        body: dict[str, Any] = {"model": "m", "prompt": f"orphan {i}"}
        if s.mode == "read":
            asked = {"do_remote_decode": True, "do_remote_prefill": False, "remote_tp_size": 2, "transfer_id": tx}
            end, text = post(victim.http, {**body, "kv_transfer_params": asked}, request_id)
            expect(f"a cache offered by {victim.language} for {decode.language}", end == "200", end)
            body |= json.loads(text)
        else:
            told = {"do_remote_decode": False, "do_remote_prefill": True, "remote_tp_size": 4, "transfer_id": tx}
            body["kv_transfer_params"] = told
        parts.append((decode, body, request_id))
    return parts


def ended(alone: list[tuple[Instance, dict[str, Any], str]]) -> None:
    """Sends such requests past the router, which would wait for the prefill instance itself.

    The cache comes or is computed: who stands still can be read from as long as its lease holds.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda one: post(one[0].http, *one[1:]), alone))
    for (decode, body, _), (end, text) in zip(alone, answers, strict=True):
        one = json.loads(text or "{}")
        good = end == "200" and judge(body["prompt"], [one]) == "right"
        expect(f"its request at a decode instance in {decode.language} ends", good, one.get("kvlink", end))


def demo(mode: str, native: str) -> None:
    """All of it in one mode."""
    print(f"{mode.upper()} mode, TP 4 -> TP 2")
    with Service(mode, native) as s:
        # Two and three, so that the router's turns bring every prefill instance together with every decode instance.
        prefills = [s.instance("prefill", language) for language in ("C++", "Python")]
        decodes = [s.instance("decode", language) for language in ("Python", "C++", "Python")]
        language = {one.port: one.language for one in prefills + decodes}
        s.until("instances are there", lambda: s.ask("hello")[0] == "right")

        ends, said = s.load(48, "first")
        received = [one for one in said if one["cache"] == "received"]
        ways = {(one["prefill"], one["decode"]) for one in received}
        pairs = Counter(f"{language[one['prefill']]} -> {language[one['decode']]}" for one in received)
        good = ends == {"right": 48} and len(received) == 48 and len(ways) == 6 and len(pairs) == 4
        expect("48 requests, every byte checked", good, f"{dict(ends)}, {len(ways)} pairs of instances: {dict(pairs)}")
        streams = Counter(s.ask(f"a stream of words {i}", stream=True)[0] for i in range(6))
        expect("six streams, one from every pair", streams == {"right": 6}, dict(streams))

        for tongue in ("Python", "C++"):
            third = s.instance("prefill", tongue)
            s.until("a third joined", lambda port=third.port: s.ask("join")[1].get("prefill") == port)
            expect(f"a prefill instance in {tongue} joins", True, "it serves")
            third.process.send_signal(signal.SIGTERM)
            total: Counter[str] = Counter()
            while third.process.poll() is None:
                total += s.load(8, "leave")[0]
            expect("it leaves under load", set(total) == {"right"} and third.process.poll() == 0, dict(total))

        victim, port = prefills[0].process, prefills[0].port
        alone = orphans(s, prefills[0], decodes)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            begin = time.monotonic()
            under_way = pool.submit(s.load, 40, "crash")
            time.sleep(0.3)
            victim.send_signal(signal.SIGKILL)
            ends, said = under_way.result()
            seconds = time.monotonic() - begin
        computed = sum(one["cache"] != "received" for one in said)
        good = ends["hanging"] == ends["wrong"] == ends["nobody"] == 0 and ends.total() == 40
        expect(
            "a prefill instance is killed under load, none hangs",
            good,
            f"{dict(ends)}, {computed} computed anew, {seconds:.0f} s",
        )
        ended(alone)
        s.until("it is gone", lambda: s.load(8, "after")[0] == {"right": 8})
        ends, said = s.load(16, "afterwards")
        good = ends == {"right": 16} and all(one["prefill"] != port for one in said)
        expect("afterwards", good, dict(ends))

        alone = orphans(s, prefills[1], decodes)
        prefills[1].process.send_signal(signal.SIGSTOP)
        expect("a prefill instance stands still", True, prefills[1].language)
        ended(alone)


if __name__ == "__main__":
    os.environ.setdefault("OPENAI_API_KEY", "none")
    for wanted in sys.argv[2:] or ["read", "write"]:
        demo(wanted, sys.argv[1])
    print("all right")
