#define _GNU_SOURCE
#include "support.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- checks ---- */

static const char *running = "";

static void fail(const char *file, int line)
{
    fprintf(stderr, "%s ... FAILED at %s:%d\n", running, file, line);
    fflush(stdout);
    fflush(stderr);
    _exit(1);
}

static void message(char *buf, size_t cap)
{
    buf[0] = 0;
    if (kvlink_last_error(buf, cap, NULL) != KVLINK_OK)
        snprintf(buf, cap, "(the message does not fit)");
}

void check_that(const char *file, int line, const char *what, int holds)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        fail(file, line);
    }
}

void check_equal(const char *file, int line, const char *what, long long a, long long b)
{
    if (a != b) {
        fprintf(stderr, "%s is %lld, not %lld\n", what, a, b);
        fail(file, line);
    }
}

void check_status(const char *file, int line, const char *call, int32_t got, int32_t want)
{
    if (got != want) {
        char text[4096];
        message(text, sizeof text);
        fprintf(stderr, "last payload: %s\n", last_payload());
        fprintf(stderr, "%s\n  returned %d (%s), not %d (%s)\n  last error: %s\n", call, (int)got,
                kvlink_status_text(got), (int)want, kvlink_status_text(want), text);
        fail(file, line);
    }
}

void check_error(const char *file, int line, const char *call, int32_t got, int32_t want, const char *const *texts)
{
    char text[4096];
    check_status(file, line, call, got, want);
    message(text, sizeof text);
    for (; *texts; texts++)
        check_has(file, line, text, *texts);
}

void check_has(const char *file, int line, const char *text, const char *part)
{
    if (!strstr(text, part)) {
        fprintf(stderr, "\"%s\" does not contain \"%s\"\n", text, part);
        fail(file, line);
    }
}

void check_run(const char *name, void (*test)(void))
{
    alarm(240); /* a test that hangs has failed */
    running = name;
    test();
    printf("%s ... ok\n", name);
    fflush(stdout);
}

void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- ranks ---- */

kvlink_layout_t *make_layout(uint32_t num_blocks, uint32_t record, uint32_t dtype)
{
    static const uint32_t layers[LAYERS] = {0, 1};
    uint64_t bytes = (uint64_t)LAYERS * num_blocks * BLOCK_TOKENS * record;
    kvlink_group_t group = {.kind = KVLINK_GROUP_PAGED, .block_tokens = BLOCK_TOKENS, .num_blocks = num_blocks};
    kvlink_record_t records = {.layers = layers, .num_layers = LAYERS, .role = "mla", .dtype = dtype};
    kvlink_layout_desc_t desc = {.struct_size = sizeof desc, .model = "tiny", .region_bytes = &bytes,
                                 .num_regions = 1, .groups = &group, .num_groups = 1, .records = &records,
                                 .num_records = 1};
    kvlink_layout_t *layout = NULL;
    if (dtype == KVLINK_DTYPE_OPAQUE)
        records.element_bytes = record;
    else
        records.elements = record / (dtype == KVLINK_DTYPE_F32 ? 4 : 2);
    CHECK_OK(kvlink_layout_create(&desc, &layout));
    CHECK(layout != NULL);
    return layout;
}

rank_t start(options_t o)
{
    rank_t r;
    kvlink_agent_config_t *c = &o.config;
    void *memory = NULL;
    memset(&r, 0, sizeof r);
    r.num_blocks = o.num_blocks ? o.num_blocks : 64;
    r.record = o.record ? o.record : 256;
    r.len = (size_t)LAYERS * r.num_blocks * BLOCK_TOKENS * r.record;
    r.layout = make_layout(r.num_blocks, r.record, o.dtype);
    c->struct_size = sizeof *c;
    c->instance = o.instance;
    if (o.way) {
        c->host_disable = strcmp(o.way, "shm") == 0 ? 6 : strcmp(o.way, "cma") == 0 ? 5 : 3;
        c->require_transport = strcmp(o.way, "shm") == 0   ? "host/shm"
                               : strcmp(o.way, "cma") == 0 ? "host/cma"
                                                           : "host/tcp";
    }
    CHECK_OK(kvlink_agent_create(c, r.layout, &r.agent));
    CHECK(r.agent != NULL);
    CHECK_OK(kvlink_agent_address(r.agent, r.address, sizeof r.address, NULL));
    CHECK_OK(kvlink_shared_alloc(r.len, &memory));
    r.memory = memory;
    if (!o.unregistered) {
        CHECK_OK(kvlink_register(r.agent, 0, r.memory, r.len));
        if (c->ranks < 2)
            CHECK_EQ(wait_for(&r, KVLINK_EVENT_READY).status, KVLINK_OK);
    }
    return r;
}

rank_t start_simple(const char *instance)
{
    options_t o;
    memset(&o, 0, sizeof o);
    o.instance = instance;
    return start(o);
}

void stop(rank_t *r)
{
    CHECK_OK(kvlink_agent_destroy(r->agent));
    CHECK_OK(kvlink_layout_destroy(r->layout));
    CHECK_OK(kvlink_shared_free(r->memory));
    memset(r, 0, sizeof *r);
}

unsigned char *record_at(const rank_t *r, uint32_t layer, uint32_t first_block, uint64_t token)
{
    uint64_t block = first_block + token / BLOCK_TOKENS;
    uint64_t at = (((uint64_t)layer * r->num_blocks + block) * BLOCK_TOKENS + token % BLOCK_TOKENS) * r->record;
    CHECK(at + r->record <= r->len);
    return r->memory + at;
}

void fill(const rank_t *r, unsigned char seed)
{
    size_t i;
    for (i = 0; i < r->len; i++)
        r->memory[i] = (unsigned char)(i * 31 + (i >> 8) * 7 + seed);
}

int same_tokens(const rank_t *a, uint32_t a_first, const rank_t *b, uint32_t b_first, uint64_t begin, uint64_t end)
{
    uint32_t layer;
    uint64_t t;
    for (layer = 0; layer < LAYERS; layer++)
        for (t = begin; t < end; t++)
            if (memcmp(record_at(a, layer, a_first, t), record_at(b, layer, b_first, t), a->record) != 0)
                return 0;
    return 1;
}

const kvlink_blocks_t *blocks_from(uint32_t first, uint64_t tokens)
{
    static __thread uint32_t ids[65536];
    static __thread kvlink_blocks_t list;
    size_t i, n = (size_t)((tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS);
    CHECK(n <= sizeof ids / sizeof ids[0]);
    for (i = 0; i < n; i++)
        ids[i] = first + (uint32_t)i;
    list.ids = ids;
    list.count = n;
    list.first = 0;
    return &list;
}

/* ---- calls ---- */

static __thread char payload[4096];

kvlink_event_t wait_for(const rank_t *r, uint32_t kind)
{
    kvlink_event_t e;
    size_t n = 0;
    for (;;) {
        memset(&e, 0, sizeof e);
        CHECK_OK(kvlink_poll(r->agent, &e, 1, 60000, &n));
        if (n != 1)
            fprintf(stderr, "no event of kind %u came\n", kind);
        CHECK_EQ(n, 1);
        if (e.kind == kind) {
            size_t len = e.payload_len < sizeof payload - 1 ? e.payload_len : sizeof payload - 1;
            memcpy(payload, e.payload, len);
            payload[len] = 0;
            return e;
        }
    }
}

const char *last_payload(void)
{
    return payload;
}

void quiet(const rank_t *r)
{
    kvlink_event_t e;
    size_t n = 1;
    CHECK_OK(kvlink_poll(r->agent, &e, 1, 100, &n));
    if (n)
        fprintf(stderr, "an event of kind %u with status %d\n", e.kind, (int)e.status);
    CHECK_EQ(n, 0);
}

uint64_t connect_to(const rank_t *from, const rank_t *to, uint32_t direction)
{
    uint64_t peer = 0;
    kvlink_event_t e;
    CHECK_OK(kvlink_handshake(from->agent, to->address, direction, 77, &peer));
    CHECK(peer != 0);
    e = wait_for(from, KVLINK_EVENT_HANDSHAKE);
    if (e.status != KVLINK_OK)
        fprintf(stderr, "handshake: %s\n", last_payload());
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.user_data, 77);
    CHECK_EQ(e.peer, peer);
    return peer;
}

kvlink_status_t offer(const rank_t *r, const char *request, uint32_t first, uint64_t tokens, uint32_t lease_ms,
                      uint64_t user_data, uint64_t *id)
{
    kvlink_offer_t o = {.struct_size = sizeof o, .lease_ms = lease_ms, .request = request,
                        .blocks = blocks_from(first, tokens), .num_blocks = 1, .tokens = tokens,
                        .user_data = user_data};
    return kvlink_offer(r->agent, &o, id);
}

size_t ticket_of(const rank_t *r, uint64_t id, unsigned char *buf, size_t cap)
{
    size_t len = 0;
    CHECK_OK(kvlink_ticket(r->agent, id, buf, cap, &len));
    CHECK(len > 0 && len <= cap);
    return len;
}

kvlink_status_t read_from(const rank_t *r, uint64_t peer, const void *ticket, size_t len, uint32_t first,
                          uint64_t tokens, uint32_t timeout_ms, uint64_t user_data, uint64_t *id)
{
    kvlink_read_t a = {.struct_size = sizeof a, .timeout_ms = timeout_ms, .peer = peer, .ticket = ticket,
                       .ticket_len = len, .blocks = blocks_from(first, tokens), .num_blocks = 1,
                       .user_data = user_data};
    return kvlink_read_blocks(r->agent, &a, id);
}

kvlink_status_t accept_at(const rank_t *r, const char *request, uint32_t first, uint64_t tokens, uint32_t timeout_ms,
                          uint64_t user_data, uint64_t *id)
{
    kvlink_accept_t a = {.struct_size = sizeof a, .timeout_ms = timeout_ms, .request = request,
                         .blocks = blocks_from(first, tokens), .num_blocks = 1, .tokens = tokens,
                         .user_data = user_data};
    return kvlink_accept(r->agent, &a, id);
}

kvlink_status_t write_to(const rank_t *r, uint64_t peer, const char *request, uint32_t first, uint64_t begin,
                         uint64_t end, uint64_t total, int last, uint64_t user_data, uint64_t *id)
{
    kvlink_write_t a = {.struct_size = sizeof a, .peer = peer, .request = request,
                        .blocks = blocks_from(first, total), .num_blocks = 1, .token_begin = begin,
                        .token_end = end, .token_total = total, .last = last ? 1 : 0, .user_data = user_data};
    return kvlink_write_blocks(r->agent, &a, id);
}
