"""vLLM's Kimi-Linear with ordinary latent attention, and with what KDA has in Triton, which no CPU runs, in PyTorch.

States stay where vLLM puts them and in its layout: a convolution [channels, width - 1], and a recurrence [heads, V, K].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional
from vllm.model_executor.layers.mamba.gdn import kimi_gdn_linear_attn
from vllm.models.kimi_k3.amd.linear import KimiLinearForCausalLM
from vllm.models.kimi_k3.nvidia.ops.third_party import kda
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

__all__ = ["KimiLinearForCausalLM"]


def _convolve(x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Filters [channels, tokens], and applies SiLU. `state` has the inputs before, and afterwards the last ones."""
    assert state.shape[-1] == weight.shape[-1] - 1
    seen = torch.cat([state.float(), x.float()], dim=-1)
    state.copy_(seen[:, x.shape[-1] :])
    found = functional.conv1d(seen.unsqueeze(0), weight.float().unsqueeze(1), groups=len(weight))
    return functional.silu(found[0])


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: None,
    *,
    activation: str,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    metadata: Any,
) -> torch.Tensor:
    """Sequences one behind the other in `x`, [channels, tokens]."""
    assert bias is None
    assert activation == "silu"
    out = torch.empty_like(x)
    starts = query_start_loc.tolist()
    for i, (start, end) in enumerate(pairwise(starts)):
        state = conv_states[cache_indices[i]]
        if not has_initial_state[i]:
            state.zero_()
        out[:, start:end] = _convolve(x[:, start:end], weight, state)
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: None,
    *,
    activation: str,
    conv_state_indices: torch.Tensor,
    validate_data: bool,
    out: torch.Tensor,
) -> torch.Tensor:
    """One token of every sequence, [sequences, channels]."""
    assert bias is None
    assert activation == "silu"
    for i, index in enumerate(conv_state_indices.tolist()):
        out[i] = _convolve(x[i].unsqueeze(-1), weight, conv_state[index])[:, 0]
    return out


def gather_initial_states(state: torch.Tensor, indices: torch.Tensor, has_initial_state: torch.Tensor) -> torch.Tensor:
    """The states of these sequences, zero where one begins."""
    return torch.where(has_initial_state.view(-1, 1, 1, 1), state[indices], 0)


def _decay(raw: torch.Tensor, a_log: torch.Tensor, bias: torch.Tensor, lower_bound: float | None) -> torch.Tensor:
    """How much of each channel of K is kept, [tokens, heads, K]."""
    step = raw.float() + bias.float().view(raw.shape[-2:])
    rate = a_log.float().exp().unsqueeze(-1)
    if lower_bound is None:
        return torch.exp(-rate * functional.softplus(step))
    return torch.exp(lower_bound * torch.sigmoid(rate * step))


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _delta_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, raw_beta: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """The gated delta rule token by token, in float32 on a state of float32, which it changes."""
    assert state.dtype == torch.float32
    q, k, v, beta = _unit(q) * q.shape[-1] ** -0.5, _unit(k), v.float(), torch.sigmoid(raw_beta.float())
    out = torch.empty_like(v)
    for t in range(len(q)):
        state *= decay[t].unsqueeze(-2)
        wrong = v[t] - torch.einsum("hvk,hk->hv", state, k[t])
        state += torch.einsum("h,hv,hk->hvk", beta[t], wrong, k[t])
        out[t] = torch.einsum("hvk,hk->hv", state, q[t])
    return out


def chunk_kda_with_fused_gate(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    raw_g: torch.Tensor,
    raw_beta: torch.Tensor,
    A_log: torch.Tensor,  # noqa: N803
    g_bias: torch.Tensor,
    lower_bound: float | None,
    initial_state: torch.Tensor,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    cu_seqlens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences one behind the other, [1, tokens, heads, channels], and their states."""
    assert output_final_state
    assert use_qk_l2norm_in_kernel
    decay = _decay(raw_g[0], A_log, g_bias, lower_bound)
    out, states = torch.empty_like(v), initial_state.clone()
    starts = cu_seqlens.tolist()
    for i, (start, end) in enumerate(pairwise(starts)):
        part = slice(start, end)
        out[0, part] = _delta_rule(q[0, part], k[0, part], v[0, part], decay[part], raw_beta[0, part], states[i])
    return out, states


def fused_recurrent_kda_packed_decode(
    *,
    mixed_qkv: torch.Tensor,
    raw_g: torch.Tensor,
    raw_beta: torch.Tensor,
    A_log: torch.Tensor,  # noqa: N803
    dt_bias: torch.Tensor,
    lower_bound: float | None,
    initial_state: torch.Tensor,
    state_indices: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of every sequence, with q, k and v of all heads one behind the other; changes the cache's states."""
    heads, _, channels = initial_state.shape[1:]
    q, k, v = mixed_qkv.view(-1, 3, heads, channels).unbind(1)
    decay = _decay(raw_g[0], A_log, dt_bias, lower_bound)
    out = torch.empty_like(v)
    for i, index in enumerate(state_indices.tolist()):
        one = slice(i, i + 1)
        out[one] = _delta_rule(q[one], k[one], v[one], decay[one], raw_beta[0, one], initial_state[index])
    return out.unsqueeze(0), initial_state


def _replace(module: ModuleType, *functions: Callable[..., Any]) -> None:
    for function in functions:
        assert hasattr(module, function.__name__), f"{module.__name__} has no {function.__name__}"
        setattr(module, function.__name__, function)


_replace(kimi_gdn_linear_attn, causal_conv1d_fn, causal_conv1d_update, gather_initial_states)
_replace(kda, chunk_kda_with_fused_gate, fused_recurrent_kda_packed_decode)

# What it inherits is right: a hybrid's blocks of 128 tokens are split into the 16 of its kernel.
del CPUMLABackend.supports_block_size
