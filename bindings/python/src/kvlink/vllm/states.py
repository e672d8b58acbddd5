"""Convolution and recurrent states as kvlink tensors, from the shapes that vLLM gives for one rank."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from vllm.utils.torch_utils import get_dtype_size
from vllm.v1.kv_cache_interface import MambaSpec

import kvlink
from kvlink import Section

#: Tensors of kvlink, as `Layout.from_pieces` takes them.
Pieces = list[kvlink.Tensor]


@dataclass(frozen=True)
class Share:
    """This rank's share of what is split over tensor-parallel ranks."""

    rank: int
    ranks: int

    def even(self, local: int, width: int = 1) -> Section:
        """A section that is split evenly."""
        return Section(local * self.ranks, width, local * self.rank, local)


def state_tensors(
    cache: Any,
    spec: MambaSpec,
    share: Share,
    *,
    layer: int,
    role: str,
    group: int,
    rows_outside: bool,
    whole: tuple[tuple[int, ...], ...] | None,
) -> Pieces:
    """The tensors of one layer. `whole` are its shapes for a single rank, if the model tells them."""
    if spec.tp_replicated:
        share = Share(0, 1)
    views = _views(cache, spec)
    shapes = [tuple(v.shape[1:]) for v in views]
    what = f"layer {layer} ({role}), states of shapes {shapes}"
    conv = next((v for v, s in zip(views, shapes, strict=True) if len(s) == 2), None)
    state = next((v for v, s in zip(views, shapes, strict=True) if len(s) == 3), None)
    # A diagonal recurrence keeps no heads: channels by state elements, behind the convolution.
    if state is None and len(views) == 2 and len(shapes[1]) == 2:
        conv, state = views
    if len(views) != (conv is not None) + (state is not None):
        raise ValueError(f"{what}: only one convolution and one recurrent state are understood")
    tensors: Pieces = []
    if conv is not None:
        sections = _sections(spec, conv, state, share, rows_outside, whole, what)
        axes = "BRD" if rows_outside else "BDR"
        tensors += kvlink.convolution(conv, axes, layers=[layer], sections=sections, group=group, role=f"{role} conv")
    if state is not None:
        heads = share.even(state.shape[1])
        tensors += kvlink.state(
            state,
            "BH" + "C" * (state.dim() - 2),
            layers=[layer],
            heads=heads.units,
            first_head=heads.first,
            group=group,
            role=f"{role} state",
        )
    return tensors


def _views(cache: Any, spec: MambaSpec) -> list[Any]:
    """One view [slot, ...] per state tensor: they lie one after the other in a slot's page."""
    if isinstance(cache, list | tuple):
        return list(cache)
    pages, views, offset = cache.flatten(1), [], 0
    for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True):
        size = prod(shape) * get_dtype_size(dtype)
        views.append(pages[:, offset : offset + size].view(dtype).unflatten(1, shape))
        offset += size
    return views


def _sections(
    spec: MambaSpec,
    conv: Any,
    state: Any,
    share: Share,
    rows_outside: bool,
    whole: tuple[tuple[int, ...], ...] | None,
    what: str,
) -> list[Section]:
    """The channels of a convolution: [x], [x|B|C], or [q|k|v]."""
    channels = conv.shape[2 if rows_outside else 1]
    if state is None or state.dim() < 4:
        return [share.even(channels)]
    own = state.shape[1] * state.shape[2]
    other, odd = divmod(channels - own, 2)
    if other <= 0 or odd:
        raise ValueError(f"{what}: {channels} channels of which {own} go with the state leave no two equal sections")
    if spec.mamba_type.name == "GDN_ATTN":
        return [share.even(other), share.even(other), share.even(own)]
    if spec.mamba_type.name != "MAMBA2":
        raise ValueError(f"{what}: sections of type {spec.mamba_type.name} are not known")
    groups = _groups(other, state, share, rows_outside, whole, what)
    return [share.even(own), groups, groups]


def _groups(
    channels: int, state: Any, share: Share, rows_outside: bool, whole: tuple[tuple[int, ...], ...] | None, what: str
) -> Section:
    """The groups of B or C: split over the ranks, or repeated where there are more ranks than groups."""
    width = state.shape[3]
    local, rest = divmod(channels, width)
    if rest:
        raise ValueError(f"{what}: {channels} channels are no groups of {width}")
    if local > 1 or share.ranks == 1:
        return share.even(local, width)
    if whole is None:
        raise ValueError(f"{what}: whether its {local} group is a share or a copy, the model does not tell")
    total = (whole[0][1 if rows_outside else 0] - whole[1][0] * whole[1][1]) // 2 // width
    return Section(total, width, share.rank * total // share.ranks, local)
