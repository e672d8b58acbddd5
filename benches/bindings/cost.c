/* What calls cost from C: nanoseconds, the median over batches, of
 *   call    kvlink_statistics on an idle agent
 *   poll    kvlink_poll without waiting, no events
 *   blocks  kvlink_plan_expand of a request with 4,096 consecutive blocks on both sides, which is one span
 * The agent has no registered memory. cost.cpp and the other languages measure the same with the same geometry. */
#define _POSIX_C_SOURCE 200809L

#include <kvlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BLOCKS = 4096, BLOCK_TOKENS = 16, HEADS = 8, DIM = 64, BATCHES = 101 };

struct bench {
    kvlink_agent_t *agent;
    kvlink_plan_t *plan;
    uint32_t ids[BLOCKS];
};

static void ok(kvlink_status_t status)
{
    char text[1024] = "";
    if (status == KVLINK_OK)
        return;
    (void)kvlink_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s\n", text);
    exit(EXIT_FAILURE);
}

static void expect(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        exit(EXIT_FAILURE);
    }
}

static kvlink_layout_t *make_layout(void)
{
    uint32_t layer = 0;
    uint64_t bytes = (uint64_t)BLOCKS * HEADS * BLOCK_TOKENS * 2 * DIM * 2;
    kvlink_group_t group = {.kind = KVLINK_GROUP_PAGED, .block_tokens = BLOCK_TOKENS, .num_blocks = BLOCKS};
    kvlink_attention_t kv = {.layers = &layer, .num_layers = 1, .order = "LBHNC", .heads = HEADS, .num_heads = HEADS,
                             .key_dim = DIM, .value_dim = DIM, .dtype = KVLINK_DTYPE_BF16};
    kvlink_layout_desc_t desc = {.struct_size = sizeof desc, .region_bytes = &bytes, .num_regions = 1,
                                 .groups = &group, .num_groups = 1, .attention = &kv, .num_attention = 1};
    kvlink_layout_t *layout;
    ok(kvlink_layout_create(&desc, &layout));
    return layout;
}

static void call(struct bench *b)
{
    kvlink_statistics_t statistics = {.struct_size = sizeof statistics};
    ok(kvlink_statistics(b->agent, &statistics));
}

static void poll(struct bench *b)
{
    kvlink_event_t events[64];
    size_t count;
    ok(kvlink_poll(b->agent, events, 64, 0, &count));
    expect(count == 0, "no events");
}

static void blocks(struct bench *b)
{
    kvlink_blocks_t list = {.ids = b->ids, .count = BLOCKS};
    kvlink_plan_request_t request = {.struct_size = sizeof request, .token_total = (uint64_t)BLOCKS * BLOCK_TOKENS,
                                     .source_blocks = &list, .num_source_blocks = 1,
                                     .destination_blocks = &list, .num_destination_blocks = 1};
    kvlink_span_t span;
    size_t count;
    ok(kvlink_plan_expand(b->plan, &request, &span, 1, &count));
    expect(count == 1, "one span");
}

static double now_ns(void)
{
    struct timespec t;
    expect(clock_gettime(CLOCK_MONOTONIC, &t) == 0, "clock_gettime");
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, int calls, void (*f)(struct bench *), struct bench *b)
{
    double ns[BATCHES];
    f(b);
    for (int i = 0; i < BATCHES; i++) {
        double begin = now_ns();
        for (int j = 0; j < calls; j++)
            f(b);
        ns[i] = (now_ns() - begin) / calls;
    }
    qsort(ns, BATCHES, sizeof *ns, by_value);
    printf("%s %.1f\n", name, ns[BATCHES / 2]);
}

int main(void)
{
    static struct bench b;
    kvlink_layout_t *layout = make_layout();
    const kvlink_layout_t *instance = layout;
    kvlink_agent_config_t config = {.struct_size = sizeof config, .instance = "cost"};
    for (uint32_t i = 0; i < BLOCKS; i++)
        b.ids[i] = i;
    ok(kvlink_agent_create(&config, layout, &b.agent));
    ok(kvlink_plan_create(&instance, 1, &instance, 1, 0, 0, &b.plan));
    measure("call", 1000, call, &b);
    measure("poll", 1000, poll, &b);
    measure("blocks", 20, blocks, &b);
    ok(kvlink_plan_destroy(b.plan));
    ok(kvlink_agent_destroy(b.agent));
    ok(kvlink_layout_destroy(layout));
    return 0;
}
