"""A plugin of vLLM: Kimi-Linear on a CPU."""


def register() -> None:
    """Names the model in the place of vLLM's own, which is for NVIDIA's GPUs; it is imported when it is loaded."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("KimiLinearForCausalLM", "kimi_linear_cpu:KimiLinearForCausalLM")
