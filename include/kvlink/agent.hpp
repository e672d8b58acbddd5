/* Agents, requests and events. Part of kvlink.hpp. */

#ifndef KVLINK_AGENT_HPP
#define KVLINK_AGENT_HPP

#include <functional>

#include "plan.hpp"

namespace kvlink {

/* A number that names something of an agent. Ids of different kinds do not mix; 0, the default, is none. */
template <class Kind>
class Id {
public:
    constexpr Id() noexcept = default;
    constexpr explicit Id(std::uint64_t value) noexcept : value_(value) {}

    constexpr std::uint64_t value() const noexcept { return value_; }
    constexpr explicit operator bool() const noexcept { return value_ != 0; }

    friend constexpr bool operator==(Id a, Id b) noexcept { return a.value_ == b.value_; }
    friend constexpr bool operator!=(Id a, Id b) noexcept { return a.value_ != b.value_; }
    friend constexpr bool operator<(Id a, Id b) noexcept { return a.value_ < b.value_; }

private:
    std::uint64_t value_ = 0;
};

using PeerId = Id<struct PeerKind>;
using OfferId = Id<struct OfferKind>;
using AcceptId = Id<struct AcceptKind>;
using TransferId = Id<struct TransferKind>;
using RegistrationId = Id<struct RegistrationKind>;
using ExchangeId = Id<struct ExchangeKind>;

enum class Direction : std::uint32_t {
    both = KVLINK_DIRECTION_BOTH,
    inbound = KVLINK_DIRECTION_INBOUND,
    outbound = KVLINK_DIRECTION_OUTBOUND,
};

enum class EventKind : std::uint32_t {
    ready = KVLINK_EVENT_READY,
    handshake = KVLINK_EVENT_HANDSHAKE,
    transfer = KVLINK_EVENT_TRANSFER,
    released = KVLINK_EVENT_RELEASED,
    received = KVLINK_EVENT_RECEIVED,
    notification = KVLINK_EVENT_NOTIFICATION,
    peer_down = KVLINK_EVENT_PEER_DOWN,
    agent_failed = KVLINK_EVENT_AGENT_FAILED,
    router = KVLINK_EVENT_ROUTER,
    moriio = KVLINK_EVENT_MORIIO,
};

enum class Role : std::uint32_t {
    prefill = KVLINK_ROLE_PREFILL,
    decode = KVLINK_ROLE_DECODE,
};

/* Who moves the data behind a router. */
enum class Mode : std::uint32_t {
    read = KVLINK_MODE_READ,
    write = KVLINK_MODE_WRITE,
};

/* All ranks of a peer. */
inline constexpr std::uint32_t all_ranks = KVLINK_ALL_RANKS;

/* Waits without end. */
inline constexpr int forever = KVLINK_FOREVER;

/* A kvlink_agent_config_t. Empty and 0: the default. */
struct AgentConfig {
    std::string instance; /* required */
    std::uint32_t rank = 0;
    std::uint32_t ranks = 0;
    std::string leader; /* required on every rank but 0 */
    std::string listen;
    std::string advertise;
    bool allow_remote = false;
    std::string require_transport;
    std::uint32_t host_disable = 0;
    std::uint32_t heartbeat_ms = 0;
    std::uint32_t heartbeat_misses = 0;
    std::uint32_t join_timeout_ms = 0;
    std::uint32_t handshake_timeout_ms = 0;
    std::uint32_t transfer_timeout_ms = 0;
    std::uint32_t lease_ms = 0;
    std::uint32_t max_transfers = 0;
    std::uint32_t max_offers = 0;
    std::uint32_t max_accepts = 0;
    std::uint32_t max_peers = 0;
    std::uint32_t max_events = 0;
    std::string nixl_backend;
    std::string nixl_params;
    std::string nixl_library;
    std::uint32_t nixl_patience_ms = 0;
    std::uint32_t nixl_landing = 0;
    std::string mori_backend;
    std::string mori_library;
    std::string mori_host;
    std::string mori_devices;
    std::uint32_t mori_port = 0;
    std::uint32_t mori_qp_per_transfer = 0;
    std::uint32_t mori_post_batch_size = 0;
    std::uint32_t mori_num_workers = 0;
    std::uint32_t mori_poll_mode = 0;
    std::uint32_t mori_patience_ms = 0;
};

/* A kvlink_router_t: an instance as a router shall know it. */
struct Router {
    Role role = Role::prefill;
    Mode mode = Mode::read;
    std::string discovery;
    std::string http_address;
    std::string zmq_address; /* empty: this agent's address */
    std::uint32_t dp_size = 0;
    std::uint32_t tp_size = 0;
    std::uint32_t beat_ms = 0;
    std::uint64_t user_data = 0;
};

/* A kvlink_moriio_t: a worker as workers of vLLM's MoRIIOConnector shall see it. */
struct Moriio {
    Role role = Role::prefill;
    std::uint32_t handshake_port = 0;
    std::uint32_t notify_port = 0;
    std::uint32_t dp_rank = 0;
    std::uint32_t dp_size = 0;
    std::uint32_t tp_rank = 0;
    std::uint32_t tp_size = 0;
    std::string host;
    std::string handshake; /* JSON */
    std::uint64_t user_data = 0;
};

/* A kvlink_offer_t: what a source offers. */
struct Offer {
    const char* request = nullptr;
    Span<const Blocks> blocks;
    std::uint64_t tokens = 0;
    std::uint32_t lease_ms = 0;
    std::uint64_t user_data = 0;
};

/* A kvlink_read_t: what a sink reads. */
struct Read {
    PeerId peer;
    std::string_view ticket;
    Span<const Blocks> blocks;
    std::uint64_t token_begin = 0;
    std::uint64_t token_end = 0;
    std::uint32_t layer_first = 0;
    std::uint32_t layer_count = 0;
    std::uint32_t timeout_ms = 0;
    std::uint64_t user_data = 0;
};

/* A kvlink_accept_t: what a sink accepts. */
struct Accept {
    const char* request = nullptr;
    Span<const Blocks> blocks;
    std::uint64_t token_begin = 0;
    std::uint64_t tokens = 0;
    std::uint32_t timeout_ms = 0;
    std::uint64_t user_data = 0;
};

/* A kvlink_write_t: what a source writes. */
struct Write {
    PeerId peer;
    const char* request = nullptr;
    Span<const Blocks> blocks;
    std::uint64_t token_begin = 0;
    std::uint64_t token_end = 0;
    std::uint64_t token_total = 0;
    std::uint32_t layer_first = 0;
    std::uint32_t layer_count = 0;
    bool last = false;
    std::string_view aux;
    std::uint32_t timeout_ms = 0;
    std::uint64_t user_data = 0;
};

/* One event of an agent. */
class Event : private kvlink_event_t {
public:
    Event() noexcept : kvlink_event_t{} {}

    /* A newer library may have kinds that this header does not list: ignore them. */
    EventKind kind() const noexcept { return static_cast<EventKind>(c().kind); }
    Status status() const noexcept { return static_cast<Status>(c().status); }
    bool ok() const noexcept { return status() == Status::ok; }

    /* How it ended, as a call would say it: the status, and the payload that says why. */
    Result<void> result() const
    {
        if (!ok())
            return detail::error(status(), payload());
        return {};
    }

    std::uint64_t user_data() const noexcept { return c().user_data; }

    /* What ended; none if the event is of another kind. */
    TransferId transfer() const noexcept { return id<TransferId>(EventKind::transfer); }
    OfferId offer() const noexcept { return id<OfferId>(EventKind::released); }
    AcceptId accept() const noexcept { return id<AcceptId>(EventKind::received); }

    RegistrationId registration() const noexcept { return id<RegistrationId>(EventKind::router); }

    /* None if others said something. */
    ExchangeId exchange() const noexcept { return id<ExchangeId>(EventKind::moriio); }

    PeerId peer() const noexcept { return PeerId(c().peer); }
    std::uint32_t rank() const noexcept { return c().rank; }
    std::uint64_t bytes() const noexcept { return c().bytes; }
    std::uint64_t spans() const noexcept { return c().spans; }

    /* Valid until the agent's next poll or its end. */
    std::string_view payload() const noexcept
    {
        return {static_cast<const char*>(c().payload), c().payload_len};
    }

private:
    friend class Agent;

    const kvlink_event_t& c() const noexcept { return *this; }

    template <class T>
    T id(EventKind wanted) const noexcept
    {
        return kind() == wanted ? T(c().id) : T();
    }
};
/* An array of them is filled by C. */
static_assert(sizeof(Event) == sizeof(kvlink_event_t) && std::is_standard_layout_v<Event>);

/* Counters since the agent's start: bytes, spans, transfers, failures. */
using Statistics = ::kvlink_statistics_t;

/* One rank's endpoint. Registered memory must stay mapped until it is deregistered or the agent has ended: declare the
 * agent after its memory. */
class Agent : public detail::Handle<kvlink_agent_t, kvlink_agent_destroy> {
public:
    using Handle::Handle;

    static Result<Agent> create(const AgentConfig& config, const Layout& layout);

    /* Where others reach this agent, "host:port". */
    Result<std::string> address() const
    {
        return detail::text(1, [this](char* buf, std::size_t cap, std::size_t* len) {
            return ::kvlink_agent_address(c_handle(), buf, cap, len);
        });
    }

    /* kvlink_register: `register` is a word of the language. */
    Result<void> register_region(std::uint32_t region, void* memory, std::size_t len) const
    {
        return detail::result(::kvlink_register(c_handle(), region, memory, len));
    }
    Result<void> deregister_region(std::uint32_t region) const
    {
        return detail::result(::kvlink_deregister(c_handle(), region));
    }

    Result<Statistics> statistics() const
    {
        Statistics statistics{};
        statistics.struct_size = sizeof statistics;
        const kvlink_status_t status = ::kvlink_statistics(c_handle(), &statistics);
        return detail::result(status, statistics);
    }

    /* Ends with EventKind::handshake. */
    Result<PeerId> handshake(const std::string& address, Direction direction, std::uint64_t user_data = 0) const
    {
        return id<PeerId>([&](std::uint64_t* peer) {
            return ::kvlink_handshake(c_handle(), address.c_str(), static_cast<std::uint32_t>(direction), user_data, peer);
        });
    }
    Result<void> disconnect(PeerId peer) const
    {
        return detail::result(::kvlink_disconnect(c_handle(), peer.value()));
    }

    /* One line per linked rank, with the reasons why better transports were not chosen. */
    Result<std::string> effective_transport(PeerId peer) const
    {
        return detail::text(1, [this, peer](char* buf, std::size_t cap, std::size_t* len) {
            return ::kvlink_effective_transport(c_handle(), peer.value(), buf, cap, len);
        });
    }

    /* Sends a message to the engine at one rank of a peer, or at all_ranks; with `after`, when that transfer completed. */
    Result<void> notify(PeerId peer, std::uint32_t rank, std::string_view message, TransferId after = {}) const
    {
        return detail::result(
            ::kvlink_notify(c_handle(), peer.value(), rank, message.data(), message.size(), after.value()));
    }

    /* Every change is told by EventKind::router. */
    Result<RegistrationId> attach_router(const Router& router) const;
    Result<void> detach_router(RegistrationId registration) const
    {
        return detail::result(::kvlink_router_detach(c_handle(), registration.value()));
    }

    /* What others say comes as EventKind::moriio without an exchange. */
    Result<void> open_moriio(const Moriio& worker) const;
    Result<void> close_moriio() const { return detail::result(::kvlink_moriio_close(c_handle())); }

    /* Ends with EventKind::moriio, whose payload is the other worker's handshake as JSON. */
    Result<ExchangeId> meet_moriio(const std::string& address, std::uint32_t timeout_ms = 0,
                                   std::uint64_t user_data = 0) const
    {
        return id<ExchangeId>([&](std::uint64_t* exchange) {
            return ::kvlink_moriio_meet(c_handle(), address.c_str(), timeout_ms, user_data, exchange);
        });
    }

    /* Ends with EventKind::moriio when the message, JSON, has arrived. */
    Result<ExchangeId> send_moriio(const std::string& address, std::string_view message, std::uint32_t timeout_ms = 0,
                                   std::uint64_t user_data = 0) const
    {
        return id<ExchangeId>([&](std::uint64_t* exchange) {
            return ::kvlink_moriio_send(c_handle(), address.c_str(), message.data(), message.size(), timeout_ms, user_data,
                                        exchange);
        });
    }

    /* Ends with EventKind::released. */
    Result<OfferId> offer(const Offer& offer) const;

    /* The ticket that a sink reads the offer with: opaque bytes; of no offer: for ticket_write. */
    Result<std::string> ticket(OfferId offer) const
    {
        return detail::text(0, [this, offer](char* buf, std::size_t cap, std::size_t* len) {
            return ::kvlink_ticket(c_handle(), offer.value(), buf, cap, len);
        });
    }

    /* kvlink_read_blocks; ends with EventKind::transfer. */
    Result<TransferId> read(const Read& read) const;

    /* Ends with EventKind::received. */
    Result<AcceptId> accept(const Accept& accept) const;

    /* kvlink_write_blocks; ends with EventKind::transfer. */
    Result<TransferId> write(const Write& write) const;

    /* Ends it early; its event still comes. */
    Result<void> cancel(TransferId transfer) const { return cancel_any(transfer.value()); }
    Result<void> cancel(OfferId offer) const { return cancel_any(offer.value()); }
    Result<void> cancel(AcceptId accept) const { return cancel_any(accept.value()); }
    Result<void> cancel(ExchangeId exchange) const { return cancel_any(exchange.value()); }

    /* Blocks of a group that a failed read left without valid data. */
    Result<std::vector<std::uint32_t>> failed_blocks(TransferId transfer, std::uint32_t group) const
    {
        return detail::list<std::uint32_t>([&](std::uint32_t* ids, std::size_t cap, std::size_t* count) {
            return ::kvlink_failed_blocks(c_handle(), transfer.value(), group, ids, cap, count);
        });
    }

    /* Takes up to `max` events, oldest first, after waiting up to `timeout_ms` for the first; none when that is over. They
     * and their payloads are valid until the next poll. One thread at a time. */
    Result<Span<const Event>> poll(int timeout_ms, std::size_t max = 64)
    {
        if (events_.size() < max)
            events_.resize(max);
        std::size_t count = 0;
        const kvlink_status_t status = ::kvlink_poll(c_handle(), events_.data(), max, timeout_ms, &count);
        if (status != KVLINK_OK)
            return detail::last_error(status);
        return Span<const Event>(events_.data(), count);
    }

    /* A descriptor that is readable exactly while events wait: for epoll and event loops. It belongs to the agent. */
    Result<int> event_fd() const
    {
        int fd = -1;
        const kvlink_status_t status = ::kvlink_event_fd(c_handle(), &fd);
        return detail::result(status, fd);
    }

private:
    template <class T, class Call>
    Result<T> id(Call call) const
    {
        std::uint64_t value = 0;
        const kvlink_status_t status = call(&value);
        return detail::result(status, T(value));
    }

    Result<void> cancel_any(std::uint64_t value) const
    {
        return detail::result(::kvlink_cancel(c_handle(), value));
    }

    std::vector<Event> events_;
};

/* What a ticket says. */
struct TicketInfo {
    std::uint32_t rank = 0;
    std::uint64_t incarnation = 0;
    std::uint64_t tokens = 0;
    std::string address;
    std::string instance;
    std::string request;
};

/* Reads a ticket, without an agent. */
inline Result<TicketInfo> ticket_info(std::string_view ticket)
{
    kvlink_ticket_info_t c{};
    c.struct_size = sizeof c;
    if (const kvlink_status_t status = ::kvlink_ticket_info(ticket.data(), ticket.size(), &c); status != KVLINK_OK)
        return detail::last_error(status);
    return TicketInfo{c.rank, c.incarnation, c.tokens, c.address, c.instance, c.request};
}

namespace detail {

inline kvlink_offer_t c_offer(const Offer& offer)
{
    kvlink_offer_t c{};
    c.struct_size = sizeof c;
    c.lease_ms = offer.lease_ms;
    c.request = offer.request;
    c.blocks = offer.blocks.data();
    c.num_blocks = offer.blocks.size();
    c.tokens = offer.tokens;
    c.user_data = offer.user_data;
    return c;
}

} // namespace detail

/* The ticket of an offer that another process makes, like another ticket of the source. */
inline Result<std::string> ticket_write(std::string_view like, const Offer& offer)
{
    const kvlink_offer_t c = detail::c_offer(offer);
    return detail::text(0, [&](char* buf, std::size_t cap, std::size_t* len) {
        return ::kvlink_ticket_write(like.data(), like.size(), &c, buf, cap, len);
    });
}

/* Zeroed memory that kvlink peers on this host can map: the fastest path between processes. */
class SharedMemory {
public:
    SharedMemory() noexcept = default;
    SharedMemory(SharedMemory&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0))
    {
    }
    SharedMemory& operator=(SharedMemory&& other) noexcept
    {
        if (this != &other) {
            (void)::kvlink_shared_free(std::exchange(data_, std::exchange(other.data_, nullptr)));
            size_ = std::exchange(other.size_, 0);
        }
        return *this;
    }

    /* Whatever a destructor cannot report: close() does. */
    ~SharedMemory() { (void)::kvlink_shared_free(data_); }

    static Result<SharedMemory> allocate(std::size_t len)
    {
        SharedMemory memory;
        const kvlink_status_t status = ::kvlink_shared_alloc(len, &memory.data_);
        if (status == KVLINK_OK)
            memory.size_ = len;
        return detail::result(status, std::move(memory));
    }

    void* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }

    /* Frees it now; nothing is held afterwards. */
    Result<void> close()
    {
        size_ = 0;
        return detail::result(::kvlink_shared_free(std::exchange(data_, nullptr)));
    }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

inline Result<Agent> Agent::create(const AgentConfig& config, const Layout& layout)
{
    kvlink_agent_config_t c{};
    c.struct_size = sizeof c;
    c.rank = config.rank;
    c.ranks = config.ranks;
    c.allow_remote = config.allow_remote ? 1 : 0;
    c.instance = config.instance.c_str();
    c.listen = detail::optional_text(config.listen);
    c.advertise = detail::optional_text(config.advertise);
    c.leader = detail::optional_text(config.leader);
    c.require_transport = detail::optional_text(config.require_transport);
    c.host_disable = config.host_disable;
    c.heartbeat_ms = config.heartbeat_ms;
    c.heartbeat_misses = config.heartbeat_misses;
    c.join_timeout_ms = config.join_timeout_ms;
    c.handshake_timeout_ms = config.handshake_timeout_ms;
    c.transfer_timeout_ms = config.transfer_timeout_ms;
    c.lease_ms = config.lease_ms;
    c.max_transfers = config.max_transfers;
    c.max_offers = config.max_offers;
    c.max_accepts = config.max_accepts;
    c.max_peers = config.max_peers;
    c.max_events = config.max_events;
    c.nixl_backend = detail::optional_text(config.nixl_backend);
    c.nixl_params = detail::optional_text(config.nixl_params);
    c.nixl_library = detail::optional_text(config.nixl_library);
    c.nixl_patience_ms = config.nixl_patience_ms;
    c.nixl_landing = config.nixl_landing;
    c.mori_backend = detail::optional_text(config.mori_backend);
    c.mori_library = detail::optional_text(config.mori_library);
    c.mori_host = detail::optional_text(config.mori_host);
    c.mori_devices = detail::optional_text(config.mori_devices);
    c.mori_port = config.mori_port;
    c.mori_qp_per_transfer = config.mori_qp_per_transfer;
    c.mori_post_batch_size = config.mori_post_batch_size;
    c.mori_num_workers = config.mori_num_workers;
    c.mori_poll_mode = config.mori_poll_mode;
    c.mori_patience_ms = config.mori_patience_ms;
    kvlink_agent_t* agent = nullptr;
    const kvlink_status_t status = ::kvlink_agent_create(&c, layout.c_handle(), &agent);
    return detail::result(status, Agent(agent));
}

inline Result<void> Agent::open_moriio(const Moriio& worker) const
{
    kvlink_moriio_t c{};
    c.struct_size = sizeof c;
    c.role = static_cast<std::uint32_t>(worker.role);
    c.handshake_port = worker.handshake_port;
    c.notify_port = worker.notify_port;
    c.dp_rank = worker.dp_rank;
    c.dp_size = worker.dp_size;
    c.tp_rank = worker.tp_rank;
    c.tp_size = worker.tp_size;
    c.host = detail::optional_text(worker.host);
    c.handshake = worker.handshake.data();
    c.handshake_len = worker.handshake.size();
    c.user_data = worker.user_data;
    return detail::result(::kvlink_moriio_open(c_handle(), &c));
}

inline Result<RegistrationId> Agent::attach_router(const Router& router) const
{
    kvlink_router_t c{};
    c.struct_size = sizeof c;
    c.role = static_cast<std::uint32_t>(router.role);
    c.mode = static_cast<std::uint32_t>(router.mode);
    c.beat_ms = router.beat_ms;
    c.dp_size = router.dp_size;
    c.tp_size = router.tp_size;
    c.discovery = router.discovery.c_str();
    c.http_address = router.http_address.c_str();
    c.zmq_address = detail::optional_text(router.zmq_address);
    c.user_data = router.user_data;
    return id<RegistrationId>([&](std::uint64_t* out) { return ::kvlink_router_attach(c_handle(), &c, out); });
}

inline Result<OfferId> Agent::offer(const Offer& offer) const
{
    const kvlink_offer_t c = detail::c_offer(offer);
    return id<OfferId>([&](std::uint64_t* out) { return ::kvlink_offer(c_handle(), &c, out); });
}

inline Result<TransferId> Agent::read(const Read& read) const
{
    kvlink_read_t c{};
    c.struct_size = sizeof c;
    c.timeout_ms = read.timeout_ms;
    c.peer = read.peer.value();
    c.ticket = read.ticket.data();
    c.ticket_len = read.ticket.size();
    c.blocks = read.blocks.data();
    c.num_blocks = read.blocks.size();
    c.token_begin = read.token_begin;
    c.token_end = read.token_end;
    c.layer_first = read.layer_first;
    c.layer_count = read.layer_count;
    c.user_data = read.user_data;
    return id<TransferId>([&](std::uint64_t* out) { return ::kvlink_read_blocks(c_handle(), &c, out); });
}

inline Result<AcceptId> Agent::accept(const Accept& accept) const
{
    kvlink_accept_t c{};
    c.struct_size = sizeof c;
    c.timeout_ms = accept.timeout_ms;
    c.request = accept.request;
    c.blocks = accept.blocks.data();
    c.num_blocks = accept.blocks.size();
    c.token_begin = accept.token_begin;
    c.tokens = accept.tokens;
    c.user_data = accept.user_data;
    return id<AcceptId>([&](std::uint64_t* out) { return ::kvlink_accept(c_handle(), &c, out); });
}

inline Result<TransferId> Agent::write(const Write& write) const
{
    kvlink_write_t c{};
    c.struct_size = sizeof c;
    c.timeout_ms = write.timeout_ms;
    c.peer = write.peer.value();
    c.request = write.request;
    c.blocks = write.blocks.data();
    c.num_blocks = write.blocks.size();
    c.token_begin = write.token_begin;
    c.token_end = write.token_end;
    c.token_total = write.token_total;
    c.layer_first = write.layer_first;
    c.layer_count = write.layer_count;
    c.last = write.last ? 1 : 0;
    c.aux = write.aux.data();
    c.aux_len = write.aux.size();
    c.user_data = write.user_data;
    return id<TransferId>([&](std::uint64_t* out) { return ::kvlink_write_blocks(c_handle(), &c, out); });
}

} // namespace kvlink

/* Ids are keys of unordered containers. */
template <class Kind>
struct std::hash<kvlink::Id<Kind>> {
    std::size_t operator()(kvlink::Id<Kind> id) const noexcept { return std::hash<std::uint64_t>()(id.value()); }
};

#endif
