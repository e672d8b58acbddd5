"""The code in docs/python.md runs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import kvlink

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def test_the_code_of_the_page_moves_a_request() -> None:
    cache, fetch, polling = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    source: dict[str, Any] = {}
    target: dict[str, Any] = {}
    for namespace in (source, target):
        exec(cache, namespace)
    exec(fetch, target)
    source["cache"][:, [3, 1]] = 1.5
    with kvlink.Agent(source["layout"], "prefill") as agent:
        agent.register_arrays()
        ticket = agent.offer("r", [[3, 1]], 32).ticket
        asyncio.run(asyncio.wait_for(target["fetch"](target["layout"], ticket, [0, 5]), 30))
        exec(polling, {"agent": agent})
    assert (target["cache"][:, [0, 5]] == 1.5).all()
    assert (target["cache"][:, 1:5] == 0).all()
