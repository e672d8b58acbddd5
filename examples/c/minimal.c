/* One attention layer moves between unlike caches: blocks of 16 tokens, heads first -> blocks of 32, tokens first. */
#include <kvlink.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 4, ROW = 64 /* key and value of a head */, TOKENS = 64 };

static void ok(kvlink_status_t status)
{
    char text[1024] = "";
    if (status == KVLINK_OK) return;
    (void)kvlink_last_error(text, sizeof text, NULL);
    exit((fprintf(stderr, "%s: %s\n", kvlink_status_text(status), text), 1));
}

static kvlink_agent_t *start(const char *name, uint32_t block_tokens, const char *order, uint16_t **memory)
{
    uint32_t layers[] = {0};
    uint64_t bytes = TOKENS * HEADS * ROW * 2;
    kvlink_group_t group = {.kind = KVLINK_GROUP_PAGED, .block_tokens = block_tokens, .num_blocks = TOKENS / block_tokens};
    kvlink_attention_t kv = {.layers = layers, .num_layers = 1, .order = order, .heads = HEADS, .num_heads = HEADS,
                             .key_dim = ROW / 2, .value_dim = ROW / 2, .dtype = KVLINK_DTYPE_BF16};
    kvlink_layout_desc_t desc = {.struct_size = sizeof desc, .region_bytes = &bytes, .num_regions = 1, .groups = &group,
                                 .num_groups = 1, .attention = &kv, .num_attention = 1};
    kvlink_agent_config_t config = {.struct_size = sizeof config, .instance = name};
    kvlink_layout_t *layout;
    kvlink_agent_t *agent;
    ok(kvlink_layout_create(&desc, &layout));
    ok(kvlink_agent_create(&config, layout, &agent));
    ok(kvlink_register(agent, 0, *memory = calloc(1, bytes), bytes));
    ok(kvlink_layout_destroy(layout));
    return agent;
}

static void await(kvlink_agent_t *agent, uint32_t kind)
{
    kvlink_event_t e = {0};
    size_t n;
    while (e.kind != kind) ok(kvlink_poll(agent, &e, 1, KVLINK_FOREVER, &n));
    if (e.status != KVLINK_OK) exit((fprintf(stderr, "%s\n", (const char *)e.payload), 1));
}

int main(void)
{
    uint32_t from[] = {2, 0, 3, 1}, to[] = {1, 0};
    kvlink_blocks_t p_blocks = {.ids = from, .count = 4}, d_blocks = {.ids = to, .count = 2};
    unsigned char ticket[1024];
    uint16_t *src, *dst, wrong = 0;
    uint64_t id, peer;
    size_t len;
    char address[64];
    kvlink_agent_t *p = start("prefill", 16, "LBHNC", &src), *d = start("decode", 32, "LBNHC", &dst);
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < HEADS * ROW; i++)
            src[((from[t / 16] * HEADS + i / ROW) * 16 + t % 16) * ROW + i % ROW] = (uint16_t)(t * HEADS * ROW + i);

    kvlink_offer_t offer = {.struct_size = sizeof offer, .request = "r1", .blocks = &p_blocks, .num_blocks = 1, .tokens = TOKENS};
    ok(kvlink_offer(p, &offer, &id));
    ok(kvlink_ticket(p, id, ticket, sizeof ticket, &len)); /* travels to the decode side with the request */
    ok(kvlink_agent_address(p, address, sizeof address, NULL));
    ok(kvlink_handshake(d, address, KVLINK_DIRECTION_INBOUND, 0, &peer));
    await(d, KVLINK_EVENT_HANDSHAKE);
    kvlink_read_t read = {.struct_size = sizeof read, .peer = peer, .ticket = ticket, .ticket_len = len,
                          .blocks = &d_blocks, .num_blocks = 1};
    ok(kvlink_read_blocks(d, &read, &id));
    await(d, KVLINK_EVENT_TRANSFER); /* the data is here */
    await(p, KVLINK_EVENT_RELEASED); /* the source may reuse its blocks */

    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < HEADS * ROW; i++)
            wrong |= dst[(to[t / 32] * 32 + t % 32) * HEADS * ROW + i] != (uint16_t)(t * HEADS * ROW + i);
    ok(kvlink_agent_destroy(d));
    ok(kvlink_agent_destroy(p));
    return (free(src), free(dst), puts(wrong ? "wrong bytes" : "all bytes are right"), wrong);
}
