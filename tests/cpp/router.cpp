// Life behind a router.

#include "check.hpp"

using kvlink::Status;

static const std::string unique = "00112233445566778899aabbccddeeff";

static void addresses_ports_and_request_ids()
{
    const std::string prefill = OK(kvlink::router_zmq_address("10.0.0.1", 6301, 61005));
    CHECK(prefill == "host:10.0.0.1,handshake:6301,notify:61005");
    FAILS(kvlink::router_zmq_address("a,b", 1, 1), Status::invalid_argument, "','");
    CHECK(OK(kvlink::router_port(6301, 0, 1, 3, 4)) == 6304);
    FAILS(kvlink::router_port(6301, 0, 2, 1, 2), Status::invalid_argument, "collide");

    const std::string decode = OK(kvlink::router_zmq_address("10.0.0.2", 7301, 7501));
    const std::string id = "___prefill_addr_" + prefill + "___decode_addr_" + decode + "_" + unique;
    kvlink::Route route = OK(kvlink::route_parse("cmpl-" + id + "-0-abcdef12"));
    CHECK(route.prefill_host == "10.0.0.1" && route.prefill_handshake == 6301 && route.prefill_notify == 61005);
    CHECK(route.decode_host == "10.0.0.2" && route.decode_handshake == 7301 && route.decode_notify == 7501);
    CHECK(route.unique == unique);
    CHECK(OK(kvlink::route_format(route)) == id);
    route.decode_host.assign(256, 'a');
    FAILS(kvlink::route_format(route), Status::invalid_argument, "decode_host has no NUL");
    FAILS(kvlink::route_parse("cmpl-1"), Status::invalid_argument, "___prefill_addr_");
}

static void a_ticket_travels_in_an_answer()
{
    kvlink::RouterAnswer answer;
    answer.transfer_id = "tx-1";
    answer.zmq_address = "host:10.0.0.1,handshake:6301,notify:61005";
    const std::string ticket("\0\1\xff", 3);
    answer.ticket = ticket;
    answer.dp_rank = 1;
    answer.dp_size = 2;
    answer.tp_size = 4;
    const kvlink::RouterParams params = OK(kvlink::router_params(OK(kvlink::router_answer(answer))));
    CHECK(params.ticket == ticket && params.transfer_id == "tx-1");
    CHECK(params.do_remote_prefill && !params.do_remote_decode);
    CHECK(params.remote_dp_size == 2 && params.remote_tp_size == 4 && params.remote_dp_rank == 1);
    FAILS(kvlink::router_params("{}"), Status::invalid_argument, "transfer_id is missing");
    answer.ticket = {};
    FAILS(kvlink::router_answer(answer), Status::invalid_argument, "the ticket is empty");
}

static void a_registration_tells_what_becomes_of_it()
{
    Rank rank("instance");
    kvlink::Router router;
    router.role = kvlink::Role::decode;
    router.mode = kvlink::Mode::write;
    router.discovery = "127.0.0.1:1";
    router.http_address = "127.0.0.1:8000";
    router.user_data = 5;
    const kvlink::RegistrationId id = OK(rank.agent.attach_router(router));
    const kvlink::Event event = rank.wait(kvlink::EventKind::router);
    CHECK(event.registration() == id && event.user_data() == 5);
    FAILS(event.result(), Status::unreachable, "router 127.0.0.1:1");
    OK(rank.agent.detach_router(id));
    FAILS(rank.agent.detach_router(id), Status::bad_handle, "registration");
    router.http_address = "nowhere";
    FAILS(rank.agent.attach_router(router), Status::invalid_argument, "http_address");
}

static void a_worker_opposite_those_of_vllm()
{
    Rank rank("instance");
    kvlink::Moriio worker;
    worker.role = kvlink::Role::decode;
    worker.tp_rank = 1;
    FAILS(rank.agent.close_moriio(), Status::wrong_state, "no worker");
    worker.handshake = "{}";
    FAILS(rank.agent.open_moriio(worker), Status::invalid_argument, "engine_id");
    worker.handshake.clear();
    worker.host = "0.0.0.0";
    worker.notify_port = 1;
    worker.tp_size = 2;
    FAILS(rank.agent.open_moriio(worker), Status::address, "0.0.0.0:2");
    worker.notify_port = 0;
    OK(rank.agent.open_moriio(worker));
    // Nobody listens there.
    const kvlink::ExchangeId met = OK(rank.agent.meet_moriio("127.0.0.1:1", 1, 5));
    const kvlink::Event event = rank.wait(kvlink::EventKind::moriio);
    CHECK(event.exchange() == met && event.user_data() == 5);
    FAILS(event.result(), Status::unreachable, "127.0.0.1:1");
    const char release[] = R"({"type":"release","transfer_id":"tx-1"})";
    const kvlink::ExchangeId told = OK(rank.agent.send_moriio("127.0.0.1:1", release));
    OK(rank.agent.cancel(told));
    FAILS(rank.wait(kvlink::EventKind::moriio).result(), Status::cancelled, "release of tx-1");
    FAILS(rank.agent.send_moriio("127.0.0.1:1", "{}"), Status::invalid_argument, "type");
    OK(rank.agent.close_moriio());
}

int main()
{
    RUN(addresses_ports_and_request_ids);
    RUN(a_ticket_travels_in_an_answer);
    RUN(a_registration_tells_what_becomes_of_it);
    RUN(a_worker_opposite_those_of_vllm);
}
