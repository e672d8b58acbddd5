"""A tiny Kimi-Linear. transformers has no class for it: its files are written here, with the checkpoints' names."""

from __future__ import annotations

import json
from pathlib import Path

LAYERS, FULL_ATTENTION = 8, (4, 8)
HIDDEN, HEADS, INTERMEDIATE = 256, 8, 512
LATENT, ROPE, NOPE, VALUE = 512, 64, 32, 32
KDA_HEADS, KDA_CHANNELS, KERNEL = 4, 64, 4
EXPERTS, EXPERT_INTERMEDIATE = 4, 512


def write(where: Path, vocab_size: int) -> None:
    """Writes config.json and model.safetensors."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["KimiLinearForCausalLM"],
        "model_type": "kimi_linear",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "kv_lora_rank": LATENT,
        "q_lora_rank": None,
        "qk_rope_head_dim": ROPE,
        "qk_nope_head_dim": NOPE,
        "v_head_dim": VALUE,
        "mla_use_nope": True,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": EXPERT_INTERMEDIATE,
        "num_experts": EXPERTS,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "kda_layers": [i for i in range(1, LAYERS + 1) if i not in FULL_ATTENTION],
            "full_attn_layers": list(FULL_ATTENTION),
            "num_heads": KDA_HEADS,
            "head_dim": KDA_CHANNELS,
            "short_conv_kernel_size": KERNEL,
        },
    }
    (where / "config.json").write_text(json.dumps(config, indent=2))

    torch.manual_seed(11)
    weights = {}

    def add(name: str, *shape: int, spread: float = 0.1) -> None:
        weights[name] = spread * torch.randn(shape)

    def mlp(prefix: str, size: int, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> None:
        add(f"{prefix}.{gate}.weight", size, HIDDEN)
        add(f"{prefix}.{up}.weight", size, HIDDEN)
        add(f"{prefix}.{down}.weight", HIDDEN, size)

    def kda(prefix: str) -> None:
        size = KDA_HEADS * KDA_CHANNELS
        for x in "qkv":
            add(f"{prefix}.{x}_proj.weight", size, HIDDEN)
            add(f"{prefix}.{x}_conv1d.weight", size, 1, KERNEL, spread=0.5)
        add(f"{prefix}.b_proj.weight", KDA_HEADS, HIDDEN)
        for x in "fg":
            add(f"{prefix}.{x}_a_proj.weight", KDA_CHANNELS, HIDDEN)
            add(f"{prefix}.{x}_b_proj.weight", size, KDA_CHANNELS)
        # Channels forget within one token to some dozens.
        weights[f"{prefix}.A_log"] = torch.empty(1, 1, KDA_HEADS, 1).uniform_(1, 16).log()
        weights[f"{prefix}.dt_bias"] = torch.empty(size).uniform_(-7, -2)
        weights[f"{prefix}.o_norm.weight"] = torch.ones(KDA_CHANNELS)
        add(f"{prefix}.o_proj.weight", HIDDEN, size)

    def mla(prefix: str) -> None:
        add(f"{prefix}.q_proj.weight", HEADS * (NOPE + ROPE), HIDDEN)
        add(f"{prefix}.kv_a_proj_with_mqa.weight", LATENT + ROPE, HIDDEN)
        weights[f"{prefix}.kv_a_layernorm.weight"] = torch.ones(LATENT)
        add(f"{prefix}.kv_b_proj.weight", HEADS * (NOPE + VALUE), LATENT)
        add(f"{prefix}.o_proj.weight", HIDDEN, HEADS * VALUE)

    def experts(prefix: str) -> None:
        add(f"{prefix}.gate.weight", EXPERTS, HIDDEN)
        add(f"{prefix}.gate.e_score_correction_bias", EXPERTS)
        mlp(f"{prefix}.shared_experts", EXPERT_INTERMEDIATE)
        for i in range(EXPERTS):
            mlp(f"{prefix}.experts.{i}", EXPERT_INTERMEDIATE, "w1", "w3", "w2")

    add("model.embed_tokens.weight", vocab_size, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        (mla if i + 1 in FULL_ATTENTION else kda)(f"{layer}.self_attn")
        if i == 0:
            mlp(f"{layer}.mlp", INTERMEDIATE)
        else:
            experts(f"{layer}.block_sparse_moe")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = torch.ones(HIDDEN)
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    add("lm_head.weight", vocab_size, HIDDEN)
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
