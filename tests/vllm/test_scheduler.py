"""What the scheduler's half tells the workers, step by step, of requests that are chunked, preempted, aborted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
)
from vllm.v1.request import RequestStatus

import kvlink
from kvlink.vllm.metadata import Origin, StepMetadata
from kvlink.vllm.scheduler import SchedulerHalf
from kvlink.vllm.settings import Settings

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


@pytest.fixture
def agent() -> Any:
    """An agent, for its ticket."""
    cache = np.zeros((1, 8, 1, 16, 8), np.float32)
    pieces = kvlink.attention(cache, "LBHNC", layers=[0], heads=1)
    layout = kvlink.Layout.from_pieces([pieces], groups=[kvlink.Group(num_blocks=8, block_tokens=16)])
    with kvlink.Agent(layout, "prefill") as agent:
        agent.register_arrays()
        yield agent


def half(agent: kvlink.Agent, **settings: Any) -> SchedulerHalf:
    """A scheduler's half of a hybrid: one group of attention, one of states with a scratch slot."""
    attention = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=4, dtype=torch.float32)
    state = MambaSpec(block_size=16, shapes=((4, 3),), dtypes=(torch.float32,), num_speculative_blocks=1)
    groups = [KVCacheGroupSpec(["l.0.a"], attention), KVCacheGroupSpec(["l.1.m"], state)]
    config = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=1))
    made = SchedulerHalf(config, KVCacheConfig(8, [], groups), Settings(**settings))  # type: ignore[arg-type]
    made.origin = Origin(agent.ticket, agent.address)
    made.manager = SimpleNamespace(get_block_ids=lambda request_id: ([0, 4, 2], [0, 5, 6]))  # type: ignore[assignment]
    return made


def request(params: dict[str, Any], tokens: int = 33, name: str = "r") -> Any:
    """A request as vLLM has it."""
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=params,
        num_prompt_tokens=tokens,
        prompt_token_ids=list(range(tokens)),
        prompt_embeds=None,
        _all_token_ids=list(range(tokens)),
        max_tokens=100,
        num_computed_tokens=0,
        status=RequestStatus.RUNNING,
        get_skip_reading_prefix_cache=lambda: False,
    )


def step(half: SchedulerHalf, *, preempted: set[str] | None = None, **counts: int) -> StepMetadata:
    """One step that computes so many tokens of the requests."""
    output = SimpleNamespace(
        preempted_req_ids=preempted, num_scheduled_tokens=counts, total_num_scheduled_tokens=sum(counts.values())
    )
    return half.build_connector_meta(output)  # type: ignore[arg-type]


def test_the_last_chunk_is_offered_and_the_answer_has_its_ticket(agent: kvlink.Agent) -> None:
    scheduler, r = half(agent), request(dict(PREFILL))
    scheduler.on_new_request(r)
    assert (r.num_prompt_tokens, len(r.prompt_token_ids), r.max_tokens) == (32, 32, 1)
    assert step(scheduler, r=16).offers == []
    r.num_computed_tokens = 16
    (offer,) = step(scheduler, r=16).offers
    # The null block is a hole, and of the states only the one before the scratch slot counts.
    assert (offer.blocks, offer.tokens) == ([[kvlink.NO_BLOCK, 4, 2], [5]], 32)
    r.status = RequestStatus.FINISHED_LENGTH_CAPPED
    kept, answer = scheduler.request_finished(r)
    assert kept
    assert answer is not None
    info = kvlink.ticket_info(kvlink.router_params(json.dumps(answer)).ticket)
    assert (info.instance, info.request, info.tokens) == ("prefill", offer.name, 32)
    assert answer["remote_request_id"] == "r"
    assert step(scheduler).withdrawn == []


def test_what_is_not_offered_is_answered_too(agent: kvlink.Agent) -> None:
    """MoRIIOConnector's toy proxy looks into every answer."""
    scheduler, r = half(agent), request({**PREFILL, "transfer_id": "t"}, tokens=1)
    scheduler.on_new_request(r)
    assert step(scheduler, r=1).offers == []
    r.status = RequestStatus.FINISHED_LENGTH_CAPPED
    kept, answer = scheduler.request_finished(r)
    assert not kept
    assert answer == {
        "do_remote_prefill": False,
        "do_remote_decode": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "transfer_id": "t",
    }
    # What that proxy makes of it, for the decode server.
    asked = request({**answer, "do_remote_prefill": True}, tokens=1)
    other = half(agent)
    other.on_new_request(asked)
    assert other.get_num_new_matched_tokens(asked, 0) == (0, False)
    other.request_finished(asked)


def test_a_preempted_request_is_offered_again_under_another_name(agent: kvlink.Agent) -> None:
    scheduler, r = half(agent), request(dict(PREFILL))
    scheduler.on_new_request(r)
    (first,) = step(scheduler, r=32).offers
    assert step(scheduler, preempted={"r"}).withdrawn == [first.name]
    (second,) = step(scheduler, r=32).offers
    assert second.name != first.name
    r.status = RequestStatus.FINISHED_ABORTED
    assert scheduler.request_finished(r) == (False, None)
    assert step(scheduler).withdrawn == [second.name]


def test_chunks_are_written_and_begin_anew_after_a_preemption(agent: kvlink.Agent) -> None:
    scheduler = half(agent, mode="write")
    r = request({**PREFILL, "transfer_id": "t", "remote_address": "127.0.0.1:7"})
    scheduler.on_new_request(r)
    (write,) = step(scheduler, r=20).writes
    assert (write.name, write.address, write.token_begin, write.token_end, write.tokens) == (
        "t",
        "127.0.0.1:7",
        0,
        20,
        32,
    )
    r.num_computed_tokens = 20
    metadata = step(scheduler, preempted={"r"})
    assert (metadata.preempted, metadata.writes) == (["r"], [])
    # Some of it is in the prefix cache by then: it is written all the same.
    r.num_computed_tokens = 16
    (write,) = step(scheduler, r=16).writes
    assert (write.token_begin, write.token_end) == (0, 32)
    r.status = RequestStatus.FINISHED_LENGTH_CAPPED
    assert scheduler.request_finished(r) == (True, None)
    assert step(scheduler).cancelled == []


def test_a_load_leaves_out_what_is_cached(agent: kvlink.Agent) -> None:
    scheduler = half(agent)
    ticket = kvlink.ticket_write(agent.ticket, "q", [[1], [2]], 32)
    r = request(_params(ticket))
    scheduler.on_new_request(r)
    assert scheduler.get_num_new_matched_tokens(r, 16) == (16, True)
    scheduler.update_state_after_alloc(r, _blocks(), 16)  # type: ignore[arg-type]
    (read,) = step(scheduler).reads
    assert (read.blocks, read.token_end) == ([[kvlink.NO_BLOCK, kvlink.NO_BLOCK, 3], [5]], 32)
    # Preempted while it computes: it is not loaded again.
    assert scheduler.get_num_new_matched_tokens(r, 0) == (0, False)
    scheduler.request_finished(r)
    assert step(scheduler).cancelled == ["r"]


def test_what_is_not_wanted_is_released(agent: kvlink.Agent) -> None:
    scheduler = half(agent)
    ticket = kvlink.ticket_write(agent.ticket, "q", [[1], [2]], 32)
    cached, aborted, other = (request(_params(ticket), name=name) for name in ("cached", "aborted", "other"))
    other.num_prompt_tokens = 50
    for r in (cached, aborted, other):
        scheduler.on_new_request(r)
    assert scheduler.get_num_new_matched_tokens(cached, 32) == (0, False)
    scheduler.update_state_after_alloc(cached, _blocks(), 0)  # type: ignore[arg-type]
    scheduler.request_finished(aborted)
    assert scheduler.get_num_new_matched_tokens(other, 0) == (0, False)
    assert step(scheduler).releases == [ticket] * 3


def _params(ticket: bytes) -> dict[str, Any]:
    return dict(json.loads(kvlink.router_answer("t", "host:h,handshake:1,notify:1", ticket)))


def _blocks() -> Any:
    """Blocks of a request: a null one, one that is cached, a new one; and states."""

    def block(number: int, cached: bytes | None = None) -> Any:
        return SimpleNamespace(block_id=number, is_null=number == 0, block_hash=cached)

    return SimpleNamespace(blocks=([block(0), block(2, b"hash"), block(3)], [block(0), block(5), block(6)]))


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"moed": "read"}, "'moed'; known are mode, "),
        ({"mode": "push"}, "mode is 'push', known are read, write"),
        ({"kv_lease_duration": "30"}, "kv_lease_duration is '30', not of type float"),
        ({"allow_remote": 1}, "allow_remote is 1, not of type bool"),
        ({"proxy_ip": "127.0.0.1"}, "proxy_ip needs http_port"),
    ],
)
def test_settings_that_cannot_be_are_named(extra: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Settings.of(extra)
    assert Settings.of({"kv_lease_duration": 5}).kv_lease_duration == 5.0
