"""The tokens of two servers, one that prefills and one that decodes, are those of one server."""

from __future__ import annotations

import concurrent.futures
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ports import free_port
from servers import PREFILL, Answer, Server, disaggregated

TOKENS = 24
# In bfloat16 the order of operations shows: a divergence counts only where the tokens were not nearly as likely.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}


@dataclass(frozen=True)
class Case:
    """Two servers of one model."""

    model: str
    tp: tuple[int, int] = (1, 1)
    mode: str = "read"
    block: tuple[int, int] | None = None
    prefix_caching: bool = False
    transport: str = "host"
    dtype: str = "float32"
    arguments: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.model, f"tp{self.tp[0]}", f"tp{self.tp[1]}", self.mode]
        words += [] if self.block is None else [f"blocks-{self.block[0]}-{self.block[1]}"]
        words += ["chunked"] * (CHUNKED in self.arguments) + [self.transport] * (self.transport != "host")
        return "-".join(words)


CHUNKED = ("--max-num-batched-tokens=128", "--enable-chunked-prefill")
CASES = [
    Case("llama"),
    Case("granite", tp=(2, 1)),
    Case("gemma3"),
    Case("deepseek_v2"),
    Case("qwen3_next", dtype="bfloat16"),
    Case("granite"),
    Case("llama", block=(64, 128)),
    Case("llama", block=(128, 64)),
    Case("gemma3", block=(32, 128)),
    Case("llama", tp=(1, 2)),
    Case("llama", tp=(2, 1)),
    Case("granite", tp=(1, 2)),
    Case("qwen3_next", tp=(2, 1), dtype="bfloat16"),
    Case("deepseek_v2", tp=(2, 1)),
    Case("llama", arguments=(CHUNKED, CHUNKED)),
    Case("granite", transport="nixl"),
    Case("granite", transport="mori"),
    Case("llama", mode="write"),
    Case("llama", mode="write", arguments=(CHUNKED, CHUNKED)),
    Case("gemma3", mode="write"),
    Case("deepseek_v2", mode="write"),
    Case("granite", mode="write"),
    Case("granite", tp=(2, 1), mode="write"),
    Case("llama", tp=(1, 2), mode="write"),
    Case("kimi_linear"),
    Case("kimi_linear", tp=(2, 1)),
    Case("kimi_linear", mode="write"),
]


class Servers:
    """The two servers of a case, started together."""

    def __init__(self, case: Case, logs: Path) -> None:
        self.case = case
        self.address = f"127.0.0.1:{free_port()}"
        pair = []
        for i, role in enumerate(("kv_producer", "kv_consumer")):
            arguments = list(case.arguments[i])
            if case.tp[i] > 1:
                arguments.append(f"--tensor-parallel-size={case.tp[i]}")
            if case.block is not None:
                arguments.append(f"--block-size={case.block[i]}")
            pair.append(
                Server(
                    case.model,
                    "prefill" if i == 0 else "decode",
                    logs,
                    role=role,
                    extra={
                        "mode": case.mode,
                        "transport": case.transport,
                        **({"listen": self.address} if i == 1 else {}),
                        # With stand-ins for the hardware.
                        **({"mori_library": os.environ["KVLINK_MORI"]} if case.transport == "mori" else {}),
                    },
                    arguments=arguments,
                    environment=case.environment,
                    prefix_caching=case.prefix_caching,
                )
            )
        self.prefill, self.decode = pair

    def ask(self, prompt: list[int], tokens: int = TOKENS) -> Answer:
        """What both servers together make of a prompt."""
        if self.case.mode == "read":
            return disaggregated(self.prefill, self.decode, prompt, tokens)
        transfer = {"transfer_id": f"tx-{uuid.uuid4().hex}"}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            params = {"do_remote_decode": False, "do_remote_prefill": True, **transfer}
            answer = pool.submit(self.decode.ask, prompt, tokens, params)
            self.prefill.ask(prompt, 1, {**PREFILL, **transfer, "remote_address": self.address})
            return answer.result()

    def __enter__(self) -> Servers:
        self.prefill.ready()
        self.decode.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.prefill.stop()
        self.decode.stop()


def assert_equal(found: Answer, wanted: Answer, tolerance: float) -> None:
    """Whether two answers are the same, up to a token that was nearly as likely."""
    for i, (token, alone) in enumerate(zip(found.tokens, wanted.tokens, strict=True)):
        difference = abs(found.logprobs[i] - wanted.logprobs[i])
        assert difference <= tolerance, f"token {i}: log-probability {found.logprobs[i]}, alone {wanted.logprobs[i]}"
        if token != alone:
            assert tolerance > 0.1, f"token {i}: {found.tokens}, alone {wanted.tokens}"
            return


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_those_of_one_server(case: Case, logs: Path, prompts: list[list[int]]) -> None:
    with Servers(case, logs) as servers:
        answers = [servers.ask(prompt) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_equal(answer, servers.decode.ask(prompt, TOKENS), TOLERANCE[case.dtype])
        assert len({tuple(answer.tokens) for answer in answers}) == len(prompts), (
            "the model does not look at its prompt"
        )
        # All but the last token of every prompt came from the other server, and were not computed again.
        assert servers.decode.loaded_tokens() == sum(len(prompt) - 1 for prompt in prompts)
        assert servers.decode.metric("vllm:kvlink_transfer_bytes_sum") > 0
        for server in (servers.prefill, servers.decode):
            assert server.metric("vllm:kvlink_failed_transfers_total") == 0
            assert server.metric("vllm:kvlink_expired_leases_total") == 0
        reader = servers.decode if case.mode == "read" else servers.prefill
        assert f"rank 0: {case.transport}/" in reader.text(), "no line names the transport"


def test_servers_that_do_both_serve_each_other(logs: Path, prompts: list[list[int]]) -> None:
    with Server("llama", "one", logs) as one, Server("llama", "other", logs) as other:
        one.ready()
        other.ready()
        for prefill, decode in ((one, other), (other, one)):
            alone = prefill.ask(prompts[3], TOKENS)
            assert_equal(disaggregated(prefill, decode, prompts[3], TOKENS), alone, TOLERANCE["float32"])
            assert decode.loaded_tokens() == len(prompts[3]) - 1


# On a CPU vLLM's Mamba2 fails with prefix caching, also alone; GDN computes in bfloat16 only, too coarsely to compare.
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_prefixes_that_are_there_are_not_moved(model: str, logs: Path, prompts: list[list[int]]) -> None:
    case = Case(model, prefix_caching=True)
    with Servers(case, logs) as servers:
        prompt = prompts[-1]
        alone = servers.prefill.ask(prompt, TOKENS)
        first, loaded = servers.ask(prompt), servers.decode.loaded_tokens()
        assert_equal(first, alone, TOLERANCE[case.dtype])
        assert loaded == len(prompt) - 1
        # The same beginning, another end.
        changed = [*prompt[:-20], *reversed(prompt[-20:])]
        before = servers.decode.metric("vllm:kvlink_transfer_bytes_sum")
        assert_equal(servers.ask(changed), servers.prefill.ask(changed, TOKENS), TOLERANCE[case.dtype])
        again = servers.decode.loaded_tokens() - loaded
        assert 0 < again <= len(prompt) - 1
        if model == "llama":
            assert again < 150, "blocks that were there were loaded again"
            assert servers.decode.metric("vllm:kvlink_transfer_bytes_sum") - before < before / 3
        assert servers.decode.metric("vllm:kvlink_failed_transfers_total") == 0
