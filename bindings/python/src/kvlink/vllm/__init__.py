"""vLLM's KV connector: `KVLinkConnector`, for ``kv_connector_module_path: kvlink.vllm``. See docs/vllm.md.

Importing this imports vLLM; `kvlink` itself does not.
"""

from .connector import KVLinkConnector

__all__ = ["KVLinkConnector"]
