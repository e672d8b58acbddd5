"""The ends of processes: agents that nobody closed, and forks."""

from __future__ import annotations

import pytest
from support import python

START = """
import asyncio, os, sys, threading
import kvlink
from support import Pair, TOKENS, wait_event
pair = Pair(shared=True)

def poll():
    try:
        while True:
            pair.decode.poll(None)
    except kvlink.BadHandle:
        pass  # The end of the interpreter closes the agent.
"""


@pytest.mark.parametrize(
    "code",
    [
        "",
        "pair.decode.poll(0.01)",
        "accept = pair.decode.accept('never', [pair.TO], TOKENS)",
        "asyncio.run(pair.decode.ready())",
        "threading.Thread(target=poll, daemon=True).start()",
        "pair.me = pair",
        "import builtins; builtins.kept = pair; view = memoryview(pair.target)",
        "pair.decode.close()",
        "kvlink.__dict__.clear()",
    ],
)
def test_an_interpreter_ends_whatever_was_left_open(code: str) -> None:
    run = python(START + code + "\nprint('end')")
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")


def test_an_exception_in_the_middle_is_the_only_output() -> None:
    run = python(START + "raise SystemExit(3)")
    assert (run.returncode, run.stdout, run.stderr) == (3, "", "")


def test_a_fork_s_child_is_told_and_the_parent_goes_on() -> None:
    run = python(
        START
        + """
wait_event(pair.decode, kvlink.EventKind.READY)
child = os.fork()
if child == 0:
    assert "of process" in repr(pair.decode), repr(pair.decode)
    for call in (pair.decode.poll, pair.decode.statistics, lambda: pair.offer("r")):
        try:
            call()
        except kvlink.WrongState as e:
            assert "fork" in str(e) or "process" in str(e), e
        else:
            os._exit(1)
    layout = pair.decode.layout
    assert kvlink.Plan.compile([layout], [layout]) is not None
    pair.decode.close()
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
handshake = pair.decode.handshake(pair.prefill.address)
wait_event(pair.decode, kvlink.EventKind.HANDSHAKE)
offer = pair.offer()
handshake.peer.read_blocks(offer.ticket, [pair.TO])
wait_event(pair.decode, kvlink.EventKind.TRANSFER)
assert pair.arrived()
"""
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_end_of_the_interpreter_closes_agents() -> None:
    # Handlers run in reverse: this one after the one that comes with the first agent.
    code = "import atexit; kept = []; atexit.register(lambda: print([agent.closed for agent in kept]))"
    run = python(code + START + "kept += [pair.prefill, pair.decode]; print([agent.closed for agent in kept])")
    assert (run.returncode, run.stdout, run.stderr) == (0, "[False, False]\n[True, True]\n", "")
