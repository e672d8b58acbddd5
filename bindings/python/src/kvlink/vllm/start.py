"""How a worker's agent starts: where its rank stands, and how the ranks of an instance find each other."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.models import ModelRegistry

import kvlink

from .layout import Place
from .log import logger
from .settings import Settings
from .states import Share


def start(config: VllmConfig, settings: Settings, layout: kvlink.Layout) -> kvlink.Agent:
    """This rank's agent. Rank 0 starts first: the others need its address."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    assert transfer is not None
    engine = str(transfer.engine_id)
    ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    stage = parallel_state.get_pp_group().rank_in_group
    rank = stage * parallel.tensor_parallel_size + parallel_state.get_tp_group().rank_in_group
    nixl = settings.nixl_library or (_nixl() if settings.transport == "nixl" else None)
    common: dict[str, Any] = {
        "rank": rank,
        "ranks": ranks,
        "allow_remote": settings.allow_remote,
        "advertise": settings.advertise or None,
        "require_transport": None if settings.transport == "auto" else settings.transport,
        "nixl_backend": settings.nixl_backend or None,
        "nixl_library": nixl,
        "mori_backend": settings.mori_backend or None,
        "mori_library": settings.mori_library or None,
        "mori_devices": settings.mori_devices or None,
        "mori_qp_per_transfer": settings.mori_qp_per_transfer,
        "mori_post_batch_size": settings.mori_post_batch_size,
        "mori_num_workers": settings.mori_num_workers,
        "lease": settings.kv_lease_duration,
        "transfer_timeout": settings.transfer_timeout,
        "handshake_timeout": settings.handshake_timeout,
        "heartbeat": settings.heartbeat,
    }
    host = settings.listen.rpartition(":")[0]
    agent = None
    if rank == 0:
        agent = kvlink.Agent(layout, engine, listen=settings.listen or None, **common)
    leader = _leader(engine, agent) if ranks > 1 else None
    if agent is None:
        agent = kvlink.Agent(layout, engine, leader=leader, listen=f"{host}:0" if host else None, **common)
    logger.info("kvlink %s: rank %d of %d at %s", kvlink.__version__, rank, ranks, agent.address)
    if settings.proxy_ip and rank == 0:
        agent.attach_router(
            f"{settings.proxy_ip}:{settings.proxy_ping_port}",
            kvlink.Role.PREFILL if transfer.kv_role == "kv_producer" else kvlink.Role.DECODE,
            kvlink.Mode.READ if settings.mode == "read" else kvlink.Mode.WRITE,
            f"{settings.host_ip or host or '127.0.0.1'}:{settings.http_port}",
            tp_size=parallel.tensor_parallel_size,
        )
    return agent


def place_of(config: VllmConfig) -> Place:
    """Where this rank stands, and what its tensors do not say."""
    parallel, model = config.parallel_config, config.model_config
    tp = parallel_state.get_tp_group()
    context = Share(0, 1)
    if parallel.decode_context_parallel_size > 1:
        dcp = parallel_state.get_dcp_group()
        context = Share(dcp.rank_in_group, dcp.world_size)
    return Place(
        model=str(model.model).rstrip("/").rpartition("/")[2],
        tp=Share(tp.rank_in_group, tp.world_size),
        kv_heads=model.get_total_num_kv_heads(),
        conv_rows_outside=not is_conv_state_dim_first(),
        context=context,
        context_interleave=parallel.cp_kv_cache_interleave_size,
        whole_states=_whole_states(config),
    )


def _leader(engine: str, agent: kvlink.Agent | None) -> str:
    """The address of this instance's rank 0, of whatever is in the world group."""
    group = parallel_state.get_world_group()
    found: list[Any] = [None] * group.world_size
    own = None if agent is None else agent.address
    torch.distributed.all_gather_object(found, (engine, own), group=group.cpu_group)
    return str(next(address for name, address in found if name == engine and address))


def _nixl() -> str | None:
    """Where this environment's packages are, if NIXL is one of them."""
    found = importlib.util.find_spec("nixl")
    return None if found is None or found.origin is None else str(Path(found.origin).parents[1])


def _whole_states(config: VllmConfig) -> tuple[tuple[int, ...], ...] | None:
    """The state shapes of the model on a single rank, by its own formula."""
    model, _ = ModelRegistry.resolve_model_cls(config.model_config.architectures, model_config=config.model_config)
    formula = getattr(model, "get_mamba_state_shape_from_config", None)
    if formula is None:
        return None
    single = copy.copy(config)
    single.parallel_config = copy.copy(config.parallel_config)
    single.parallel_config.tensor_parallel_size = 1
    return tuple(tuple(shape) for shape in formula(single))
