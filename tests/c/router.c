/* Life behind a router: what instances write and read, and registrations that cannot reach one. */
#define _GNU_SOURCE
#include "support.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define ID                                                                                                             \
    "___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005___decode_addr_host:10.0.0.2,handshake:7301,notify:7501" \
    "_00112233445566778899aabbccddeeff"

static rank_t r;

static kvlink_router_t router_at(const char *discovery)
{
    kvlink_router_t router;
    memset(&router, 0, sizeof router);
    router.struct_size = sizeof router;
    router.role = KVLINK_ROLE_DECODE;
    router.mode = KVLINK_MODE_WRITE;
    router.discovery = discovery;
    router.http_address = "127.0.0.1:8000";
    router.user_data = 77;
    return router;
}

/* A port that nobody listens on, and that nobody else is given while the program runs: a socket that does not listen
   holds it. A server that sets SO_REUSEADDR may listen there. */
static uint32_t free_port(char *text, size_t cap)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    snprintf(text, cap, "127.0.0.1:%u", (unsigned)ntohs(at.sin_port));
    return ntohs(at.sin_port);
}

static void a_router_that_is_not_there_is_told_once(void)
{
    char address[64];
    kvlink_router_t router;
    kvlink_event_t e;
    uint64_t id = 0;
    free_port(address, sizeof address);
    router = router_at(address);
    CHECK_OK(kvlink_router_attach(r.agent, &router, &id));
    CHECK(id != 0);
    e = wait_for(&r, KVLINK_EVENT_ROUTER);
    CHECK_EQ(e.status, KVLINK_E_UNREACHABLE);
    CHECK_EQ(e.user_data, 77);
    CHECK(e.id == id);
    CHECK_HAS(last_payload(), address);
    quiet(&r);
    CHECK_OK(kvlink_router_detach(r.agent, id));
    CHECK_STATUS(kvlink_router_detach(r.agent, id), KVLINK_E_BAD_HANDLE);
}

static void impossible_registrations_are_refused(void)
{
    kvlink_router_t good = router_at("127.0.0.1:1"), bad;
    uint64_t id = 5;
    CHECK_STATUS(kvlink_router_attach(NULL, &good, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_attach(r.agent, NULL, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_attach(r.agent, &good, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_detach(NULL, 1), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_detach(r.agent, 1), KVLINK_E_BAD_HANDLE);
#define REFUSED(field, value, status)                                                                                  \
    bad = good;                                                                                                        \
    bad.field = value;                                                                                                 \
    CHECK_STATUS(kvlink_router_attach(r.agent, &bad, &id), status)
    REFUSED(struct_size, 4, KVLINK_E_STRUCT_SIZE);
    REFUSED(role, 2, KVLINK_E_UNKNOWN_ENUM);
    REFUSED(mode, 2, KVLINK_E_UNKNOWN_ENUM);
    REFUSED(beat_ms, 2501, KVLINK_E_INVALID_ARGUMENT);
    REFUSED(dp_size, 1u << 20, KVLINK_E_INVALID_ARGUMENT);
    REFUSED(tp_size, 1u << 20, KVLINK_E_INVALID_ARGUMENT);
    REFUSED(discovery, NULL, KVLINK_E_NULL_POINTER);
    REFUSED(discovery, "nowhere", KVLINK_E_INVALID_ARGUMENT);
    REFUSED(http_address, NULL, KVLINK_E_NULL_POINTER);
    REFUSED(http_address, "a b:1", KVLINK_E_INVALID_ARGUMENT);
    REFUSED(zmq_address, "127.0.0.1:6301", KVLINK_E_INVALID_ARGUMENT);
    CHECK_EQ(id, 5);
}

static void addresses_and_ports(void)
{
    char text[256];
    size_t len = 0;
    uint32_t port = 0;
    CHECK_OK(kvlink_router_zmq_address("10.0.0.1", 6301, 61005, text, sizeof text, &len));
    CHECK(strcmp(text, "host:10.0.0.1,handshake:6301,notify:61005") == 0);
    CHECK_EQ(len, strlen(text));
    CHECK_STATUS(kvlink_router_zmq_address("10.0.0.1", 6301, 61005, text, len, &len), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_STATUS(kvlink_router_zmq_address("a,b", 6301, 61005, text, sizeof text, NULL), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_router_zmq_address("a", 65536, 1, text, sizeof text, NULL), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_router_zmq_address(NULL, 1, 1, text, sizeof text, NULL), KVLINK_E_NULL_POINTER);
    CHECK_OK(kvlink_router_port(6301, 0, 1, 3, 4, &port));
    CHECK_EQ(port, 6304);
    CHECK_STATUS(kvlink_router_port(6301, 0, 2, 1, 2, &port), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_router_port(70000, 0, 1, 0, 1, &port), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_router_port(6301, 0, 1, 0, 1, NULL), KVLINK_E_NULL_POINTER);
    CHECK_EQ(port, 6304);
}

static void request_ids(void)
{
    kvlink_route_t route;
    char text[512];
    size_t len = 0;
    memset(&route, 0, sizeof route);
    route.struct_size = sizeof route;
    CHECK_OK(kvlink_route_parse("cmpl-" ID "-0-abcdef12", &route));
    CHECK(strcmp(route.prefill_host, "10.0.0.1") == 0 && strcmp(route.decode_host, "10.0.0.2") == 0);
    CHECK_EQ(route.prefill_handshake, 6301);
    CHECK_EQ(route.prefill_notify, 61005);
    CHECK_EQ(route.decode_handshake, 7301);
    CHECK_EQ(route.decode_notify, 7501);
    CHECK(strcmp(route.unique, "00112233445566778899aabbccddeeff") == 0);
    CHECK_OK(kvlink_route_format(&route, text, sizeof text, &len));
    CHECK(strcmp(text, ID) == 0);
    CHECK_STATUS(kvlink_route_parse("cmpl-1", &route), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_route_parse(NULL, &route), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_route_parse(ID, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_route_format(NULL, text, sizeof text, &len), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_route_format(&route, text, 10, &len), KVLINK_E_BUFFER_TOO_SMALL);
    memset(route.unique, 'a', sizeof route.unique);
    CHECK_STATUS(kvlink_route_format(&route, text, sizeof text, &len), KVLINK_E_INVALID_ARGUMENT);
    route.reserved = 1;
    CHECK_STATUS(kvlink_route_format(&route, text, sizeof text, &len), KVLINK_E_INVALID_ARGUMENT);
    route.struct_size = 5;
    CHECK_STATUS(kvlink_route_parse(ID, &route), KVLINK_E_STRUCT_SIZE);
}

static void a_ticket_travels_in_an_answer(void)
{
    static const unsigned char ticket[] = {0, 1, 2, 250, 255};
    kvlink_router_answer_t answer;
    kvlink_router_params_t params;
    unsigned char back[16];
    char json[1024];
    size_t len = 0, ticket_len = 0;
    memset(&answer, 0, sizeof answer);
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    answer.struct_size = sizeof answer;
    answer.tp_size = 4;
    answer.transfer_id = "tx-1";
    answer.zmq_address = "host:10.0.0.1,handshake:6301,notify:61005";
    answer.ticket = ticket;
    answer.ticket_len = sizeof ticket;
    CHECK_OK(kvlink_router_answer(&answer, json, sizeof json, &len));
    CHECK_EQ(len, strlen(json));
    CHECK_STATUS(kvlink_router_params(json, len, &params, NULL, 0, &ticket_len), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_EQ(ticket_len, sizeof ticket);
    CHECK(strcmp(params.transfer_id, "tx-1") == 0);
    CHECK_OK(kvlink_router_params(json, len, &params, back, sizeof back, &ticket_len));
    CHECK(memcmp(back, ticket, sizeof ticket) == 0);
    CHECK(params.do_remote_prefill == 1 && params.do_remote_decode == 0);
    CHECK(params.remote_tp_size == 4 && params.remote_dp_size == 1 && params.remote_dp_rank == 0);
    CHECK_STATUS(kvlink_router_params("{}", 2, &params, NULL, 0, NULL), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_router_params(NULL, 2, &params, NULL, 0, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_params(json, len, NULL, NULL, 0, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_router_answer(NULL, json, sizeof json, &len), KVLINK_E_NULL_POINTER);
    answer.ticket_len = 0;
    CHECK_STATUS(kvlink_router_answer(&answer, json, sizeof json, &len), KVLINK_E_INVALID_ARGUMENT);
    answer.zmq_address = NULL;
    CHECK_STATUS(kvlink_router_answer(&answer, json, sizeof json, &len), KVLINK_E_NULL_POINTER);
}

#define HANDSHAKE                                                                                                      \
    "{\"engine_id\":\"127.0.0.1:6301\",\"agent_metadata\":\"AAEC\",\"kv_caches_base_addr\":[1],\"num_blocks\":2,"                \
    "\"block_len\":3,\"attn_backend_name\":\"X\",\"layers\":[{\"layer\":\"l0\",\"regions\":[\"AAEC\"]}]}"
#define DONE "{\"type\":\"write_done\",\"transfer_id\":\"tx-1\",\"num_writers\":2}"

static kvlink_moriio_t worker_of(uint32_t role)
{
    kvlink_moriio_t worker;
    memset(&worker, 0, sizeof worker);
    worker.struct_size = sizeof worker;
    worker.role = role;
    worker.user_data = 5;
    return worker;
}

static void workers_meet_and_tell(void)
{
    rank_t other = start_simple("other");
    char meet_at[64], tell_at[64];
    kvlink_moriio_t decode = worker_of(KVLINK_ROLE_DECODE), prefill = worker_of(KVLINK_ROLE_PREFILL);
    kvlink_event_t e;
    uint64_t id = 0;
    decode.handshake_port = free_port(meet_at, sizeof meet_at);
    decode.notify_port = free_port(tell_at, sizeof tell_at);
    decode.handshake = HANDSHAKE;
    decode.handshake_len = strlen(HANDSHAKE);
    CHECK_OK(kvlink_moriio_open(r.agent, &decode));
    CHECK_STATUS(kvlink_moriio_open(r.agent, &decode), KVLINK_E_WRONG_STATE);
    CHECK_OK(kvlink_moriio_open(other.agent, &prefill));

    CHECK_OK(kvlink_moriio_meet(other.agent, meet_at, 0, 7, &id));
    e = wait_for(&other, KVLINK_EVENT_MORIIO);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK(e.id == id && e.user_data == 7);
    CHECK(strcmp(last_payload(), HANDSHAKE) == 0);
    CHECK_OK(kvlink_moriio_send(other.agent, tell_at, DONE, strlen(DONE), 0, 8, &id));
    e = wait_for(&other, KVLINK_EVENT_MORIIO);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK(e.id == id && e.user_data == 8 && e.payload_len == 0);
    e = wait_for(&r, KVLINK_EVENT_MORIIO);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK(e.id == 0 && e.user_data == 5);
    CHECK(strcmp(last_payload(), DONE) == 0);

    CHECK_OK(kvlink_moriio_close(r.agent));
    CHECK_STATUS(kvlink_moriio_close(r.agent), KVLINK_E_WRONG_STATE);
    CHECK_OK(kvlink_moriio_meet(other.agent, meet_at, 100, 9, &id));
    e = wait_for(&other, KVLINK_EVENT_MORIIO);
    CHECK_EQ(e.status, KVLINK_E_UNREACHABLE);
    CHECK_HAS(last_payload(), meet_at);
    CHECK_OK(kvlink_moriio_meet(other.agent, meet_at, 0, 9, &id));
    CHECK_OK(kvlink_cancel(other.agent, id));
    e = wait_for(&other, KVLINK_EVENT_MORIIO);
    CHECK_EQ(e.status, KVLINK_E_CANCELLED);
    CHECK_STATUS(kvlink_cancel(other.agent, id), KVLINK_E_BAD_HANDLE);
    /* What waits when an agent ends does no harm. */
    CHECK_OK(kvlink_moriio_meet(other.agent, meet_at, 0, 9, &id));
    stop(&other);
}

static void impossible_workers_and_messages_are_refused(void)
{
    char at[64];
    kvlink_moriio_t good = worker_of(KVLINK_ROLE_DECODE), bad;
    uint64_t id = 5;
    good.notify_port = free_port(at, sizeof at);
    CHECK_STATUS(kvlink_moriio_open(NULL, &good), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_open(r.agent, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_close(NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_meet(r.agent, at, 0, 0, &id), KVLINK_E_WRONG_STATE);
#define UNFIT(field, value, status)                                                                                    \
    bad = good;                                                                                                        \
    bad.field = value;                                                                                                 \
    CHECK_STATUS(kvlink_moriio_open(r.agent, &bad), status)
    UNFIT(struct_size, 4, KVLINK_E_STRUCT_SIZE);
    UNFIT(role, 2, KVLINK_E_UNKNOWN_ENUM);
    UNFIT(handshake_port, 1, KVLINK_E_INVALID_ARGUMENT);
    UNFIT(notify_port, 65536, KVLINK_E_INVALID_ARGUMENT);
    UNFIT(handshake_len, 1, KVLINK_E_NULL_POINTER);
    UNFIT(tp_rank, 1, KVLINK_E_INVALID_ARGUMENT);
    UNFIT(dp_rank, 1, KVLINK_E_INVALID_ARGUMENT);
    UNFIT(host, "0.0.0.0", KVLINK_E_ADDRESS);
    bad = good;
    bad.dp_size = bad.tp_size = 2;
    CHECK_STATUS(kvlink_moriio_open(r.agent, &bad), KVLINK_E_INVALID_ARGUMENT);
    bad = good;
    bad.handshake_port = free_port(at, sizeof at);
    bad.handshake = "{}";
    bad.handshake_len = 2;
    CHECK_STATUS(kvlink_moriio_open(r.agent, &bad), KVLINK_E_INVALID_ARGUMENT);

    CHECK_OK(kvlink_moriio_open(r.agent, &good));
    CHECK_STATUS(kvlink_moriio_meet(NULL, at, 0, 0, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_meet(r.agent, NULL, 0, 0, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_meet(r.agent, at, 0, 0, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_meet(r.agent, "nowhere", 0, 0, &id), KVLINK_E_INVALID_ARGUMENT);
    CHECK_STATUS(kvlink_moriio_send(r.agent, NULL, DONE, strlen(DONE), 0, 0, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_send(r.agent, at, NULL, 2, 0, 0, &id), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_send(r.agent, at, DONE, strlen(DONE), 0, 0, NULL), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_moriio_send(r.agent, at, "{}", 2, 0, 0, &id), KVLINK_E_INVALID_ARGUMENT);
    /* A decode worker has written nothing. */
    CHECK_STATUS(kvlink_moriio_send(r.agent, at, DONE, strlen(DONE), 0, 0, &id), KVLINK_E_INVALID_ARGUMENT);
    CHECK_EQ(id, 5);
    quiet(&r);
    CHECK_OK(kvlink_moriio_close(r.agent));
}

int main(void)
{
    r = start_simple("instance");
    RUN(a_router_that_is_not_there_is_told_once);
    RUN(impossible_registrations_are_refused);
    RUN(addresses_and_ports);
    RUN(request_ids);
    RUN(a_ticket_travels_in_an_answer);
    RUN(workers_meet_and_tell);
    RUN(impossible_workers_and_messages_are_refused);
    stop(&r);
    return 0;
}
