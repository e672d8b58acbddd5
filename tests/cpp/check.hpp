// Checks that say what was wrong, and two ranks to try things with.
#ifndef CHECK_HPP
#define CHECK_HPP

#include <kvlink.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <unistd.h>

[[noreturn]] inline void fail(const char* file, int line, const std::string& what)
{
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    std::exit(1);
}

#define CHECK(condition) ((condition) ? void() : fail(__FILE__, __LINE__, "does not hold: " #condition))

// A success; gives the value.
#define OK(call) check_ok((call), __FILE__, __LINE__, #call)

// A failure with this status, whose message has this text.
#define FAILS(call, status, text) check_fails((call), status, text, __FILE__, __LINE__, #call)

template <class T>
T check_ok(kvlink::Result<T> result, const char* file, int line, const char* call)
{
    if (!result)
        fail(file, line, std::string(call) + ": " + result.error().message());
    if constexpr (!std::is_void_v<T>)
        return *std::move(result);
}

template <class T>
void check_fails(const kvlink::Result<T>& result, kvlink::Status status, const char* text, const char* file, int line,
                 const char* call)
{
    if (result)
        fail(file, line, std::string(call) + " has succeeded");
    const std::string& message = result.error().message();
    if (result.error().status() != status || message.find(text) == message.npos)
        fail(file, line, std::string(call) + ": not " + kvlink::status_text(status) + " with \"" + text + "\": " + message);
}

// Runs a test and says so: the runner counts. One that hangs has failed.
#define RUN(test) (alarm(240), test(), std::puts(#test " ... ok"), std::fflush(stdout))

constexpr std::uint32_t layers = 2, block_tokens = 4, record = 64, num_blocks = 16;

// Two layers of opaque records, one group.
inline kvlink::LayoutDescription description(std::uint32_t record_bytes = record)
{
    kvlink::Group group;
    group.block_tokens = block_tokens;
    group.num_blocks = num_blocks;
    kvlink::Record records;
    records.layers = {0, 1};
    records.role = "mla";
    records.element_bytes = record_bytes;
    kvlink::LayoutDescription description;
    description.model = "tiny";
    description.region_bytes = {std::uint64_t{layers} * num_blocks * block_tokens * record_bytes};
    description.groups = {group};
    description.records = {records};
    return description;
}

// One rank with its cache.
struct Rank {
    kvlink::SharedMemory memory;
    kvlink::Agent agent;

    explicit Rank(const char* instance)
    {
        const kvlink::Layout layout = OK(kvlink::Layout::create(description()));
        kvlink::AgentConfig config;
        config.instance = instance;
        agent = OK(kvlink::Agent::create(config, layout));
        memory = OK(kvlink::SharedMemory::allocate(OK(layout.regions())[0]));
        OK(agent.register_region(0, memory.data(), memory.size()));
        wait(kvlink::EventKind::ready);
    }

    unsigned char* at(std::uint32_t layer, std::uint32_t block) const
    {
        return static_cast<unsigned char*>(memory.data()) + (layer * num_blocks + block) * block_tokens * record;
    }

    // The next event, which must be of this kind. Its payload lives until the next call.
    kvlink::Event wait(kvlink::EventKind kind)
    {
        const auto events = OK(agent.poll(60000, 1));
        CHECK(events.size() == 1);
        if (events[0].kind() != kind)
            fail(__FILE__, __LINE__, "an event of another kind: " + std::string(events[0].payload()));
        return events[0];
    }

    kvlink::PeerId connect(const Rank& other, kvlink::Direction direction)
    {
        const kvlink::PeerId peer = OK(agent.handshake(OK(other.agent.address()), direction, 77));
        const kvlink::Event event = wait(kvlink::EventKind::handshake);
        OK(event.result());
        CHECK(event.peer() == peer && event.user_data() == 77);
        return peer;
    }
};

#endif
