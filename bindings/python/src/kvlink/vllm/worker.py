"""The half in a worker's process: it owns the rank's agent, and waits only for what vLLM asks it to, or when idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.v1.kv_cache_interface import KVCacheConfig

import kvlink
from kvlink import EventKind

from .layout import derive, layer_of
from .log import logger
from .metadata import Accept, Lists, Offer, Origin, Read, StepMetadata
from .peers import NO_LAYERS, Peers
from .settings import Settings
from .start import place_of, start
from .stats import KVLinkStats
from .writes import Writes

# How long a step waits for the writes of requests that it preempts, before it gives them up.
_PREEMPTING_SECONDS = 0.1
# How long a step that computes nothing may wait for an event, instead of asking again and again.
_IDLE_SECONDS = 0.001


@dataclass
class _Load:
    """A request whose cache is on its way here."""

    blocks: Lists
    begun: float = field(default_factory=time.perf_counter)
    operation: kvlink.Transfer | kvlink.Accept | None = None
    cancelled: bool = False


class WorkerHalf:
    """Offers, reads and writes, as the scheduler's half says, and tells what came of it."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings) -> None:
        self._vllm_config = vllm_config
        self._config = kv_cache_config
        self._settings = settings
        self._agent: kvlink.Agent | None = None
        self._offers: dict[kvlink.Operation[Any], Offer] = {}
        self._offered: dict[str, kvlink.Offer] = {}
        self._loads: dict[str, _Load] = {}
        self._requests: dict[kvlink.Operation[Any], str] = {}
        # What vLLM is told after a step.
        self._sent: set[str] = set()
        self._received: set[str] = set()
        self._not_received: set[str] = set()
        self._invalid: set[int] = set()
        self._stats = KVLinkStats()
        self._idle = False

    # Start.

    def register_kv_caches(self, caches: dict[str, torch.Tensor]) -> None:
        """Describes and registers the cache, and starts this rank's agent."""
        # An engine that slept allocates its cache anew.
        self.shutdown()
        if any(c.device.type == "cpu" for c in caches.values() if isinstance(c, torch.Tensor)):
            # Loaded caches let the first forward begin with matrix instructions, which the process must ask for.
            getattr(torch.cpu, "_init_amx", lambda: None)()
        layers = self._vllm_config.compilation_config.static_forward_context
        layout = derive(caches, self._config, place_of(self._vllm_config), layers)
        self._agent = start(self._vllm_config, self._settings, layout)
        self._agent.register_arrays()
        self._peers = Peers(self._agent, self._stats)
        names = [name for group in self._config.transfer_groups for name in group.layer_names]
        self._writes = Writes(self._peers, {layer_of(name)[0] for name in names}, self._stats, self._sent)

    def origin(self) -> Origin | None:
        """What the scheduler's half writes tickets from."""
        return None if self._agent is None else Origin(self._agent.ticket, self._agent.address)

    def shutdown(self) -> None:
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    # A step.

    def handle_preemptions(self, step: StepMetadata) -> None:
        """Waits until nobody reads the blocks that this step will overwrite."""
        found = (self._writes.preempt(request_id) for request_id in step.preempted)
        requests = [request for request in found if request is not None]
        # Into blocks that were accepted they end at once, and count; a write that was cancelled ends the accept, too.
        deadline = time.perf_counter() + _PREEMPTING_SECONDS
        while any(request.busy for request in requests) and time.perf_counter() < deadline:
            self._poll(_IDLE_SECONDS)
        for request in requests:
            self._writes.give_up(request)
        while any(request.under_way for request in requests):
            self._poll(_IDLE_SECONDS)

    def save_kv_layer(self, step: StepMetadata, layer_name: str) -> None:
        """Writes a layer that was just computed."""
        for write in step.writes:
            self._writes.layer(write, layer_name)

    def wait_for_save(self, step: StepMetadata) -> None:
        """Writes what has no hook of its own, and ends the chunk."""
        for write in step.writes:
            self._writes.finish(write)

    def start_load_kv(self, step: StepMetadata) -> None:
        """Begins what the scheduler's half decided; nothing is waited for."""
        self._idle = step.idle
        for offer in step.offers:
            self._offer(offer)
        for name in step.withdrawn:
            operation = self._offered.pop(name, None)
            if operation is not None and self._offers.pop(operation, None) is not None:
                operation.cancel()
        for read in step.reads:
            self._load(read.request_id, read.blocks)
            self._read(read)
        for accept in step.accepts:
            self._load(accept.request_id, accept.blocks)
            self._accept(accept)
        for ticket in step.releases:
            self._release(ticket)
        for request_id in step.cancelled:
            self._cancel(request_id)

    def get_transfer_results(self) -> KVConnectorTransferResults:
        """What has ended since the last step."""
        pending = self._loads or self._offers or self._writes.pending
        self._poll(_IDLE_SECONDS if self._idle and pending else 0)
        found = KVConnectorTransferResults(set(self._sent), set(self._received), set(self._not_received))
        for told in (self._sent, self._received, self._not_received):
            told.clear()
        return found

    def get_block_ids_with_load_errors(self) -> set[int]:
        found, self._invalid = self._invalid, set()
        return found

    def take_stats(self) -> KVLinkStats | None:
        """The measurements since the last time."""
        if self._stats.is_empty():
            return None
        taken = KVLinkStats(data=self._stats.data)
        self._stats.reset()
        return taken

    # Prefill, READ.

    def _offer(self, offer: Offer) -> None:
        assert self._agent is not None
        try:
            operation = self._agent.offer(offer.name, offer.blocks, offer.tokens)
        except kvlink.Error as e:
            # Its reader is told that nobody knows the request.
            logger.error("request %s cannot be offered: %s", offer.request_id, e)
            self._sent.add(offer.request_id)
            return
        self._offers[operation] = offer
        self._offered[offer.name] = operation

    def _released(self, operation: kvlink.Operation[Any], error: kvlink.Error | None) -> None:
        offer = self._offers.pop(operation, None)
        if offer is None:
            # It was withdrawn.
            return
        del self._offered[offer.name]
        if error is not None:
            self._stats.count("expired_leases")
            logger.warning("request %s was prefilled and not read: %s", offer.request_id, error)
        self._sent.add(offer.request_id)

    # Decode.

    def _load(self, request_id: str, blocks: Lists) -> None:
        self._loads[request_id] = _Load(blocks)

    def _read(self, read: Read) -> None:
        def begin(peer: kvlink.Peer) -> None:
            load = self._loads.get(read.request_id)
            if load is None:
                return
            if load.cancelled:
                peer.read_blocks(read.ticket, [[] for _ in load.blocks], layers=NO_LAYERS)
                self._loaded(read.request_id)
                return
            load.begun = time.perf_counter()
            load.operation = peer.read_blocks(read.ticket, read.blocks, token_end=read.token_end)
            self._requests[load.operation] = read.request_id

        self._with_peer(read.ticket, begin, lambda e: self._failed(read.request_id, e))

    def _release(self, ticket: bytes) -> None:
        def begin(peer: kvlink.Peer) -> None:
            peer.read_blocks(ticket, [[] for _ in self._config.transfer_groups], layers=NO_LAYERS)

        self._with_peer(ticket, begin, lambda e: logger.warning("an offer cannot be released: %s", e))

    def _with_peer(
        self, ticket: bytes, begin: Callable[[kvlink.Peer], None], fail: Callable[[kvlink.Error], None]
    ) -> None:
        try:
            info = kvlink.ticket_info(ticket)
        except kvlink.Error as e:
            fail(e)
            return
        self._peers.use(info.address, kvlink.Direction.INBOUND, begin, fail)

    def _accept(self, accept: Accept) -> None:
        assert self._agent is not None
        load = self._loads[accept.request_id]
        try:
            load.operation = self._agent.accept(accept.name, accept.blocks, accept.tokens)
        except kvlink.Error as e:
            self._failed(accept.request_id, e)
            return
        self._requests[load.operation] = accept.request_id

    def _cancel(self, request_id: str) -> None:
        load = self._loads.get(request_id)
        if load is not None:
            load.cancelled = True
            if load.operation is not None:
                load.operation.cancel()
            return
        self._writes.cancel(request_id)

    def _loaded(self, request_id: str) -> None:
        del self._loads[request_id]
        self._received.add(request_id)

    def _failed(self, request_id: str, error: kvlink.Error, blocks: list[int] | None = None) -> None:
        """The request has not its cache: `blocks` are not valid, or all that were wanted."""
        load = self._loads.get(request_id)
        if load is None:
            return
        if not load.cancelled:
            self._stats.count("failed_transfers")
            logger.error("the cache of request %s was not loaded: %s", request_id, error)
            if len(load.blocks) == 1:
                wanted = load.blocks[0] if blocks is None else blocks
                self._invalid.update(i for i in wanted if i != kvlink.NO_BLOCK)
            else:
                # Ids of several groups cannot be told apart: the whole request is computed again.
                self._not_received.add(request_id)
        self._loaded(request_id)

    # Events.

    def _poll(self, timeout: float) -> None:
        assert self._agent is not None
        while True:
            events = self._agent.poll(timeout)
            for event in events:
                self._event(event)
            if not events:
                return
            timeout = 0

    def _event(self, event: kvlink.Event) -> None:
        operation, error = event.operation, event.error
        if event.kind == EventKind.HANDSHAKE:
            assert isinstance(operation, kvlink.Handshake)
            self._peers.shaken(operation)
        elif event.kind == EventKind.PEER_DOWN:
            self._peers.down(event)
        elif event.kind == EventKind.RELEASED and operation is not None:
            self._released(operation, error)
        elif event.kind in (EventKind.TRANSFER, EventKind.RECEIVED) and operation is not None:
            request_id = self._requests.pop(operation, None)
            if request_id is not None:
                self._ended(request_id, operation, event)
            else:
                self._writes.ended(operation, event)
        elif event.kind == EventKind.ROUTER:
            logger.info("router: %s", "registered" if error is None else error)
        elif event.kind == EventKind.AGENT_FAILED:
            self._broken(error or kvlink.Error(event.payload.decode(), kvlink.Status.POISONED))
        elif error is not None:
            logger.error("%s", error)

    def _broken(self, error: kvlink.Error) -> None:
        """The agent is of no more use: nobody waits for it any longer."""
        logger.error("%s", error)
        for request_id in list(self._loads):
            self._failed(request_id, error)
        for offer in self._offers.values():
            self._sent.add(offer.request_id)
        self._offers.clear()
        self._writes.abandon()

    def _ended(self, request_id: str, operation: kvlink.Operation[Any], event: kvlink.Event) -> None:
        load = self._loads[request_id]
        if event.error is None:
            self._stats.transfer(time.perf_counter() - load.begun, event.nbytes, event.spans)
            self._loaded(request_id)
            return
        blocks = None
        if isinstance(operation, kvlink.Transfer) and len(load.blocks) == 1:
            blocks = operation.failed_blocks(0)
        self._failed(request_id, event.error, blocks)
