/* A libkvlink_mori.so that copies within the process, or misbehaves as the name of a device says:
 *   late      a read fails, and goes on writing until its engine is destroyed
 *   stuck     a read never ends, and writes when its engine is destroyed
 *   hang      starting a read writes and never returns
 * With another ABI when compiled with -DOTHER.
 */
#include "../../mori/kvlink_mori.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct kvlink_mori_transfer {
    int state;
    struct kvlink_mori_transfer *next;
    unsigned char *to;
};
struct memory { char *at; };
struct kvlink_mori_engine { char mode[16], key[64]; struct memory memories[8]; uint32_t count; kvlink_mori_transfer_t *open; };
struct kvlink_mori_session { kvlink_mori_engine_t *engine; char *local, *remote; };

uint32_t kvlink_mori_abi(void)
{
#ifdef OTHER
    return KVLINK_MORI_ABI + 1;
#else
    return KVLINK_MORI_ABI;
#endif
}
const char *kvlink_mori_version(void) { return "fake"; }
const char *kvlink_mori_error(void) { return "a reason of the fake"; }

int kvlink_mori_engine_create(const kvlink_mori_config_t *config, kvlink_mori_engine_t **out)
{
    kvlink_mori_engine_t *e = *out = calloc(1, sizeof *e);
    strncpy(e->mode, config->devices, sizeof e->mode - 1);
    strncpy(e->key, config->key, sizeof e->key - 1);
    return KVLINK_MORI_OK;
}

/* What was under way writes until here. */
void kvlink_mori_engine_destroy(kvlink_mori_engine_t *e)
{
    usleep(100000);
    for (kvlink_mori_transfer_t *t = e->open, *next; t; t = next) {
        next = t->next;
        *t->to = 0xEE;
        free(t);
    }
    free(e);
}
int kvlink_mori_engine_desc(kvlink_mori_engine_t *e, const uint8_t **desc, size_t *len)
{
    *desc = (const uint8_t *)e->key;
    *len = strlen(e->key);
    return KVLINK_MORI_OK;
}
int kvlink_mori_peer_check(const char *key, const uint8_t *desc, size_t len)
{
    return strlen(key) == len && !memcmp(key, desc, len) ? KVLINK_MORI_OK : KVLINK_MORI_FAILED;
}
int kvlink_mori_peer_add(kvlink_mori_engine_t *e, const char *key, const uint8_t *desc, size_t len)
{
    (void)e;
    return kvlink_mori_peer_check(key, desc, len);
}

int kvlink_mori_memory_register(kvlink_mori_engine_t *e, void *addr, uint64_t size, uint32_t verify, uint32_t *memory,
                                const uint8_t **desc, size_t *len)
{
    struct memory *m = &e->memories[*memory = e->count++];
    (void)size, (void)verify;
    m->at = addr;
    *desc = (const uint8_t *)m;
    *len = sizeof *m;
    return KVLINK_MORI_OK;
}
int kvlink_mori_session_open(kvlink_mori_engine_t *e, uint32_t memory, const char *key, const uint8_t *desc, size_t len,
                             uint64_t size, kvlink_mori_session_t **out)
{
    struct memory m;
    (void)key, (void)size;
    if (len != sizeof m)
        return KVLINK_MORI_FAILED;
    memcpy(&m, desc, len);
    *out = malloc(sizeof **out);
    **out = (kvlink_mori_session_t){e, e->memories[memory].at, m.at};
    return KVLINK_MORI_OK;
}
void kvlink_mori_session_close(kvlink_mori_session_t *s) { free(s); }

int kvlink_mori_read(kvlink_mori_session_t *s, const uint64_t *local, const uint64_t *remote, const uint64_t *sizes, size_t n,
                     kvlink_mori_transfer_t **out)
{
    kvlink_mori_transfer_t *t = *out = calloc(1, sizeof *t);
    t->to = (unsigned char *)s->local + local[0];
    while (!strcmp(s->engine->mode, "hang")) {
        *t->to = 0xEE;
        pause();
    }
    if (!strcmp(s->engine->mode, "late") || !strcmp(s->engine->mode, "stuck")) {
        t->state = !strcmp(s->engine->mode, "late") ? KVLINK_MORI_FAILED : KVLINK_MORI_RUNNING;
        t->next = s->engine->open;
        s->engine->open = t;
        return KVLINK_MORI_OK;
    }
    for (size_t i = 0; i < n; i++)
        memcpy(s->local + local[i], s->remote + remote[i], sizes[i]);
    return KVLINK_MORI_OK;
}
int kvlink_mori_transfer_state(kvlink_mori_transfer_t *t) { return t->state; }
void kvlink_mori_transfer_release(kvlink_mori_transfer_t *t)
{
    if (t->state == KVLINK_MORI_OK)
        free(t);
}
