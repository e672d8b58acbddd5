/* Stands in for libibverbs.so on machines without RDMA devices: reliable connected queue pairs between processes of one host
 * and one user, RDMA READ and WRITE only. One thread of each process is the device: it carries out what was posted, in the
 * order of each queue pair and in turn between them, by copies across processes. What a real device checks is checked: the
 * bounds, rights and life of keys on both sides, room in queues, and that a queue pair in error flushes what follows.
 *
 * The port's GID names the process, and where in its memory the table of its keys lies.
 *
 * Environment:
 *   STANDIN_VERBS_DEVICES  number of devices, 1
 *   STANDIN_VERBS_SYSFS    directory that devices claim to have in sysfs
 *   STANDIN_VERBS_PORT     "down": ports are not active
 *   STANDIN_VERBS_OPEN     "refused": devices cannot be opened
 *   STANDIN_VERBS_WARNING  what libibverbs would write to the standard error output when devices are listed
 *   STANDIN_VERBS_MEMORY   bytes that may be registered at once
 *   STANDIN_VERBS_STALL    a file: while it exists, the device carries out nothing
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#undef ibv_query_port
#undef ibv_reg_mr
#define PUBLIC __attribute__((visibility("default")))

enum { DEVICES = 8, KEYS = 4096, SGES = 16, SLICE = 1 << 20, PAUSE_NS = 20000 };

struct key {
    uint32_t key; /* 0: free */
    uint32_t access;
    uint64_t addr, len;
};

struct region {
    struct ibv_mr mr;
    struct key *key;
};

struct completions {
    struct ibv_cq cq;
    pthread_mutex_t lock;
    struct ibv_wc *ring;
    unsigned head, tail;
    int event; /* the writing end of its channel's pipe, or -1 */
    bool armed;
};

struct request {
    uint64_t id, remote;
    uint32_t rkey;
    enum ibv_wr_opcode opcode;
    bool signaled;
    int sges;
    struct ibv_sge sge[SGES];
};

struct pair {
    struct ibv_qp qp;
    struct ibv_qp_cap cap;
    bool all_signaled;
    bool busy; /* the device works on it */
    bool dead; /* and must not any more */
    pid_t peer;
    uint64_t peer_keys;
    struct request *ring;
    unsigned head, tail;
    struct pair *next;
};

/* Everything below is guarded by `device`, and what is in the table of keys may be read by peers at any time. */
static pthread_mutex_t device = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static struct key keys[KEYS];
static struct pair *pairs;
static uint64_t registered;
static bool running;

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* The table of a process that was forked off is its own. */
static struct key *find(struct key *table, uint32_t key) { return &table[key % KEYS]; }

static bool covers(const struct key *k, uint32_t key, uint64_t addr, uint64_t len, uint32_t access)
{
    return key && k->key == key && addr >= k->addr && len <= k->len && addr - k->addr <= k->len - len &&
           (k->access & access) == access;
}

/* ---- completions ---- */

static void complete(struct ibv_cq *cq, struct ibv_wc wc)
{
    struct completions *c = (struct completions *)cq;
    pthread_mutex_lock(&c->lock);
    if (c->tail - c->head < (unsigned)c->cq.cqe)
        c->ring[c->tail++ % (unsigned)c->cq.cqe] = wc;
    if (c->armed && c->event >= 0) {
        c->armed = false;
        if (write(c->event, &c, sizeof c) < 0)
            abort();
    }
    pthread_mutex_unlock(&c->lock);
}

static int poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *wc)
{
    struct completions *c = (struct completions *)cq;
    int n = 0;
    pthread_mutex_lock(&c->lock);
    while (n < most && c->head != c->tail)
        wc[n++] = c->ring[c->head++ % (unsigned)c->cq.cqe];
    pthread_mutex_unlock(&c->lock);
    /* MoRI polls without a pause: this one leaves the processor to others. */
    if (n == 0)
        nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
    return n;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited)
{
    struct completions *c = (struct completions *)cq;
    (void)solicited;
    pthread_mutex_lock(&c->lock);
    c->armed = c->head == c->tail;
    if (!c->armed && c->event >= 0 && write(c->event, &c, sizeof c) < 0)
        abort();
    pthread_mutex_unlock(&c->lock);
    return 0;
}

/* ---- the device ---- */

/* Copies a slice of a request; returns 0 or the error of the copy. */
static int copy(const struct pair *p, const struct request *r, uint64_t from, uint64_t len)
{
    uint64_t at = 0;
    for (int i = 0; i < r->sges && len; i++) {
        uint64_t skip = from > at ? from - at : 0, have = r->sge[i].length;
        at += have;
        if (skip >= have)
            continue;
        uint64_t n = have - skip < len ? have - skip : len;
        for (uint64_t done = 0; done < n;) {
            struct iovec local = {(char *)(uintptr_t)r->sge[i].addr + skip + done, n - done};
            struct iovec remote = {(char *)(uintptr_t)r->remote + from + done, n - done};
            ssize_t k = r->opcode == IBV_WR_RDMA_READ ? process_vm_readv(p->peer, &local, 1, &remote, 1, 0)
                                                      : process_vm_writev(p->peer, &local, 1, &remote, 1, 0);
            if (k <= 0)
                return k < 0 ? errno : EFAULT;
            done += (uint64_t)k;
        }
        from += n;
        len -= n;
    }
    return 0;
}

static enum ibv_wc_status carry_out(struct pair *p, const struct request *r, uint64_t *bytes)
{
    bool reads = r->opcode == IBV_WR_RDMA_READ;
    uint64_t total = 0;
    for (int i = 0; i < r->sges; i++)
        total += r->sge[i].length;
    for (uint64_t done = 0; done < total;) {
        uint64_t n = total - done < SLICE ? total - done : SLICE;
        for (int i = 0; i < r->sges; i++) {
            const struct ibv_sge *s = &r->sge[i];
            if (!covers(find(keys, s->lkey), s->lkey, s->addr, s->length, reads ? IBV_ACCESS_LOCAL_WRITE : 0))
                return IBV_WC_LOC_PROT_ERR;
        }
        struct key k;
        struct iovec local = {&k, sizeof k};
        struct iovec remote = {find((struct key *)(uintptr_t)p->peer_keys, r->rkey), sizeof k};
        if (process_vm_readv(p->peer, &local, 1, &remote, 1, 0) != sizeof k)
            return IBV_WC_RETRY_EXC_ERR;
        if (!covers(&k, r->rkey, r->remote, total, reads ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE))
            return IBV_WC_REM_ACCESS_ERR;
        int error = copy(p, r, done, n);
        if (error)
            return error == ESRCH ? IBV_WC_RETRY_EXC_ERR : IBV_WC_REM_OP_ERR;
        done += n;
    }
    *bytes = total;
    return IBV_WC_SUCCESS;
}

static bool stalled(void)
{
    const char *file = setting("STANDIN_VERBS_STALL");
    return file && access(file, F_OK) == 0;
}

/* The first that has work, taken to the end of the list. */
static struct pair *next_pair(void)
{
    for (struct pair **at = &pairs; *at; at = &(*at)->next) {
        struct pair *p = *at;
        if (p->head == p->tail || p->dead)
            continue;
        *at = p->next;
        p->next = NULL;
        struct pair **end = &pairs;
        while (*end)
            end = &(*end)->next;
        *end = p;
        return p;
    }
    return NULL;
}

static void *work(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&device);
    for (;;) {
        struct pair *p = stalled() ? NULL : next_pair();
        if (!p) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 10000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            if (setting("STANDIN_VERBS_STALL"))
                pthread_cond_timedwait(&posted, &device, &until);
            else
                pthread_cond_wait(&posted, &device);
            continue;
        }
        struct request r = p->ring[p->head % p->cap.max_send_wr];
        enum ibv_wc_status status = IBV_WC_WR_FLUSH_ERR;
        uint64_t bytes = 0;
        if (p->qp.state == IBV_QPS_RTS) {
            p->busy = true;
            pthread_mutex_unlock(&device);
            status = carry_out(p, &r, &bytes);
            pthread_mutex_lock(&device);
            p->busy = false;
            pthread_cond_broadcast(&idle);
        }
        p->head++;
        if (status != IBV_WC_SUCCESS)
            p->qp.state = IBV_QPS_ERR;
        if (status != IBV_WC_SUCCESS || r.signaled)
            complete(p->qp.send_cq, (struct ibv_wc){
                                        .wr_id = r.id,
                                        .status = status,
                                        .opcode = r.opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ : IBV_WC_RDMA_WRITE,
                                        .byte_len = (uint32_t)bytes,
                                        .qp_num = p->qp.qp_num,
                                    });
    }
    return NULL;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct pair *p = (struct pair *)qp;
    int error = 0;
    pthread_mutex_lock(&device);
    for (; wr; wr = wr->next) {
        bool known = wr->opcode == IBV_WR_RDMA_READ || wr->opcode == IBV_WR_RDMA_WRITE;
        bool ready = qp->state == IBV_QPS_RTS || qp->state == IBV_QPS_ERR;
        if (!known || !ready || wr->num_sge > (int)p->cap.max_send_sge || wr->num_sge > SGES)
            error = EINVAL;
        else if (p->tail - p->head >= p->cap.max_send_wr)
            error = ENOMEM;
        if (error) {
            *bad = wr;
            break;
        }
        struct request *r = &p->ring[p->tail++ % p->cap.max_send_wr];
        *r = (struct request){.id = wr->wr_id,
                              .remote = wr->wr.rdma.remote_addr,
                              .rkey = wr->wr.rdma.rkey,
                              .opcode = wr->opcode,
                              .signaled = p->all_signaled || (wr->send_flags & IBV_SEND_SIGNALED),
                              .sges = wr->num_sge};
        memcpy(r->sge, wr->sg_list, sizeof *r->sge * (size_t)wr->num_sge);
    }
    pthread_cond_signal(&posted);
    pthread_mutex_unlock(&device);
    return error;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    (void)qp;
    *bad = wr;
    return EOPNOTSUPP;
}

/* ---- devices and ports ---- */

static struct ibv_device devices[DEVICES];

PUBLIC struct ibv_device **ibv_get_device_list(int *num)
{
    const char *count = setting("STANDIN_VERBS_DEVICES"), *warning = setting("STANDIN_VERBS_WARNING");
    const char *sysfs = setting("STANDIN_VERBS_SYSFS");
    int n = count ? atoi(count) : 1;
    char own[IBV_SYSFS_PATH_MAX - 32] = "";
    Dl_info info;
    if (warning)
        fprintf(stderr, "%s\n", warning);
    if (!sysfs && dladdr((void *)ibv_get_device_list, &info))
        snprintf(own, sizeof own, "%.*s/0000:00:1e.0", (int)(strrchr(info.dli_fname, '/') - info.dli_fname), info.dli_fname);
    n = n < 0 ? 0 : n > DEVICES ? DEVICES : n;
    struct ibv_device **list = calloc((size_t)n + 1, sizeof *list);
    if (!list)
        return NULL;
    for (int i = 0; i < n; i++) {
        struct ibv_device *d = list[i] = &devices[i];
        d->node_type = IBV_NODE_CA;
        d->transport_type = IBV_TRANSPORT_IB;
        snprintf(d->name, sizeof d->name, "standin%d", i);
        snprintf(d->dev_name, sizeof d->dev_name, "uverbs%d", i);
        snprintf(d->ibdev_path, sizeof d->ibdev_path, "%s", sysfs ? sysfs : own);
        snprintf(d->dev_path, sizeof d->dev_path, "%s", d->ibdev_path);
    }
    if (num)
        *num = n;
    return list;
}

PUBLIC void ibv_free_device_list(struct ibv_device **list) { free(list); }
PUBLIC const char *ibv_get_device_name(struct ibv_device *d) { return d->name; }

PUBLIC struct ibv_context *ibv_open_device(struct ibv_device *d)
{
    const char *open = setting("STANDIN_VERBS_OPEN");
    struct ibv_context *c = open && !strcmp(open, "refused") ? NULL : calloc(1, sizeof *c);
    if (!c) {
        errno = open ? EACCES : ENOMEM;
        return NULL;
    }
    c->device = d;
    c->cmd_fd = -1;
    c->async_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->num_comp_vectors = 1;
    c->ops.poll_cq = poll_cq;
    c->ops.req_notify_cq = req_notify_cq;
    c->ops.post_send = post_send;
    c->ops.post_recv = post_recv;
    return c;
}

PUBLIC int ibv_close_device(struct ibv_context *c)
{
    close(c->async_fd);
    free(c);
    return 0;
}

PUBLIC int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a)
{
    (void)c;
    *a = (struct ibv_device_attr){.fw_ver = "stand-in",
                                  .max_mr_size = UINT64_MAX,
                                  .page_size_cap = 4096,
                                  .max_qp = 65536,
                                  .max_qp_wr = 16384,
                                  .max_sge = SGES,
                                  .max_cq = 65536,
                                  .max_cqe = 1 << 20,
                                  .max_mr = KEYS,
                                  .max_pd = 1024,
                                  .max_qp_rd_atom = 16,
                                  .max_qp_init_rd_atom = 16,
                                  .max_pkeys = 1,
                                  .phys_port_cnt = 1};
    return 0;
}

PUBLIC int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *out)
{
    const char *state = setting("STANDIN_VERBS_PORT");
    /* As large as the header's macro makes it. */
    struct ibv_port_attr *a = (struct ibv_port_attr *)out;
    (void)c;
    if (port != 1)
        return EINVAL;
    a->state = state && !strcmp(state, "down") ? IBV_PORT_DOWN : IBV_PORT_ACTIVE;
    a->max_mtu = a->active_mtu = IBV_MTU_4096;
    a->gid_tbl_len = 1;
    a->max_msg_sz = 1u << 30;
    a->pkey_tbl_len = 1;
    a->active_width = 2;
    a->active_speed = 64;
    a->link_layer = IBV_LINK_LAYER_ETHERNET;
    return 0;
}

PUBLIC int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, union ibv_gid *gid)
{
    uint32_t pid = (uint32_t)getpid();
    uint64_t table = (uintptr_t)keys;
    (void)c;
    if (port != 1 || index != 0) {
        errno = EINVAL;
        return -1;
    }
    memset(gid, 0, sizeof *gid);
    gid->raw[0] = 0x20;
    memcpy(gid->raw + 4, &pid, sizeof pid);
    memcpy(gid->raw + 8, &table, sizeof table);
    return 0;
}

PUBLIC int _ibv_query_gid_ex(struct ibv_context *c, uint32_t port, uint32_t index, struct ibv_gid_entry *e, uint32_t flags,
                             size_t size)
{
    (void)flags, (void)size;
    if (index != 0 || ibv_query_gid(c, (uint8_t)port, 0, &e->gid))
        return EINVAL;
    e->gid_index = index;
    e->port_num = port;
    e->gid_type = IBV_GID_TYPE_ROCE_V2;
    e->ndev_ifindex = 1;
    return 0;
}

PUBLIC int ibv_get_async_event(struct ibv_context *c, struct ibv_async_event *e)
{
    (void)c, (void)e;
    errno = EAGAIN;
    return -1;
}

PUBLIC void ibv_ack_async_event(struct ibv_async_event *e) { (void)e; }

/* ---- memory ---- */

PUBLIC struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
    struct ibv_pd *pd = calloc(1, sizeof *pd);
    if (pd)
        pd->context = c;
    return pd;
}

PUBLIC int ibv_dealloc_pd(struct ibv_pd *pd)
{
    free(pd);
    return 0;
}

PUBLIC struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access)
{
    const char *limit = setting("STANDIN_VERBS_MEMORY");
    struct region *r = calloc(1, sizeof *r);
    uint32_t random;
    int error = iova != (uintptr_t)addr || !r || getrandom(&random, sizeof random, 0) != sizeof random ? EINVAL : ENOMEM;
    pthread_mutex_lock(&device);
    if (error == ENOMEM && (!limit || registered + len <= strtoull(limit, NULL, 0)))
        for (uint32_t slot = 1; slot < KEYS && !r->key; slot++)
            if (!keys[slot].key) {
                r->key = &keys[slot];
                *r->key = (struct key){random / KEYS * KEYS + slot, access, iova, len};
                registered += len;
            }
    pthread_mutex_unlock(&device);
    if (!r || !r->key) {
        free(r);
        errno = error;
        return NULL;
    }
    r->mr = (struct ibv_mr){pd->context, pd, addr, len, 0, r->key->key, r->key->key};
    return &r->mr;
}

PUBLIC struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
    return ibv_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, (unsigned)access);
}

PUBLIC struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova, int fd, int access)
{
    (void)pd, (void)offset, (void)len, (void)iova, (void)fd, (void)access;
    errno = EOPNOTSUPP;
    return NULL;
}

/* Returns when the device works on nothing that may use the key. */
PUBLIC int ibv_dereg_mr(struct ibv_mr *mr)
{
    struct region *r = (struct region *)mr;
    pthread_mutex_lock(&device);
    r->key->key = 0;
    registered -= r->key->len;
    for (struct pair *p = pairs; p; p = p->next)
        while (p->busy)
            pthread_cond_wait(&idle, &device);
    pthread_mutex_unlock(&device);
    free(r);
    return 0;
}

/* ---- queues ---- */

PUBLIC struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
{
    struct ibv_comp_channel *h = calloc(1, sizeof *h);
    int ends[2];
    if (!h || pipe2(ends, O_CLOEXEC)) {
        free(h);
        return NULL;
    }
    h->context = c;
    h->fd = ends[0];
    h->refcnt = ends[1];
    return h;
}

PUBLIC int ibv_destroy_comp_channel(struct ibv_comp_channel *h)
{
    close(h->fd);
    close(h->refcnt);
    free(h);
    return 0;
}

PUBLIC struct ibv_cq *ibv_create_cq(struct ibv_context *context, int n, void *user, struct ibv_comp_channel *h, int vector)
{
    struct completions *c = calloc(1, sizeof *c);
    (void)vector;
    if (!c || !(c->ring = calloc((size_t)n, sizeof *c->ring))) {
        free(c);
        errno = ENOMEM;
        return NULL;
    }
    c->cq.context = context;
    c->cq.channel = h;
    c->cq.cq_context = user;
    c->cq.cqe = n;
    c->event = h ? h->refcnt : -1;
    pthread_mutex_init(&c->lock, NULL);
    return &c->cq;
}

PUBLIC int ibv_destroy_cq(struct ibv_cq *cq)
{
    struct completions *c = (struct completions *)cq;
    pthread_mutex_destroy(&c->lock);
    free(c->ring);
    free(c);
    return 0;
}

PUBLIC int ibv_get_cq_event(struct ibv_comp_channel *h, struct ibv_cq **cq, void **user)
{
    struct completions *c;
    if (read(h->fd, &c, sizeof c) != sizeof c)
        return -1;
    *cq = &c->cq;
    *user = c->cq.cq_context;
    return 0;
}

PUBLIC void ibv_ack_cq_events(struct ibv_cq *cq, unsigned n) { (void)cq, (void)n; }

PUBLIC struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
    static uint32_t number;
    struct pair *p = calloc(1, sizeof *p);
    if (a->qp_type != IBV_QPT_RC || a->srq || !p || !(p->ring = calloc(a->cap.max_send_wr, sizeof *p->ring))) {
        free(p);
        errno = EINVAL;
        return NULL;
    }
    p->qp.context = pd->context;
    p->qp.pd = pd;
    p->qp.send_cq = a->send_cq;
    p->qp.recv_cq = a->recv_cq;
    p->qp.qp_context = a->qp_context;
    p->qp.qp_type = a->qp_type;
    p->cap = a->cap;
    p->all_signaled = a->sq_sig_all;
    pthread_mutex_lock(&device);
    pthread_t thread;
    if (!running && pthread_create(&thread, NULL, work, NULL) == 0) {
        pthread_setname_np(thread, "standin-verbs");
        pthread_detach(thread);
        running = true;
    }
    p->qp.qp_num = ++number;
    p->next = pairs;
    pairs = p;
    pthread_mutex_unlock(&device);
    return &p->qp;
}

/* Returns when the device works on nothing of it. */
PUBLIC int ibv_destroy_qp(struct ibv_qp *qp)
{
    struct pair *p = (struct pair *)qp;
    pthread_mutex_lock(&device);
    p->dead = true;
    while (p->busy)
        pthread_cond_wait(&idle, &device);
    for (struct pair **at = &pairs; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    pthread_mutex_unlock(&device);
    free(p->ring);
    free(p);
    return 0;
}

PUBLIC int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
    struct pair *p = (struct pair *)qp;
    pthread_mutex_lock(&device);
    if (mask & IBV_QP_AV) {
        uint32_t pid;
        memcpy(&pid, a->ah_attr.grh.dgid.raw + 4, sizeof pid);
        memcpy(&p->peer_keys, a->ah_attr.grh.dgid.raw + 8, sizeof p->peer_keys);
        p->peer = (pid_t)pid;
    }
    if (mask & IBV_QP_STATE)
        qp->state = a->qp_state;
    pthread_mutex_unlock(&device);
    return 0;
}

PUBLIC struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *a)
{
    (void)pd, (void)a;
    errno = EOPNOTSUPP;
    return NULL;
}

PUBLIC int ibv_destroy_srq(struct ibv_srq *srq)
{
    (void)srq;
    return EINVAL;
}

PUBLIC const char *ibv_wc_status_str(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_SUCCESS: return "success";
    case IBV_WC_LOC_PROT_ERR: return "local protection error";
    case IBV_WC_WR_FLUSH_ERR: return "Work Request Flushed Error";
    case IBV_WC_REM_ACCESS_ERR: return "remote access error";
    case IBV_WC_REM_OP_ERR: return "remote operation error";
    case IBV_WC_RETRY_EXC_ERR: return "transport retry counter exceeded";
    default: return "unknown";
    }
}
