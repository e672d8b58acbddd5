"""Tiny models of every kind of cache: weights of a fixed seed, and a tokenizer of bytes. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kimi_linear

VOCABULARY = 256
_written: set[str] = set()


@dataclass(frozen=True)
class Model:
    """A model, and what vLLM needs to run it alike alone and in two halves."""

    write: Callable[[Path], None]
    dtype: str = "float32"
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    #: Where its plugins of vLLM are.
    plugins: Path | None = None


def path_of(name: str) -> Path:
    """The model's directory, written the first time that somebody of this process asks."""
    where = Path(os.environ["KVLINK_TEST_DIR"]) / "models" / name
    if name not in _written:
        _written.add(name)
        where.mkdir(parents=True, exist_ok=True)
        MODELS[name].write(where)
        _tokenizer(where)
    return where


def _tokenizer(where: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(letters) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(where)


def _save(where: Path, kind: str, **config: Any) -> None:
    """A model of transformers."""
    import torch
    import transformers

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
        # Wide enough for answers to depend on the prompt.
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(11)
    configuration = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    model = getattr(transformers, f"{kind}ForCausalLM")(configuration(**{**common, **config}))
    model.save_pretrained(where)


def _llama(where: Path) -> None:
    _save(where, "Llama", num_hidden_layers=4, num_key_value_heads=4, intermediate_size=512)


def _gemma3(where: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    _save(
        where,
        "Gemma3",
        num_hidden_layers=6,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=512,
        sliding_window=64,
        layer_types=kinds,
        query_pre_attn_scalar=32,
    )


def _deepseek_v2(where: Path) -> None:
    _save(
        where,
        "DeepseekV2",
        num_hidden_layers=3,
        num_key_value_heads=8,
        intermediate_size=512,
        moe_intermediate_size=64,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
    )


def _granite(where: Path) -> None:
    kinds = ["mamba", "mamba", "attention", "mamba", "mamba", "attention"]
    _save(
        where,
        "GraniteMoeHybrid",
        num_hidden_layers=6,
        num_key_value_heads=4,
        intermediate_size=256,
        shared_intermediate_size=256,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=kinds,
        layers_block_type=kinds,
        mamba_n_heads=8,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_n_groups=1,
        mamba_chunk_size=64,
        position_embedding_type="rope",
    )


def _qwen3_next(where: Path) -> None:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    _save(
        where,
        "Qwen3Next",
        num_hidden_layers=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=256,
        layer_types=kinds * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        # vLLM wants a layer of experts.
        mlp_only_layers=list(range(7)),
    )


def _kimi_linear(where: Path) -> None:
    kimi_linear.write(where, VOCABULARY)


HYBRID = {"VLLM_SSM_CONV_STATE_LAYOUT": "DS"}
MODELS = {
    "llama": Model(_llama),
    "gemma3": Model(_gemma3),
    "deepseek_v2": Model(
        _deepseek_v2, arguments=("--attention-backend", "CPU_MLA", '-cc.custom_ops=["-rotary_embedding"]')
    ),
    "granite": Model(_granite, environment=HYBRID),
    "qwen3_next": Model(_qwen3_next, dtype="bfloat16", environment=HYBRID),
    "kimi_linear": Model(
        _kimi_linear,
        arguments=("--attention-backend", "CPU_MLA"),
        environment=HYBRID,
        plugins=Path(__file__).parent / "plugins",
    ),
}
