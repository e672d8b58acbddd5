/* The C interface of libkvlink_mori.so: as much of MoRI-IO as kvlink reads with. It is private to kvlink: both come from the
 * same build, and kvlink refuses another kvlink_mori_abi().
 *
 * Functions return a status; the reason of a failure is kvlink_mori_error(), of the calling thread. No C++ exception leaves
 * them. MoRI can end or hang the process where no caller can help it: run kvlink-mori-check in a process of its own first.
 */
#ifndef KVLINK_MORI_H
#define KVLINK_MORI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVLINK_MORI_ABI 1

enum { KVLINK_MORI_OK = 0, KVLINK_MORI_RUNNING = 1, KVLINK_MORI_FAILED = -1 };
enum { KVLINK_MORI_RDMA = 0, KVLINK_MORI_XGMI = 1 };

typedef struct kvlink_mori_engine kvlink_mori_engine_t;
typedef struct kvlink_mori_session kvlink_mori_session_t;
typedef struct kvlink_mori_transfer kvlink_mori_transfer_t;

typedef struct {
    const char *key;          /* names the engine; no other engine anywhere may have the same */
    const char *host;         /* an IPv4 address of this machine, for the control port */
    uint32_t port;            /* of the control port; 0: any */
    uint32_t backend;         /* KVLINK_MORI_RDMA, KVLINK_MORI_XGMI */
    uint32_t qp_per_transfer; /* this and what follows: RDMA only */
    int32_t post_batch_size;  /* -1: MoRI's choice */
    uint32_t num_workers;
    uint32_t poll_event;      /* 1: completion events instead of polling */
    const char *devices;      /* names of RDMA devices, separated by commas; NULL: all */
} kvlink_mori_config_t;

uint32_t kvlink_mori_abi(void);
/* Of MoRI, as it was built with. */
const char *kvlink_mori_version(void);
/* Why the last call of this thread failed; valid until its next call. */
const char *kvlink_mori_error(void);

int kvlink_mori_engine_create(const kvlink_mori_config_t *config, kvlink_mori_engine_t **out);
/* Afterwards nothing of it runs, and nothing of it touches registered memory. No other call of it may be under way, and its
 * sessions are closed; transfers become invalid. */
void kvlink_mori_engine_destroy(kvlink_mori_engine_t *engine);
/* What peers have to know of it; valid as long as the engine. */
int kvlink_mori_engine_desc(kvlink_mori_engine_t *engine, const uint8_t **desc, size_t *len);
/* Whether this describes an engine of this name. Waits for nobody. */
int kvlink_mori_peer_check(const char *key, const uint8_t *desc, size_t len);
/* Makes a peer known. Waits while MoRI connects to any other. */
int kvlink_mori_peer_add(kvlink_mori_engine_t *engine, const char *key, const uint8_t *desc, size_t len);

/* Registers memory of the host or of a GPU; `desc` is what peers have to know of it, valid as long as the engine. MoRI tells
 * the RDMA devices only when it is first used, and aborts the process where they refuse: with `verify` they are asked now,
 * otherwise when a session is opened. */
int kvlink_mori_memory_register(kvlink_mori_engine_t *engine, void *addr, uint64_t size, uint32_t verify, uint32_t *memory,
                                const uint8_t **desc, size_t *len);

/* Connects a memory of ours with a memory of `size` bytes of the peer of this name: takes round trips, and seconds where the
 * peer does not answer. May be called while other threads make other calls. */
int kvlink_mori_session_open(kvlink_mori_engine_t *engine, uint32_t memory, const char *key, const uint8_t *desc, size_t len,
                             uint64_t size, kvlink_mori_session_t **out);
void kvlink_mori_session_close(kvlink_mori_session_t *session);

/* Starts to read: `n` pieces, by their offsets in the session's two memories. Where it fails, pieces may be under way all the
 * same, until the engine is destroyed. */
int kvlink_mori_read(kvlink_mori_session_t *session, const uint64_t *local, const uint64_t *remote, const uint64_t *sizes,
                     size_t n, kvlink_mori_transfer_t **out);
/* KVLINK_MORI_OK: all pieces are here, and nothing of it writes any more. KVLINK_MORI_FAILED: as above. */
int kvlink_mori_transfer_state(kvlink_mori_transfer_t *transfer);
/* Gives it back; one that has not succeeded is kept until the engine is destroyed, because MoRI goes on pointing to it. */
void kvlink_mori_transfer_release(kvlink_mori_transfer_t *transfer);

#ifdef __cplusplus
}
#endif
#endif
