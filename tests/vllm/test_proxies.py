"""Behind vLLM's own example proxies, whole answers and streamed ones."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ports import free_port
from proxies import ask_all, first_answer, moriio_proxy, nixl_proxy
from servers import Server


def registering(stack: ExitStack, logs: Path, discovery: int, mode: str, prefills: int) -> list[Server]:
    """Prefill servers, and behind them a decode server, that register."""
    servers = []
    for i in range(prefills + 1):
        role, name = ("kv_producer", f"prefill-{i}") if i < prefills else ("kv_consumer", "decode")
        port = free_port()
        extra = {"mode": mode, "proxy_ip": "127.0.0.1", "proxy_ping_port": discovery, "http_port": port}
        servers.append(stack.enter_context(Server("llama", name, logs, role=role, extra=extra, port=port)))
    return [server.ready() for server in servers]


def assert_loaded(url: str, prompts: list[list[int]], prefills: list[Server], decode: Server, kept: int = 0) -> None:
    """All but the last token of every prompt comes from prefill servers, of which each has its share."""
    for stream in (False, True):
        loaded = decode.loaded_tokens()
        served = [prefill.metric("vllm:request_success_total") for prefill in prefills]
        ask_all(url, prompts, decode, kept=kept, stream=stream)
        assert decode.loaded_tokens() - loaded == sum(len(prompt) - 1 for prompt in prompts)
        for prefill, before in zip(prefills, served, strict=True):
            assert prefill.metric("vllm:request_success_total") - before >= len(prompts) // len(prefills)
    for server in (*prefills, decode):
        assert server.metric("vllm:kvlink_failed_transfers_total") == 0
        assert server.metric("vllm:kvlink_expired_leases_total") == 0


def test_both_proxies_in_read_mode(logs: Path, prompts: list[list[int]]) -> None:
    discovery = free_port()
    with ExitStack() as stack:
        *prefills, decode = registering(stack, logs, discovery, "read", 2)
        with nixl_proxy(logs, prefills, [decode]) as url:
            first_answer(url, prompts[0])
            assert_loaded(url, prompts, prefills, decode)
        with moriio_proxy(logs, discovery) as url:
            first_answer(url, prompts[0])
            assert_loaded(url, prompts, prefills, decode, kept=1)


def test_moriios_proxy_in_write_mode(logs: Path, prompts: list[list[int]]) -> None:
    discovery = free_port()
    with ExitStack() as stack:
        *prefills, decode = registering(stack, logs, discovery, "write", 1)
        with moriio_proxy(logs, discovery) as url:
            first_answer(url, prompts[0])
            assert_loaded(url, prompts, prefills, decode, kept=1)
