"""Life behind a router."""

from __future__ import annotations

import json

import pytest
from support import attention_layout

import kvlink

UNIQUE = "00112233445566778899aabbccddeeff"
LAYOUT = attention_layout("LBHNC", 16)[1]
PREFILL, DECODE = kvlink.ZmqAddress("10.0.0.1", 6301, 61005), kvlink.ZmqAddress("10.0.0.2", 7301, 7501)


def test_addresses_ports_and_request_ids() -> None:
    request_id = f"___prefill_addr_{PREFILL}___decode_addr_{DECODE}_{UNIQUE}"
    assert str(PREFILL) == "host:10.0.0.1,handshake:6301,notify:61005"
    route = kvlink.Route(PREFILL, DECODE, UNIQUE)
    assert kvlink.Route.parse(f"cmpl-{request_id}-0-abcdef12") == route
    assert str(route) == request_id
    assert kvlink.router_port(6301, tp_rank=3, tp_size=4) == 6304
    for wrong in (
        lambda: kvlink.Route.parse("cmpl-1"),
        lambda: str(kvlink.Route(PREFILL, DECODE, "a" * 100)),
        lambda: str(kvlink.ZmqAddress("a,b", 1, 1)),
        lambda: str(kvlink.ZmqAddress("a", -1, 1)),
        lambda: kvlink.router_port(6301, dp_size=2, tp_size=2),
    ):
        with pytest.raises(kvlink.InvalidArgument):
            wrong()


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_ticket_travels_in_an_answer(size: int) -> None:
    ticket = bytes(i % 256 for i in range(size))
    answer = kvlink.router_answer("tx-1", str(PREFILL), ticket, dp_rank=1, dp_size=2, tp_size=4)
    assert json.loads(answer)["remote_host"] == "10.0.0.1"
    assert kvlink.router_params(answer) == kvlink.RouterParams(False, True, "tx-1", 2, 4, 1, ticket)
    request = {"do_remote_decode": True, "do_remote_prefill": False, "remote_block_ids": None, "transfer_id": "tx-2"}
    assert kvlink.router_params(json.dumps(request)) == kvlink.RouterParams(True, False, "tx-2", 1, None, None, b"")
    with pytest.raises(kvlink.InvalidArgument, match="transfer_id is missing"):
        kvlink.router_params("{}")


def test_a_registration_tells_what_becomes_of_it() -> None:
    with kvlink.Agent(LAYOUT, "instance") as agent:
        registration = agent.attach_router("127.0.0.1:1", kvlink.Role.DECODE, kvlink.Mode.WRITE, "127.0.0.1:8000")
        (event,) = agent.poll(None)
        assert event.kind == kvlink.EventKind.ROUTER
        assert registration.event is event
        assert isinstance(event.error, kvlink.Unreachable)
        registration.detach()
        with pytest.raises(kvlink.BadHandle):
            registration.detach()
        with pytest.raises(kvlink.InvalidArgument, match="http_address"):
            agent.attach_router("127.0.0.1:1", kvlink.Role.DECODE, kvlink.Mode.WRITE, "nowhere")
