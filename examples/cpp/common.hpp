// What both example engines share: start-up, an event loop, block lists. Errors are exceptions; main() prints them.
#ifndef COMMON_HPP
#define COMMON_HPP

#define KVLINK_EXCEPTIONS
#include <kvlink.hpp>

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

// The command line: who this rank is.
struct Options {
    Options(int argc, char** argv);

    std::string instance;
    std::string leader;    // address of rank 0; empty on rank 0 itself
    std::string layout;    // JSON file; empty: built by hand where the program knows how
    std::string transport; // "host/shm", "host/cma", "host/tcp"; empty: the best that works
    std::uint32_t rank = 0, ranks = 1;
    std::uint32_t layers = 0; // of the model
};

using Words = std::vector<std::string>;

// One rank: the cache memory that an engine would own, and the agent that lets others reach it.
class Engine {
public:
    // Starts the agent and registers zeroed memory for every region; prints the address and the regions.
    Engine(const Options& options, const kvlink::Layout& layout);
    virtual ~Engine() = default;

    // Serves the standard input and the agent's events until "quit" or the end of the input.
    void serve();

protected:
    virtual void on_command(const Words& words) = 0;
    virtual void on_event(const kvlink::Event& event) = 0;

    const kvlink::Agent& agent() const { return agent_; }

private:
    bool read_commands();
    void take_events();

    std::vector<kvlink::SharedMemory> memory_;
    kvlink::Agent agent_; // after the memory: it ends first, and nothing touches the memory afterwards
    std::string input_;
};

// A request that is under way.
struct Request {
    // "5,7,9/1/2" has ids 5, 7, 9 in group 0, 1 in group 1, 2 in group 2.
    Request(std::string_view request, std::string_view lists);

    std::string name;
    std::deque<std::vector<std::uint32_t>> ids;
    std::vector<kvlink::Blocks> blocks; // point to ids
    std::uint32_t pending = 0;          // transfers without their event
    std::int32_t status = 0;            // first failure
    std::uint64_t bytes = 0, spans = 0;
    std::uint64_t begin; // nanoseconds, before the first call

    // Adds a transfer's event; returns whether it was the last one.
    bool add(const kvlink::Event& event);

    // "name status=0 bytes=... spans=... begin=... end=..."
    std::string report() const;
};

// Requests by the number that their events carry as user_data.
class Requests {
public:
    template <class... Args>
    std::pair<std::uint64_t, Request&> add(Args&&... args)
    {
        const std::uint64_t number = ++last_;
        return {number, requests_.try_emplace(number, std::forward<Args>(args)...).first->second};
    }
    Request& of(const kvlink::Event& event) { return requests_.at(event.user_data()); }
    void remove(const kvlink::Event& event) { requests_.erase(event.user_data()); }

private:
    std::unordered_map<std::uint64_t, Request> requests_;
    std::uint64_t last_ = 0;
};

// CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a host.
std::uint64_t now_ns();

std::uint64_t number(std::string_view what, std::string_view text);
std::string read_file(const std::string& path);

// Prints one line at once.
void say(std::string_view line);

// The payload of several lines as one.
std::string one_line(std::string_view text);

// Runs a program; returns its exit status.
template <class Program>
int run(Program program)
{
    try {
        program();
        return 0;
    } catch (const std::exception& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}

#endif
