/* What both example engines share: start-up, an event loop, block lists, and errors. */
#ifndef COMMON_H
#define COMMON_H

#include <stddef.h>
#include <stdint.h>

#include <kvlink.h>

enum { MAX_REGIONS = 64, MAX_GROUPS = 256, MAX_WORDS = 8 };

/* The command line: who this rank is. */
struct options {
    const char *instance;
    const char *leader;    /* address of rank 0; NULL on rank 0 itself */
    const char *layout;    /* JSON file; NULL: built by hand where the program knows how */
    const char *transport; /* "host/shm", "host/cma", "host/tcp", "nixl", "mori"; NULL: the best that works */
    const char *nixl_library; /* where NIXL is installed; NULL: looked for */
    const char *mori_library; /* where libkvlink_mori.so is; NULL: looked for */
    uint32_t rank, ranks;
    uint32_t layers;       /* of the model */
};

/* One rank: its agent, and the cache memory that an engine would own. */
struct engine {
    kvlink_agent_t *agent;
    size_t num_regions, num_groups;
    void *memory[MAX_REGIONS];
    kvlink_group_t groups[MAX_GROUPS];
};

/* A request that is under way; events carry its address as user_data. */
struct request {
    char name[256];
    uint32_t pending;    /* transfers without their event */
    int32_t status;      /* first failure */
    uint64_t bytes, spans;
    uint64_t begin;      /* nanoseconds, before the first call */
    size_t num_blocks;
    kvlink_blocks_t blocks[MAX_GROUPS];
};

/* Ends the program with kvlink's message unless `status` is KVLINK_OK. */
void check(kvlink_status_t status, const char *call);

/* Ends the program with a message of our own. */
void fail(const char *format, ...);

/* CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a host. */
uint64_t now_ns(void);

void *read_file(const char *path, size_t *len);
void options_parse(struct options *options, int argc, char **argv);

/* Starts the agent and registers zeroed memory for every region; prints the address and the regions. */
void engine_start(struct engine *engine, const struct options *options, const kvlink_layout_t *layout);
void engine_stop(struct engine *engine);

/* A request with its block lists: "5,7,9/1/2" has ids 5, 7, 9 in group 0, 1 in group 1, 2 in group 2. */
struct request *request_new(const char *name, char *blocks);
void request_free(struct request *request);

/* Adds a transfer's event; returns whether it was the last one. */
int request_add(struct request *request, const kvlink_event_t *event);

/* Serves the standard input and the agent's events until "quit" or the end of the input. */
typedef void command_fn(void *self, char **words, size_t count);
typedef void event_fn(void *self, const kvlink_event_t *event);
void serve(const struct engine *engine, command_fn *on_command, event_fn *on_event, void *self);

/* Prints one line at once. */
void say(const char *format, ...);

/* Prints a text of several lines as one. */
void say_lines(const char *name, const char *text);

#endif
