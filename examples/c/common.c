#define _POSIX_C_SOURCE 200809L

#include "common.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

void check(kvlink_status_t status, const char *call)
{
    char text[4096] = "(the message is too long)";
    if (status == KVLINK_OK)
        return;
    (void)kvlink_last_error(text, sizeof text, NULL);
    fail("%s: %s", call, text);
}

void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

void say_lines(const char *name, const char *text)
{
    printf("%s ", name);
    for (; *text != '\0'; text++)
        putchar(*text == '\n' ? ';' : *text);
    putchar('\n');
    fflush(stdout);
}

uint64_t now_ns(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t) != 0)
        fail("clock_gettime: %s", strerror(errno));
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *allocate(void *old, size_t len)
{
    void *memory = realloc(old, len);
    if (memory == NULL)
        fail("out of memory: %zu bytes", len);
    return memory;
}

void *read_file(const char *path, size_t *len)
{
    size_t cap = 1 << 16;
    char *text = allocate(NULL, cap);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("%s: %s", path, strerror(errno));
    for (*len = 0;;) {
        size_t n = fread(text + *len, 1, cap - *len, file);
        if (n == 0)
            break;
        *len += n;
        if (*len == cap)
            text = allocate(text, cap *= 2);
    }
    if (ferror(file) || fclose(file) != 0)
        fail("%s: cannot be read", path);
    return text;
}

static uint32_t number(const char *option, const char *text)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno != 0 || *text == '\0' || *end != '\0' || n > UINT32_MAX)
        fail("%s: %s is not a number", option, text);
    return (uint32_t)n;
}

void options_parse(struct options *o, int argc, char **argv)
{
    memset(o, 0, sizeof *o);
    o->instance = argv[0];
    o->ranks = 1;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (value == NULL)
            fail("%s needs a value", name);
        if (strcmp(name, "--instance") == 0)
            o->instance = value;
        else if (strcmp(name, "--leader") == 0)
            o->leader = value;
        else if (strcmp(name, "--layout") == 0)
            o->layout = value;
        else if (strcmp(name, "--transport") == 0)
            o->transport = value;
        else if (strcmp(name, "--nixl-library") == 0)
            o->nixl_library = value;
        else if (strcmp(name, "--mori-library") == 0)
            o->mori_library = value;
        else if (strcmp(name, "--rank") == 0)
            o->rank = number(name, value);
        else if (strcmp(name, "--ranks") == 0)
            o->ranks = number(name, value);
        else if (strcmp(name, "--layers") == 0)
            o->layers = number(name, value);
        else
            fail("unknown option %s", name);
    }
}

/* Ways of the host transport that are better than the wanted one: a peer that could use them would. */
static uint32_t better_ways(const char *transport)
{
    enum { SHM = 1, CMA = 2 };
    if (transport == NULL || strcmp(transport, "host/shm") == 0)
        return 0;
    return strcmp(transport, "host/cma") == 0 ? SHM : SHM | CMA;
}

void engine_start(struct engine *e, const struct options *o, const kvlink_layout_t *layout)
{
    uint64_t bytes[MAX_REGIONS];
    kvlink_agent_config_t config = {0};
    char address[256];

    memset(e, 0, sizeof *e);
    config.struct_size = sizeof config;
    config.instance = o->instance;
    config.rank = o->rank;
    config.ranks = o->ranks;
    config.leader = o->leader;
    config.require_transport = o->transport;
    config.host_disable = better_ways(o->transport);
    config.nixl_library = o->nixl_library;
    config.mori_library = o->mori_library;
    check(kvlink_agent_create(&config, layout, &e->agent), "kvlink_agent_create");
    check(kvlink_layout_regions(layout, bytes, MAX_REGIONS, &e->num_regions), "kvlink_layout_regions");
    check(kvlink_layout_groups(layout, e->groups, MAX_GROUPS, &e->num_groups), "kvlink_layout_groups");

    check(kvlink_agent_address(e->agent, address, sizeof address, NULL), "kvlink_agent_address");
    say("address %s", address);
    for (size_t i = 0; i < e->num_regions; i++) {
        check(kvlink_shared_alloc(bytes[i], &e->memory[i]), "kvlink_shared_alloc");
        check(kvlink_register(e->agent, (uint32_t)i, e->memory[i], bytes[i]), "kvlink_register");
        say("region %zu %p %llu", i, e->memory[i], (unsigned long long)bytes[i]);
    }
}

void engine_stop(struct engine *e)
{
    /* The agent goes first: nothing touches the memory afterwards. */
    check(kvlink_agent_destroy(e->agent), "kvlink_agent_destroy");
    for (size_t i = 0; i < e->num_regions; i++)
        check(kvlink_shared_free(e->memory[i]), "kvlink_shared_free");
}

struct request *request_new(const char *name, char *text)
{
    struct request *r = allocate(NULL, sizeof *r);
    size_t longest = strlen(text) / 2 + 1;

    memset(r, 0, sizeof *r);
    snprintf(r->name, sizeof r->name, "%s", name);
    for (char *at = text;; at++) {
        uint32_t *ids;
        kvlink_blocks_t *list = &r->blocks[r->num_blocks];
        if (r->num_blocks++ == MAX_GROUPS)
            fail("request %s has more than %d groups", name, MAX_GROUPS);
        ids = allocate(NULL, longest * sizeof *ids);
        list->ids = ids;
        while (*at >= '0' && *at <= '9') {
            ids[list->count++] = (uint32_t)strtoul(at, &at, 10);
            if (*at == ',')
                at++;
        }
        if (*at == '\0')
            return r;
        if (*at != '/')
            fail("request %s: unexpected '%c' in its block lists", name, *at);
    }
}

void request_free(struct request *r)
{
    for (size_t i = 0; i < r->num_blocks; i++)
        free((void *)(uintptr_t)r->blocks[i].ids);
    free(r);
}

int request_add(struct request *r, const kvlink_event_t *event)
{
    r->bytes += event->bytes;
    r->spans += event->spans;
    if (r->status == KVLINK_OK)
        r->status = event->status;
    return --r->pending == 0;
}

static void run_command(char *line, command_fn *on_command, void *self)
{
    char *words[MAX_WORDS], *rest = line;
    size_t count = 0;
    while (count < MAX_WORDS && (words[count] = strtok_r(rest, " ", &rest)) != NULL)
        count++;
    if (count > 0)
        on_command(self, words, count);
}

/* A line of commands in pieces, as they arrive. */
struct input {
    char *text;
    size_t len, cap;
};

/* Reads what is there and runs whole lines; returns 0 when it is over. */
static int read_commands(struct input *in, command_fn *on_command, void *self)
{
    char *line, *end;
    if (in->cap - in->len < 4096)
        in->text = allocate(in->text, in->cap = in->cap * 2 + 8192);
    ssize_t n = read(STDIN_FILENO, in->text + in->len, in->cap - in->len);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n <= 0)
        return 0;
    in->len += (size_t)n;
    line = in->text;
    while ((end = memchr(line, '\n', in->len - (size_t)(line - in->text))) != NULL) {
        *end = '\0';
        if (strcmp(line, "quit") == 0)
            return 0;
        run_command(line, on_command, self);
        line = end + 1;
    }
    in->len -= (size_t)(line - in->text);
    memmove(in->text, line, in->len);
    return 1;
}

/* Takes some events. The descriptor stays readable while more wait, so nothing is lost by stopping early. */
static void take_events(const struct engine *e, event_fn *on_event, void *self)
{
    kvlink_event_t events[16];
    size_t count;
    check(kvlink_poll(e->agent, events, 16, 0, &count), "kvlink_poll");
    for (size_t i = 0; i < count; i++) {
        if (events[i].kind == KVLINK_EVENT_AGENT_FAILED)
            fail("the agent failed: %s", (const char *)events[i].payload);
        on_event(self, &events[i]);
    }
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {0};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        fail("epoll_ctl: %s", strerror(errno));
}

void serve(const struct engine *e, command_fn *on_command, event_fn *on_event, void *self)
{
    struct input input = {0};
    struct epoll_event ready[2];
    int events_fd, going = 1, epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll < 0)
        fail("epoll_create1: %s", strerror(errno));
    check(kvlink_event_fd(e->agent, &events_fd), "kvlink_event_fd");
    watch(epoll, STDIN_FILENO);
    watch(epoll, events_fd);
    while (going) {
        int n = epoll_wait(epoll, ready, 2, -1);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == events_fd)
                take_events(e, on_event, self);
            else
                going = read_commands(&input, on_command, self);
        }
    }
    close(epoll);
    free(input.text);
}
