/* Real processes: fork, exec, kill. Called with arguments, this program is the source of another one's read. */
#define _GNU_SOURCE
#include "support.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 96, FROM = 2, TO = 30 };

static const char *self; /* not /proc/self/exe: under valgrind that is valgrind */

/* ---- fork ---- */

#define WRONG(call) CHECK_ERROR(call, KVLINK_E_WRONG_STATE, "fork")

static void child(const rank_t *r, uint64_t id)
{
    kvlink_statistics_t s = {.struct_size = sizeof s};
    kvlink_event_t e;
    uint64_t out = 0;
    uint32_t block;
    size_t n;
    int fd = -1;
    char buf[4096];
    WRONG(offer(r, "child", 0, 8, 0, 0, &out));
    WRONG(accept_at(r, "child", 0, 8, 0, 0, &out));
    WRONG(read_from(r, 1, "x", 1, 0, 8, 0, 0, &out));
    WRONG(write_to(r, 1, "x", 0, 0, 8, 8, 1, 0, &out));
    WRONG(kvlink_cancel(r->agent, id));
    WRONG(kvlink_ticket(r->agent, id, buf, sizeof buf, &n));
    WRONG(kvlink_failed_blocks(r->agent, id, 0, &block, 1, &n));
    WRONG(kvlink_notify(r->agent, 1, 0, "", 0, 0));
    WRONG(kvlink_handshake(r->agent, "127.0.0.1:1", 0, 0, &out));
    WRONG(kvlink_disconnect(r->agent, 1));
    WRONG(kvlink_effective_transport(r->agent, 1, buf, sizeof buf, &n));
    WRONG(kvlink_register(r->agent, 0, r->memory, r->len));
    WRONG(kvlink_deregister(r->agent, 0));
    WRONG(kvlink_agent_address(r->agent, buf, sizeof buf, &n));
    WRONG(kvlink_statistics(r->agent, &s));
    WRONG(kvlink_event_fd(r->agent, &fd));
    WRONG(kvlink_poll(r->agent, &e, 1, KVLINK_FOREVER, &n));
    /* What is pure works, and the copy of the agent can be forgotten. */
    CHECK_OK(kvlink_layout_explain(r->layout, buf, sizeof buf, &n));
    CHECK_OK(kvlink_agent_destroy(r->agent));
    CHECK_STATUS(kvlink_agent_destroy(r->agent), KVLINK_E_BAD_HANDLE);
    /* What the parent's threads held is lost in a fork; a leak checker would say so at the end of this process. */
    execl(self, self, "nothing", (char *)NULL);
    _exit(127);
}

static void succeeded(pid_t pid)
{
    int status = -1;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static void an_agent_does_not_survive_a_fork(void)
{
    rank_t r = start_simple("parent"), friend = start_simple("friend");
    uint64_t p = connect_to(&friend, &r, KVLINK_DIRECTION_BOTH), id;
    kvlink_event_t e;
    pid_t pid;
    CHECK_OK(offer(&r, "kept", 0, 8, 0, 9, &id));
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        child(&r, id);
    succeeded(pid);
    /* The parent's agent has not noticed. */
    CHECK_OK(kvlink_notify(friend.agent, p, 0, "still here?", 11, 0));
    CHECK_EQ(wait_for(&r, KVLINK_EVENT_NOTIFICATION).status, KVLINK_OK);
    CHECK_OK(kvlink_cancel(r.agent, id));
    e = wait_for(&r, KVLINK_EVENT_RELEASED);
    CHECK_EQ(e.user_data, 9);
    quiet(&friend);
    stop(&r);
    stop(&friend);
}

static void a_child_does_not_keep_a_destroyed_agent_reachable(void)
{
    options_t o;
    rank_t r, friend;
    char address[256];
    long long begin;
    uint64_t p;
    kvlink_event_t e;
    pid_t pid;
    memset(&o, 0, sizeof o);
    o.config.heartbeat_ms = 60000; /* what is noticed is not noticed by silence */
    o.instance = "parent";
    r = start(o);
    o.instance = "friend";
    friend = start(o);
    connect_to(&friend, &r, KVLINK_DIRECTION_BOTH);
    memcpy(address, r.address, sizeof address);
    pid = fork(); /* has copies of all sockets */
    CHECK(pid >= 0);
    if (pid == 0) {
        pause();
        _exit(0);
    }
    begin = now_ms();
    stop(&r);
    CHECK_EQ(wait_for(&friend, KVLINK_EVENT_PEER_DOWN).status, KVLINK_E_PEER_DEAD);
    CHECK_OK(kvlink_handshake(friend.agent, address, 0, 0, &p));
    e = wait_for(&friend, KVLINK_EVENT_HANDSHAKE);
    CHECK_STATUS(e.status, KVLINK_E_UNREACHABLE);
    CHECK(now_ms() - begin < 20000);
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    stop(&friend);
}

/* ---- two programs ---- */

/* The other program: offers, prints its address and ticket, waits for the release or the end of its input. */
static int serve(const char *way)
{
    options_t o;
    rank_t r;
    unsigned char ticket[4096];
    uint64_t id;
    size_t len, i;
    memset(&o, 0, sizeof o);
    o.instance = "program";
    o.way = way;
    r = start(o);
    fill(&r, 77);
    CHECK_OK(offer(&r, "between programs", FROM, TOKENS, 0, 0, &id));
    len = ticket_of(&r, id, ticket, sizeof ticket);
    printf("%s ", r.address);
    for (i = 0; i < len; i++)
        printf("%02x", ticket[i]);
    printf("\n");
    fflush(stdout);
    CHECK_EQ(wait_for(&r, KVLINK_EVENT_RELEASED).status, KVLINK_OK);
    while (getchar() != EOF) {
    }
    stop(&r);
    return 0;
}

typedef struct program {
    pid_t pid;
    int input, output;
    char address[256];
    unsigned char ticket[4096];
    size_t ticket_len;
} program_t;

static program_t run(const char *way)
{
    static char line[16384];
    program_t p;
    int in[2], out[2];
    FILE *f;
    char *hex;
    memset(&p, 0, sizeof p);
    CHECK_EQ(pipe2(in, 02000000 /* O_CLOEXEC */), 0);
    CHECK_EQ(pipe2(out, 02000000), 0);
    p.pid = fork();
    CHECK(p.pid >= 0);
    if (p.pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        execl(self, self, "serve", way, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p.input = in[1];
    p.output = out[0];
    f = fdopen(p.output, "r");
    CHECK(f != NULL);
    CHECK(fgets(line, sizeof line, f) != NULL);
    hex = strchr(line, ' ');
    CHECK(hex != NULL);
    *hex++ = 0;
    CHECK(strlen(line) < sizeof p.address);
    memcpy(p.address, line, strlen(line) + 1);
    for (; hex[0] != '\n' && hex[0] != 0; hex += 2) {
        unsigned byte;
        CHECK_EQ(sscanf(hex, "%2x", &byte), 1);
        p.ticket[p.ticket_len++] = (unsigned char)byte;
    }
    return p;
}

static void a_program_reads_from_another(const char *way)
{
    options_t o;
    rank_t sink, model;
    rank_t source;
    program_t p = run(way);
    uint64_t peer, id;
    kvlink_event_t e;
    memset(&o, 0, sizeof o);
    o.instance = "reader";
    o.way = way;
    sink = start(o);
    model = start_simple("model");
    fill(&model, 77);
    memset(&source, 0, sizeof source);
    memcpy(source.address, p.address, sizeof p.address);
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_INBOUND);
    CHECK_HAS(last_payload(), way);
    CHECK_OK(read_from(&sink, peer, p.ticket, p.ticket_len, TO, TOKENS, 0, 0, &id));
    e = wait_for(&sink, KVLINK_EVENT_TRANSFER);
    CHECK_EQ(e.status, KVLINK_OK);
    CHECK(same_tokens(&model, FROM, &sink, TO, 0, TOKENS));
    close(p.input);
    succeeded(p.pid);
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_PEER_DOWN).peer, peer);
    stop(&model);
    stop(&sink);
}

static void over_shared_memory(void)
{
    a_program_reads_from_another("shm");
}

static void over_cross_process_copies(void)
{
    a_program_reads_from_another("cma");
}

static void over_tcp(void)
{
    a_program_reads_from_another("tcp");
}

static void a_killed_peer_fails_what_was_under_way(void)
{
    rank_t sink = start_simple("reader"), source;
    program_t p = run("shm");
    uint64_t peer, accepted;
    kvlink_event_t e;
    memset(&source, 0, sizeof source);
    memcpy(source.address, p.address, sizeof p.address);
    peer = connect_to(&sink, &source, KVLINK_DIRECTION_BOTH);
    CHECK_OK(accept_at(&sink, "never written", 0, 8, 3000, 4, &accepted));
    CHECK_EQ(kill(p.pid, SIGKILL), 0);
    CHECK_EQ(waitpid(p.pid, NULL, 0), p.pid);
    e = wait_for(&sink, KVLINK_EVENT_PEER_DOWN);
    CHECK_EQ(e.peer, peer);
    CHECK_EQ(e.status, KVLINK_E_PEER_DEAD);
    CHECK_STATUS(read_from(&sink, peer, p.ticket, p.ticket_len, TO, TOKENS, 0, 0, &accepted), KVLINK_E_PEER_DEAD);
    CHECK_EQ(wait_for(&sink, KVLINK_EVENT_RECEIVED).user_data, 4);
    close(p.input);
    stop(&sink);
}

int main(int argc, char **argv)
{
    self = argv[0];
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        return serve(argv[2]);
    if (argc == 2 && strcmp(argv[1], "nothing") == 0)
        return 0;
    RUN(an_agent_does_not_survive_a_fork);
    RUN(a_child_does_not_keep_a_destroyed_agent_reachable);
    RUN(over_shared_memory);
    RUN(over_cross_process_copies);
    RUN(over_tcp);
    RUN(a_killed_peer_fails_what_was_under_way);
    return 0;
}
