"""Servers that die, requests that are given up, models that do not fit: the others go on, and nobody waits for ever."""

from __future__ import annotations

import concurrent.futures
import http.client
import itertools
import json
import re
import threading
import time
from pathlib import Path

import pytest
from servers import PREFILL, Answer, Refused, Server, disaggregated
from test_equal import TOKENS, TOLERANCE, Case, Servers, assert_equal

RECOMPUTE = {"kv_load_failure_policy": "recompute"}
# Long enough for a server that was killed to be noticed, and a request to be computed again.
DEADLINE = 60


def pair(model: str, logs: Path, **decode: object) -> tuple[Server, Server]:
    prefill = Server(model, "prefill", logs, role="kv_producer", extra={"kv_lease_duration": 10.0})
    return prefill, Server(model, "decode", logs, role="kv_consumer", transfer=RECOMPUTE, **decode)  # type: ignore[arg-type]


def test_a_decode_server_that_was_killed_is_replaced(logs: Path, prompts: list[list[int]]) -> None:
    prefill, decode = pair("llama", logs)
    with prefill.ready(), decode.ready():
        wanted = decode.ask(prompts[3], TOKENS)
        assert_equal(disaggregated(prefill, decode, prompts[3], TOKENS), wanted, 1e-3)
        # Prefilled, and never fetched: the lease ends.
        prefill.ask(prompts[4], 1, dict(PREFILL))
        decode.kill()
        port = decode.port
        with Server("llama", "decode-again", logs, role="kv_consumer", transfer=RECOMPUTE, port=port) as again:
            again.ready()
            assert_equal(disaggregated(prefill, again, prompts[3], TOKENS), wanted, 1e-3)
            assert again.loaded_tokens() == len(prompts[3]) - 1
        until(lambda: prefill.metric("vllm:kvlink_expired_leases_total") == 1)
        until(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0)


@pytest.mark.parametrize("model", ["llama", "granite"])
def test_a_request_whose_prefill_server_died_is_computed_again(
    model: str, logs: Path, prompts: list[list[int]]
) -> None:
    prefill, decode = pair(model, logs, extra={"handshake_timeout": 5.0})
    with prefill.ready(), decode.ready():
        wanted = [decode.ask(prompt, TOKENS) for prompt in prompts[2:4]]
        assert_equal(disaggregated(prefill, decode, prompts[2], TOKENS), wanted[0], 1e-3)
        params = prefill.ask(prompts[3], 1, dict(PREFILL)).params
        prefill.kill()
        begun = time.monotonic()
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(decode.ask(prompts[3], TOKENS, params))),
            # Another request meanwhile.
            threading.Thread(target=lambda: answers.append(decode.ask(prompts[3], TOKENS))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(answers) == 2, "somebody waits for a server that is gone"
        assert time.monotonic() - begun < DEADLINE
        for answer in answers:
            assert answer.tokens == wanted[1].tokens
        until(lambda: decode.metric("vllm:kvlink_failed_transfers_total") == 1)
        until(lambda: decode.metric("vllm:kv_cache_usage_perc") == 0)


def test_a_request_that_nobody_writes_is_computed_here(logs: Path, prompts: list[list[int]]) -> None:
    extra = {"mode": "write", "transfer_timeout": 5.0}
    prefill = Server("llama", "prefill", logs, role="kv_producer", extra=extra)
    decode = Server("llama", "decode", logs, role="kv_consumer", extra=extra, transfer=RECOMPUTE)
    with prefill.ready(), decode.ready():
        wanted = decode.ask(prompts[2], TOKENS)
        answers: list[Answer] = []
        params = {"do_remote_prefill": True, "do_remote_decode": False, "transfer_id": "tx-1"}
        thread = threading.Thread(target=lambda: answers.append(decode.ask(prompts[2], TOKENS, params)))
        thread.start()
        prefill.kill()
        thread.join(DEADLINE)
        assert len(answers) == 1, "it waits for ever"
        assert answers[0].tokens == wanted.tokens
        until(lambda: decode.metric("vllm:kvlink_failed_transfers_total") == 1)


def test_what_is_given_up_is_freed(logs: Path, prompts: list[list[int]]) -> None:
    prefill, decode = pair("llama", logs)
    with prefill.ready(), decode.ready():
        params = prefill.ask(prompts[4], 1, dict(PREFILL)).params
        assert params is not None
        give_up(decode, prompts[4], params)
        # Read, or released, but not kept until the lease ends.
        until(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0)
        until(lambda: decode.metric("vllm:kv_cache_usage_perc") == 0)
        assert_equal(disaggregated(prefill, decode, prompts[2], TOKENS), decode.ask(prompts[2], TOKENS), 1e-3)


def test_parameters_of_no_use_are_named_and_the_prompt_computed(logs: Path, prompts: list[list[int]]) -> None:
    prefill, decode = pair("llama", logs)
    with prefill.ready(), decode.ready():
        wanted = decode.ask(prompts[1], TOKENS)
        fetch = {"do_remote_prefill": True, "do_remote_decode": False, "transfer_id": "x"}
        for params in (
            {**fetch},
            {**fetch, "kvlink_ticket": "AAAA"},
            {**fetch, "kvlink_ticket": 7},
            {"do_remote_prefill": True},
        ):
            assert decode.ask(prompts[1], TOKENS, params).tokens == wanted.tokens
        # A ticket of another prompt.
        params = prefill.ask(prompts[2], 1, dict(PREFILL)).params
        assert decode.ask(prompts[1], TOKENS, params).tokens == wanted.tokens
        assert re.search(r"128 tokens were prefilled for a prompt of 100", decode.text())
        assert decode.loaded_tokens() == 0
        # Prompts of one and of two tokens, answers of one and of more.
        for prompt, tokens in itertools.product((prompts[0][:1], prompts[0][:2]), (1, TOKENS)):
            params = prefill.ask(prompt, 1, dict(PREFILL)).params
            assert decode.ask(prompt, tokens, params).tokens == decode.ask(prompt, tokens).tokens
        assert decode.loaded_tokens() == 2


@pytest.mark.parametrize(
    ("other", "findings"),
    [
        ({"arguments": ["--dtype=float16"]}, ("dtype destination f16, source f32",)),
        ({"model": "gemma3"}, ("gemma3", "llama")),
    ],
    ids=["element type", "model"],
)
def test_servers_that_do_not_fit_say_why_and_stay_healthy(
    other: dict[str, object], findings: tuple[str, ...], logs: Path, prompts: list[list[int]]
) -> None:
    prefill = Server("llama", "prefill", logs, role="kv_producer")
    decode = Server(**{"model": "llama", **other}, name="decode", logs=logs, role="kv_consumer")  # type: ignore[arg-type]
    with prefill.ready(), decode.ready():
        params = prefill.ask(prompts[1], 1, dict(PREFILL)).params
        with pytest.raises(Refused):
            decode.ask(prompts[1], TOKENS, params)
        for finding in findings:
            assert finding in decode.text()
        assert len(decode.ask(prompts[1], TOKENS).tokens) == TOKENS
        assert len(prefill.ask(prompts[1], TOKENS).tokens) == TOKENS


def test_requests_of_several_clients_at_once(logs: Path, prompts: list[list[int]]) -> None:
    with Servers(Case("llama", prefix_caching=True), logs) as servers:
        wanted = [servers.decode.ask(prompt, TOKENS) for prompt in prompts]
        found: dict[int, Answer] = {}

        def client(number: int) -> None:
            found[number] = servers.ask([*reversed(prompts[number % 5])])

        threads = [threading.Thread(target=client, args=(i,)) for i in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(found) == 10
        for number, answer in found.items():
            assert answer.tokens == found[number % 5].tokens
            assert answer.tokens != wanted[number % 5].tokens
        assert servers.decode.metric("vllm:kvlink_failed_transfers_total") == 0


# Eleven blocks of 128 tokens; parts of several prompts are computed in one step.
FEW = ("--num-gpu-blocks-override=12",)
IN_TURN = (*FEW, "--enable-chunked-prefill", "--max-num-batched-tokens=256", "--long-prefill-token-threshold=64")


@pytest.mark.parametrize(
    ("case", "length", "tokens"),
    [
        (Case("llama", arguments=(IN_TURN, ())), 600, TOKENS),
        (Case("llama", mode="write", arguments=(IN_TURN, ())), 600, TOKENS),
        (Case("llama", arguments=((), FEW)), 300, 200),
    ],
    ids=["prefill, read", "prefill, write", "decode"],
)
def test_requests_that_are_preempted_are_computed_again(
    case: Case, length: int, tokens: int, logs: Path, prompts: list[list[int]]
) -> None:
    with Servers(case, logs) as servers:
        asked = [[*prompts[4][i:], *prompts[4][:i]][:length] for i in range(4)]
        wanted = [servers.decode.ask(prompt, tokens) for prompt in asked]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda prompt: servers.ask(prompt, tokens), asked))
        preempting = servers.prefill if case.arguments[0] else servers.decode
        assert preempting.metric("vllm:num_preemptions_total") > 0
        for answer, alone in zip(answers, wanted, strict=True):
            assert_equal(answer, alone, TOLERANCE[case.dtype])
        for server in (servers.prefill, servers.decode):
            assert server.metric("vllm:kvlink_failed_transfers_total") == 0
            until(lambda server=server: server.metric("vllm:kv_cache_usage_perc") == 0)


def give_up(server: Server, prompt: list[int], params: dict[str, object]) -> None:
    """Asks, and hangs up at once."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 500, "ignore_eos": True, "kv_transfer_params": params}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(0.05)
    connection.close()


def until(true: object) -> None:
    """Waits for something to come true."""
    deadline = time.monotonic() + DEADLINE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.3)
