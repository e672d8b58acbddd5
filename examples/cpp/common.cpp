#include "common.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include <poll.h>
#include <time.h>
#include <unistd.h>

namespace {

[[noreturn]] void fail_system(const std::string& what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

std::uint32_t small_number(std::string_view what, std::string_view text)
{
    const std::uint64_t n = number(what, text);
    if (n > std::numeric_limits<std::uint32_t>::max())
        throw std::invalid_argument(std::string(what) + ": " + std::string(text) + " is too large");
    return static_cast<std::uint32_t>(n);
}

std::vector<std::string_view> split(std::string_view text, char separator)
{
    std::vector<std::string_view> pieces;
    for (std::size_t begin = 0;;) {
        const std::size_t end = text.find(separator, begin);
        pieces.push_back(text.substr(begin, end - begin));
        if (end == text.npos)
            return pieces;
        begin = end + 1;
    }
}

// Ways of the host transport that are better than the wanted one: a peer that could use them would.
std::uint32_t better_ways(const std::string& transport)
{
    constexpr std::uint32_t shm = 1, cma = 2;
    if (transport.empty() || transport == "host/shm")
        return 0;
    return transport == "host/cma" ? shm : shm | cma;
}

kvlink::AgentConfig config(const Options& options)
{
    kvlink::AgentConfig config;
    config.instance = options.instance;
    config.rank = options.rank;
    config.ranks = options.ranks;
    config.leader = options.leader;
    config.require_transport = options.transport;
    config.host_disable = better_ways(options.transport);
    return config;
}

} // namespace

Options::Options(int argc, char** argv) : instance(argv[0])
{
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc)
            throw std::invalid_argument(name + " needs a value");
        const char* value = argv[i + 1];
        if (name == "--instance")
            instance = value;
        else if (name == "--leader")
            leader = value;
        else if (name == "--layout")
            layout = value;
        else if (name == "--transport")
            transport = value;
        else if (name == "--rank")
            rank = small_number(name, value);
        else if (name == "--ranks")
            ranks = small_number(name, value);
        else if (name == "--layers")
            layers = small_number(name, value);
        else
            throw std::invalid_argument("unknown option " + name);
    }
}

Engine::Engine(const Options& options, const kvlink::Layout& layout)
    : agent_(kvlink::Agent::create(config(options), layout).value())
{
    say("address " + agent_.address().value());
    for (const std::uint64_t bytes : layout.regions().value()) {
        const auto& memory = memory_.emplace_back(kvlink::SharedMemory::allocate(bytes).value());
        const auto region = static_cast<std::uint32_t>(memory_.size() - 1);
        agent_.register_region(region, memory.data(), memory.size()).value();
        std::ostringstream line;
        line << "region " << region << ' ' << memory.data() << ' ' << memory.size();
        say(line.str());
    }
}

void Engine::serve()
{
    pollfd watched[] = {{STDIN_FILENO, POLLIN, 0}, {agent_.event_fd().value(), POLLIN, 0}};
    for (;;) {
        if (::poll(watched, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            fail_system("poll");
        }
        if (watched[1].revents != 0)
            take_events();
        if (watched[0].revents != 0 && !read_commands())
            return;
    }
}

// Takes some events. The descriptor stays readable while more wait, so nothing is lost by stopping early.
void Engine::take_events()
{
    for (const kvlink::Event& event : agent_.poll(0).value()) {
        if (event.kind() == kvlink::EventKind::agent_failed)
            event.result().value();
        on_event(event);
    }
}

// Reads what is there and runs whole lines; returns false when it is over.
bool Engine::read_commands()
{
    char piece[1 << 16];
    const ssize_t n = ::read(STDIN_FILENO, piece, sizeof piece);
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0)
        fail_system("the standard input");
    if (n == 0)
        return false;
    input_.append(piece, static_cast<std::size_t>(n));
    std::size_t begin = 0;
    for (std::size_t end; (end = input_.find('\n', begin)) != input_.npos; begin = end + 1) {
        std::istringstream line(input_.substr(begin, end - begin));
        const Words words{std::istream_iterator<std::string>(line), {}};
        if (words.empty())
            continue;
        if (words[0] == "quit")
            return false;
        on_command(words);
    }
    input_.erase(0, begin);
    return true;
}

Request::Request(std::string_view request, std::string_view lists) : name(request), begin(0)
{
    for (const std::string_view list : split(lists, '/')) {
        auto& group = ids.emplace_back();
        if (!list.empty())
            for (const std::string_view id : split(list, ','))
                group.push_back(small_number("block", id));
        blocks.emplace_back(group);
    }
    begin = now_ns();
}

bool Request::add(const kvlink::Event& event)
{
    bytes += event.bytes();
    spans += event.spans();
    if (status == 0)
        status = static_cast<std::int32_t>(event.status());
    return --pending == 0;
}

std::string Request::report() const
{
    std::ostringstream line;
    line << name << " status=" << status << " bytes=" << bytes << " spans=" << spans << " begin=" << begin
         << " end=" << now_ns();
    return line.str();
}

std::uint64_t now_ns()
{
    timespec t{};
    if (clock_gettime(CLOCK_MONOTONIC, &t) != 0)
        fail_system("clock_gettime");
    return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}

std::uint64_t number(std::string_view what, std::string_view text)
{
    std::uint64_t n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    if (error != std::errc() || end != text.data() + text.size())
        throw std::invalid_argument(std::string(what) + ": " + std::string(text) + " is not a number");
    return n;
}

std::string read_file(const std::string& path)
{
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (!file || !(text << file.rdbuf()))
        throw std::runtime_error(path + ": cannot be read");
    return text.str();
}

void say(std::string_view line) { std::cout << line << std::endl; }

std::string one_line(std::string_view text)
{
    std::string line(text);
    std::replace(line.begin(), line.end(), '\n', ';');
    return line;
}
