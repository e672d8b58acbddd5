/* A library with NIXL's C interface that copies within the process, or misbehaves as the backend's parameter says:
 *   mode=hang      posting a read never returns
 *   mode=stuck     a read never ends, and writes nothing
 *   mode=drop      the first read fails, and so do others until the peer is forgotten
 *   mode=undying   the same, and the agent cannot be ended
 *   mode=lock      registering locks memory, as drivers of network cards do
 *   mode=late      a read ends at the third look, as over a network
 * Compiled with -DSTUB it says that it is the placeholder.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef void *handle;
enum mode { GOOD, HANG, STUCK, UNDYING, DROP, LOCK, LATE };
struct desc { uintptr_t addr; size_t len; };
struct list { size_t n; struct desc *at; };
struct agent { char name[256]; enum mode mode; bool dropped; };
struct request { struct list local, remote; int looks; };

bool nixl_capi_is_stub(void)
{
#ifdef STUB
    return true;
#else
    return false;
#endif
}

static int made(handle *out, size_t size) { *out = calloc(1, size); return *out ? 0 : -2; }
static int freed(handle it) { free(it); return 0; }

int nixl_capi_create_configured_agent(const char *name, const void *config, handle *out)
{
    (void)config;
    int code = made(out, sizeof(struct agent));
    strncpy(((struct agent *)*out)->name, name, 255);
    return code;
}
int nixl_capi_destroy_agent(handle a) { return ((struct agent *)a)->mode == UNDYING ? -2 : freed(a); }
int nixl_capi_get_local_md(handle a, void **data, size_t *len)
{
    *data = strdup(((struct agent *)a)->name);
    *len = strlen(*data);
    return 0;
}
int nixl_capi_load_remote_md(handle a, const void *data, size_t len, char **name)
{
    (void)a;
    *name = strndup(data, len);
    return 0;
}
int nixl_capi_invalidate_remote_md(handle agent, const char *name)
{
    struct agent *a = agent;
    (void)name;
    if (a->dropped)
        a->mode = GOOD;
    a->dropped = false;
    return 0;
}
int nixl_capi_get_available_plugins(handle a, handle *out) { (void)a; return made(out, 1); }
int nixl_capi_string_list_size(handle l, size_t *n) { (void)l; *n = 1; return 0; }
int nixl_capi_string_list_get(handle l, size_t i, const char **text) { (void)l, (void)i; *text = "FAKE"; return 0; }
int nixl_capi_destroy_string_list(handle l) { return freed(l); }
int nixl_capi_create_params(handle *out) { return made(out, sizeof(enum mode)); }
int nixl_capi_params_add(handle p, const char *key, const char *value)
{
    (void)key;
    static const char *const names[] = {"good", "hang", "stuck", "undying", "drop", "lock", "late"};
    for (int i = GOOD; i <= LATE; i++)
        if (!strcmp(value, names[i]))
            *(enum mode *)p = i;
    return 0;
}
int nixl_capi_destroy_params(handle p) { return freed(p); }
int nixl_capi_create_backend(handle a, const char *name, handle params, handle *out)
{
    (void)name;
    ((struct agent *)a)->mode = *(enum mode *)params;
    return made(out, 1);
}
int nixl_capi_destroy_backend(handle b) { return freed(b); }
int nixl_capi_create_opt_args(handle *out) { return made(out, 1); }
int nixl_capi_opt_args_add_backend(handle o, handle b) { (void)o, (void)b; return 0; }
int nixl_capi_destroy_opt_args(handle o) { return freed(o); }
int nixl_capi_create_xfer_dlist(int type, handle *out) { (void)type; return made(out, sizeof(struct list)); }
int nixl_capi_xfer_dlist_add_desc(handle list, uintptr_t addr, size_t len, uint64_t dev)
{
    struct list *l = list;
    (void)dev;
    l->at = realloc(l->at, (l->n + 1) * sizeof *l->at);
    l->at[l->n++] = (struct desc){addr, len};
    return 0;
}
int nixl_capi_destroy_xfer_dlist(handle list) { free(((struct list *)list)->at); return freed(list); }
int nixl_capi_create_reg_dlist(int type, handle *out) { return nixl_capi_create_xfer_dlist(type, out); }
int nixl_capi_reg_dlist_add_desc(handle list, uintptr_t addr, size_t len, uint64_t dev, const void *meta, size_t n)
{
    (void)meta, (void)n;
    return nixl_capi_xfer_dlist_add_desc(list, addr, len, dev);
}
int nixl_capi_destroy_reg_dlist(handle list) { return nixl_capi_destroy_xfer_dlist(list); }
int nixl_capi_register_mem(handle a, handle list, handle o)
{
    struct list *l = list;
    (void)o;
    for (size_t i = 0; i < l->n && ((struct agent *)a)->mode == LOCK; i++)
        if (mlock((void *)l->at[i].addr, l->at[i].len))
            return -2;
    return 0;
}
int nixl_capi_create_notif_map(handle *out) { return made(out, 1); }
int nixl_capi_get_notifs(handle a, handle map, handle o) { (void)a, (void)map, (void)o; return 0; }
int nixl_capi_destroy_notif_map(handle map) { return freed(map); }
static struct list copied(const struct list *l)
{
    struct list c = {l->n, malloc(l->n * sizeof *l->at + 1)};
    memcpy(c.at, l->at, l->n * sizeof *l->at);
    return c;
}
int nixl_capi_create_xfer_req(handle a, int op, handle local, handle remote, const char *peer, handle *out, handle o)
{
    (void)op, (void)peer, (void)o;
    if (((struct agent *)a)->dropped)
        return -2;
    int code = made(out, sizeof(struct request));
    *(struct request *)*out = (struct request){copied(local), copied(remote), 0};
    return code;
}
static int moved(const struct request *r)
{
    for (size_t i = 0; i < r->local.n; i++)
        memcpy((void *)r->local.at[i].addr, (void *)r->remote.at[i].addr, r->local.at[i].len);
    return 0;
}
int nixl_capi_post_xfer_req(handle a, handle req, handle o)
{
    struct request *r = req;
    (void)o;
    while (((struct agent *)a)->mode == HANG)
        pause();
    if (((struct agent *)a)->mode == DROP) {
        ((struct agent *)a)->dropped = true;
        return -2;
    }
    if (((struct agent *)a)->mode != GOOD && ((struct agent *)a)->mode != LOCK)
        return 1;
    return moved(r);
}
int nixl_capi_get_xfer_status(handle a, handle req)
{
    struct request *r = req;
    if (((struct agent *)a)->mode == LATE && ++r->looks == 3)
        return moved(r);
    return ((struct agent *)a)->mode == GOOD ? 0 : 1;
}
int nixl_capi_release_xfer_req(handle a, handle r) { (void)a, (void)r; return 0; }
int nixl_capi_destroy_xfer_req(handle req)
{
    struct request *r = req;
    free(r->local.at);
    free(r->remote.at);
    return freed(req);
}
