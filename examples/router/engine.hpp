// The ranks of an instance: agents, a thread each that takes their events, and what waits for those.
#ifndef ENGINE_HPP
#define ENGINE_HPP

#include "model.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include <unistd.h>

// After this a decode instance gives up on a prefill instance.
constexpr std::chrono::milliseconds patience{5000};

// Is told how an operation ended.
using Done = std::function<void(const kvlink::Result<void>&)>;

// Operations that are under way together.
class Batch {
public:
    // For one operation more.
    Done one()
    {
        const std::lock_guard lock(state_->mutex);
        state_->pending++;
        return [state = state_](const kvlink::Result<void>& end) {
            const std::lock_guard ended(state->mutex);
            if (!end && state->failure.ok())
                state->failure = end;
            if (--state->pending == 0)
                state->none_left.notify_all();
        };
    }

    // Waits for every end, so that the blocks may be used again; then throws the first failure.
    void wait()
    {
        std::unique_lock lock(state_->mutex);
        state_->none_left.wait(lock, [this] { return state_->pending == 0; });
        state_->failure.value();
    }

    // As wait(), if they end in time.
    void wait_for(std::chrono::milliseconds time)
    {
        std::unique_lock lock(state_->mutex);
        if (!state_->none_left.wait_for(lock, time, [this] { return state_->pending == 0; }))
            throw std::runtime_error("no end within " + std::to_string(time.count()) + " ms");
        state_->failure.value();
    }

private:
    struct State {
        std::mutex mutex;
        std::condition_variable none_left;
        unsigned pending = 0;
        kvlink::Result<void> failure;
    };
    std::shared_ptr<State> state_ = std::make_shared<State>();
};

// One rank. Every operation's end is told once, by the rank's thread or, if it did not begin, at once.
class Rank {
public:
    Rank(const kvlink::AgentConfig& config, std::unique_ptr<Cache> cache, Done ready)
        : cache_(std::move(cache)), agent_(kvlink::Agent::create(config, cache_->layout()).value())
    {
        waiting_.emplace(0, std::move(ready)); // the event of a rank that is ready carries no number
        agent_.register_region(0, cache_->memory().data(), cache_->memory().size()).value();
        thread_ = std::thread([this] { take_events(); });
    }
    ~Rank()
    {
        (void)agent_.close(); // ends the thread's poll
        thread_.join();
    }

    const Cache& cache() const { return *cache_; }
    const kvlink::Agent& agent() const { return agent_; }

    // `call(agent, number)` begins an operation whose event carries the number; returns what the call returned.
    template <class Call>
    auto begin(Call call, Done done)
    {
        std::unique_lock lock(mutex_);
        const std::uint64_t number = ++last_;
        waiting_.emplace(number, std::move(done));
        lock.unlock();
        auto begun = call(agent_, number);
        if (!begun)
            end(number, kvlink::Result<void>(begun.error()));
        return begun;
    }

    // Whether a peer has gone.
    bool is_down(kvlink::PeerId peer)
    {
        const std::lock_guard lock(mutex_);
        return down_.count(peer) != 0;
    }

private:
    void take_events()
    {
        while (const auto events = agent_.poll(kvlink::forever))
            for (const kvlink::Event& event : *events)
                on_event(event);
    }

    void on_event(const kvlink::Event& event)
    {
        switch (event.kind()) {
        case kvlink::EventKind::ready:
        case kvlink::EventKind::handshake:
        case kvlink::EventKind::transfer:
        case kvlink::EventKind::released:
        case kvlink::EventKind::received:
            end(event.user_data(), event.result());
            break;
        case kvlink::EventKind::peer_down: {
            const std::lock_guard lock(mutex_);
            down_.insert(event.peer());
            break;
        }
        case kvlink::EventKind::router:
            std::cerr << event.payload() << std::endl;
            break;
        case kvlink::EventKind::agent_failed:
            std::cerr << event.payload() << std::endl;
            std::exit(1);
        case kvlink::EventKind::notification:
        case kvlink::EventKind::moriio:
            break;
        }
    }

    void end(std::uint64_t number, const kvlink::Result<void>& how)
    {
        std::unique_lock lock(mutex_);
        const auto done = waiting_.extract(number);
        lock.unlock();
        if (done)
            done.mapped()(how);
    }

    std::unique_ptr<Cache> cache_;
    kvlink::Agent agent_; // after the memory: it ends first
    std::mutex mutex_;
    std::uint64_t last_ = 0;
    std::map<std::uint64_t, Done> waiting_;
    std::set<kvlink::PeerId> down_;
    std::thread thread_;
};

// All ranks of an instance, agents of one process here.
class Engine {
public:
    using Peers = std::vector<kvlink::PeerId>; // by own rank

    Engine(kvlink::Role role, std::uint32_t ranks)
    {
        Batch ready;
        for (std::uint32_t rank = 0; rank < ranks; rank++) {
            kvlink::AgentConfig config;
            config.instance = (role == kvlink::Role::prefill ? "prefill-" : "decode-") + std::to_string(getpid());
            config.rank = rank;
            config.ranks = ranks;
            config.leader = rank == 0 ? "" : address();
            config.heartbeat_ms = 500;
            config.transfer_timeout_ms = static_cast<std::uint32_t>(patience.count());
            ranks_.push_back(std::make_unique<Rank>(config, std::make_unique<Cache>(role, rank, ranks), ready.one()));
        }
        ready.wait();
        free_.resize(ranks_[0]->cache().num_blocks());
        std::iota(free_.begin(), free_.end(), 0);
    }

    std::string address() const { return ranks_.at(0)->agent().address().value(); }
    const std::vector<std::unique_ptr<Rank>>& ranks() const { return ranks_; }

    // Blocks of a request, the same on all ranks; they are free again when the last who knows them lets go.
    using Lease = std::shared_ptr<const BlockIds>;
    Lease take(std::size_t tokens)
    {
        const std::size_t tokens_each = ranks_[0]->cache().block_tokens(), count = (tokens + tokens_each - 1) / tokens_each;
        const std::lock_guard lock(mutex_);
        if (count > free_.size())
            throw std::runtime_error(std::to_string(count) + " blocks are needed, " + std::to_string(free_.size()) +
                                     " are free");
        const auto taken = free_.end() - static_cast<std::ptrdiff_t>(count);
        auto ids = std::make_unique<BlockIds>(taken, free_.end());
        free_.erase(taken, free_.end());
        return {ids.release(), [this](const BlockIds* back) {
                    const std::lock_guard returning(mutex_);
                    free_.insert(free_.end(), back->begin(), back->end());
                    delete back;
                }};
    }

    // The instance at an address, as each rank knows it. One that is gone is met anew: it may be back.
    Peers meet(const std::string& address, kvlink::Direction direction)
    {
        std::unique_lock lock(mutex_);
        Meeting& meeting = meetings_[address];
        if (meeting.peers.empty() || is_gone(meeting.peers)) {
            meeting = {};
            for (const auto& rank : ranks_) {
                const auto shake = [&](const kvlink::Agent& agent, std::uint64_t number) {
                    return agent.handshake(address, direction, number);
                };
                const auto peer = rank->begin(shake, meeting.shakes.one());
                meeting.peers.push_back(peer ? *peer : kvlink::PeerId());
            }
        }
        Meeting mine = meeting;
        lock.unlock();
        try {
            mine.shakes.wait_for(patience);
        } catch (const std::exception&) {
            lock.lock();
            Meeting& now = meetings_[address];
            if (now.peers == mine.peers)
                now = {};
            throw;
        }
        return mine.peers;
    }

private:
    struct Meeting {
        Peers peers;
        Batch shakes;
    };

    bool is_gone(const Peers& peers) const
    {
        for (std::size_t rank = 0; rank < peers.size(); rank++)
            if (ranks_[rank]->is_down(peers[rank]))
                return true;
        return false;
    }

    std::mutex mutex_;
    BlockIds free_;
    std::map<std::string, Meeting> meetings_;
    std::vector<std::unique_ptr<Rank>> ranks_; // last: what their ends let go of is still there
};

#endif
