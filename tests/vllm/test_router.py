"""Behind the real vllm-router: with fixed servers, as for NIXL, and with servers that register, as for MoRI-IO."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from ports import free_port
from proxies import ask_all, first_answer, router
from servers import Server


def test_two_prefill_and_two_decode_servers(logs: Path, prompts: list[list[int]]) -> None:
    discovery = free_port()
    with ExitStack() as stack:
        servers = []
        for i in range(4):
            role, port = ("kv_producer", "kv_consumer")[i // 2], free_port()
            name = f"{'prefill' if i < 2 else 'decode'}-{i % 2}"
            extra = {"proxy_ip": "127.0.0.1", "proxy_ping_port": discovery, "http_port": port}
            servers.append(stack.enter_context(Server("llama", name, logs, role=role, extra=extra, port=port)))
        for server in servers:
            server.ready()
        prefills, decodes = servers[:2], servers[2:]
        with router(logs, "--kv-connector=moriio", f"--vllm-discovery-address=127.0.0.1:{discovery}") as url:
            first_answer(url, prompts[0])
            time.sleep(2)
            ask_all(url, prompts, decodes[0])
        moved = [decode.loaded_tokens() for decode in decodes]
        assert all(moved), f"tokens loaded by the decode servers: {moved}"
        fixed = [f"--prefill={server.url}" for server in prefills]
        decode_arguments = [f"--decode={server.url}" for server in decodes]
        with router(logs, "--kv-connector=nixl", *fixed, *decode_arguments) as url:
            first_answer(url, prompts[0])
            before = sum(decode.loaded_tokens() for decode in decodes)
            ask_all(url, prompts, decodes[0])
            loaded = sum(decode.loaded_tokens() for decode in decodes) - before
            assert loaded == sum(len(prompt) - 1 for prompt in prompts)
        for server in servers:
            assert server.metric("vllm:kvlink_failed_transfers_total") == 0
        for prefill in prefills:
            assert prefill.metric("vllm:request_success_total") > 0


def test_a_prefill_server_writes_behind_a_router(logs: Path, prompts: list[list[int]]) -> None:
    discovery = free_port()
    with ExitStack() as stack:
        servers = []
        for name, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
            port = free_port()
            extra = {"mode": "write", "proxy_ip": "127.0.0.1", "proxy_ping_port": discovery, "http_port": port}
            servers.append(stack.enter_context(Server("llama", name, logs, role=role, extra=extra, port=port)))
        for server in servers:
            server.ready()
        with router(logs, "--kv-connector=moriio", f"--vllm-discovery-address=127.0.0.1:{discovery}") as url:
            first_answer(url, prompts[0])
            before = servers[1].loaded_tokens()
            ask_all(url, prompts, servers[1])
            assert servers[1].loaded_tokens() - before == sum(len(prompt) - 1 for prompt in prompts)
