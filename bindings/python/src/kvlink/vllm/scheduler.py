"""The half in the scheduler's process: which requests are offered, loaded and written, and into which blocks.

A prefill instance stops one token before the end of a prompt, and a decode instance computes that last token itself, as
it must anyhow to have something to sample from. So both agree about states and windows, which are those at an end.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import RequestStatus

import kvlink

from .layout import state_groups
from .log import logger
from .metadata import Accept, Lists, Offer, Origin, Read, StepMetadata, Write
from .settings import Settings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass
class _Prefill:
    """A request that is computed here for a decode instance."""

    request: Request
    #: Its last offer, if it was offered.
    offer: Offer | None = None
    #: WRITE: where it goes, and the tokens that are written or under way; None: it was not begun.
    address: str = ""
    sent: int | None = None


class SchedulerHalf:
    """Follows requests, and tells the workers what to do in every step."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings) -> None:
        self._config = kv_cache_config
        self._settings = settings
        self._tp_size = vllm_config.parallel_config.tensor_parallel_size
        self._states = state_groups(kv_cache_config)
        #: Set by vLLM when the workers are ready.
        self.origin: Origin | None = None
        self.manager: KVCacheManager | None = None
        self._names = itertools.count()
        self._prefills: dict[str, _Prefill] = {}
        # Where requests get their cache from, until they are scheduled; and those that wait for it.
        self._sources: dict[str, kvlink.RouterParams] = {}
        self._loading: set[str] = set()
        self._next = StepMetadata()

    # Requests that arrive.

    def on_new_request(self, request: Request) -> None:
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            self._arrived(request, params)
        if not params or not params.get("do_remote_decode"):
            return
        # What the decode side computes itself; it reads nothing of a prompt of one token, or where prompts are scored.
        if request.num_prompt_tokens < 2 or request.get_skip_reading_prefix_cache():
            return
        if request.prompt_token_ids is not None:
            del request.prompt_token_ids[-1:]
        elif request.prompt_embeds is not None:
            request.prompt_embeds = request.prompt_embeds[:-1]
        del request._all_token_ids[-1:]
        request.num_prompt_tokens -= 1
        request.max_tokens = 1
        prefill = _Prefill(request)
        if self._settings.mode == "write":
            try:
                prefill.address = _decode_address(request)
            except kvlink.Error as e:
                logger.warning("request %s names no decode instance to write to: %s", request.request_id, e)
                return
        self._prefills[request.request_id] = prefill

    def _arrived(self, request: Request, params: dict[str, Any]) -> None:
        """A request whose prompt was, or is, computed elsewhere."""
        try:
            source = kvlink.router_params(json.dumps(params))
            tokens = kvlink.ticket_info(source.ticket).tokens if source.ticket else request.num_prompt_tokens - 1
        except kvlink.Error as e:
            logger.warning("request %s: kv_transfer_params are of no use: %s", request.request_id, e)
            return
        if request.num_prompt_tokens == 1:
            # Nothing to load; vLLM also tells by such a request that it rejected one.
            self._release(source)
        elif not source.ticket and self._settings.mode == "read":
            logger.warning("request %s came without a ticket: its prompt is computed here", request.request_id)
        elif tokens != request.num_prompt_tokens - 1:
            text = "request %s: %d tokens were prefilled for a prompt of %d: it is computed here"
            logger.warning(text, request.request_id, tokens, request.num_prompt_tokens)
            self._release(source)
        else:
            self._sources[request.request_id] = source

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        if request.request_id not in self._sources:
            return 0, False
        count = request.num_prompt_tokens - 1 - num_computed_tokens
        return (count, True) if count > 0 else (0, False)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        # Only once: a request that was preempted is computed here.
        source = self._sources.pop(request.request_id, None)
        if source is None:
            return
        if num_external_tokens == 0:
            self._release(source)
            return
        lists = [
            [kvlink.NO_BLOCK if block.is_null or block.block_hash is not None else block.block_id for block in group]
            for group in (blocks.blocks[i] for i in self._config.transfer_group_ids)
        ]
        lists, tokens = self._state_slots(lists), request.num_prompt_tokens - 1
        self._loading.add(request.request_id)
        if source.ticket:
            self._next.reads.append(Read(request.request_id, source.ticket, lists, tokens))
        else:
            self._next.accepts.append(Accept(request.request_id, source.transfer_id, lists, tokens))

    def _release(self, source: kvlink.RouterParams) -> None:
        """Lets the prefill side's blocks go, which nobody will read."""
        if source.ticket:
            self._next.releases.append(source.ticket)

    def _state_slots(self, lists: Lists) -> Lists:
        """Of groups of states only the slot with the running state: the last one before scratch slots."""
        found = []
        for ids, scratch in zip(lists, self._states, strict=True):
            if scratch is not None and ids:
                ids = ids[: len(ids) - min(scratch, len(ids) - 1)][-1:]
            found.append(ids)
        return found

    # Steps.

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        for request_id in scheduler_output.preempted_req_ids or ():
            prefill = self._prefills.get(request_id)
            if prefill is not None:
                self._withdraw(request_id, prefill)
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            prefill = self._prefills.get(request_id)
            if prefill is not None:
                self._scheduled(request_id, prefill, count)
        step, self._next = self._next, StepMetadata()
        step.idle = scheduler_output.total_num_scheduled_tokens == 0
        return step

    def _scheduled(self, request_id: str, prefill: _Prefill, count: int) -> None:
        request = prefill.request
        tokens = request.num_prompt_tokens
        computed = min(request.num_computed_tokens + count, tokens)
        if prefill.offer is not None or prefill.sent == tokens:
            return
        if self._settings.mode == "write":
            begin = prefill.sent or 0
            prefill.sent = computed
            name = str((request.kv_transfer_params or {})["transfer_id"])
            blocks = self._blocks(request_id)
            self._next.writes.append(Write(request_id, name, prefill.address, blocks, begin, computed, tokens))
        elif computed == tokens:
            name = f"{request_id}#{next(self._names)}"
            prefill.offer = Offer(request_id, name, self._blocks(request_id), tokens)
            self._next.offers.append(prefill.offer)

    def _blocks(self, request_id: str) -> Lists:
        assert self.manager is not None
        ids = self._config.select_transfer_block_ids(self.manager.get_block_ids(request_id))
        # Block 0 is vLLM's null block.
        return self._state_slots([[i or kvlink.NO_BLOCK for i in group] for group in ids])

    def _withdraw(self, request_id: str, prefill: _Prefill) -> None:
        """Takes back what was offered or written: the blocks go to somebody else."""
        if prefill.offer is not None:
            self._next.withdrawn.append(prefill.offer.name)
            prefill.offer = None
        if prefill.sent is not None:
            self._next.preempted.append(request_id)
            prefill.sent = 0

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._loading -= connector_output.finished_recving or set()

    # Requests that end.

    def request_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        params, request_id = request.kv_transfer_params, request.request_id
        source = self._sources.pop(request_id, None)
        if source is not None:
            # It ended before it was scheduled.
            self._release(source)
        if request_id in self._loading:
            self._next.cancelled.append(request_id)
        prefill = self._prefills.pop(request_id, None)
        complete = request.status in (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)
        if prefill is None:
            asked = params is not None and params.get("do_remote_decode") and complete
            return False, _nothing(params) if asked else None
        if prefill.sent is not None:
            if not complete or prefill.sent != request.num_prompt_tokens:
                self._next.cancelled.append(request_id)
            # Its blocks are free when the workers say that nobody reads them any more.
            return True, None
        if prefill.offer is None:
            return False, None
        if not complete:
            self._withdraw(request_id, prefill)
            return False, None
        return True, self._answer(prefill.offer, params or {})

    def _answer(self, offer: Offer, params: dict[str, Any]) -> dict[str, Any]:
        """What the decode instance needs: fields that routers know, and the ticket."""
        assert self.origin is not None
        ticket = kvlink.ticket_write(self.origin.ticket, offer.name, offer.blocks, offer.tokens)
        host, port = _split(self.origin.address)
        address = str(kvlink.ZmqAddress(host, port, port))
        transfer_id = str(params.get("transfer_id") or offer.name)
        answer: dict[str, Any] = json.loads(kvlink.router_answer(transfer_id, address, ticket, tp_size=self._tp_size))
        answer.update(remote_request_id=offer.request_id, remote_port=port)
        return answer


def _nothing(params: dict[str, Any]) -> dict[str, Any]:
    """The answer where nothing is offered, and the decode instance computes: some proxies look into every answer."""
    fields: dict[str, Any] = {"remote_engine_id": None, "remote_block_ids": None}
    return {"do_remote_prefill": False, "do_remote_decode": False, "transfer_id": params.get("transfer_id"), **fields}


def _decode_address(request: Request) -> str:
    """Where a request is to be written: said by its parameters, or by a router in its id."""
    params = request.kv_transfer_params or {}
    if not params.get("transfer_id"):
        raise kvlink.InvalidArgument("kv_transfer_params have no transfer_id")
    if params.get("remote_address"):
        return str(params["remote_address"])
    decode = kvlink.Route.parse(request.request_id).decode
    return f"{decode.host}:{decode.handshake}"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
