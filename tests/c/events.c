/* Events: exactly one for what was begun, in 64 bytes, told by the descriptor, with payloads that last as promised. */
#define _GNU_SOURCE
#include "support.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static rank_t source, sink;
static uint64_t peer;

static int readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n = poll(&p, 1, timeout_ms);
    CHECK(n >= 0);
    return n == 1 && (p.revents & POLLIN);
}

static void an_event_is_64_bytes_without_holes(void)
{
    CHECK_EQ(sizeof(kvlink_event_t), 64);
    CHECK_EQ(offsetof(kvlink_event_t, kind), 0);
    CHECK_EQ(offsetof(kvlink_event_t, status), 4);
    CHECK_EQ(offsetof(kvlink_event_t, user_data), 8);
    CHECK_EQ(offsetof(kvlink_event_t, id), 16);
    CHECK_EQ(offsetof(kvlink_event_t, peer), 24);
    CHECK_EQ(offsetof(kvlink_event_t, bytes), 32);
    CHECK_EQ(offsetof(kvlink_event_t, spans), 40);
    CHECK_EQ(offsetof(kvlink_event_t, payload), 48);
    CHECK_EQ(offsetof(kvlink_event_t, payload_len), 56);
    CHECK_EQ(offsetof(kvlink_event_t, rank), 60);
}

static void polling_waits_as_long_as_it_is_told(void)
{
    kvlink_event_t e;
    size_t n = 9;
    long long begin = now_ms();
    CHECK_OK(kvlink_poll(sink.agent, &e, 1, 0, &n));
    CHECK_EQ(n, 0);
    CHECK(now_ms() - begin < 5000);
    begin = now_ms();
    n = 9;
    CHECK_OK(kvlink_poll(sink.agent, &e, 1, 120, &n));
    CHECK_EQ(n, 0);
    CHECK(now_ms() - begin >= 119);
    /* No room: no event, and no waiting. */
    CHECK_OK(kvlink_poll(sink.agent, NULL, 0, KVLINK_FOREVER, &n));
    CHECK_EQ(n, 0);
}

static void the_descriptor_is_readable_exactly_while_events_wait(void)
{
    int fd = -1, again = -1, ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event want = {.events = EPOLLIN}, got;
    kvlink_event_t e;
    uint64_t ids[3];
    size_t n, i;
    char name[16];
    CHECK_OK(kvlink_event_fd(sink.agent, &fd));
    CHECK_OK(kvlink_event_fd(sink.agent, &again));
    CHECK_EQ(fd, again);
    CHECK_EQ(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &want), 0);
    CHECK_EQ(epoll_wait(ep, &got, 1, 0), 0);
    for (i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "fd-%u", (unsigned)i);
        CHECK_OK(offer(&sink, name, 0, 8, 0, i, &ids[i]));
    }
    CHECK_EQ(epoll_wait(ep, &got, 1, 50), 0);
    for (i = 0; i < 3; i++)
        CHECK_OK(kvlink_cancel(sink.agent, ids[i]));
    /* Level-triggered: it stays readable until the last event was taken. */
    for (i = 0; i < 3; i++) {
        CHECK_EQ(epoll_wait(ep, &got, 1, 10000), 1);
        CHECK_EQ(epoll_wait(ep, &got, 1, 0), 1);
        CHECK_OK(kvlink_poll(sink.agent, NULL, 0, 0, &n));
        CHECK_EQ(epoll_wait(ep, &got, 1, 0), 1);
        CHECK_OK(kvlink_poll(sink.agent, &e, 1, 10000, &n));
        CHECK_EQ(n, 1);
        CHECK_EQ(e.user_data, i);
    }
    CHECK_EQ(epoll_wait(ep, &got, 1, 0), 0);
    CHECK_OK(kvlink_poll(sink.agent, &e, 1, 0, &n));
    CHECK_EQ(n, 0);
    close(ep);
}

static void every_event_wakes_who_sleeps_on_the_descriptor(void)
{
    kvlink_event_t e[4];
    int fd = -1, round;
    uint64_t id;
    size_t n;
    CHECK_OK(kvlink_event_fd(sink.agent, &fd));
    for (round = 0; round < 300; round++) {
        CHECK_OK(offer(&sink, "wake", 0, 8, 0, (uint64_t)round, &id));
        CHECK_OK(kvlink_cancel(sink.agent, id));
        CHECK(readable(fd, 10000));
        CHECK_OK(kvlink_poll(sink.agent, e, 4, 0, &n));
        CHECK_EQ(n, 1);
        CHECK_EQ(e[0].user_data, round);
        CHECK(!readable(fd, 0));
    }
}

static void payloads_last_until_the_next_poll_and_end_with_a_nul(void)
{
    static const char *const texts[3] = {"first", "", "a longer third message with a \1 in it"};
    kvlink_event_t e[3];
    size_t have = 0, n, i;
    char big[70000];
    for (i = 0; i < 3; i++)
        CHECK_OK(kvlink_notify(sink.agent, peer, 0, texts[i], strlen(texts[i]), 0));
    sleep_ms(200);
    while (have < 3) {
        CHECK_OK(kvlink_poll(source.agent, e, 3, 10000, &n));
        CHECK(n > 0);
        for (i = 0; i < n; i++, have++) {
            CHECK_EQ(e[i].kind, KVLINK_EVENT_NOTIFICATION);
            CHECK_EQ(e[i].rank, 0);
            CHECK(e[i].peer != 0);
            CHECK_EQ(e[i].payload_len, strlen(texts[have]));
            CHECK(strcmp(e[i].payload, texts[have]) == 0);
        }
        /* Other calls in between do not end their life. */
        CHECK_STATUS(kvlink_cancel(source.agent, 1), KVLINK_E_BAD_HANDLE);
        CHECK(strcmp(e[n - 1].payload, texts[have - 1]) == 0);
    }
    memset(big, 'x', sizeof big);
    CHECK_OK(kvlink_notify(sink.agent, peer, KVLINK_ALL_RANKS, big, sizeof big, 0));
    CHECK_OK(kvlink_poll(source.agent, e, 1, 10000, &n));
    CHECK_EQ(n, 1);
    CHECK_EQ(e[0].payload_len, sizeof big);
    CHECK(memcmp(e[0].payload, big, sizeof big) == 0);
    CHECK_EQ(((const char *)e[0].payload)[sizeof big], 0);
}

static void an_event_without_payload_still_points_to_a_text(void)
{
    kvlink_event_t e;
    uint64_t id;
    size_t n;
    CHECK_OK(accept_at(&sink, "failing", 0, 8, 30, 5, &id));
    CHECK_OK(kvlink_poll(sink.agent, &e, 1, 10000, &n));
    CHECK_EQ(n, 1);
    CHECK_EQ(e.kind, KVLINK_EVENT_RECEIVED);
    CHECK_EQ(e.status, KVLINK_E_DEADLINE);
    CHECK_EQ(e.id, id);
    CHECK_EQ(e.user_data, 5);
    CHECK_EQ(strlen(e.payload), e.payload_len);
    CHECK_HAS(e.payload, "deadline");
    CHECK_OK(accept_at(&sink, "empty", 0, 0, 0, 6, &id));
    CHECK_OK(write_to(&source, connect_to(&source, &sink, KVLINK_DIRECTION_OUTBOUND), "empty", 0, 0, 0, 0, 1, 7, &id));
    CHECK_OK(kvlink_poll(sink.agent, &e, 1, 10000, &n));
    CHECK_EQ(n, 1);
    CHECK_EQ(e.kind, KVLINK_EVENT_RECEIVED);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.payload_len, 0);
    CHECK(e.payload != NULL && *(const char *)e.payload == 0);
    CHECK_EQ(wait_for(&source, KVLINK_EVENT_TRANSFER).status, KVLINK_OK);
}

static void many_requests_have_one_event_each(void)
{
    enum { N = 200 };
    unsigned char seen[N] = {0};
    kvlink_event_t e[16];
    unsigned total = 0;
    uint64_t id;
    size_t n, i;
    char name[16];
    for (i = 0; i < N; i++) {
        snprintf(name, sizeof name, "one-%u", (unsigned)i);
        CHECK_OK(i % 2 ? accept_at(&sink, name, 0, 8, 20, i, &id) : offer(&sink, name, 0, 8, 20, i, &id));
        if (i % 3 == 0) /* may have ended by itself already */
            (void)kvlink_cancel(sink.agent, id);
    }
    while (total < N) {
        CHECK_OK(kvlink_poll(sink.agent, e, 16, 10000, &n));
        CHECK(n > 0 && n <= 16);
        for (i = 0; i < n; i++, total++) {
            CHECK(e[i].user_data < N);
            CHECK_EQ(seen[e[i].user_data], 0);
            seen[e[i].user_data] = 1;
            CHECK_EQ(e[i].kind, e[i].user_data % 2 ? KVLINK_EVENT_RECEIVED : KVLINK_EVENT_RELEASED);
            CHECK(e[i].status == KVLINK_E_CANCELLED || e[i].status == KVLINK_E_DEADLINE ||
                  e[i].status == KVLINK_E_LEASE_EXPIRED);
        }
    }
    quiet(&sink);
}

int main(void)
{
    source = start_simple("source");
    sink = start_simple("sink");
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_BOTH);
    RUN(an_event_is_64_bytes_without_holes);
    RUN(polling_waits_as_long_as_it_is_told);
    RUN(the_descriptor_is_readable_exactly_while_events_wait);
    RUN(every_event_wakes_who_sleeps_on_the_descriptor);
    RUN(payloads_last_until_the_next_poll_and_end_with_a_nul);
    RUN(an_event_without_payload_still_points_to_a_text);
    RUN(many_requests_have_one_event_each);
    stop(&sink);
    stop(&source);
    return 0;
}
