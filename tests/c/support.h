/* What the tests of the C ABI share: a small layout, agents with memory, and the common sequences of calls. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include "check.h"
#include "kvlink.h"

/* Two layers of opaque records, one group. */
#define LAYERS 2u
#define BLOCK_TOKENS 4u

/* One agent with its layout and its only region. */
typedef struct rank {
    kvlink_layout_t *layout;
    kvlink_agent_t *agent;
    unsigned char *memory;
    size_t len;
    uint32_t num_blocks;
    uint32_t record;
    char address[256];
} rank_t;

/* What makes an agent; zero means default. */
typedef struct options {
    const char *instance;
    const char *way; /* "shm", "cma", "tcp"; NULL: the best */
    uint32_t num_blocks;
    uint32_t record;
    uint32_t dtype;
    int unregistered;
    kvlink_agent_config_t config;
} options_t;

kvlink_layout_t *make_layout(uint32_t num_blocks, uint32_t record, uint32_t dtype);
rank_t start(options_t options);
rank_t start_simple(const char *instance);
void stop(rank_t *rank);

/* Records of tokens, by block. */
unsigned char *record_at(const rank_t *rank, uint32_t layer, uint32_t first_block, uint64_t token);
void fill(const rank_t *rank, unsigned char seed);
int same_tokens(const rank_t *a, uint32_t a_first, const rank_t *b, uint32_t b_first, uint64_t begin, uint64_t end);

/* Blocks for this many tokens, ids rising from `first`. The list lives until the thread's next call. */
const kvlink_blocks_t *blocks_from(uint32_t first, uint64_t tokens);

/* Waits for the next event of a kind, skipping others; its payload as text is kept for the thread. */
kvlink_event_t wait_for(const rank_t *rank, uint32_t kind);
const char *last_payload(void);
/* No event comes within a short time. */
void quiet(const rank_t *rank);

uint64_t connect_to(const rank_t *from, const rank_t *to, uint32_t direction);

kvlink_status_t offer(const rank_t *r, const char *request, uint32_t first, uint64_t tokens, uint32_t lease_ms,
                      uint64_t user_data, uint64_t *id);
size_t ticket_of(const rank_t *r, uint64_t id, unsigned char *buf, size_t cap);
kvlink_status_t read_from(const rank_t *r, uint64_t peer, const void *ticket, size_t len, uint32_t first,
                          uint64_t tokens, uint32_t timeout_ms, uint64_t user_data, uint64_t *id);
kvlink_status_t accept_at(const rank_t *r, const char *request, uint32_t first, uint64_t tokens, uint32_t timeout_ms,
                          uint64_t user_data, uint64_t *id);
kvlink_status_t write_to(const rank_t *r, uint64_t peer, const char *request, uint32_t first, uint64_t begin,
                         uint64_t end, uint64_t total, int last, uint64_t user_data, uint64_t *id);

void sleep_ms(int ms);
long long now_ms(void);

#endif
