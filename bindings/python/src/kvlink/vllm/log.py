"""The connector's logger: below vLLM's, whose handlers and level then count."""

from vllm.logger import init_logger

logger = init_logger("vllm.kvlink")
