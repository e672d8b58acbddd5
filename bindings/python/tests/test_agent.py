"""Agents that an engine polls itself."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import ClassVar

import numpy as np
import pytest
from support import TOKENS, Pair, attention_layout, wait_event

import kvlink
from kvlink import Agent, EventKind


def connect(pair: Pair) -> kvlink.Peer:
    handshake = pair.decode.handshake(pair.prefill.address, kvlink.Direction.INBOUND)
    event = wait_event(pair.decode, EventKind.HANDSHAKE)
    assert event.operation is handshake
    assert event.error is None
    assert event.peer is handshake.result()
    return handshake.peer


@pytest.mark.parametrize("way", ["shm", "tcp"])
def test_a_request_is_read(way: str) -> None:
    with Pair(shared=way == "shm", disable=[w for w in ("shm", "cma", "tcp") if w != way]) as pair:
        peer = connect(pair)
        assert peer.transport.startswith(f"rank 0: host/{way}")
        offer = pair.offer()
        info = kvlink.ticket_info(offer.ticket)
        assert (info.request, info.instance, info.tokens) == ("r", "prefill", TOKENS)
        assert info.address == pair.prefill.address
        transfer = peer.read_blocks(offer.ticket, [pair.TO])
        event = wait_event(pair.decode, EventKind.TRANSFER)
        assert event.operation is transfer
        assert transfer.done()
        assert transfer.result() == (event.nbytes, event.spans)
        assert event.nbytes == pair.source.nbytes
        assert pair.arrived()
        wait_event(pair.prefill, EventKind.RELEASED)
        assert offer.result() is None
        assert pair.decode.statistics() == (event.nbytes, event.spans, 1, 0)


def test_a_scheduler_without_an_agent_writes_tickets() -> None:
    with Pair() as pair:
        peer = connect(pair)
        ticket = kvlink.ticket_write(pair.prefill.ticket, "r", [pair.FROM], TOKENS)
        assert ticket == pair.offer().ticket
        peer.read_blocks(ticket, [pair.TO])
        event = wait_event(pair.decode, EventKind.TRANSFER)
        assert event.error is None
        assert pair.arrived()


def test_a_read_of_no_layer_releases_an_offer() -> None:
    with Pair() as pair:
        peer = connect(pair)
        peer.read_blocks(pair.offer().ticket, [[]], layers=range(1 << 31, (1 << 31) + 1))
        event = wait_event(pair.decode, EventKind.TRANSFER)
        assert (event.error, event.nbytes) == (None, 0)
        assert wait_event(pair.prefill, EventKind.RELEASED).error is None


def test_tickets_that_cannot_be_are_refused() -> None:
    with Pair() as pair:
        with pytest.raises(kvlink.InvalidTicket, match="too short"):
            kvlink.ticket_write(b"x", "r", [[0]], 16)
        with pytest.raises(kvlink.InvalidArgument, match="request id of 0 bytes"):
            kvlink.ticket_write(pair.prefill.ticket, "", [[0]], 16)


def test_a_request_is_written_layer_by_layer() -> None:
    with Pair() as pair:
        handshake = pair.prefill.handshake(pair.decode.address, kvlink.Direction.OUTBOUND)
        wait_event(pair.prefill, EventKind.HANDSHAKE)
        accept = pair.decode.accept("r", [pair.TO], TOKENS)
        for layer in range(2):
            payload = b"first token" if layer == 1 else b""
            handshake.peer.write_blocks(
                "r", [pair.FROM], TOKENS, layers=range(layer, layer + 1), last=layer == 1, payload=payload
            )
        event = wait_event(pair.decode, EventKind.RECEIVED)
        assert event.operation is accept
        assert accept.result().payload == b"first token"
        assert pair.arrived()


def test_a_failed_read_names_its_blocks() -> None:
    with Pair() as pair:
        peer = connect(pair)
        offer = pair.offer()
        ticket = offer.ticket
        assert offer.cancel()
        wait_event(pair.prefill, EventKind.RELEASED)
        with pytest.raises(kvlink.Cancelled):
            offer.result()
        assert not offer.cancel()
        transfer = peer.read_blocks(ticket, [pair.TO])
        event = wait_event(pair.decode, EventKind.TRANSFER)
        assert isinstance(event.error, kvlink.TransferError)
        with pytest.raises(type(event.error)):
            transfer.result()
        assert sorted(transfer.failed_blocks(0)) == sorted(pair.TO)


def test_a_deadline_is_a_timeout() -> None:
    with Pair() as pair:
        accept = pair.decode.accept("never", [pair.TO], TOKENS, timeout=0.02)
        with pytest.raises(kvlink.WrongState, match="has not ended"):
            accept.result()
        wait_event(pair.decode, EventKind.RECEIVED)
        with pytest.raises(TimeoutError, match="deadline passed") as caught:
            accept.result()
        assert isinstance(caught.value, kvlink.Deadline)


def test_a_refused_call_leaves_nothing_behind() -> None:
    with Pair() as pair:
        pair.offer("twice")
        with pytest.raises(kvlink.CallError, match=r"already in use.*twice"):
            pair.offer("twice")
        with pytest.raises(kvlink.InvalidBlocks):
            pair.prefill.offer("r", [[99]], 16)
        with pytest.raises(kvlink.InvalidArgument, match="NUL"):
            pair.offer("a\0b")
        for seconds in (0, -1, 1e9, float("inf"), float("nan")):
            with pytest.raises(kvlink.InvalidArgument, match="lease is"):
                pair.offer("r", lease=seconds)
        assert len(pair.prefill._operations) == 1


def test_a_closed_agent_says_so() -> None:
    pair = Pair()
    accept = pair.decode.accept("never", [pair.TO], TOKENS)
    with pair:
        pass
    pair.decode.close()
    assert pair.decode.closed
    assert "closed" in repr(pair.decode)
    for call in (
        pair.decode.poll,
        pair.decode.statistics,
        lambda: pair.decode.address,
        lambda: pair.decode.register(0, pair.target),
        lambda: pair.decode.handshake("127.0.0.1:1"),
    ):
        with pytest.raises(kvlink.BadHandle, match="agent 'decode' is closed"):
            call()
    with pytest.raises(kvlink.Cancelled, match="the agent was closed"):
        accept.result()


def test_a_poll_that_waits_lets_others_run_and_ends_when_the_agent_is_closed() -> None:
    pair = Pair()
    wait_event(pair.decode, EventKind.READY)
    failures: list[BaseException] = []

    def poll() -> None:
        try:
            pair.decode.poll(None)
        except kvlink.Error as e:
            failures.append(e)

    thread = threading.Thread(target=poll)
    thread.start()
    # It polls by now, or finds the agent closed when it begins; either must end it.
    thread.join(0.05)
    assert thread.is_alive()
    pair.decode.close()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(failures[0], kvlink.BadHandle)
    pair.prefill.close()


def test_one_thread_polls_at_a_time() -> None:
    with Pair() as pair, pair.decode._poll_lock, pytest.raises(kvlink.WrongState, match="another thread polls"):
        pair.decode.poll()


def test_a_poll_of_nothing_ends_in_time() -> None:
    with Pair() as pair:
        wait_event(pair.decode, EventKind.READY)
        assert pair.decode.poll(0.001) == []
        assert pair.decode.poll(0) == []
        with pytest.raises(kvlink.InvalidArgument, match="max_events is 0"):
            pair.decode.poll(0, max_events=0)


def test_registered_memory_lives_as_long_as_the_agent() -> None:
    array, layout = attention_layout("LBHNC", 16, shared=True)
    owner = weakref.ref(layout.memory[0])
    agent = Agent(layout, "a")
    agent.register_arrays()
    address = array.ctypes.data
    del array
    agent.layout = attention_layout("LBHNC", 16)[1]
    del layout
    gc.collect()
    assert owner() is not None
    from kvlink import _shared

    assert address in _shared._live
    agent.close()
    gc.collect()
    assert owner() is None
    assert address not in _shared._live


def test_dropped_agents_are_stopped() -> None:
    _, layout = attention_layout("LBHNC", 16)
    agent = Agent(layout, "a")
    agent.register_arrays()
    finalizer = agent._destroy
    del agent
    gc.collect()
    assert not finalizer.alive


def test_memory_that_cannot_be_registered() -> None:
    _, layout = attention_layout("LBHNC", 16)
    with Agent(layout, "a") as agent:
        frozen = np.zeros(layout.regions[0], np.uint8)
        frozen.flags.writeable = False
        with pytest.raises(kvlink.InvalidArgument, match="read-only"):
            agent.register(0, frozen)
        with pytest.raises(kvlink.InvalidArgument, match="region 0"):
            agent.register(0, bytearray(64))
        agent.register_arrays()
        with pytest.raises(kvlink.WrongState, match="region 0"):
            agent.register(0, np.zeros(layout.regions[0], np.uint8))
        agent.deregister(0)
        with pytest.raises(kvlink.WrongState, match="region 0"):
            agent.deregister(0)

    class Device:
        __cuda_array_interface__: ClassVar = {"shape": (64,), "typestr": "|u1", "data": (1 << 40, False), "version": 3}

    with Agent(layout, "a") as agent, pytest.raises(kvlink.InvalidArgument, match="on cuda: only memory of the host"):
        agent.register(0, Device())


def test_shared_memory_is_a_buffer_and_freed_with_its_last_view() -> None:
    from kvlink import _shared

    memory = kvlink.shared_memory(4096)
    assert bytes(memory) == bytes(4096)
    view = np.frombuffer(memory, np.float32)[3:]
    view[0] = 1.0
    assert (memory.nbytes, memory.format, memory.readonly) == (4096, "B", False)
    assert kvlink.strided(view).storage.nbytes == 4096
    address = kvlink.strided(memory).address
    del memory
    gc.collect()
    assert view[0] == 1.0
    assert address in _shared._live
    del view
    gc.collect()
    assert address not in _shared._live
    for size in (0, -1):
        with pytest.raises(kvlink.InvalidArgument, match=f"{size} bytes"):
            kvlink.shared_memory(size)
