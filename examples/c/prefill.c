/* A prefill rank: it has the KV cache of requests and lets a decode instance read it, or writes it there.
 *
 *   prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N] [--transport NAME] [--nixl-library PATH]
 *           [--mori-library PATH]
 *
 * Commands on the standard input:
 *   offer REQUEST TOKENS BLOCKS    READ mode: prints the ticket that a decode rank reads with
 *   connect ADDRESS                WRITE mode: shakes hands with a decode instance
 *   write REQUEST TOKENS BLOCKS    WRITE mode: writes layer by layer to that instance
 *   quit
 */
#include "common.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct prefill {
    struct engine engine;
    uint32_t layers;
    uint64_t peer;
};

static void offer(struct prefill *p, const char *name, uint64_t tokens, char *blocks)
{
    static const char digits[] = "0123456789abcdef";
    struct request *r = request_new(name, blocks);
    unsigned char ticket[4096];
    char text[2 * sizeof ticket + 1];
    size_t len;
    uint64_t id;
    kvlink_offer_t o = {0};

    o.struct_size = sizeof o;
    o.request = r->name;
    o.blocks = r->blocks;
    o.num_blocks = r->num_blocks;
    o.tokens = tokens;
    o.user_data = (uintptr_t)r;
    r->begin = now_ns();
    check(kvlink_offer(p->engine.agent, &o, &id), "kvlink_offer");

    /* The ticket travels with the request, in an HTTP body say: it is opaque, and any text encoding will do. */
    check(kvlink_ticket(p->engine.agent, id, ticket, sizeof ticket, &len), "kvlink_ticket");
    for (size_t i = 0; i < len; i++) {
        text[2 * i] = digits[ticket[i] >> 4];
        text[2 * i + 1] = digits[ticket[i] & 15];
    }
    text[2 * len] = '\0';
    say("ticket %s %s", r->name, text);
}

static void write_layers(struct prefill *p, const char *name, uint64_t tokens, char *blocks)
{
    struct request *r = request_new(name, blocks);
    kvlink_write_t w = {0};

    w.struct_size = sizeof w;
    w.peer = p->peer;
    w.request = r->name;
    w.blocks = r->blocks;
    w.num_blocks = r->num_blocks;
    w.token_total = tokens;
    w.layer_count = 1;
    w.user_data = (uintptr_t)r;
    r->begin = now_ns();
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        char aux[64];
        uint64_t id;
        /* Here a real engine computes the layer and waits until the device has written it. */
        w.layer_first = layer;
        w.last = layer + 1 == p->layers;
        if (w.last) {
            /* What else the decode rank needs to go on: the first sampled token, say. */
            w.aux = aux;
            w.aux_len = (size_t)snprintf(aux, sizeof aux, "token=%" PRIu64, tokens * 7 % 32000);
        }
        check(kvlink_write_blocks(p->engine.agent, &w, &id), "kvlink_write_blocks");
        r->pending++;
    }
}

static void on_command(void *self, char **words, size_t count)
{
    struct prefill *p = self;
    if (count == 4 && strcmp(words[0], "offer") == 0)
        offer(p, words[1], strtoull(words[2], NULL, 10), words[3]);
    else if (count == 2 && strcmp(words[0], "connect") == 0)
        check(kvlink_handshake(p->engine.agent, words[1], KVLINK_DIRECTION_OUTBOUND, 0, &p->peer), "kvlink_handshake");
    else if (count == 4 && strcmp(words[0], "write") == 0)
        write_layers(p, words[1], strtoull(words[2], NULL, 10), words[3]);
    else
        fail("prefill: cannot do \"%s\" with %zu words", words[0], count);
}

static void on_event(void *self, const kvlink_event_t *event)
{
    struct request *r = (struct request *)(uintptr_t)event->user_data;
    const char *text = event->payload;
    (void)self;

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
        if (event->status != KVLINK_OK)
            fprintf(stderr, "write of %s: %s: %s\n", r->name, kvlink_status_text(event->status), text);
        if (request_add(r, event)) {
            /* Only now may the blocks be reused. */
            say("wrote %s status=%d bytes=%" PRIu64 " spans=%" PRIu64 " begin=%" PRIu64 " end=%" PRIu64, r->name,
                (int)r->status, r->bytes, r->spans, r->begin, now_ns());
            request_free(r);
        }
        break;
    case KVLINK_EVENT_RELEASED:
        if (event->status != KVLINK_OK)
            fprintf(stderr, "offer of %s: %s: %s\n", r->name, kvlink_status_text(event->status), text);
        say("released %s status=%d begin=%" PRIu64 " end=%" PRIu64, r->name, (int)event->status, r->begin, now_ns());
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
    struct prefill p = {0};
    kvlink_layout_t *layout;
    size_t len;
    char *json;

    options_parse(&options, argc, argv);
    if (options.layout == NULL)
        fail("usage: prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N]"
             " [--transport NAME] [--nixl-library PATH] [--mori-library PATH]");
    json = read_file(options.layout, &len);
    check(kvlink_layout_from_json(json, len, &layout), "kvlink_layout_from_json");
    free(json);
    p.layers = options.layers;
    engine_start(&p.engine, &options, layout);
    check(kvlink_layout_destroy(layout), "kvlink_layout_destroy");
    serve(&p.engine, on_command, on_event, &p);
    engine_stop(&p.engine);
    return 0;
}
