/* Every status that can be reached without breaking the machine, each by the way an engine would meet it. */
#define _GNU_SOURCE
#include "support.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static rank_t source, sink;
static uint64_t peer, to_sink;

/* The statuses of the header. What no program can reach with the transports of this build is told at the end. */
#define STATUSES(X)                                                                                                    \
    X(INVALID_ARGUMENT) X(NULL_POINTER) X(STRUCT_SIZE) X(UNKNOWN_ENUM) X(BAD_HANDLE) X(INVALID_LAYOUT)                 \
    X(INVALID_BLOCKS) X(LIMIT) X(BUFFER_TOO_SMALL) X(WRONG_STATE) X(INVALID_TICKET) X(DUPLICATE) X(NO_MEMORY)          \
    X(SYSTEM) X(PERMISSION) X(TRANSPORT_UNAVAILABLE) X(ADDRESS) X(UNREACHABLE) X(PEER_DEAD) X(INCOMPATIBLE)            \
    X(VERSION) X(PROTOCOL) X(INCARNATION) X(REFUSED) X(CANCELLED) X(DEADLINE) X(LEASE_EXPIRED) X(UNKNOWN_REQUEST)      \
    X(INCOMPLETE) X(QUARANTINED) X(BACKEND) X(INTERNAL) X(POISONED)

static char reached[600];

static int32_t note(int32_t status)
{
    if (status <= 0 && status > -600)
        reached[-status] = 1;
    return status;
}

#define E(call, status, ...) CHECK_ERROR(note(call), status, __VA_ARGS__)
#define EVENT(event, want) CHECK_EQ(note((event).status), want)

static kvlink_status_t create(kvlink_agent_config_t c)
{
    kvlink_agent_t *a = NULL;
    kvlink_status_t s;
    c.struct_size = sizeof c;
    s = kvlink_agent_create(&c, source.layout, &a);
    if (s == KVLINK_OK)
        CHECK_OK(kvlink_agent_destroy(a));
    else
        CHECK(a == NULL);
    return s;
}

#define CONFIG(...) ((kvlink_agent_config_t){.instance = "x", __VA_ARGS__})

static void configuration_that_cannot_be(void)
{
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    E(create((kvlink_agent_config_t){.instance = ""}), KVLINK_E_INVALID_ARGUMENT, "0 bytes", "255");
    E(create((kvlink_agent_config_t){.instance = name}), KVLINK_E_INVALID_ARGUMENT, "299 bytes", "255");
    E(create((kvlink_agent_config_t){.instance = "\xff"}), KVLINK_E_INVALID_ARGUMENT, "instance", "UTF-8");
    E(create(CONFIG(.rank = 2, .ranks = 2)), KVLINK_E_INVALID_ARGUMENT, "rank 2", "2 ranks");
    E(create(CONFIG(.rank = 1, .ranks = 2)), KVLINK_E_INVALID_ARGUMENT, "rank 1", "rank 0");
    E(create(CONFIG(.ranks = 5000)), KVLINK_E_INVALID_ARGUMENT, "5000", "1024");
    E(create(CONFIG(.listen = "nonsense")), KVLINK_E_ADDRESS, "nonsense");
    E(create(CONFIG(.listen = "0.0.0.0:0")), KVLINK_E_ADDRESS, "0.0.0.0", "allow_remote");
    E(create(CONFIG(.listen = "0.0.0.0:0", .allow_remote = 1)), KVLINK_E_ADDRESS, "0.0.0.0", "advertise");
    CHECK_OK(create(CONFIG(.listen = "0.0.0.0:0", .allow_remote = 1, .advertise = "127.0.0.1")));
    E(create(CONFIG(.listen = source.address)), KVLINK_E_ADDRESS, source.address);
    E(create(CONFIG(.require_transport = "pigeon")), KVLINK_E_TRANSPORT_UNAVAILABLE, "pigeon", "host");
    E(create(CONFIG(.host_disable = 7)), KVLINK_E_INVALID_ARGUMENT, "host");
}

static void what_a_call_gets_wrong(void)
{
    rank_t bare;
    options_t o;
    kvlink_offer_t bad = {.struct_size = sizeof bad, .request = "two lists", .num_blocks = 2, .tokens = 8};
    kvlink_blocks_t two[2];
    uint64_t id;
    unsigned char ticket[4096];
    size_t len;
    char name[300];
    void *memory;
    kvlink_write_t w = {.struct_size = sizeof w, .peer = to_sink, .request = "w", .num_blocks = 1,
                        .token_begin = 9, .token_end = 8, .token_total = 8};
    memset(name, 'r', sizeof name - 1);
    name[sizeof name - 1] = 0;
    E(kvlink_register(source.agent, 1, source.memory, source.len), KVLINK_E_INVALID_ARGUMENT, "region 1", "1 regions");
    E(kvlink_register(source.agent, 0, source.memory, source.len), KVLINK_E_WRONG_STATE, "region 0");
    E(kvlink_register(source.agent, 0, source.memory, source.len - 1), KVLINK_E_INVALID_ARGUMENT, "131072", "131071");
    E(kvlink_deregister(source.agent, 9), KVLINK_E_WRONG_STATE, "region 9");
    memset(&o, 0, sizeof o);
    o.instance = "bare";
    o.unregistered = 1;
    bare = start(o);
    E(offer(&bare, "r", 0, 8, 0, 0, &id), KVLINK_E_WRONG_STATE, "regions [0]");
    E(accept_at(&bare, "r", 0, 8, 0, 0, &id), KVLINK_E_WRONG_STATE, "regions [0]");
    E(kvlink_deregister(bare.agent, 0), KVLINK_E_WRONG_STATE, "region 0");
    stop(&bare);
    two[0] = two[1] = *blocks_from(0, 8);
    bad.blocks = two;
    E(kvlink_offer(source.agent, &bad, &id), KVLINK_E_INVALID_BLOCKS, "2 block lists", "1 groups");
    E(offer(&source, "r", 63, 8, 0, 0, &id), KVLINK_E_INVALID_BLOCKS, "64", "group 0");
    E(offer(&source, "", 0, 8, 0, 0, &id), KVLINK_E_INVALID_ARGUMENT, "0 bytes");
    E(offer(&source, name, 0, 8, 0, 0, &id), KVLINK_E_INVALID_ARGUMENT, "299", "255");
    E(offer(&source, "\x80", 0, 8, 0, 0, &id), KVLINK_E_INVALID_ARGUMENT, "request", "UTF-8");
    CHECK_OK(offer(&source, "r", 0, 8, 0, 0, &id));
    E(offer(&source, "r", 8, 8, 0, 0, &id), KVLINK_E_DUPLICATE, "\"r\"");
    len = ticket_of(&source, id, ticket, sizeof ticket);
    E(read_from(&sink, peer, ticket, len - 1, 0, 8, 0, 0, &id), KVLINK_E_INVALID_TICKET, "ticket of");
    E(read_from(&sink, peer, "short", 5, 0, 8, 0, 0, &id), KVLINK_E_INVALID_TICKET, "5 bytes");
    ticket[len / 2] ^= 4;
    E(read_from(&sink, peer, ticket, len, 0, 8, 0, 0, &id), KVLINK_E_INVALID_TICKET, "checksum");
    ticket[len / 2] ^= 4;
    E(read_from(&sink, peer, ticket, len, 0, 4, 0, 0, &id), KVLINK_E_INVALID_BLOCKS, "group 0");
    E(read_from(&sink, peer, ticket, len, 62, 16, 0, 0, &id), KVLINK_E_INVALID_BLOCKS, "64");
    w.blocks = blocks_from(0, 8);
    E(kvlink_write_blocks(source.agent, &w, &id), KVLINK_E_INVALID_ARGUMENT, "9", "8");
    w.token_begin = 0;
    w.aux = "x";
    w.aux_len = 1;
    E(kvlink_write_blocks(source.agent, &w, &id), KVLINK_E_INVALID_ARGUMENT, "last");
    memory = calloc(1, (1 << 20) + 1);
    w.last = 1;
    w.aux = memory;
    w.aux_len = (1 << 20) + 1;
    E(kvlink_write_blocks(source.agent, &w, &id), KVLINK_E_LIMIT, "1048577", "1048576");
    E(kvlink_notify(sink.agent, peer, 0, memory, (1 << 20) + 1, 0), KVLINK_E_LIMIT, "1048577", "1048576");
    free(memory);
    E(kvlink_notify(sink.agent, peer, 3, "x", 1, 0), KVLINK_E_WRONG_STATE, "rank 3");
    memory = NULL;
    E(kvlink_shared_alloc((size_t)1 << 62, &memory), KVLINK_E_NO_MEMORY, "4611686018427387904");
    CHECK(memory == NULL);
}

static void limits_are_kept(void)
{
    options_t o;
    rank_t small;
    uint64_t id, other;
    memset(&o, 0, sizeof o);
    o.instance = "small";
    o.config.max_offers = 1;
    o.config.max_accepts = 1;
    o.config.max_peers = 1;
    small = start(o);
    CHECK_OK(offer(&small, "a", 0, 8, 0, 0, &id));
    E(offer(&small, "b", 0, 8, 0, 0, &other), KVLINK_E_LIMIT, "1 offers", "at most 1");
    CHECK_OK(kvlink_cancel(small.agent, id));
    CHECK_OK(offer(&small, "b", 0, 8, 0, 0, &other));
    CHECK_OK(accept_at(&small, "a", 0, 8, 0, 0, &id));
    E(accept_at(&small, "b", 0, 8, 0, 0, &other), KVLINK_E_LIMIT, "1 accepts");
    connect_to(&small, &source, KVLINK_DIRECTION_BOTH);
    E(kvlink_handshake(small.agent, sink.address, 0, 0, &id), KVLINK_E_LIMIT, "1 peers");
    stop(&small);
}

/* ---- handshakes that fail ---- */

static kvlink_event_t shake(const rank_t *from, const char *address)
{
    uint64_t id;
    kvlink_event_t e;
    CHECK_OK(kvlink_handshake(from->agent, address, 0, 5, &id));
    e = wait_for(from, KVLINK_EVENT_HANDSHAKE);
    CHECK_EQ(e.peer, id);
    CHECK_EQ(e.user_data, 5);
    CHECK(e.status != KVLINK_OK);
    CHECK(e.payload_len > 0);
    CHECK_STATUS(kvlink_disconnect(from->agent, id), KVLINK_E_BAD_HANDLE);
    return e;
}

static int listener(char *address, size_t cap)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_EQ(listen(fd, 4), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    snprintf(address, cap, "127.0.0.1:%u", (unsigned)ntohs(a.sin_port));
    return fd;
}

typedef struct answer {
    int fd;
    const unsigned char *bytes;
    size_t len;
} answer_t;

static void *answering(void *p)
{
    answer_t *a = p;
    char sink_buf[4096];
    int c = accept(a->fd, NULL, NULL);
    CHECK(c >= 0);
    CHECK(read(c, sink_buf, sizeof sink_buf) > 0);
    CHECK_EQ(send(c, a->bytes, a->len, MSG_NOSIGNAL), a->len);
    while (read(c, sink_buf, sizeof sink_buf) > 0) {
    }
    close(c);
    return NULL;
}

/* A peer that answers the greeting with these bytes. */
static kvlink_event_t answered(const unsigned char *bytes, size_t len)
{
    char address[64];
    answer_t a = {.bytes = bytes, .len = len};
    pthread_t t;
    kvlink_event_t e;
    a.fd = listener(address, sizeof address);
    CHECK_EQ(pthread_create(&t, NULL, answering, &a), 0);
    e = shake(&sink, address);
    CHECK_EQ(pthread_join(t, NULL), 0);
    close(a.fd);
    return e;
}

static void handshakes_fail_with_a_reason(void)
{
    /* A frame: length, type, reserved, body. Type 3 refuses: status, length, text. */
    unsigned char refuse[] = {8 + 4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'n', 'o', 'p', 'e'};
    static const unsigned char garbage[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    char address[64];
    options_t o;
    rank_t r;
    int fd = listener(address, sizeof address), code;
    close(fd);
    EVENT(shake(&sink, address), KVLINK_E_UNREACHABLE);
    CHECK_HAS(last_payload(), address);
    EVENT(shake(&sink, "no-port"), KVLINK_E_ADDRESS);
    CHECK_HAS(last_payload(), "no-port");
    EVENT(answered(garbage, sizeof garbage - 1), KVLINK_E_PROTOCOL);
    CHECK_HAS(last_payload(), "frame");
    code = KVLINK_E_VERSION;
    memcpy(refuse + 8, &code, 4);
    EVENT(answered(refuse, sizeof refuse), KVLINK_E_VERSION);
    CHECK_HAS(last_payload(), "nope");
    code = -9999;
    memcpy(refuse + 8, &code, 4);
    EVENT(answered(refuse, sizeof refuse), KVLINK_E_REFUSED);

    memset(&o, 0, sizeof o);
    o.instance = "other";
    o.dtype = KVLINK_DTYPE_F32;
    r = start(o);
    EVENT(shake(&sink, r.address), KVLINK_E_INCOMPATIBLE);
    CHECK_HAS(last_payload(), "dtype");
    stop(&r);

    memset(&o, 0, sizeof o);
    o.instance = "impossible";
    o.config.require_transport = "host/wings";
    r = start(o);
    EVENT(shake(&r, source.address), KVLINK_E_TRANSPORT_UNAVAILABLE);
    CHECK_HAS(last_payload(), "host/wings");
    stop(&r);

    /* A listener that never answers. */
    memset(&o, 0, sizeof o);
    o.instance = "patient";
    o.config.handshake_timeout_ms = 150;
    o.config.heartbeat_ms = 10000;
    r = start(o);
    fd = listener(address, sizeof address);
    EVENT(shake(&r, address), KVLINK_E_DEADLINE);
    CHECK_HAS(last_payload(), address);
    close(fd);
    stop(&r);
}

static void transfers_fail_with_a_reason(void)
{
    unsigned char ticket[4096];
    uint64_t id, offered;
    size_t len;
    kvlink_event_t e;
    CHECK_OK(offer(&source, "expires", 0, 8, 400, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    e = wait_for(&source, KVLINK_EVENT_RELEASED);
    EVENT(e, KVLINK_E_LEASE_EXPIRED);
    CHECK_OK(read_from(&sink, peer, ticket, len, 0, 8, 0, 0, &id));
    EVENT(wait_for(&sink, KVLINK_EVENT_TRANSFER), KVLINK_E_LEASE_EXPIRED);

    CHECK_OK(offer(&source, "once", 0, 8, 0, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    CHECK_OK(read_from(&sink, peer, ticket, len, 0, 8, 0, 0, &id));
    EVENT(wait_for(&sink, KVLINK_EVENT_TRANSFER), KVLINK_OK);
    CHECK_EQ(wait_for(&source, KVLINK_EVENT_RELEASED).status, KVLINK_OK);
    CHECK_OK(read_from(&sink, peer, ticket, len, 0, 8, 0, 0, &id));
    EVENT(wait_for(&sink, KVLINK_EVENT_TRANSFER), KVLINK_E_UNKNOWN_REQUEST);

    CHECK_OK(accept_at(&sink, "part", 0, 16, 0, 0, &id));
    CHECK_OK(write_to(&source, to_sink, "part", 0, 0, 8, 16, 1, 0, &id));
    wait_for(&source, KVLINK_EVENT_TRANSFER);
    EVENT(wait_for(&sink, KVLINK_EVENT_RECEIVED), KVLINK_E_INCOMPLETE);

    CHECK_OK(accept_at(&sink, "tokens", 0, 16, 0, 0, &id));
    CHECK_OK(write_to(&source, to_sink, "tokens", 0, 0, 8, 8, 1, 0, &id));
    EVENT(wait_for(&source, KVLINK_EVENT_TRANSFER), KVLINK_E_INVALID_BLOCKS);
    EVENT(wait_for(&sink, KVLINK_EVENT_RECEIVED), KVLINK_E_INVALID_BLOCKS);
    CHECK_HAS(last_payload(), "16 tokens");

    CHECK_OK(accept_at(&sink, "never", 0, 8, 20, 0, &id));
    EVENT(wait_for(&sink, KVLINK_EVENT_RECEIVED), KVLINK_E_DEADLINE);
    CHECK_OK(accept_at(&sink, "cancel", 0, 8, 0, 0, &id));
    CHECK_OK(note(kvlink_cancel(sink.agent, id)));
    EVENT(wait_for(&sink, KVLINK_EVENT_RECEIVED), KVLINK_E_CANCELLED);
    E(kvlink_cancel(sink.agent, id), KVLINK_E_BAD_HANDLE, "0x");
}

static void a_peer_of_another_life_is_told_apart(void)
{
    rank_t first = start_simple("phoenix"), second;
    options_t o;
    unsigned char ticket[4096];
    char address[256];
    uint64_t p, id;
    size_t len;
    CHECK_OK(offer(&first, "r", 0, 8, 0, 0, &id));
    len = ticket_of(&first, id, ticket, sizeof ticket);
    p = connect_to(&sink, &first, KVLINK_DIRECTION_BOTH);
    memcpy(address, first.address, sizeof address);
    stop(&first);
    EVENT(wait_for(&sink, KVLINK_EVENT_PEER_DOWN), KVLINK_E_PEER_DEAD);
    E(read_from(&sink, p, ticket, len, 0, 8, 0, 0, &id), KVLINK_E_PEER_DEAD, "dead");
    CHECK_OK(kvlink_disconnect(sink.agent, p));
    memset(&o, 0, sizeof o);
    o.instance = "phoenix";
    second = start(o);
    p = connect_to(&sink, &second, KVLINK_DIRECTION_BOTH);
    E(read_from(&sink, p, ticket, len, 0, 8, 0, 0, &id), KVLINK_E_INCARNATION, "process", "rank 0");
    E(read_from(&sink, peer, ticket, len, 0, 8, 0, 0, &id), KVLINK_E_INVALID_TICKET, "phoenix", "source");
    stop(&second);
}

static void a_deregistered_region_moves_nothing(void)
{
    rank_t r = start_simple("leaving");
    uint64_t offered, accepted, id;
    CHECK_OK(offer(&r, "o", 0, 8, 0, 1, &offered));
    CHECK_OK(accept_at(&r, "a", 8, 8, 0, 2, &accepted));
    CHECK_OK(kvlink_deregister(r.agent, 0));
    EVENT(wait_for(&r, KVLINK_EVENT_RELEASED), KVLINK_E_CANCELLED);
    EVENT(wait_for(&r, KVLINK_EVENT_RECEIVED), KVLINK_E_CANCELLED);
    E(kvlink_deregister(r.agent, 0), KVLINK_E_WRONG_STATE, "region 0");
    E(kvlink_register(r.agent, 0, r.memory, r.len), KVLINK_E_WRONG_STATE, "region 0");
    E(offer(&r, "o", 0, 8, 0, 0, &id), KVLINK_E_WRONG_STATE, "regions [0]");
    quiet(&r);
    stop(&r);
}

/* Whatever descriptor is missing, the call says so, and nothing is lost. */
static void a_lack_of_descriptors_is_an_error(void)
{
    struct rlimit old, few;
    int first, after, limit, failures = 0;
    CHECK_OK(create(CONFIG(.rank = 0)));
    first = dup(0);
    close(first);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    for (limit = 0;; limit++) {
        kvlink_status_t s;
        few = old;
        few.rlim_cur = (rlim_t)(first + limit);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
        s = note(create(CONFIG(.rank = 0)));
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
        after = dup(0);
        close(after);
        CHECK_EQ(after, first);
        if (s == KVLINK_OK)
            break;
        failures++;
        if (s != KVLINK_E_ADDRESS && s != KVLINK_E_NO_MEMORY) /* sockets; shared memory */
            CHECK_STATUS(s, KVLINK_E_SYSTEM);
        CHECK(limit < 64);
    }
    CHECK(failures > 0);
}

int main(void)
{
    source = start_simple("source");
    sink = start_simple("sink");
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_INBOUND);
    to_sink = connect_to(&source, &sink, KVLINK_DIRECTION_OUTBOUND);
    RUN(configuration_that_cannot_be);
    RUN(what_a_call_gets_wrong);
    RUN(limits_are_kept);
    RUN(handshakes_fail_with_a_reason);
    RUN(transfers_fail_with_a_reason);
    RUN(a_peer_of_another_life_is_told_apart);
    RUN(a_deregistered_region_moves_nothing);
    RUN(a_lack_of_descriptors_is_an_error);
    stop(&sink);
    stop(&source);
    /* arguments.c, layout.c and panic.c reach these. */
    reached[-KVLINK_E_NULL_POINTER] = reached[-KVLINK_E_STRUCT_SIZE] = reached[-KVLINK_E_UNKNOWN_ENUM] = 1;
    reached[-KVLINK_E_INVALID_LAYOUT] = reached[-KVLINK_E_BUFFER_TOO_SMALL] = 1;
    reached[-KVLINK_E_INTERNAL] = reached[-KVLINK_E_POISONED] = 1;
    /* No transport of this build has a backend, or leaves a fence unproven; no policy forbids us our own memory. */
    reached[-KVLINK_E_BACKEND] = reached[-KVLINK_E_QUARANTINED] = reached[-KVLINK_E_PERMISSION] = 1;
#define REACHED(name)                             \
    if (!reached[-KVLINK_E_##name]) {             \
        printf("never reached: %s\n", #name);     \
        return 1;                                 \
    }
    STATUSES(REACHED)
    return 0;
}
