// Two agents in one process: reads, layer-wise writes, messages, ends; every byte and every event checked.
#include "check.hpp"

#include <poll.h>

using kvlink::Direction;
using kvlink::EventKind;
using kvlink::Status;

static bool readable(int fd)
{
    pollfd p{fd, POLLIN, 0};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents != 0;
}

static void fill(const Rank& rank, unsigned seed)
{
    auto* bytes = static_cast<unsigned char*>(rank.memory.data());
    for (std::size_t i = 0; i < rank.memory.size(); i++)
        bytes[i] = static_cast<unsigned char>(i * 31 + (i >> 8) * 7 + seed);
}

// Blocks of all layers, in the order of two lists.
static bool same_blocks(const Rank& a, const std::vector<std::uint32_t>& from, const Rank& b,
                        const std::vector<std::uint32_t>& to)
{
    for (std::uint32_t layer = 0; layer < layers; layer++)
        for (std::size_t i = 0; i < from.size(); i++)
            if (std::memcmp(a.at(layer, from[i]), b.at(layer, to[i]), block_tokens * record) != 0)
                return false;
    return true;
}

static const std::vector<std::uint32_t> from{3, 1, 7}, to{0, 9, 4};
static constexpr std::uint64_t tokens = 12, all_bytes = tokens * record * layers;

static kvlink::OfferId offer(const Rank& rank, const char* request, const kvlink::Blocks& blocks)
{
    kvlink::Offer offer;
    offer.request = request;
    offer.blocks = blocks;
    offer.tokens = tokens;
    offer.user_data = 5;
    return OK(rank.agent.offer(offer));
}

static kvlink::Read read_of(kvlink::PeerId peer, const std::string& ticket, const kvlink::Blocks& blocks)
{
    kvlink::Read read;
    read.peer = peer;
    read.ticket = ticket;
    read.blocks = blocks;
    read.user_data = 6;
    return read;
}

static void a_read_moves_every_byte()
{
    Rank source("p"), sink("d");
    fill(source, 1);
    const kvlink::PeerId peer = sink.connect(source, Direction::inbound);
    CHECK(OK(sink.agent.effective_transport(peer)).find("host/") != std::string::npos);

    const kvlink::Blocks source_blocks(from), sink_blocks(to);
    const kvlink::OfferId offered = offer(source, "r1", source_blocks);
    const std::string ticket = OK(source.agent.ticket(offered));
    const kvlink::Offer same{"r1", source_blocks, tokens, 0, 0};
    CHECK(OK(kvlink::ticket_write(OK(source.agent.ticket(kvlink::OfferId{})), same)) == ticket);
    const kvlink::TicketInfo info = OK(kvlink::ticket_info(ticket));
    CHECK(info.address == OK(source.agent.address()) && info.instance == "p" && info.request == "r1");
    CHECK(info.rank == 0 && info.tokens == tokens && info.incarnation != 0);

    const int fd = OK(sink.agent.event_fd());
    CHECK(!readable(fd));
    const kvlink::TransferId transfer = OK(sink.agent.read(read_of(peer, ticket, sink_blocks)));
    const kvlink::Event event = sink.wait(EventKind::transfer);
    OK(event.result());
    CHECK(event.ok() && event.transfer() == transfer && !event.offer() && !event.accept());
    CHECK(event.bytes() == all_bytes && event.spans() > 0 && event.peer() == peer && event.user_data() == 6);
    CHECK(same_blocks(source, from, sink, to) && !readable(fd));

    const kvlink::Event released = source.wait(EventKind::released);
    OK(released.result());
    CHECK(released.offer() == offered && !released.transfer() && released.user_data() == 5);
    const kvlink::Statistics statistics = OK(sink.agent.statistics());
    CHECK(statistics.bytes == all_bytes && statistics.transfers == 1 && statistics.failures == 0);
}

static void a_write_comes_layer_by_layer()
{
    Rank source("p"), sink("d");
    fill(source, 2);
    const kvlink::PeerId peer = source.connect(sink, Direction::outbound);
    const kvlink::Blocks source_blocks(from), sink_blocks(to);
    kvlink::Accept accept;
    accept.request = "w1";
    accept.blocks = sink_blocks;
    accept.tokens = tokens;
    accept.user_data = 8;
    const kvlink::AcceptId accepted = OK(sink.agent.accept(accept));
    FAILS(sink.agent.accept(accept), Status::duplicate, "w1");

    kvlink::Write write;
    write.peer = peer;
    write.request = "w1";
    write.blocks = source_blocks;
    write.token_total = tokens;
    write.layer_count = 1;
    write.user_data = 9;
    for (std::uint32_t layer = 0; layer < layers; layer++) {
        write.layer_first = layer;
        write.last = layer + 1 == layers;
        if (write.last)
            write.aux = "first token";
        const kvlink::TransferId transfer = OK(source.agent.write(write));
        const kvlink::Event event = source.wait(EventKind::transfer);
        OK(event.result());
        CHECK(event.transfer() == transfer && event.user_data() == 9 && event.bytes() == all_bytes / layers);
    }
    const kvlink::Event event = sink.wait(EventKind::received);
    OK(event.result());
    CHECK(event.accept() == accepted && event.user_data() == 8 && event.bytes() == all_bytes);
    CHECK(event.payload() == "first token" && same_blocks(source, from, sink, to));
}

static void a_part_of_a_request_is_read()
{
    Rank source("p"), sink("d");
    fill(source, 3);
    const kvlink::PeerId peer = sink.connect(source, Direction::inbound);
    const kvlink::Blocks source_blocks(from);
    const std::string ticket = OK(source.agent.ticket(offer(source, "part", source_blocks)));

    // Tokens 4 to 8 of layer 1: the second block, and no other.
    const kvlink::Blocks sink_blocks(to);
    kvlink::Read read = read_of(peer, ticket, sink_blocks);
    read.token_begin = 4;
    read.token_end = 8;
    read.layer_first = 1;
    read.layer_count = 1;
    read.timeout_ms = 60000;
    OK(sink.agent.read(read));
    const kvlink::Event event = sink.wait(EventKind::transfer);
    OK(event.result());
    CHECK(event.bytes() == 4 * record && std::memcmp(sink.at(1, 9), source.at(1, 1), 4 * record) == 0);
    for (std::uint32_t layer = 0; layer < layers; layer++)
        for (std::uint32_t block = 0; block < num_blocks; block++)
            for (std::uint32_t i = 0; i < block_tokens * record; i++)
                CHECK((layer == 1 && block == 9) || sink.at(layer, block)[i] == 0);

    // The same from a list that begins there; the first offer ended with its read.
    const std::string another = OK(source.agent.ticket(offer(source, "again", source_blocks)));
    const std::vector<std::uint32_t> one{2};
    const kvlink::Blocks second(one, 1);
    read.ticket = another;
    read.blocks = second;
    OK(sink.agent.read(read));
    OK(sink.wait(EventKind::transfer).result());
    CHECK(std::memcmp(sink.at(1, 2), source.at(1, 1), 4 * record) == 0);
}

static void messages_arrive_and_payloads_last_until_the_next_poll()
{
    Rank a("a"), b("b");
    const kvlink::PeerId peer = a.connect(b, Direction::both);
    const std::string binary("one\0two", 7);
    OK(a.agent.notify(peer, 0, binary));
    OK(a.agent.notify(peer, kvlink::all_ranks, "second"));
    OK(a.agent.notify(peer, 0, {}));
    std::vector<std::string> messages;
    while (messages.size() < 3) {
        const auto events = OK(b.agent.poll(60000));
        CHECK(!events.empty());
        for (const kvlink::Event& event : events) {
            CHECK(event.kind() == EventKind::notification && event.rank() == 0);
            messages.emplace_back(event.payload());
        }
    }
    CHECK(messages[0] == binary && messages[1] == "second" && messages[2].empty());
    CHECK(OK(b.agent.poll(0)).empty());
    FAILS(b.agent.poll(-2), Status::invalid_argument, "-2");
    FAILS(a.agent.notify(peer, 3, "x"), Status::wrong_state, "rank 3");
}

static void what_failed_says_why_and_which_blocks()
{
    Rank source("p"), sink("d");
    const kvlink::PeerId peer = sink.connect(source, Direction::inbound);
    const kvlink::Blocks source_blocks(from), sink_blocks(to);
    const kvlink::OfferId offered = offer(source, "gone", source_blocks);
    const std::string ticket = OK(source.agent.ticket(offered));
    OK(source.agent.cancel(offered));
    const kvlink::Event released = source.wait(EventKind::released);
    CHECK(released.status() == Status::cancelled && released.offer() == offered);
    FAILS(source.agent.cancel(offered), Status::bad_handle, "names nothing");
    FAILS(source.agent.ticket(offered), Status::bad_handle, "offer");

    const kvlink::TransferId transfer = OK(sink.agent.read(read_of(peer, ticket, sink_blocks)));
    const kvlink::Event event = sink.wait(EventKind::transfer);
    CHECK(event.transfer() == transfer && !event.ok());
    FAILS(event.result(), Status::lease_expired, "lease expired: ");
    FAILS(event.result(), Status::lease_expired, std::string(event.payload()).c_str());
    CHECK(event.result().error().error_class() == kvlink::ErrorClass::transfer);
    CHECK(OK(sink.agent.failed_blocks(transfer, 0)) == std::vector<std::uint32_t>({0, 4, 9}) ||
          OK(sink.agent.failed_blocks(transfer, 0)) == to);
    FAILS(sink.agent.failed_blocks(transfer, 1), Status::invalid_argument, "group 1");
    FAILS(sink.agent.cancel(transfer), Status::bad_handle, "names nothing");

    kvlink::Accept accept;
    accept.request = "never";
    accept.blocks = sink_blocks;
    accept.tokens = tokens;
    const kvlink::AcceptId accepted = OK(sink.agent.accept(accept));
    OK(sink.agent.cancel(accepted));
    const kvlink::Event received = sink.wait(EventKind::received);
    CHECK(received.status() == Status::cancelled && received.accept() == accepted);
    CHECK(OK(sink.agent.statistics()).failures == 2);
}

static void stale_ids_and_regions_are_errors()
{
    Rank source("p"), sink("d");
    const kvlink::PeerId peer = sink.connect(source, Direction::inbound);
    OK(sink.agent.disconnect(peer));
    FAILS(sink.agent.disconnect(peer), Status::bad_handle, "peer");
    FAILS(sink.agent.effective_transport(peer), Status::bad_handle, "peer");
    FAILS(sink.agent.notify(peer, 0, "x"), Status::bad_handle, "peer");
    FAILS(sink.agent.notify(kvlink::PeerId(), 0, "x"), Status::bad_handle, "peer");
    const kvlink::PeerId nobody = OK(sink.agent.handshake("no port", Direction::both, 3));
    const kvlink::Event event = sink.wait(EventKind::handshake);
    FAILS(event.result(), Status::address, "no port");
    CHECK(event.user_data() == 3 && event.peer() == nobody);
    FAILS(sink.agent.disconnect(nobody), Status::bad_handle, "peer");

    FAILS(sink.agent.register_region(0, sink.memory.data(), sink.memory.size()), Status::wrong_state, "region 0");
    FAILS(sink.agent.register_region(1, sink.memory.data(), sink.memory.size()), Status::invalid_argument, "region 1");
    OK(sink.agent.deregister_region(0));
    FAILS(sink.agent.deregister_region(0), Status::wrong_state, "region 0");
    const kvlink::Blocks blocks(from);
    kvlink::Offer offer;
    offer.request = "r";
    offer.blocks = blocks;
    offer.tokens = tokens;
    FAILS(sink.agent.offer(offer), Status::wrong_state, "region");
    offer.request = nullptr;
    FAILS(sink.agent.offer(offer), Status::null_pointer, "request");
}

static void the_configuration_arrives()
{
    const kvlink::Layout layout = OK(kvlink::Layout::create(description()));
    const auto refused = [&](auto change, Status status, const char* text) {
        kvlink::AgentConfig config;
        config.instance = "c";
        change(config);
        FAILS(kvlink::Agent::create(config, layout), status, text);
    };
    using Config = kvlink::AgentConfig;
    refused([](Config& c) { c.instance.clear(); }, Status::invalid_argument, "instance");
    refused([](Config& c) { c.rank = 7; }, Status::invalid_argument, "7");
    refused([](Config& c) { c.ranks = 2, c.rank = 1; }, Status::invalid_argument, "rank 1 needs the address of rank 0");
    refused([](Config& c) { c.listen = "0.0.0.0:0"; }, Status::address, "allow_remote");
    refused([](Config& c) { c.require_transport = "pigeons"; }, Status::transport_unavailable, "pigeons");
    refused([](Config& c) { c.host_disable = 8; }, Status::unknown_enum, "host_disable");

    Config config;
    config.instance = "c";
    config.listen = "127.0.0.1:0";
    config.advertise = "192.0.2.1:99";
    kvlink::Agent agent = OK(kvlink::Agent::create(config, layout));
    CHECK(OK(agent.address()) == "192.0.2.1:99");
}

int main()
{
    RUN(a_read_moves_every_byte);
    RUN(a_write_comes_layer_by_layer);
    RUN(a_part_of_a_request_is_read);
    RUN(messages_arrive_and_payloads_last_until_the_next_poll);
    RUN(what_failed_says_why_and_which_blocks);
    RUN(stale_ids_and_regions_are_errors);
    RUN(the_configuration_arrives);
}
