"""Requests through vLLM's own example proxy. Arguments: the environment of scripts/vllm-source.sh, the instance in C++, the mode.

The proxy wants dp_size and tp_size, forgets nobody, and hands three fields of a prefill instance's answer on.
"""

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "examples/router"))

import demo  # noqa: E402

where, native, mode = sys.argv[1:]


class Toy(demo.Service):
    """With the other proxy."""

    def router(self):
        """Its command."""
        python, source = f"{where}/bin/python", f"{where}/src"
        return [python, str(HERE / "toy_proxy.py"), source, str(self.port), str(self.discovery)]


with Toy(mode, native) as s:
    prefills = [s.instance("prefill", language) for language in ("C++", "Python")]
    for language in ("Python", "C++", "Python"):
        s.instance("decode", language)
    # One after the other: the proxy's turns then bring all together with all.
    s.until("all instances are there", lambda: len({s.ask("hello")[1].get("decode") for _ in range(3)} - {None}) == 3)
    s.until("both prefill instances are there", lambda: len({s.ask("hello")[1].get("prefill") for _ in range(2)}) == 2)

    ends, said = Counter(), []
    for i in range(24):
        end, one = s.ask(f"request {i} " + "and more " * i, stream=i % 2 == 1)
        ends[end] += 1
        said.append(one)
    pairs = {(one.get("prefill"), one.get("decode")) for one in said}
    ways = Counter(one.get("cache") for one in said)
    good = ends == {"right": 24} and ways == {"received": 24} and len(pairs) == 6
    demo.expect("24 requests, half of them streams", good, f"{dict(ends)}, {dict(ways)}, {len(pairs)} pairs")

    # It goes on to send requests to who is dead.
    prefills[0].process.kill()
    prefills[0].process.wait()
    last = [s.ask(f"crash {i}") for i in range(4)]
    ends = Counter(end for end, _ in last)
    here = sum(one.get("cache") == "received" for _, one in last)
    # In WRITE mode it does not look at how the prefill instance ended, and the decode instance computes.
    wanted = {"right": 2, "500": 2} if mode == "read" else {"right": 4}
    good = ends == wanted and here == 2
    demo.expect("a prefill instance is dead, no request hangs", good, f"{dict(ends)}, {here} received")
print("all right")
