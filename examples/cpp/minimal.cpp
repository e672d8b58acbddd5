// One attention layer moves between unlike caches: blocks of 16 tokens, heads first -> blocks of 32, tokens first.
#define KVLINK_EXCEPTIONS
#include <kvlink.hpp>
#include <iostream>

constexpr std::uint32_t heads = 4, row = 64 /* key and value of a head */, tokens = 64;
using Cache = std::vector<std::uint16_t>;

kvlink::Agent start(const char* instance, std::uint32_t block_tokens, const char* order, Cache& cache)
{
    cache.resize(tokens * heads * row);
    kvlink::Group group;
    group.block_tokens = block_tokens;
    group.num_blocks = tokens / block_tokens;
    kvlink::Attention kv;
    kv.layers = {0};
    kv.order = order;
    kv.heads = kv.num_heads = heads;
    kv.key_dim = kv.value_dim = row / 2;
    kv.dtype = kvlink::DType::bf16;
    kvlink::LayoutDescription description;
    description.region_bytes = {cache.size() * sizeof cache[0]};
    description.groups = {group};
    description.attention = {kv};
    kvlink::AgentConfig config;
    config.instance = instance;
    auto agent = kvlink::Agent::create(config, kvlink::Layout::create(description).value()).value();
    agent.register_region(0, cache.data(), cache.size() * sizeof cache[0]).value();
    return agent;
}

void await(kvlink::Agent& agent, kvlink::EventKind kind)
{
    for (;;)
        for (const kvlink::Event& event : agent.poll(kvlink::forever, 1).value())
            if (event.kind() == kind)
                return event.result().value();
}

int main()
try {
    const std::vector<std::uint32_t> from{2, 0, 3, 1}, to{1, 0};
    const kvlink::Blocks p_blocks(from), d_blocks(to);
    Cache src, dst; // before the agents, which end first
    kvlink::Agent p = start("prefill", 16, "LBHNC", src), d = start("decode", 32, "LBNHC", dst);
    for (std::uint32_t t = 0; t < tokens; t++)
        for (std::uint32_t i = 0; i < heads * row; i++)
            src[((from[t / 16] * heads + i / row) * 16 + t % 16) * row + i % row] = std::uint16_t(t * heads * row + i);

    kvlink::Offer offer;
    offer.request = "r1";
    offer.blocks = p_blocks;
    offer.tokens = tokens;
    const std::string ticket = p.ticket(p.offer(offer).value()).value(); // travels to the decode side with the request
    kvlink::Read read;
    read.peer = d.handshake(kvlink::ticket_info(ticket).value().address, kvlink::Direction::inbound).value();
    await(d, kvlink::EventKind::handshake);
    read.ticket = ticket;
    read.blocks = d_blocks;
    (void)d.read(read).value();              // returns at once
    await(d, kvlink::EventKind::transfer); // the data is here
    await(p, kvlink::EventKind::released); // the source may reuse its blocks

    bool right = true;
    for (std::uint32_t t = 0; t < tokens; t++)
        for (std::uint32_t i = 0; i < heads * row; i++)
            right &= dst[(to[t / 32] * 32 + t % 32) * heads * row + i] == std::uint16_t(t * heads * row + i);
    std::cout << (right ? "all bytes are right\n" : "wrong bytes\n");
    return right ? 0 : 1;
} catch (const kvlink::Exception& e) {
    std::cerr << e.what() << '\n';
    return 1;
}
