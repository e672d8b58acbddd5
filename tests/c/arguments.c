/* Arguments: NULL for every pointer, every size of every struct, the constant functions, the message. */
#define _GNU_SOURCE
#include "support.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static rank_t r;
static unsigned char ticket[4096];
static size_t ticket_len;

static void constants(void)
{
    unsigned major, minor, patch;
    char rest;
    int status;
    CHECK_EQ(sscanf(kvlink_version(), "%u.%u.%u%c", &major, &minor, &patch, &rest), 3);
    CHECK(kvlink_version() == kvlink_version());
    CHECK(strcmp(kvlink_status_text(KVLINK_OK), "success") == 0);
    CHECK(strcmp(kvlink_status_text(KVLINK_E_LEASE_EXPIRED), "lease expired") == 0);
    for (status = -600; status < 10; status++)
        CHECK(kvlink_status_text(status) != NULL);
    CHECK(strcmp(kvlink_status_text(12345), "unknown status") == 0);
    CHECK(strcmp(kvlink_status_text(INT32_MIN), "unknown status") == 0);
    CHECK_EQ(sizeof(kvlink_event_t), 64);
    CHECK_EQ(sizeof(kvlink_status_t), 4);
}

static void *other_thread(void *text)
{
    size_t len = 99;
    CHECK_OK(kvlink_last_error(text, 64, &len));
    CHECK_EQ(len, 0);
    CHECK_STATUS(kvlink_layout_create(NULL, NULL), KVLINK_E_NULL_POINTER);
    return NULL;
}

static void the_message_is_the_threads_own_and_stays_until_the_next_failure(void)
{
    char text[256], before[256], small[4] = "abc";
    size_t len = 0;
    pthread_t thread;
    CHECK_STATUS(kvlink_disconnect(r.agent, 0x1234), KVLINK_E_BAD_HANDLE);
    CHECK_OK(kvlink_last_error(before, sizeof before, &len));
    CHECK_EQ(strlen(before), len);
    CHECK_HAS(before, "0x1234");
    /* Asking for its size, or with too small a buffer, does not replace it. */
    CHECK_STATUS(kvlink_last_error(NULL, 0, &len), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_EQ(len, strlen(before));
    CHECK_STATUS(kvlink_last_error(small, sizeof small, NULL), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK(strcmp(small, "abc") == 0);
    CHECK_STATUS(kvlink_last_error(NULL, 1000, &len), KVLINK_E_NULL_POINTER);
    CHECK_OK(kvlink_last_error(text, len + 1, NULL));
    CHECK(strcmp(text, before) == 0);
    /* Nor does a call that succeeds, nor another thread. */
    CHECK_OK(kvlink_agent_address(r.agent, text, sizeof text, NULL));
    CHECK_EQ(pthread_create(&thread, NULL, other_thread, text), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_OK(kvlink_last_error(text, sizeof text, NULL));
    CHECK(strcmp(text, before) == 0);
}

#define NULL_ERROR(call, name) CHECK_ERROR(call, KVLINK_E_NULL_POINTER, name, "NULL")

static void null_for_every_pointer_of_layouts_and_plans(void)
{
    kvlink_layout_t *layout = NULL, *made = r.layout;
    const kvlink_layout_t *list = r.layout, *none = NULL;
    kvlink_layout_desc_t d = {.struct_size = sizeof d};
    kvlink_record_t rec = {.num_layers = 1, .element_bytes = 4, .role = "r"};
    kvlink_attention_t att = {.num_layers = 1};
    kvlink_state_t st = {.num_layers = 1};
    kvlink_group_t g = {.block_tokens = 4, .num_blocks = 4};
    kvlink_axis_t axis = {.extent = 4};
    kvlink_part_t part = {.region = 0};
    kvlink_tensor_t t = {.role = "t", .dtype = 1};
    kvlink_plan_t *plan = NULL;
    kvlink_plan_request_t q = {.struct_size = sizeof q, .token_total = 4};
    kvlink_blocks_t b = {NULL, 1, 0};
    kvlink_span_t span;
    size_t n;
    char buf[8];
    uint64_t u;
    NULL_ERROR(kvlink_layout_create(NULL, &layout), "kvlink_layout_desc_t");
    NULL_ERROR(kvlink_layout_create(&d, NULL), "out_layout");
    d.num_regions = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "region_bytes");
    d.num_regions = 0;
    d.num_groups = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "groups");
    d.groups = &g;
    d.num_attention = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "attention");
    d.attention = &att;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "attention[0].layers");
    d.num_attention = 0;
    d.num_records = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "records");
    d.records = &rec;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "records[0].layers");
    d.num_records = 0;
    d.num_states = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "states");
    d.states = &st;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "states[0].layers");
    d.num_states = 0;
    d.num_tensors = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors");
    d.tensors = &t;
    t.num_axes = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors[0].axes");
    t.axes = &axis;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors[0].axes[0].name");
    axis.name = "a";
    t.num_parts = 1;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors[0].parts");
    t.parts = &part;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors[0].parts[0].extents");
    t.num_parts = 0;
    t.role = NULL;
    NULL_ERROR(kvlink_layout_create(&d, &layout), "tensors[0].role");
    NULL_ERROR(kvlink_layout_from_json(NULL, 2, &layout), "json");
    NULL_ERROR(kvlink_layout_from_json("{}", 2, NULL), "out_layout");
    CHECK(layout == NULL);
    CHECK_OK(kvlink_layout_destroy(NULL));
    NULL_ERROR(kvlink_layout_explain(NULL, buf, sizeof buf, &n), "layout");
    NULL_ERROR(kvlink_layout_explain(made, NULL, 1 << 20, &n), "buf");
    NULL_ERROR(kvlink_layout_regions(NULL, &u, 1, &n), "layout");
    NULL_ERROR(kvlink_layout_regions(made, NULL, 1, &n), "list");
    NULL_ERROR(kvlink_layout_regions(made, &u, 1, NULL), "count");
    NULL_ERROR(kvlink_layout_groups(NULL, &g, 1, &n), "layout");
    NULL_ERROR(kvlink_layout_groups(made, NULL, 1, &n), "list");
    NULL_ERROR(kvlink_layout_groups(made, &g, 1, NULL), "count");
    NULL_ERROR(kvlink_layout_check(NULL, 1, &list, 1, 0, NULL, 0, &n), "sources");
    NULL_ERROR(kvlink_layout_check(&list, 1, NULL, 1, 0, NULL, 0, &n), "destinations");
    NULL_ERROR(kvlink_layout_check(&none, 1, &list, 1, 0, NULL, 0, &n), "layout");
    NULL_ERROR(kvlink_layout_check(&list, 1, &list, 1, 0, NULL, 1, &n), "findings");
    NULL_ERROR(kvlink_layout_check(&list, 1, &list, 1, 0, NULL, 0, NULL), "count");
    NULL_ERROR(kvlink_plan_create(NULL, 1, &list, 1, 0, 0, &plan), "sources");
    NULL_ERROR(kvlink_plan_create(&list, 1, NULL, 1, 0, 0, &plan), "destinations");
    NULL_ERROR(kvlink_plan_create(&list, 1, &list, 1, 0, 0, NULL), "out_plan");
    CHECK_OK(kvlink_plan_destroy(NULL));
    CHECK_OK(kvlink_plan_create(&list, 1, &list, 1, 0, 0, &plan));
    NULL_ERROR(kvlink_plan_expand(NULL, &q, &span, 1, &n), "plan");
    NULL_ERROR(kvlink_plan_expand(plan, NULL, &span, 1, &n), "kvlink_plan_request_t");
    q.num_source_blocks = 1;
    NULL_ERROR(kvlink_plan_expand(plan, &q, &span, 1, &n), "source_blocks");
    q.source_blocks = &b;
    NULL_ERROR(kvlink_plan_expand(plan, &q, &span, 1, &n), "source_blocks[0].ids");
    q.source_blocks = blocks_from(0, 4);
    q.num_destination_blocks = 1;
    NULL_ERROR(kvlink_plan_expand(plan, &q, &span, 1, &n), "destination_blocks");
    q.destination_blocks = blocks_from(0, 4);
    NULL_ERROR(kvlink_plan_expand(plan, &q, NULL, 9, &n), "list");
    NULL_ERROR(kvlink_plan_expand(plan, &q, &span, 1, NULL), "count");
    NULL_ERROR(kvlink_plan_explain(NULL, buf, sizeof buf, &n), "plan");
    NULL_ERROR(kvlink_plan_explain(plan, NULL, 1000, &n), "buf");
    CHECK_OK(kvlink_plan_destroy(plan));
}

static void null_for_every_pointer_of_agents(void)
{
    kvlink_agent_config_t c = {.struct_size = sizeof c};
    kvlink_agent_t *agent = NULL, *a = r.agent;
    kvlink_statistics_t s = {.struct_size = sizeof s};
    kvlink_offer_t o = {.struct_size = sizeof o};
    kvlink_accept_t acc = {.struct_size = sizeof acc};
    kvlink_read_t rd = {.struct_size = sizeof rd, .ticket_len = 1};
    kvlink_write_t w = {.struct_size = sizeof w};
    kvlink_ticket_info_t info = {.struct_size = sizeof info};
    kvlink_blocks_t b = {NULL, 1, 0};
    kvlink_event_t e;
    uint64_t id = 0;
    uint32_t u = 0;
    size_t n;
    int fd;
    char buf[256];
    void *memory = NULL;
    NULL_ERROR(kvlink_agent_create(NULL, r.layout, &agent), "kvlink_agent_config_t");
    NULL_ERROR(kvlink_agent_create(&c, r.layout, &agent), "instance");
    c.instance = "x";
    NULL_ERROR(kvlink_agent_create(&c, NULL, &agent), "layout");
    NULL_ERROR(kvlink_agent_create(&c, r.layout, NULL), "out_agent");
    CHECK(agent == NULL);
    CHECK_OK(kvlink_agent_destroy(NULL));
    NULL_ERROR(kvlink_agent_address(NULL, buf, sizeof buf, &n), "agent");
    NULL_ERROR(kvlink_agent_address(a, NULL, sizeof buf, &n), "buf");
    NULL_ERROR(kvlink_shared_alloc(1, NULL), "out_memory");
    CHECK_ERROR(kvlink_shared_alloc(0, &memory), KVLINK_E_INVALID_ARGUMENT, "0 bytes");
    CHECK(memory == NULL);
    CHECK_OK(kvlink_shared_free(NULL));
    NULL_ERROR(kvlink_register(NULL, 0, buf, sizeof buf), "agent");
    CHECK_ERROR(kvlink_register(a, 0, NULL, 100), KVLINK_E_INVALID_ARGUMENT, "0x0", "100");
    CHECK_ERROR(kvlink_register(a, 0, buf, 0), KVLINK_E_INVALID_ARGUMENT, "0 bytes");
    CHECK_STATUS(kvlink_register(a, 0, buf, SIZE_MAX), KVLINK_E_INVALID_ARGUMENT);
    NULL_ERROR(kvlink_deregister(NULL, 0), "agent");
    NULL_ERROR(kvlink_statistics(NULL, &s), "agent");
    NULL_ERROR(kvlink_statistics(a, NULL), "kvlink_statistics_t");
    NULL_ERROR(kvlink_handshake(NULL, "127.0.0.1:1", 0, 0, &id), "agent");
    NULL_ERROR(kvlink_handshake(a, NULL, 0, 0, &id), "address");
    NULL_ERROR(kvlink_handshake(a, "127.0.0.1:1", 0, 0, NULL), "out_peer");
    CHECK_ERROR(kvlink_handshake(a, "127.0.0.1:1", 3, 0, &id), KVLINK_E_UNKNOWN_ENUM, "direction", "3", "0..=2");
    CHECK_ERROR(kvlink_handshake(a, "", 0, 0, &id), KVLINK_E_INVALID_ARGUMENT, "0 bytes");
    CHECK_ERROR(kvlink_handshake(a, "\xc3\x28", 0, 0, &id), KVLINK_E_INVALID_ARGUMENT, "address", "UTF-8");
    NULL_ERROR(kvlink_disconnect(NULL, 1), "agent");
    NULL_ERROR(kvlink_effective_transport(NULL, 1, buf, sizeof buf, &n), "agent");
    NULL_ERROR(kvlink_notify(NULL, 1, 0, "", 0, 0), "agent");
    NULL_ERROR(kvlink_notify(a, 1, 0, NULL, 1, 0), "data");
    NULL_ERROR(kvlink_offer(NULL, &o, &id), "agent");
    NULL_ERROR(kvlink_offer(a, NULL, &id), "kvlink_offer_t");
    NULL_ERROR(kvlink_offer(a, &o, &id), "request");
    o.request = "n";
    o.num_blocks = 1;
    NULL_ERROR(kvlink_offer(a, &o, &id), "blocks");
    o.blocks = &b;
    NULL_ERROR(kvlink_offer(a, &o, &id), "blocks[0].ids");
    o.blocks = blocks_from(0, 4);
    o.tokens = 4;
    NULL_ERROR(kvlink_offer(a, &o, NULL), "out_offer");
    NULL_ERROR(kvlink_ticket(NULL, 1, buf, sizeof buf, &n), "agent");
    NULL_ERROR(kvlink_ticket_info(NULL, 1, &info), "ticket");
    CHECK_STATUS(kvlink_ticket_info(NULL, 0, &info), KVLINK_E_INVALID_TICKET);
    NULL_ERROR(kvlink_ticket_info(ticket, ticket_len, NULL), "kvlink_ticket_info_t");
    NULL_ERROR(kvlink_ticket_write(NULL, 1, &o, buf, sizeof buf, &n), "like");
    NULL_ERROR(kvlink_ticket_write(ticket, ticket_len, NULL, buf, sizeof buf, &n), "kvlink_offer_t");
    NULL_ERROR(kvlink_ticket_write(ticket, ticket_len, &o, NULL, sizeof buf, &n), "buf");
    NULL_ERROR(kvlink_read_blocks(NULL, &rd, &id), "agent");
    NULL_ERROR(kvlink_read_blocks(a, NULL, &id), "kvlink_read_t");
    NULL_ERROR(kvlink_read_blocks(a, &rd, &id), "ticket");
    rd.ticket = ticket;
    rd.ticket_len = ticket_len;
    rd.num_blocks = 1;
    NULL_ERROR(kvlink_read_blocks(a, &rd, &id), "blocks");
    rd.blocks = &b;
    NULL_ERROR(kvlink_read_blocks(a, &rd, &id), "blocks[0].ids");
    rd.blocks = blocks_from(0, 4);
    NULL_ERROR(kvlink_read_blocks(a, &rd, NULL), "out_transfer");
    NULL_ERROR(kvlink_accept(NULL, &acc, &id), "agent");
    NULL_ERROR(kvlink_accept(a, NULL, &id), "kvlink_accept_t");
    NULL_ERROR(kvlink_accept(a, &acc, &id), "request");
    acc.request = "n";
    acc.num_blocks = 1;
    NULL_ERROR(kvlink_accept(a, &acc, &id), "blocks");
    acc.blocks = &b;
    NULL_ERROR(kvlink_accept(a, &acc, &id), "blocks[0].ids");
    acc.blocks = blocks_from(0, 4);
    acc.tokens = 4;
    NULL_ERROR(kvlink_accept(a, &acc, NULL), "out_accept");
    NULL_ERROR(kvlink_write_blocks(NULL, &w, &id), "agent");
    NULL_ERROR(kvlink_write_blocks(a, NULL, &id), "kvlink_write_t");
    NULL_ERROR(kvlink_write_blocks(a, &w, &id), "request");
    w.request = "n";
    w.num_blocks = 1;
    NULL_ERROR(kvlink_write_blocks(a, &w, &id), "blocks");
    w.blocks = &b;
    NULL_ERROR(kvlink_write_blocks(a, &w, &id), "blocks[0].ids");
    w.blocks = blocks_from(0, 4);
    w.aux_len = 1;
    NULL_ERROR(kvlink_write_blocks(a, &w, &id), "aux");
    w.aux_len = 0;
    NULL_ERROR(kvlink_write_blocks(a, &w, NULL), "out_transfer");
    NULL_ERROR(kvlink_cancel(NULL, 1), "agent");
    NULL_ERROR(kvlink_failed_blocks(NULL, 1, 0, &u, 1, &n), "agent");
    NULL_ERROR(kvlink_poll(NULL, &e, 1, 0, &n), "agent");
    NULL_ERROR(kvlink_poll(a, NULL, 1, 0, &n), "events");
    NULL_ERROR(kvlink_poll(a, &e, 1, 0, NULL), "count");
    CHECK_OK(kvlink_poll(a, NULL, 0, 0, &n));
    CHECK_ERROR(kvlink_poll(a, &e, 1, -2, &n), KVLINK_E_INVALID_ARGUMENT, "timeout_ms", "-2");
    NULL_ERROR(kvlink_event_fd(NULL, &fd), "agent");
    NULL_ERROR(kvlink_event_fd(a, NULL), "out_fd");
    /* None of the refused calls has begun anything. */
    quiet(&r);
    CHECK_OK(offer(&r, "n", 0, 4, 0, 0, &id));
    CHECK_OK(kvlink_cancel(a, id));
    CHECK_EQ(wait_for(&r, KVLINK_EVENT_RELEASED).status, KVLINK_E_CANCELLED);
    CHECK_OK(accept_at(&r, "n", 0, 4, 0, 0, &id));
    CHECK_OK(kvlink_cancel(a, id));
    CHECK_EQ(wait_for(&r, KVLINK_EVENT_RECEIVED).status, KVLINK_E_CANCELLED);
}

/* ---- struct_size ---- */

typedef kvlink_status_t (*use_t)(void *value);

static kvlink_status_t use_desc(void *p)
{
    kvlink_layout_t *l = NULL;
    kvlink_status_t s = kvlink_layout_create(p, &l);
    if (s == KVLINK_OK)
        CHECK_OK(kvlink_layout_destroy(l));
    return s;
}

static kvlink_status_t use_config(void *p)
{
    kvlink_agent_t *a = NULL;
    kvlink_status_t s = kvlink_agent_create(p, r.layout, &a);
    if (s == KVLINK_OK)
        CHECK_OK(kvlink_agent_destroy(a));
    return s;
}

static kvlink_status_t ended(kvlink_status_t s, uint64_t id, uint32_t kind)
{
    if (s == KVLINK_OK) {
        CHECK_OK(kvlink_cancel(r.agent, id));
        CHECK_EQ(wait_for(&r, kind).id, id);
    }
    return s;
}

static kvlink_status_t use_offer(void *p)
{
    uint64_t id = 0;
    kvlink_status_t s = kvlink_offer(r.agent, p, &id);
    return ended(s, id, KVLINK_EVENT_RELEASED);
}

static kvlink_status_t use_accept(void *p)
{
    uint64_t id = 0;
    kvlink_status_t s = kvlink_accept(r.agent, p, &id);
    return ended(s, id, KVLINK_EVENT_RECEIVED);
}

/* Reads and writes get as far as the peer, which there is not. */
static kvlink_status_t no_peer(kvlink_status_t s)
{
    return s == KVLINK_E_BAD_HANDLE ? KVLINK_OK : s;
}

static kvlink_status_t use_read(void *p)
{
    uint64_t id;
    return no_peer(kvlink_read_blocks(r.agent, p, &id));
}

static kvlink_status_t use_write(void *p)
{
    uint64_t id;
    return no_peer(kvlink_write_blocks(r.agent, p, &id));
}

static kvlink_plan_t *plan;

static kvlink_status_t use_request(void *p)
{
    size_t n;
    return kvlink_plan_expand(plan, p, NULL, 0, &n);
}

static kvlink_status_t use_statistics(void *p)
{
    return kvlink_statistics(r.agent, p);
}

static kvlink_status_t use_info(void *p)
{
    return kvlink_ticket_info(ticket, ticket_len, p);
}

/* `oldest`: bytes of a smaller version that is enough for the call. */
static void sizes(const void *value, size_t known, size_t oldest, const char *name, use_t use, int output)
{
    static const uint32_t impossible[] = {0, 1, 4, 7, 4097, UINT32_MAX};
    unsigned char *p = malloc(4096 + 8);
    char number[32], ours[32];
    uint32_t size, i;
    memset(p, 0, 4096 + 8);
    memcpy(p, value, known);
    for (i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        memcpy(p, &impossible[i], 4);
        snprintf(number, sizeof number, "struct_size %lu ", (unsigned long)impossible[i]);
        CHECK_ERROR(use(p), KVLINK_E_STRUCT_SIZE, name, number, "8..=4096");
    }
    /* The known size. */
    size = (uint32_t)known;
    memcpy(p, &size, 4);
    memset(p + known, 0xa5, 4096 - known);
    CHECK_OK(use(p));
    for (i = (uint32_t)known; i < 4096; i++)
        CHECK_EQ(p[i], 0xa5);
    /* A newer one with a tail that says nothing, up to the greatest. */
    memset(p + known, 0, 4096 - known);
    for (size = (uint32_t)known + 8;; size = 4096) {
        memcpy(p, &size, 4);
        CHECK_OK(use(p));
        if (size == 4096)
            break;
    }
    /* One that says something: refused, or for results made to say nothing. */
    size = (uint32_t)known + 16;
    memcpy(p, &size, 4);
    p[known + 15] = 1;
    if (output) {
        CHECK_OK(use(p));
        CHECK_EQ(p[known + 15], 0);
    } else {
        snprintf(number, sizeof number, "%lu", (unsigned long)size);
        snprintf(ours, sizeof ours, "%lu", (unsigned long)known);
        CHECK_ERROR(use(p), KVLINK_E_STRUCT_SIZE, name, number, ours);
    }
    /* An older one: what lies behind it is neither read nor written. */
    memcpy(p, value, known);
    memset(p + oldest, 0x5a, 4096 - oldest);
    size = (uint32_t)oldest;
    memcpy(p, &size, 4);
    CHECK_OK(use(p));
    for (i = size; i < 4096; i++)
        CHECK_EQ(p[i], 0x5a);
    free(p);
}

static void structs_of_every_version(void)
{
    static const uint32_t layers[1] = {0};
    static const uint64_t bytes = 1 << 20;
    kvlink_group_t g = {.block_tokens = 4, .num_blocks = 4};
    kvlink_record_t rec = {.layers = layers, .num_layers = 1, .role = "r", .element_bytes = 64};
    kvlink_layout_desc_t d = {.region_bytes = &bytes, .num_regions = 1, .groups = &g, .num_groups = 1,
                              .records = &rec, .num_records = 1};
    kvlink_agent_config_t c = {.instance = "sizes"};
    kvlink_offer_t o = {.request = "sizes", .blocks = blocks_from(0, 8), .num_blocks = 1, .tokens = 8};
    kvlink_accept_t a = {.request = "sizes", .blocks = blocks_from(0, 8), .num_blocks = 1, .tokens = 8};
    kvlink_read_t rd = {.peer = 5, .ticket = ticket, .ticket_len = ticket_len, .blocks = blocks_from(0, 8),
                        .num_blocks = 1};
    kvlink_write_t w = {.peer = 5, .request = "sizes", .blocks = blocks_from(0, 8), .num_blocks = 1,
                        .token_total = 8};
    kvlink_plan_request_t q = {.token_total = 0, .source_blocks = blocks_from(0, 8), .num_source_blocks = 1,
                               .destination_blocks = blocks_from(0, 8), .num_destination_blocks = 1};
    kvlink_statistics_t s = {.bytes = 1};
    kvlink_ticket_info_t info = {.rank = 1};
    const kvlink_layout_t *list = r.layout;
    CHECK_OK(kvlink_plan_create(&list, 1, &list, 1, 0, 0, &plan));
    sizes(&d, sizeof d, offsetof(kvlink_layout_desc_t, states), "kvlink_layout_desc_t", use_desc, 0);
    sizes(&c, sizeof c, offsetof(kvlink_agent_config_t, listen), "kvlink_agent_config_t", use_config, 0);
    sizes(&o, sizeof o, offsetof(kvlink_offer_t, user_data), "kvlink_offer_t", use_offer, 0);
    sizes(&a, sizeof a, offsetof(kvlink_accept_t, user_data), "kvlink_accept_t", use_accept, 0);
    sizes(&rd, sizeof rd, offsetof(kvlink_read_t, token_begin), "kvlink_read_t", use_read, 0);
    sizes(&w, sizeof w, offsetof(kvlink_write_t, layer_first), "kvlink_write_t", use_write, 0);
    /* Without its destination blocks a plan request is too little, but the size is accepted. */
    sizes(&q, sizeof q, sizeof q, "kvlink_plan_request_t", use_request, 0);
    sizes(&s, sizeof s, offsetof(kvlink_statistics_t, transfers), "kvlink_statistics_t", use_statistics, 1);
    sizes(&info, sizeof info, offsetof(kvlink_ticket_info_t, request), "kvlink_ticket_info_t", use_info, 1);
    CHECK_OK(kvlink_plan_destroy(plan));
}

static void fields_with_few_values_take_no_others(void)
{
    kvlink_agent_config_t c = {.struct_size = sizeof c, .instance = "x"};
    kvlink_agent_t *a = NULL;
    kvlink_write_t w = {.struct_size = sizeof w, .request = "x"};
    uint64_t id;
    c.allow_remote = 2;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_UNKNOWN_ENUM, "allow_remote", "2", "0..=1");
    c.allow_remote = 0;
    c.host_disable = 8;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_UNKNOWN_ENUM, "host_disable", "8", "0..=7");
    c.host_disable = 0;
    c.nixl_landing = 3;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_UNKNOWN_ENUM, "nixl_landing", "3", "0..=2");
    c.nixl_landing = 0;
    c.nixl_params = "engine_config=TLS=tcp\nnonsense";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "nixl_params", "nonsense", "key=value");
    c.nixl_params = NULL;
    c.nixl_backend = "no such name";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "backend", "no such name");
    c.nixl_backend = NULL;
    c.nixl_patience_ms = 3600000;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "patience", "3600s", "600 s");
    c.nixl_patience_ms = 0;
    c.nixl_library = "/nonexistent/libnixl_capi.so";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_TRANSPORT_UNAVAILABLE, c.nixl_library, "pip install");
    c.nixl_library = NULL;
    c.mori_backend = "tcp";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "mori_backend", "tcp", "xgmi");
    c.mori_backend = NULL;
    c.mori_poll_mode = 2;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_UNKNOWN_ENUM, "mori_poll_mode", "2", "0..=1");
    c.mori_poll_mode = 0;
    c.mori_host = "::1";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "mori_host", "::1", "IPv4");
    c.mori_host = "192.0.2.1";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_ADDRESS, "mori_host", "192.0.2.1", "allow_remote");
    c.mori_host = NULL;
    c.mori_port = 65536;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "mori_port", "65536");
    c.mori_port = 0;
    c.mori_qp_per_transfer = 1000;
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_INVALID_ARGUMENT, "qp_per_transfer", "1000", "256");
    c.mori_qp_per_transfer = 0;
    c.mori_library = "/nonexistent/libkvlink_mori.so";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_TRANSPORT_UNAVAILABLE, c.mori_library, "KVLINK_MORI");
    c.mori_library = NULL;
    c.require_transport = "mori";
    CHECK_ERROR(kvlink_agent_create(&c, r.layout, &a), KVLINK_E_TRANSPORT_UNAVAILABLE, "libkvlink_mori.so", "KVLINK_MORI");
    c.require_transport = NULL;
    CHECK(a == NULL);
    w.last = 2;
    CHECK_ERROR(kvlink_write_blocks(r.agent, &w, &id), KVLINK_E_UNKNOWN_ENUM, "last", "2", "0..=1");
    w.last = 0;
    w.reserved = 1;
    CHECK_ERROR(kvlink_write_blocks(r.agent, &w, &id), KVLINK_E_INVALID_ARGUMENT, "kvlink_write_t.reserved");
}

int main(void)
{
    uint64_t id;
    r = start_simple("arguments");
    CHECK_OK(offer(&r, "for its ticket", 0, 8, 600000, 0, &id));
    ticket_len = ticket_of(&r, id, ticket, sizeof ticket);
    RUN(constants);
    RUN(the_message_is_the_threads_own_and_stays_until_the_next_failure);
    RUN(null_for_every_pointer_of_layouts_and_plans);
    RUN(null_for_every_pointer_of_agents);
    RUN(structs_of_every_version);
    RUN(fields_with_few_values_take_no_others);
    stop(&r);
    return 0;
}
