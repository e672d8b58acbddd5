"""Workers opposite those of vLLM's MoRIIOConnector: here opposite one another."""

from __future__ import annotations

import asyncio
import json

import pytest
from ports import free_port
from support import attention_layout

import kvlink

LAYOUT = attention_layout("LBHNC", 16)[1]
HANDSHAKE = {
    "engine_id": "127.0.0.1:6301",
    "agent_metadata": "AAEC",
    "kv_caches_base_addr": [1],
    "num_blocks": 2,
    "block_len": 3,
    "attn_backend_name": "X",
    "layers": [{"layer": "l0", "regions": ["AAEC"]}],
}
DONE = {"type": "write_done", "transfer_id": "tx-1", "num_writers": 2}


def test_workers_meet_and_tell() -> None:
    async def main() -> None:
        async with kvlink.Agent(LAYOUT, "p") as prefill, kvlink.Agent(LAYOUT, "d") as decode:
            meet_port, tell_port = free_port(), free_port()
            said: asyncio.Queue[kvlink.Event] = asyncio.Queue()
            decode.on_moriio = said.put_nowait
            decode.open_moriio(kvlink.Role.DECODE, handshake=HANDSHAKE, handshake_port=meet_port, notify_port=tell_port)
            prefill.open_moriio(kvlink.Role.PREFILL)
            # Whoever waits for nothing of an agent has to say that its events are to be taken.
            waiting = asyncio.create_task(decode.ready())
            assert await prefill.meet_moriio(f"127.0.0.1:{meet_port}") == HANDSHAKE
            assert await prefill.send_moriio(f"127.0.0.1:{tell_port}", DONE) is None
            event = await said.get()
            assert (json.loads(event.payload), event.error) == (DONE, None)
            decode.close_moriio()
            with pytest.raises(kvlink.Unreachable):
                await prefill.meet_moriio(f"127.0.0.1:{meet_port}", timeout=0.1)
            late = prefill.meet_moriio(f"127.0.0.1:{meet_port}")
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            waiting.cancel()

    asyncio.run(main())


def test_impossible_workers_and_messages_are_refused() -> None:
    with kvlink.Agent(LAYOUT, "d") as agent:
        with pytest.raises(kvlink.WrongState):
            agent.close_moriio()
        with pytest.raises(kvlink.InvalidArgument, match="collide"):
            agent.open_moriio(kvlink.Role.DECODE, notify_port=free_port(), dp=(0, 2), tp=(1, 2))
        with pytest.raises(kvlink.InvalidArgument, match="engine_id"):
            agent.open_moriio(kvlink.Role.DECODE, handshake={}, handshake_port=free_port())
        agent.open_moriio(kvlink.Role.DECODE)
        with pytest.raises(kvlink.InvalidArgument, match="write_done"):
            agent.send_moriio("127.0.0.1:1", DONE)
        exchange = agent.meet_moriio("127.0.0.1:1", timeout=0.001)
        (event,) = agent.poll(None)
        assert event.operation is exchange
        assert isinstance(event.error, kvlink.Unreachable)
