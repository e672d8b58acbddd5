/* Many threads at one agent, and ends that come while others still work. */
#define _GNU_SOURCE
#include "support.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static rank_t source, sink;
static uint64_t peer;

/* ---- submitters and one poller ---- */

enum { SUBMITTERS = 4, ROUNDS = 40, BLOCKS_EACH = 4 };

typedef struct worker {
    int index;
    uint64_t begun; /* requests that were accepted, hence events that must come */
} worker_t;

static int finished;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *submit(void *p)
{
    worker_t *w = p;
    unsigned char ticket[4096];
    char name[32], text[512];
    int i;
    for (i = 0; i < ROUNDS; i++) {
        uint64_t offered, id = 0, tag = (uint64_t)w->index << 32 | (uint64_t)i;
        uint32_t first = (uint32_t)w->index * BLOCKS_EACH;
        kvlink_statistics_t s = {.struct_size = sizeof s};
        size_t len;
        snprintf(name, sizeof name, "r-%d-%d", w->index, i);
        CHECK_OK(offer(&source, name, first, 16, 0, tag, &offered));
        len = ticket_of(&source, offered, ticket, sizeof ticket);
        CHECK_OK(read_from(&sink, peer, ticket, len, first, 16, 0, tag, &id));
        w->begun++;
        if (i % 3 == 0) {
            kvlink_status_t status = kvlink_cancel(sink.agent, id);
            CHECK(status == KVLINK_OK || status == KVLINK_E_BAD_HANDLE);
        }
        if (i % 3 != 2) /* the others are released by their reader */
            (void)kvlink_cancel(source.agent, offered);
        snprintf(name, sizeof name, "a-%d-%d", w->index, i);
        CHECK_OK(accept_at(&sink, name, 32 + first, 16, 0, tag, &id));
        w->begun++;
        CHECK_OK(kvlink_cancel(sink.agent, id));
        CHECK_OK(kvlink_statistics(sink.agent, &s));
        CHECK_OK(kvlink_effective_transport(sink.agent, peer, text, sizeof text, NULL));
        CHECK_OK(kvlink_notify(sink.agent, peer, 0, name, strlen(name), 0));
        /* A failure's message is of this thread, whatever the others do. */
        CHECK_ERROR(kvlink_cancel(sink.agent, tag), KVLINK_E_BAD_HANDLE, "0x");
    }
    pthread_mutex_lock(&lock);
    finished++;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static int all_finished(void)
{
    int n;
    pthread_mutex_lock(&lock);
    n = finished;
    pthread_mutex_unlock(&lock);
    return n == SUBMITTERS;
}

static void *drain_source(void *p)
{
    uint64_t *released = p;
    kvlink_event_t e[8];
    size_t n, i;
    while (*released < SUBMITTERS * ROUNDS) {
        CHECK_OK(kvlink_poll(source.agent, e, 8, 60000, &n));
        CHECK(n > 0);
        for (i = 0; i < n; i++) {
            *released += e[i].kind == KVLINK_EVENT_RELEASED;
            CHECK(e[i].kind == KVLINK_EVENT_RELEASED || e[i].kind == KVLINK_EVENT_NOTIFICATION);
        }
    }
    return NULL;
}

static void several_threads_submit_while_one_polls(void)
{
    static unsigned char seen[2][SUBMITTERS][ROUNDS];
    worker_t workers[SUBMITTERS];
    pthread_t threads[SUBMITTERS], drain;
    uint64_t released = 0, events = 0, begun = 0;
    kvlink_event_t e[8];
    size_t n, i;
    int t;
    CHECK_EQ(pthread_create(&drain, NULL, drain_source, &released), 0);
    for (t = 0; t < SUBMITTERS; t++) {
        workers[t].index = t;
        workers[t].begun = 0;
        CHECK_EQ(pthread_create(&threads[t], NULL, submit, &workers[t]), 0);
    }
    while (!all_finished() || events < 2 * SUBMITTERS * ROUNDS) {
        CHECK_OK(kvlink_poll(sink.agent, e, 8, 60000, &n));
        CHECK(n > 0);
        for (i = 0; i < n; i++, events++) {
            int accept = e[i].kind == KVLINK_EVENT_RECEIVED;
            unsigned char *mark = &seen[accept][e[i].user_data >> 32][(uint32_t)e[i].user_data];
            CHECK(accept || e[i].kind == KVLINK_EVENT_TRANSFER);
            CHECK_EQ(*mark, 0);
            *mark = 1;
        }
    }
    for (t = 0; t < SUBMITTERS; t++) {
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
        begun += workers[t].begun;
    }
    CHECK_EQ(pthread_join(drain, NULL), 0);
    CHECK_EQ(events, begun);
    CHECK_EQ(released, SUBMITTERS * ROUNDS);
    quiet(&sink);
}

/* ---- plans and layouts are shared ---- */

static void *expand(void *p)
{
    kvlink_plan_request_t q = {.struct_size = sizeof q, .token_total = 64, .num_source_blocks = 1,
                               .num_destination_blocks = 1};
    kvlink_span_t spans[LAYERS];
    size_t n;
    int i;
    char text[4096];
    for (i = 0; i < 300; i++) {
        q.source_blocks = q.destination_blocks = blocks_from(4, 64);
        CHECK_OK(kvlink_plan_expand(p, &q, spans, LAYERS, &n));
        CHECK_EQ(n, LAYERS);
        CHECK_EQ(spans[0].len, 64 * 256);
        CHECK_OK(kvlink_layout_explain(source.layout, text, sizeof text, &n));
    }
    return NULL;
}

static void threads_share_layouts_and_plans(void)
{
    const kvlink_layout_t *list = source.layout;
    kvlink_plan_t *plan = NULL;
    pthread_t threads[3];
    int t;
    CHECK_OK(kvlink_plan_create(&list, 1, &list, 1, 0, 0, &plan));
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_create(&threads[t], NULL, expand, plan), 0);
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
    CHECK_OK(kvlink_plan_destroy(plan));
}

/* ---- ends ---- */

static void *poll_forever(void *p)
{
    const kvlink_agent_t *agent = p;
    kvlink_event_t e;
    size_t n;
    for (;;) {
        kvlink_status_t s = kvlink_poll(agent, &e, 1, KVLINK_FOREVER, &n);
        if (s != KVLINK_OK) {
            CHECK_ERROR(s, KVLINK_E_BAD_HANDLE, "stale");
            return NULL;
        }
    }
}

static void destroying_ends_a_poll_without_end(void)
{
    rank_t r = start_simple("destroyed");
    pthread_t t;
    CHECK_EQ(pthread_create(&t, NULL, poll_forever, r.agent), 0);
    sleep_ms(100);
    stop(&r);
    CHECK_EQ(pthread_join(t, NULL), 0);
}

/* Submits until the agent says no. What it says must be one of the orderly refusals. */
static void *submit_until_refused(void *p)
{
    rank_t *r = p;
    uint64_t id;
    char name[32];
    int i;
    for (i = 0;; i++) {
        kvlink_status_t s;
        snprintf(name, sizeof name, "%p-%d", (void *)&id, i);
        s = i % 2 ? offer(r, name, 0, 8, 0, 0, &id) : accept_at(r, name, 8, 8, 0, 0, &id);
        if (s == KVLINK_E_BAD_HANDLE || s == KVLINK_E_WRONG_STATE)
            return NULL;
        if (s != KVLINK_E_LIMIT)
            CHECK_OK(s);
    }
}

static void deregistering_under_load_ends_everything(void)
{
    rank_t r = start_simple("deregistered");
    pthread_t threads[3];
    kvlink_event_t e[64];
    size_t n;
    int t;
    uint64_t id;
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_create(&threads[t], NULL, submit_until_refused, &r), 0);
    sleep_ms(50);
    CHECK_OK(kvlink_deregister(r.agent, 0));
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
    CHECK_ERROR(offer(&r, "late", 0, 8, 0, 0, &id), KVLINK_E_WRONG_STATE, "regions [0]");
    /* Whatever was accepted had ended when the call returned: its events are here. */
    do {
        size_t i;
        CHECK_OK(kvlink_poll(r.agent, e, 64, 0, &n));
        for (i = 0; i < n; i++)
            CHECK(e[i].status == KVLINK_E_CANCELLED);
    } while (n > 0);
    quiet(&r);
    stop(&r);
}

static void destroying_under_load_refuses_the_rest(void)
{
    rank_t r = start_simple("destroyed"), copy;
    pthread_t threads[3];
    int t;
    copy = r;
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_create(&threads[t], NULL, submit_until_refused, &copy), 0);
    sleep_ms(50);
    CHECK_OK(kvlink_agent_destroy(r.agent));
    for (t = 0; t < 3; t++)
        CHECK_EQ(pthread_join(threads[t], NULL), 0);
    CHECK_OK(kvlink_layout_destroy(r.layout));
    CHECK_OK(kvlink_shared_free(r.memory));
}

/* Big reads are under way when their agents go; afterwards not one byte changes. */
static void destroying_with_transfers_in_flight(const char *way)
{
    enum { READS = 24 };
    options_t o;
    rank_t from, to;
    unsigned char ticket[65536], *before;
    uint64_t p, id, tokens;
    size_t len;
    int i, round;
    for (round = 0; round < 4; round++) {
        memset(&o, 0, sizeof o);
        o.way = way;
        o.num_blocks = 512;
        o.record = 4096;
        o.instance = "from";
        from = start(o);
        o.instance = "to";
        to = start(o);
        tokens = (uint64_t)512 * BLOCK_TOKENS;
        memset(from.memory, 0x11 + round, from.len);
        p = connect_to(&to, &from, KVLINK_DIRECTION_INBOUND);
        for (i = 0; i < READS; i++) {
            char name[16];
            snprintf(name, sizeof name, "big-%d", i);
            CHECK_OK(offer(&from, name, 0, tokens, 0, 0, &id));
            len = ticket_of(&from, id, ticket, sizeof ticket);
            CHECK_OK(read_from(&to, p, ticket, len, 0, tokens, 0, 0, &id));
        }
        sleep_ms(round);
        before = malloc(to.len);
        if (round % 2) { /* the source goes */
            CHECK_OK(kvlink_agent_destroy(from.agent));
            memset(from.memory, 0xff, from.len);
            for (i = 0; i < READS; i++) {
                kvlink_event_t e = wait_for(&to, KVLINK_EVENT_TRANSFER);
                /* A peer's memory that is not there any more reads as that of an earlier life. */
                if (e.status != KVLINK_OK && e.status != KVLINK_E_INCARNATION)
                    CHECK_STATUS(e.status, KVLINK_E_PEER_DEAD);
            }
            memcpy(before, to.memory, to.len);
            CHECK_OK(kvlink_agent_destroy(to.agent));
        } else { /* the sink goes */
            CHECK_OK(kvlink_agent_destroy(to.agent));
            memcpy(before, to.memory, to.len);
            sleep_ms(30);
            CHECK_OK(kvlink_agent_destroy(from.agent));
        }
        CHECK(memcmp(before, to.memory, to.len) == 0);
        free(before);
        CHECK_OK(kvlink_layout_destroy(from.layout));
        CHECK_OK(kvlink_layout_destroy(to.layout));
        CHECK_OK(kvlink_shared_free(from.memory));
        CHECK_OK(kvlink_shared_free(to.memory));
    }
}

static void in_flight_shm(void)
{
    destroying_with_transfers_in_flight("shm");
}

static void in_flight_cma(void)
{
    destroying_with_transfers_in_flight("cma");
}

static void in_flight_tcp(void)
{
    destroying_with_transfers_in_flight("tcp");
}

int main(void)
{
    source = start_simple("source");
    sink = start_simple("sink");
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_INBOUND);
    RUN(several_threads_submit_while_one_polls);
    RUN(threads_share_layouts_and_plans);
    RUN(destroying_ends_a_poll_without_end);
    RUN(deregistering_under_load_ends_everything);
    RUN(destroying_under_load_refuses_the_rest);
    RUN(in_flight_shm);
    RUN(in_flight_cma);
    RUN(in_flight_tcp);
    stop(&sink);
    stop(&source);
    return 0;
}
