/* Panics stay inside: built with the feature test-hooks, which alone exports the functions that panic. */
#include "support.h"
#include <pthread.h>
#include <string.h>

kvlink_status_t kvlink_test_panic(void);
kvlink_status_t kvlink_test_panic_in_call(const kvlink_agent_t *agent);
kvlink_status_t kvlink_test_panic_in_reactor(const kvlink_agent_t *agent);

static void *panic_on_a_thread(void *unused)
{
    CHECK_ERROR(kvlink_test_panic(), KVLINK_E_INTERNAL, "defect of kvlink", "a panic on purpose");
    return unused;
}

static void a_panic_is_a_status_with_a_message(void)
{
    rank_t r = start_simple("unharmed");
    pthread_t t;
    uint64_t id;
    panic_on_a_thread(NULL);
    panic_on_a_thread(NULL);
    CHECK_EQ(pthread_create(&t, NULL, panic_on_a_thread, NULL), 0);
    CHECK_EQ(pthread_join(t, NULL), 0);
    /* Nothing else is the worse for it. */
    CHECK_OK(offer(&r, "r", 0, 8, 0, 0, &id));
    CHECK_OK(kvlink_cancel(r.agent, id));
    CHECK_EQ(wait_for(&r, KVLINK_EVENT_RELEASED).status, KVLINK_E_CANCELLED);
    stop(&r);
}

/* A poisoned agent says so, once as an event and in every call, and can be destroyed. */
static void is_poisoned(rank_t *r, rank_t *friend, const char *why)
{
    kvlink_statistics_t s = {.struct_size = sizeof s};
    kvlink_event_t e = wait_for(r, KVLINK_EVENT_AGENT_FAILED);
    uint64_t id;
    size_t n;
    uint32_t block;
    char buf[256];
    CHECK_EQ(e.status, KVLINK_E_INTERNAL);
    CHECK_HAS(last_payload(), why);
    CHECK_ERROR(offer(r, "x", 0, 8, 0, 0, &id), KVLINK_E_POISONED, "destroy it");
    CHECK_STATUS(accept_at(r, "x", 0, 8, 0, 0, &id), KVLINK_E_POISONED);
    CHECK_STATUS(write_to(r, 1, "x", 0, 0, 8, 8, 1, 0, &id), KVLINK_E_POISONED);
    CHECK_STATUS(read_from(r, 1, "x", 1, 0, 8, 0, 0, &id), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_cancel(r->agent, 1), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_ticket(r->agent, 1, buf, sizeof buf, &n), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_notify(r->agent, 1, 0, "", 0, 0), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_handshake(r->agent, "127.0.0.1:1", 0, 0, &id), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_disconnect(r->agent, 1), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_effective_transport(r->agent, 1, buf, sizeof buf, &n), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_failed_blocks(r->agent, 1, 0, &block, 1, &n), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_register(r->agent, 0, r->memory, r->len), KVLINK_E_POISONED);
    CHECK_STATUS(kvlink_deregister(r->agent, 0), KVLINK_E_POISONED);
    CHECK_OK(kvlink_agent_address(r->agent, buf, sizeof buf, &n));
    CHECK_OK(kvlink_statistics(r->agent, &s));
    quiet(r);
    /* Its peer finds it dead. */
    CHECK_EQ(wait_for(friend, KVLINK_EVENT_PEER_DOWN).status, KVLINK_E_PEER_DEAD);
    stop(r);
}

static void a_panic_of_the_reactor_poisons_the_agent(void)
{
    rank_t r = start_simple("poisoned"), friend = start_simple("friend");
    connect_to(&friend, &r, KVLINK_DIRECTION_BOTH);
    CHECK_STATUS(kvlink_test_panic_in_reactor(r.agent), KVLINK_E_POISONED);
    is_poisoned(&r, &friend, "a panic on purpose in the reactor");
    stop(&friend);
}

static void a_panic_that_left_the_state_torn_poisons_the_agent(void)
{
    rank_t r = start_simple("poisoned"), friend = start_simple("friend");
    connect_to(&friend, &r, KVLINK_DIRECTION_BOTH);
    CHECK_ERROR(kvlink_test_panic_in_call(r.agent), KVLINK_E_INTERNAL, "a panic on purpose in a call");
    is_poisoned(&r, &friend, "a call panicked");
    stop(&friend);
}

int main(void)
{
    RUN(a_panic_is_a_status_with_a_message);
    RUN(a_panic_of_the_reactor_poisons_the_agent);
    RUN(a_panic_that_left_the_state_torn_poisons_the_agent);
    return 0;
}
