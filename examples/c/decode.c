/* A decode rank: it fetches the KV cache of requests from a prefill instance, or has it written into its blocks.
 *
 *   decode [--layout FILE] [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--transport NAME] [--nixl-library PATH]
 *          [--mori-library PATH]
 *
 * Without --layout it describes a small hybrid model by hand; see layout_by_hand().
 *
 * Commands on the standard input:
 *   connect ADDRESS                 READ mode: shakes hands with a prefill instance
 *   read REQUEST TICKET BLOCKS      READ mode: fetches an offered request
 *   accept REQUEST TOKENS BLOCKS    WRITE mode: names the blocks that a prefill instance writes to
 *   quit
 */
#include "common.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct decode {
    struct engine engine;
    uint64_t peer;
};

/* A hybrid of four layers: 0 and 2 keep recurrent state per request, 1 and 3 attention keys and values per token.
 * An engine fills these structs from what it knows when it has allocated its cache. */
static void layout_by_hand(const struct options *o, kvlink_layout_t **layout)
{
    enum { BLOCK_TOKENS = 32, NUM_BLOCKS = 24, NUM_SLOTS = 4 };
    enum { HEADS = 8, HEAD_DIM = 64, STATE_HEADS = 8, STATE_WIDTH = 256, CONV_WIDTH = 16, CONV_ROWS = 3 };
    static const uint32_t state_layers[] = {0, 2}, attention_layers[] = {1, 3};

    /* Tensor parallelism is nothing but the interval of heads that this rank keeps: first and count. */
    uint64_t heads = HEADS / o->ranks, state_heads = STATE_HEADS / o->ranks;

    /* A group is one block-id space. The state's is indexed by slots, one per request; attention's by token blocks. */
    kvlink_group_t groups[2] = {{0}};
    groups[0].kind = KVLINK_GROUP_SLOTS;
    groups[0].block_tokens = 1;
    groups[0].num_blocks = NUM_SLOTS;
    groups[1].kind = KVLINK_GROUP_PAGED;
    groups[1].block_tokens = BLOCK_TOKENS;
    groups[1].num_blocks = NUM_BLOCKS;

    /* Convolution channels are three sections, [q|k|v], each split by heads by itself. */
    kvlink_section_t conv[3] = {{0}};
    for (int i = 0; i < 3; i++) {
        conv[i].units = STATE_HEADS;
        conv[i].width = CONV_WIDTH;
        conv[i].first = o->rank * state_heads;
        conv[i].count = state_heads;
    }
    uint64_t conv_bytes = 3 * state_heads * CONV_WIDTH * CONV_ROWS * 2; /* bf16 */
    uint64_t state_bytes = state_heads * STATE_WIDTH * 4;               /* f32 */

    /* Region 0: for each layer, slots of [convolution | recurrent state]. */
    kvlink_state_t state = {0};
    state.layers = state_layers;
    state.num_layers = 2;
    state.group = 0;
    state.region = 0;
    state.conv_offset = 0;
    state.state_offset = conv_bytes;
    state.slot_stride = conv_bytes + state_bytes;
    state.layer_stride = state.slot_stride * NUM_SLOTS;
    state.conv = conv;
    state.num_conv = 3;
    state.conv_rows = CONV_ROWS;
    state.conv_dtype = KVLINK_DTYPE_BF16;
    state.state.units = STATE_HEADS;
    state.state.width = STATE_WIDTH;
    state.state.first = o->rank * state_heads;
    state.state.count = state_heads;
    state.state_dtype = KVLINK_DTYPE_F32;

    /* Region 1: for each layer, blocks of [head][token][key|value]. Other engines order this otherwise ("LBNHC" has
     * tokens outside of heads); both sides may differ. */
    kvlink_attention_t attention = {0};
    attention.layers = attention_layers;
    attention.num_layers = 2;
    attention.order = "LBHNC";
    attention.group = 1;
    attention.region = 1;
    attention.heads = HEADS;
    attention.first_head = o->rank * heads;
    attention.num_heads = heads;
    attention.key_dim = HEAD_DIM;
    attention.value_dim = HEAD_DIM;
    attention.dtype = KVLINK_DTYPE_BF16;

    uint64_t regions[2];
    regions[0] = state.layer_stride * 2;
    regions[1] = 2 * NUM_BLOCKS * heads * BLOCK_TOKENS * (HEAD_DIM + HEAD_DIM) * 2;

    kvlink_layout_desc_t desc = {0};
    desc.struct_size = sizeof desc;
    desc.model = "tiny-hybrid";
    desc.region_bytes = regions;
    desc.num_regions = 2;
    desc.groups = groups;
    desc.num_groups = 2;
    desc.states = &state;
    desc.num_states = 1;
    desc.attention = &attention;
    desc.num_attention = 1;
    check(kvlink_layout_create(&desc, layout), "kvlink_layout_create");
}

static size_t from_hex(char *text, unsigned char *out)
{
    size_t len = strlen(text) / 2;
    for (size_t i = 0; i < len; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            fail("the ticket is not hexadecimal");
        out[i] = (unsigned char)byte;
    }
    return len;
}

static void read_request(struct decode *d, const char *name, char *ticket, char *blocks)
{
    struct request *r = request_new(name, blocks);
    uint64_t id;
    kvlink_read_t read = {0};

    read.struct_size = sizeof read;
    read.peer = d->peer;
    read.ticket_len = from_hex(ticket, (unsigned char *)ticket);
    read.ticket = ticket;
    read.blocks = r->blocks;
    read.num_blocks = r->num_blocks;
    read.user_data = (uintptr_t)r;
    r->pending = 1;
    r->begin = now_ns();
    check(kvlink_read_blocks(d->engine.agent, &read, &id), "kvlink_read_blocks");
}

static void accept_request(struct decode *d, const char *name, uint64_t tokens, char *blocks)
{
    struct request *r = request_new(name, blocks);
    uint64_t id;
    kvlink_accept_t accept = {0};

    accept.struct_size = sizeof accept;
    accept.request = r->name;
    accept.blocks = r->blocks;
    accept.num_blocks = r->num_blocks;
    accept.tokens = tokens;
    accept.user_data = (uintptr_t)r;
    r->pending = 1;
    r->begin = now_ns();
    check(kvlink_accept(d->engine.agent, &accept, &id), "kvlink_accept");
    say("accepted %s", r->name);
}

static void on_command(void *self, char **words, size_t count)
{
    struct decode *d = self;
    if (count == 2 && strcmp(words[0], "connect") == 0)
        check(kvlink_handshake(d->engine.agent, words[1], KVLINK_DIRECTION_INBOUND, 0, &d->peer), "kvlink_handshake");
    else if (count == 4 && strcmp(words[0], "read") == 0)
        read_request(d, words[1], words[2], words[3]);
    else if (count == 4 && strcmp(words[0], "accept") == 0)
        accept_request(d, words[1], strtoull(words[2], NULL, 10), words[3]);
    else
        fail("decode: cannot do \"%s\" with %zu words", words[0], count);
}

/* The blocks that a failed read left without valid data: just those must be recomputed. */
static void report_failed_blocks(struct decode *d, uint64_t transfer)
{
    for (uint32_t g = 0; g < d->engine.num_groups; g++) {
        size_t count = 0;
        kvlink_status_t status = kvlink_failed_blocks(d->engine.agent, transfer, g, NULL, 0, &count);
        if (status != KVLINK_E_BUFFER_TOO_SMALL)
            check(status, "kvlink_failed_blocks");
        fprintf(stderr, "  group %u: %zu blocks are not valid\n", (unsigned)g, count);
    }
}

static void on_event(void *self, const kvlink_event_t *event)
{
    struct decode *d = self;
    struct request *r = (struct request *)(uintptr_t)event->user_data;
    const char *text = event->payload;
    uint64_t now = now_ns();

    switch (event->kind) {
    case KVLINK_EVENT_READY:
        say("ready");
        break;
    case KVLINK_EVENT_HANDSHAKE:
        if (event->status != KVLINK_OK)
            fail("handshake: %s: %s", kvlink_status_text(event->status), text);
        say_lines("linked", text); /* which transport is in effect for each rank, and why not a better one */
        break;
    case KVLINK_EVENT_TRANSFER:
    case KVLINK_EVENT_RECEIVED:
        if (event->status != KVLINK_OK) {
            fprintf(stderr, "request %s: %s: %s\n", r->name, kvlink_status_text(event->status), text);
            if (event->kind == KVLINK_EVENT_TRANSFER)
                report_failed_blocks(d, event->id);
            text = "";
        }
        /* From here on the model may decode: all bytes are in place, and nothing writes to the blocks any more. */
        request_add(r, event);
        say("received %s status=%d bytes=%" PRIu64 " spans=%" PRIu64 " begin=%" PRIu64 " end=%" PRIu64 " aux=%s",
            r->name, (int)r->status, r->bytes, r->spans, r->begin, now, text);
        request_free(r);
        break;
    case KVLINK_EVENT_PEER_DOWN:
        say("peer-down %s", text);
        break;
    default:
        break;
    }
}

int main(int argc, char **argv)
{
    struct options options;
    struct decode d = {0};
    kvlink_layout_t *layout;

    options_parse(&options, argc, argv);
    if (options.layout == NULL) {
        layout_by_hand(&options, &layout);
    } else {
        size_t len;
        char *json = read_file(options.layout, &len);
        check(kvlink_layout_from_json(json, len, &layout), "kvlink_layout_from_json");
        free(json);
    }
    engine_start(&d.engine, &options, layout);
    check(kvlink_layout_destroy(layout), "kvlink_layout_destroy");
    serve(&d.engine, on_command, on_event, &d);
    engine_stop(&d.engine);
    return 0;
}
