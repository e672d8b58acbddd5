"""Runs vLLM's example proxy, its own file. Arguments: the folder of vLLM's source, the HTTP port, the discovery port."""

import asyncio
import sys
from pathlib import Path

import stand_ins
from hypercorn.asyncio import serve
from hypercorn.config import Config

source, port, discovery = sys.argv[1:]
stand_ins.install(source)
sys.path.insert(0, str(Path(source, "examples/disaggregated/disaggregated_serving")))

import moriio_toy_proxy_server as proxy  # noqa: E402

proxy.start_service_discovery("127.0.0.1", int(discovery))
config = Config()
config.bind = [f"127.0.0.1:{port}"]
asyncio.run(serve(proxy.app, config))
