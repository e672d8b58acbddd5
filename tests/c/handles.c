/* Stale and foreign handles and ids: each is an error, whatever it is. */
#include "support.h"
#include <stdio.h>
#include <string.h>

static rank_t source, sink, other;
static uint64_t peer;

#define BAD(call) CHECK_ERROR(call, KVLINK_E_BAD_HANDLE, "stale")

/* Every function that takes an agent. */
static void refuses(const void *handle)
{
    const kvlink_agent_t *a = handle;
    kvlink_statistics_t s = {.struct_size = sizeof s};
    kvlink_offer_t o = {.struct_size = sizeof o};
    kvlink_accept_t acc = {.struct_size = sizeof acc};
    kvlink_read_t rd = {.struct_size = sizeof rd};
    kvlink_write_t w = {.struct_size = sizeof w};
    kvlink_event_t e;
    char buf[256];
    uint32_t block;
    uint64_t id = 0;
    size_t n = 0;
    int fd = -1;
    BAD(kvlink_agent_destroy((kvlink_agent_t *)handle));
    BAD(kvlink_agent_address(a, buf, sizeof buf, &n));
    BAD(kvlink_register(a, 0, buf, sizeof buf));
    BAD(kvlink_deregister(a, 0));
    BAD(kvlink_statistics(a, &s));
    BAD(kvlink_handshake(a, "127.0.0.1:1", 0, 0, &id));
    BAD(kvlink_disconnect(a, peer));
    BAD(kvlink_effective_transport(a, peer, buf, sizeof buf, &n));
    BAD(kvlink_notify(a, peer, 0, "", 0, 0));
    BAD(kvlink_offer(a, &o, &id));
    BAD(kvlink_ticket(a, 1, buf, sizeof buf, &n));
    BAD(kvlink_read_blocks(a, &rd, &id));
    BAD(kvlink_accept(a, &acc, &id));
    BAD(kvlink_write_blocks(a, &w, &id));
    BAD(kvlink_cancel(a, 1));
    BAD(kvlink_failed_blocks(a, 1, 0, &block, 1, &n));
    BAD(kvlink_poll(a, &e, 1, 0, &n));
    BAD(kvlink_event_fd(a, &fd));
    CHECK_EQ(fd, -1);
    CHECK_EQ(id, 0);
}

static void refuses_layout(const void *handle)
{
    const kvlink_layout_t *l = handle, *good = source.layout;
    kvlink_agent_config_t c = {.struct_size = sizeof c, .instance = "x"};
    kvlink_agent_t *a = NULL;
    kvlink_plan_t *p = NULL;
    kvlink_group_t g;
    uint64_t u;
    char buf[8];
    size_t n;
    BAD(kvlink_layout_destroy((kvlink_layout_t *)handle));
    BAD(kvlink_layout_explain(l, buf, sizeof buf, &n));
    BAD(kvlink_layout_regions(l, &u, 1, &n));
    BAD(kvlink_layout_groups(l, &g, 1, &n));
    BAD(kvlink_layout_check(&l, 1, &good, 1, 0, NULL, 0, &n));
    BAD(kvlink_layout_check(&good, 1, &l, 1, 0, NULL, 0, &n));
    BAD(kvlink_plan_create(&l, 1, &good, 1, 0, 0, &p));
    BAD(kvlink_plan_create(&good, 1, &l, 1, 0, 0, &p));
    BAD(kvlink_agent_create(&c, l, &a));
    CHECK(a == NULL && p == NULL);
}

static void refuses_plan(const void *handle)
{
    kvlink_plan_request_t q = {.struct_size = sizeof q};
    char buf[8];
    size_t n;
    BAD(kvlink_plan_destroy((kvlink_plan_t *)handle));
    BAD(kvlink_plan_expand(handle, &q, NULL, 0, &n));
    BAD(kvlink_plan_explain(handle, buf, sizeof buf, &n));
}

static void a_handle_of_another_kind_is_refused(void)
{
    const kvlink_layout_t *list = source.layout;
    kvlink_plan_t *plan = NULL;
    static int mine;
    CHECK_OK(kvlink_plan_create(&list, 1, &list, 1, 0, 0, &plan));
    refuses(source.layout);
    refuses(plan);
    refuses(&mine);
    refuses((void *)1);
    refuses((void *)UINTPTR_MAX);
    refuses_layout(source.agent);
    refuses_layout(plan);
    refuses_layout(&mine);
    refuses_plan(source.agent);
    refuses_plan(source.layout);
    refuses_plan(&mine);
    CHECK_OK(kvlink_plan_destroy(plan));
}

static void a_stale_handle_is_refused(void)
{
    rank_t gone = start_simple("gone"), copy = gone;
    const kvlink_layout_t *list = source.layout;
    kvlink_plan_t *plan = NULL;
    CHECK_OK(kvlink_plan_create(&list, 1, &list, 1, 0, 0, &plan));
    CHECK_OK(kvlink_plan_destroy(plan));
    refuses_plan(plan);
    stop(&gone);
    refuses(copy.agent);
    refuses_layout(copy.layout);
    /* A new one never is the old one again. */
    gone = start_simple("again");
    CHECK(gone.agent != copy.agent && gone.layout != copy.layout);
    refuses(copy.agent);
    stop(&gone);
    CHECK_ERROR(kvlink_shared_free(copy.memory), KVLINK_E_BAD_HANDLE, "freed");
    CHECK_ERROR(kvlink_shared_free(&gone), KVLINK_E_BAD_HANDLE, "kvlink_shared_alloc");
}

/* An id that names nothing of its kind, in every function that takes one. */
static void refuses_id(uint64_t id, int is_peer, int is_offer, int ends)
{
    const kvlink_agent_t *a = sink.agent;
    unsigned char ticket[4096];
    char buf[256];
    uint64_t made = 0;
    uint32_t block;
    size_t n, len;
    uint64_t offered;
    CHECK_OK(offer(&source, "for a ticket", 0, 8, 0, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    CHECK_OK(kvlink_cancel(source.agent, offered));
    wait_for(&source, KVLINK_EVENT_RELEASED);
    if (!is_peer) {
        BAD(kvlink_disconnect(a, id));
        BAD(kvlink_effective_transport(a, id, buf, sizeof buf, &n));
        BAD(kvlink_notify(a, id, 0, "x", 1, 0));
        BAD(kvlink_notify(a, id, KVLINK_ALL_RANKS, "x", 1, 0));
        BAD(read_from(&sink, id, ticket, len, 0, 8, 0, 0, &made));
        BAD(write_to(&sink, id, "r", 0, 0, 8, 8, 1, 0, &made));
    }
    /* 0 is a ticket of no request. */
    if (!is_offer && id != 0)
        BAD(kvlink_ticket(a, id, buf, sizeof buf, &n));
    if (!ends)
        CHECK_ERROR(kvlink_cancel(a, id), KVLINK_E_BAD_HANDLE, "0x");
    CHECK_ERROR(kvlink_failed_blocks(a, id, 0, &block, 1, &n), KVLINK_E_BAD_HANDLE, "0x");
    if (id != 0) /* 0 means: after nothing */
        CHECK_ERROR(kvlink_notify(a, peer, 0, "x", 1, id), KVLINK_E_BAD_HANDLE, "0x");
    CHECK_EQ(made, 0);
}

static void a_foreign_or_impossible_id_is_refused(void)
{
    uint64_t theirs = connect_to(&other, &source, KVLINK_DIRECTION_BOTH), offered = 0, accepted = 0, mine = 0;
    refuses_id(0, 0, 0, 0);
    refuses_id(1, 0, 0, 0);
    refuses_id(UINT64_MAX, 0, 0, 0);
    refuses_id(peer, 1, 0, 0);
    refuses_id(peer ^ 1, 0, 0, 0);
    refuses_id(peer + (1ull << 28), 0, 0, 0);
    refuses_id(theirs, 0, 0, 0);
    CHECK_OK(offer(&other, "theirs", 0, 8, 0, 0, &offered));
    CHECK_OK(accept_at(&other, "theirs", 8, 8, 0, 0, &accepted));
    refuses_id(offered, 0, 0, 0);
    refuses_id(accepted, 0, 0, 0);
    CHECK_OK(offer(&sink, "mine", 0, 8, 0, 0, &mine));
    refuses_id(mine, 0, 1, 1);
    CHECK_OK(kvlink_cancel(sink.agent, mine));
    CHECK_OK(kvlink_cancel(other.agent, offered));
    CHECK_OK(kvlink_cancel(other.agent, accepted));
    CHECK_EQ(wait_for(&other, KVLINK_EVENT_RELEASED).id, offered);
    CHECK_EQ(wait_for(&other, KVLINK_EVENT_RECEIVED).id, accepted);
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_RELEASED).id, mine);
    refuses_id(mine, 0, 0, 0);
    CHECK_OK(kvlink_disconnect(other.agent, theirs));
}

static void an_id_is_stale_after_its_end(void)
{
    uint64_t p = connect_to(&sink, &other, KVLINK_DIRECTION_BOTH), offered = 0, accepted = 0, transfer = 0;
    unsigned char ticket[4096];
    size_t len;
    kvlink_event_t e;
    CHECK_OK(offer(&other, "once", 0, 8, 0, 1, &offered));
    len = ticket_of(&other, offered, ticket, sizeof ticket);
    CHECK_OK(read_from(&sink, p, ticket, len, 8, 8, 0, 2, &transfer));
    e = wait_for(&sink, KVLINK_EVENT_TRANSFER);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.id, transfer);
    refuses_id(transfer, 0, 0, 0);
    CHECK_EQ(wait_for(&other, KVLINK_EVENT_RELEASED).id, offered);
    CHECK_ERROR(kvlink_cancel(other.agent, offered), KVLINK_E_BAD_HANDLE, "0x");
    BAD(kvlink_ticket(other.agent, offered, ticket, sizeof ticket, &len));
    CHECK_OK(accept_at(&sink, "twice", 0, 8, 0, 0, &accepted));
    CHECK_OK(kvlink_cancel(sink.agent, accepted));
    CHECK_ERROR(kvlink_cancel(sink.agent, accepted), KVLINK_E_BAD_HANDLE, "0x");
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_RECEIVED).id, accepted);
    CHECK_OK(kvlink_disconnect(sink.agent, p));
    BAD(kvlink_disconnect(sink.agent, p));
    refuses_id(p, 0, 0, 0);
    quiet(&sink);
}

int main(void)
{
    source = start_simple("source");
    sink = start_simple("sink");
    other = start_simple("other");
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_BOTH);
    RUN(a_handle_of_another_kind_is_refused);
    RUN(a_stale_handle_is_refused);
    RUN(a_foreign_or_impossible_id_is_refused);
    RUN(an_id_is_stale_after_its_end);
    stop(&other);
    stop(&sink);
    stop(&source);
    return 0;
}
