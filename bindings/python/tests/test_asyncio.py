"""Agents that an event loop serves: waiting, failing, cancelling."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from support import TOKENS, Pair, tokens_of

import kvlink


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(coroutine, 30)

    asyncio.run(bounded(), debug=True)


def test_a_request_is_read() -> None:
    async def main() -> None:
        async with Pair(shared=True) as pair:
            await asyncio.gather(pair.prefill.ready(), pair.decode.ready())
            peer = await pair.decode.handshake(pair.prefill.address)
            offer = pair.offer()
            moved = await peer.read_blocks(offer.ticket, [pair.TO])
            assert moved.nbytes == pair.source.nbytes
            assert pair.arrived()
            await offer.released()

    run(main())


def test_a_request_is_written_and_notified() -> None:
    async def main() -> None:
        async with Pair() as pair:
            peer = await pair.prefill.handshake(pair.decode.address)
            accept = pair.decode.accept("r", [pair.TO], TOKENS)
            messages = pair.decode.notifications()
            write = peer.write_blocks("r", [pair.FROM], TOKENS, last=True, payload=b"p")
            peer.notify(b"sent", after=write)
            moved, received = await asyncio.gather(write, accept)
            assert received.payload == b"p"
            assert moved.nbytes == received.nbytes == pair.source.nbytes
            assert pair.arrived()
            for i in range(100):
                peer.notify(b"%d" % i, rank=0)
            first = await anext(messages)
            assert (first.data, first.rank) == (b"sent", 0)
            assert [int((await anext(messages)).data) for _ in range(100)] == list(range(100))

    run(main())


def test_notifications_end_with_the_agent() -> None:
    async def main() -> None:
        async with Pair() as pair:

            async def take() -> int:
                return len([m async for m in pair.decode.notifications()])

            takers = [asyncio.create_task(take()) for _ in range(2)]
            await asyncio.sleep(0)
            await pair.decode.aclose()
            assert await asyncio.gather(*takers) == [0, 0]

    run(main())


def test_the_peer_s_end_is_told() -> None:
    async def main() -> None:
        async with Pair() as pair:
            peer = await pair.decode.handshake(pair.prefill.address)
            waiting = asyncio.create_task(peer.wait_down())
            await asyncio.sleep(0)
            await pair.prefill.aclose()
            assert isinstance(await waiting, kvlink.PeerDead)
            assert peer.down is await peer.wait_down()

    run(main())


def test_an_expired_lease_raises() -> None:
    async def main() -> None:
        async with Pair() as pair:
            offer = pair.offer(lease=0.02)
            with pytest.raises(kvlink.LeaseExpired):
                await offer.released()
            with pytest.raises(kvlink.LeaseExpired):
                await offer.released()

    run(main())


def test_incompatible_layouts_fail_the_handshake() -> None:
    async def main() -> None:
        async with Pair() as pair:
            layout = kvlink.Layout.from_pieces(
                [kvlink.Record(layers=[0], role="mla", elements=8, dtype=kvlink.DType.F16)],
                groups=[kvlink.Group(num_blocks=1, block_tokens=1)],
                regions=[16],
            )
            async with kvlink.Agent(layout, "other") as other:
                other.register(0, bytearray(16))
                with pytest.raises(kvlink.Incompatible, match="mla"):
                    await other.handshake(pair.prefill.address)

    run(main())


def test_cancelling_the_task_cancels_and_waits_for_the_event() -> None:
    async def main() -> None:
        async with Pair() as pair:
            accept = pair.decode.accept("never", [pair.TO], TOKENS)

            async def wait() -> None:
                await accept

            task = asyncio.create_task(wait())
            await asyncio.sleep(0.01)
            assert not accept.done()
            task.cancel("why")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert accept.done()
            assert accept.cancelled()
            assert accept.event is not None
            assert isinstance(accept.event.error, kvlink.Cancelled)
            again = pair.decode.accept("never", [pair.TO], TOKENS)
            assert again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again

    run(main())


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_timeout_of_asyncio_ends_the_operation_first(timeout: float) -> None:
    async def main() -> None:
        async with Pair() as pair:
            accept = pair.decode.accept("never", [pair.TO], TOKENS)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(accept, timeout)
            assert accept.done()

    run(main())


def test_gather_wait_and_shield_take_operations_as_futures() -> None:
    async def main() -> None:
        async with Pair() as pair:
            peer = await pair.decode.handshake(pair.prefill.address)
            never = pair.decode.accept("never", [pair.TO], TOKENS)
            late = pair.decode.accept("late", [pair.TO], TOKENS, timeout=0.02)
            assert asyncio.isfuture(never)
            done, pending = await asyncio.wait([never, late], return_when=asyncio.FIRST_COMPLETED)
            assert (done, pending) == ({late}, {never})
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(never), 0.01)
            assert not never.done()
            offer = pair.offer()
            results = await asyncio.gather(peer.read_blocks(offer.ticket, [pair.TO]), late, return_exceptions=True)
            assert isinstance(results[0], kvlink.Moved)
            assert results[0].nbytes == pair.source.nbytes
            assert isinstance(results[1], kvlink.Deadline)
            group = asyncio.gather(never)
            await asyncio.sleep(0)
            group.cancel()
            with pytest.raises(asyncio.CancelledError):
                await group
            assert never.done()

    run(main())


def test_a_handshake_is_cancelled() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            async with Pair() as pair:
                handshake = pair.decode.handshake(address)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(handshake, 0.02)
                assert handshake.done()
        async with Pair() as pair:
            with pytest.raises(kvlink.PeerError):
                await pair.decode.handshake(address)

    run(main())


def test_not_one_byte_changes_after_a_cancelled_read() -> None:
    """Reads are cancelled at many moments; from then on the blocks are the caller's, whatever the source holds."""

    async def main() -> None:
        layout_bytes = 1 << 24
        group = kvlink.Group(num_blocks=64, block_tokens=16)
        cache = [np.full(layout_bytes, fill, np.uint8) for fill in (1, 2)]
        records = [kvlink.record(c.reshape(64, 16, -1), "BNC", layers=[0], role="mla") for c in cache]
        layouts = [kvlink.Layout.from_pieces([r], groups=[group]) for r in records]
        ids = [list(range(64))]
        async with (
            kvlink.Agent(layouts[0], "prefill", disable=["shm", "cma"]) as prefill,
            kvlink.Agent(layouts[1], "decode", disable=["shm", "cma"]) as decode,
        ):
            prefill.register_arrays()
            decode.register_arrays()
            peer = await decode.handshake(prefill.address)
            ended = {True: 0, False: 0}
            for i in range(24):
                cache[1][:] = 2
                offer = prefill.offer(f"r{i}", ids, 1024)
                read = asyncio.ensure_future(peer.read_blocks(offer.ticket, ids))
                await asyncio.sleep(0.0005 * i)
                read.cancel()
                try:
                    await read
                except asyncio.CancelledError:
                    ended[True] += 1
                else:
                    ended[False] += 1
                cache[1][:] = 3
                await asyncio.sleep(0.005)
                assert (cache[1] == 3).all(), i
                offer.cancel()
                await asyncio.wait([offer])
            assert ended[True] > 0

    run(main())


def test_a_failure_that_nobody_awaits_is_reported() -> None:
    async def main() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        async with Pair() as pair:
            await pair.decode.ready()
            accept = pair.decode.accept("never", [pair.TO], TOKENS, timeout=0.01)
            later = pair.decode.accept("later", [pair.TO], TOKENS, timeout=0.03)
            with pytest.raises(kvlink.Deadline):
                await later
            assert accept.done()
            del accept
            gc.collect()
            assert [type(r["exception"]) for r in reports] == [kvlink.Deadline]

    run(main())


def test_one_style_at_a_time() -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.decode.ready()
            with pytest.raises(kvlink.WrongState, match="an event loop serves this agent"):
                pair.decode.poll()
            pair.prefill.poll()
            with pytest.raises(kvlink.WrongState, match="this agent is polled"):
                pair.prefill.notifications()
            with pytest.raises(kvlink.WrongState, match="this agent is polled"):
                await pair.prefill.handshake(pair.decode.address)
            with pytest.raises(kvlink.WrongState, match="close it there"):
                await asyncio.to_thread(pair.decode.close)

            async def other() -> None:
                await pair.decode.notifications().__anext__()

            with pytest.raises(kvlink.WrongState, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(other()))

    run(main())


def test_a_later_loop_takes_over_from_one_that_has_ended() -> None:
    pair = Pair()

    async def first() -> None:
        await pair.decode.ready()

    async def second() -> None:
        async with pair:
            peer = await pair.decode.handshake(pair.prefill.address)
            offer = pair.offer()
            await peer.read_blocks(offer.ticket, [pair.TO])
            assert (tokens_of(pair.target, "LBNHC", pair.TO) != 0).any()

    run(first())
    run(second())


def test_an_agent_is_closed_after_its_loop_was_closed_in_the_middle() -> None:
    pair = Pair()
    loop = asyncio.new_event_loop()
    accept = pair.decode.accept("never", [pair.TO], TOKENS)

    async def wait() -> None:
        await accept

    async def down() -> None:
        await (await pair.decode.handshake(pair.prefill.address)).wait_down()

    tasks = [loop.create_task(c) for c in (wait(), down())]
    loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
    loop.close()
    pair.decode.close()
    pair.prefill.close()
    assert accept.done()
    assert isinstance(accept.event and accept.event.error, kvlink.Cancelled)
    for task in tasks:
        # Nobody will: its loop is closed. Else its end would be reported as forgotten.
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_closing_cancels_what_is_under_way_and_does_not_block_the_loop() -> None:
    async def main() -> None:
        pair = Pair()
        accept = pair.decode.accept("never", [pair.TO], TOKENS)
        waiting = asyncio.create_task(asyncio.wait([accept]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(pair.decode.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert pair.decode.closed, "a cancelled close still closes"
        await waiting
        with pytest.raises(kvlink.Cancelled, match="the agent was closed"):
            await accept
        pair.prefill.close()

    run(main())
