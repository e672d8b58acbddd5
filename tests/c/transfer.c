/* Transfers through the ABI, over every way of the host transport: bytes, events, payloads, what failed. */
#include "support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *way;
static rank_t source, sink;
static uint64_t peer, to_sink;

enum { TOKENS = 100, FROM = 3, TO = 20 };

static void begin(void)
{
    options_t o;
    memset(&o, 0, sizeof o);
    o.way = way;
    o.instance = "source";
    source = start(o);
    o.instance = "sink";
    sink = start(o);
    fill(&source, 1);
    memset(sink.memory, 0, sink.len);
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_INBOUND);
    CHECK_HAS(last_payload(), way);
    to_sink = connect_to(&source, &sink, KVLINK_DIRECTION_OUTBOUND);
}

static void the_transport_in_effect_is_told(void)
{
    char text[512], name[32];
    size_t len = 0;
    CHECK_STATUS(kvlink_effective_transport(sink.agent, peer, NULL, 0, &len), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_STATUS(kvlink_effective_transport(sink.agent, peer, text, len, NULL), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_OK(kvlink_effective_transport(sink.agent, peer, text, len + 1, NULL));
    CHECK_EQ(strlen(text), len);
    snprintf(name, sizeof name, "rank 0: host/%s", way);
    CHECK_HAS(text, name);
}

static void a_read_brings_the_bytes_and_releases_the_offer(void)
{
    unsigned char ticket[4096], origin[4096], written[4096];
    kvlink_offer_t same = {.struct_size = sizeof same, .request = "read", .blocks = blocks_from(FROM, TOKENS),
                           .num_blocks = 1, .tokens = TOKENS};
    kvlink_ticket_info_t info = {.struct_size = sizeof info};
    kvlink_statistics_t before = {.struct_size = sizeof before}, after = {.struct_size = sizeof after};
    uint64_t offered, id;
    uint32_t block;
    size_t len, n;
    kvlink_event_t e;
    CHECK_OK(kvlink_statistics(sink.agent, &before));
    CHECK_OK(offer(&source, "read", FROM, TOKENS, 0, 11, &offered));
    CHECK_ERROR(kvlink_ticket(source.agent, offered, NULL, 0, &len), KVLINK_E_BUFFER_TOO_SMALL, "0 bytes");
    CHECK_STATUS(kvlink_ticket(source.agent, offered, ticket, len - 1, NULL), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_OK(kvlink_ticket(source.agent, offered, ticket, len, NULL));
    CHECK_OK(kvlink_ticket(source.agent, 0, origin, sizeof origin, &n));
    CHECK_OK(kvlink_ticket_write(origin, n, &same, written, sizeof written, &n));
    CHECK(n == len && memcmp(written, ticket, n) == 0);
    CHECK_STATUS(kvlink_ticket_write(ticket, len, &same, NULL, 0, &n), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_OK(kvlink_ticket_info(ticket, len, &info));
    CHECK_EQ(info.rank, 0);
    CHECK_EQ(info.tokens, TOKENS);
    CHECK(info.incarnation != 0);
    CHECK(strcmp(info.instance, "source") == 0);
    CHECK(strcmp(info.request, "read") == 0);
    CHECK(strcmp(info.address, source.address) == 0);
    CHECK_OK(read_from(&sink, peer, ticket, len, TO, TOKENS, 0, 12, &id));
    /* Everything was copied: what we gave may change. */
    memset(ticket, 0, sizeof ticket);
    e = wait_for(&sink, KVLINK_EVENT_TRANSFER);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.id, id);
    CHECK_EQ(e.user_data, 12);
    CHECK_EQ(e.peer, peer);
    CHECK_EQ(e.bytes, (uint64_t)TOKENS * 256 * LAYERS);
    CHECK_EQ(e.spans, LAYERS);
    CHECK(same_tokens(&source, FROM, &sink, TO, 0, TOKENS));
    e = wait_for(&source, KVLINK_EVENT_RELEASED);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.id, offered);
    CHECK_EQ(e.user_data, 11);
    CHECK_OK(kvlink_statistics(sink.agent, &after));
    CHECK_EQ(after.bytes - before.bytes, e.bytes + (uint64_t)TOKENS * 256 * LAYERS);
    CHECK_EQ(after.transfers - before.transfers, 1);
    CHECK_STATUS(kvlink_failed_blocks(sink.agent, id, 0, &block, 1, &n), KVLINK_E_BAD_HANDLE);
}

static void a_part_is_read_and_nothing_beside_it(void)
{
    unsigned char ticket[4096];
    uint64_t offered, id;
    size_t len, i;
    kvlink_read_t a = {.struct_size = sizeof a, .peer = peer, .ticket = ticket, .num_blocks = 1, .token_begin = 10, .token_end = 33, .layer_first = 1, .layer_count = 1};
    memset(sink.memory, 0, sink.len);
    CHECK_OK(offer(&source, "part", FROM, TOKENS, 0, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    a.ticket_len = len;
    a.blocks = blocks_from(TO, TOKENS);
    CHECK_OK(kvlink_read_blocks(sink.agent, &a, &id));
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_TRANSFER).bytes, 23 * 256);
    for (i = 10; i < 33; i++) {
        CHECK(memcmp(record_at(&source, 1, FROM, i), record_at(&sink, 1, TO, i), 256) == 0);
        memset(record_at(&sink, 1, TO, i), 0, 256);
    }
    for (i = 0; i < sink.len; i++)
        CHECK_EQ(sink.memory[i], 0);
    CHECK_EQ(wait_for(&source, KVLINK_EVENT_RELEASED).status, KVLINK_OK);
}

static void writes_by_layer_and_chunk_make_one_received_event(void)
{
    kvlink_write_t w = {.struct_size = sizeof w, .peer = to_sink, .request = "write",
                        .num_blocks = 1, .token_total = TOKENS, .layer_count = 1};
    uint64_t accepted, id;
    kvlink_event_t e;
    int layer, chunk;
    memset(sink.memory, 0, sink.len);
    /* The first write waits for its accept. */
    for (chunk = 0; chunk < 2; chunk++)
        for (layer = 0; layer < 2; layer++) {
            w.layer_first = (uint32_t)layer;
            w.token_begin = chunk ? 64 : 0;
            w.token_end = chunk ? 0 : 64;
            w.last = chunk && layer;
            w.aux = w.last ? "hello" : NULL;
            w.aux_len = w.last ? 5 : 0;
            w.user_data = (uint64_t)(chunk * 2 + layer);
            w.blocks = blocks_from(FROM, TOKENS);
            CHECK_OK(kvlink_write_blocks(source.agent, &w, &id));
            if (chunk == 0 && layer == 0)
                CHECK_OK(accept_at(&sink, "write", TO, TOKENS, 0, 21, &accepted));
        }
    for (layer = 0; layer < 4; layer++)
        CHECK_EQ(wait_for(&source, KVLINK_EVENT_TRANSFER).status, KVLINK_OK);
    e = wait_for(&sink, KVLINK_EVENT_RECEIVED);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK_EQ(e.id, accepted);
    CHECK_EQ(e.user_data, 21);
    CHECK_EQ(e.bytes, (uint64_t)TOKENS * 256 * LAYERS);
    CHECK_EQ(e.payload_len, 5);
    CHECK(strcmp(last_payload(), "hello") == 0);
    CHECK(same_tokens(&source, FROM, &sink, TO, 0, TOKENS));
    quiet(&sink);
    quiet(&source);
}

static void a_message_after_a_transfer_comes_when_the_bytes_are_here(void)
{
    unsigned char ticket[4096];
    uint64_t offered, id;
    size_t len;
    kvlink_event_t e;
    CHECK_OK(offer(&source, "after", FROM, TOKENS, 0, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    CHECK_OK(read_from(&sink, peer, ticket, len, TO, TOKENS, 0, 0, &id));
    if (kvlink_notify(sink.agent, peer, 0, "done", 4, id) == KVLINK_OK) { /* unless it has completed already */
        e = wait_for(&source, KVLINK_EVENT_NOTIFICATION);
        CHECK(strcmp(last_payload(), "done") == 0);
        CHECK_EQ(e.status, KVLINK_OK);
    }
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_TRANSFER).status, KVLINK_OK);
    CHECK(same_tokens(&source, FROM, &sink, TO, 0, TOKENS));
}

static void a_failed_read_names_its_blocks(void)
{
    unsigned char ticket[4096];
    uint32_t ids[64];
    uint64_t offered, id;
    size_t len, n = 0, i;
    CHECK_OK(offer(&source, "fails", FROM, TOKENS, 0, 0, &offered));
    len = ticket_of(&source, offered, ticket, sizeof ticket);
    CHECK_OK(kvlink_cancel(source.agent, offered));
    /* Until this event the blocks are whole, and a read may still succeed. */
    while (wait_for(&source, KVLINK_EVENT_RELEASED).id != offered) {
    }
    CHECK_OK(read_from(&sink, peer, ticket, len, TO, TOKENS, 0, 0, &id));
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_TRANSFER).status, KVLINK_E_LEASE_EXPIRED);
    CHECK_HAS(last_payload(), "fails");
    CHECK_STATUS(kvlink_failed_blocks(sink.agent, id, 0, NULL, 0, &n), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_EQ(n, TOKENS / BLOCK_TOKENS);
    CHECK_STATUS(kvlink_failed_blocks(sink.agent, id, 0, ids, n - 1, &n), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_STATUS(kvlink_failed_blocks(sink.agent, id, 0, NULL, n, &n), KVLINK_E_NULL_POINTER);
    CHECK_STATUS(kvlink_failed_blocks(sink.agent, id, 0, ids, 64, NULL), KVLINK_E_NULL_POINTER);
    CHECK_ERROR(kvlink_failed_blocks(sink.agent, id, 1, ids, 64, &n), KVLINK_E_INVALID_ARGUMENT, "group 1",
                "1 groups");
    CHECK_OK(kvlink_failed_blocks(sink.agent, id, 0, ids, 64, &n));
    for (i = 0; i < n; i++)
        CHECK_EQ(ids[i], TO + i);
}

static void a_peer_that_goes_is_reported(void)
{
    uint64_t id;
    size_t n = 0;
    char text[64];
    int ours = 0, i;
    CHECK_OK(kvlink_agent_destroy(source.agent));
    /* As the peer that we shook hands with, and as the one that came to us and wrote. */
    for (i = 0; i < 2; i++)
        ours += wait_for(&sink, KVLINK_EVENT_PEER_DOWN).peer == peer;
    CHECK_EQ(ours, 1);
    CHECK_STATUS(kvlink_notify(sink.agent, peer, 0, "x", 1, 0), KVLINK_E_PEER_DEAD);
    CHECK_STATUS(write_to(&sink, peer, "w", 0, 0, 8, 8, 1, 0, &id), KVLINK_E_PEER_DEAD);
    CHECK_OK(kvlink_effective_transport(sink.agent, peer, text, sizeof text, &n));
    CHECK_EQ(n, 0);
    CHECK_OK(kvlink_disconnect(sink.agent, peer));
    quiet(&sink);
    CHECK_OK(kvlink_layout_destroy(source.layout));
    CHECK_OK(kvlink_shared_free(source.memory));
    stop(&sink);
}

int main(void)
{
    static const char *const ways[3] = {"shm", "cma", "tcp"};
    int i;
    for (i = 0; i < 3; i++) {
        way = ways[i];
        printf("-- host/%s\n", way);
        RUN(begin);
        RUN(the_transport_in_effect_is_told);
        RUN(a_read_brings_the_bytes_and_releases_the_offer);
        RUN(a_part_is_read_and_nothing_beside_it);
        RUN(writes_by_layer_and_chunk_make_one_received_event);
        RUN(a_message_after_a_transfer_comes_when_the_bytes_are_here);
        RUN(a_failed_read_names_its_blocks);
        RUN(a_peer_that_goes_is_reported);
    }
    return 0;
}
