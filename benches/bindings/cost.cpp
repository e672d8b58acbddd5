// What calls cost from C++: the same as cost.c, with kvlink.hpp.
#define KVLINK_EXCEPTIONS
#include <kvlink.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <stdexcept>

namespace {

constexpr std::uint32_t num_blocks = 4096, block_tokens = 16, heads = 8, dim = 64;
constexpr std::size_t batches = 101;

kvlink::Layout make_layout()
{
    kvlink::Group group;
    group.block_tokens = block_tokens;
    group.num_blocks = num_blocks;
    kvlink::Attention kv;
    kv.layers = {0};
    kv.order = "LBHNC";
    kv.heads = kv.num_heads = heads;
    kv.key_dim = kv.value_dim = dim;
    kv.dtype = kvlink::DType::bf16;
    kvlink::LayoutDescription description;
    description.region_bytes = {std::uint64_t{num_blocks} * heads * block_tokens * 2 * dim * 2};
    description.groups = {group};
    description.attention = {kv};
    return kvlink::Layout::create(description).value();
}

void expect(bool holds, const char* what)
{
    if (!holds)
        throw std::runtime_error(std::string("does not hold: ") + what);
}

template <class F>
void measure(const char* name, int calls, F f)
{
    using Clock = std::chrono::steady_clock;
    std::array<double, batches> ns;
    f();
    for (double& batch : ns) {
        const auto begin = Clock::now();
        for (int i = 0; i < calls; i++)
            f();
        batch = std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / calls;
    }
    std::sort(ns.begin(), ns.end());
    std::printf("%s %.1f\n", name, ns[batches / 2]);
}

} // namespace

int main()
try {
    const kvlink::Layout layout = make_layout();
    kvlink::AgentConfig config;
    config.instance = "cost";
    kvlink::Agent agent = kvlink::Agent::create(config, layout).value();
    const kvlink::Plan plan = kvlink::Plan::create(layout, layout, 0, 0).value().value();
    std::vector<std::uint32_t> ids(num_blocks);
    std::iota(ids.begin(), ids.end(), 0u);
    std::vector<kvlink::CopySpan> spans;

    measure("call", 1000, [&] { agent.statistics().value(); });
    measure("poll", 1000, [&] { expect(agent.poll(0).value().empty(), "no events"); });
    measure("blocks", 20, [&] {
        const kvlink::Blocks blocks(ids);
        kvlink::PlanRequest request;
        request.token_total = std::uint64_t{num_blocks} * block_tokens;
        request.source_blocks = blocks;
        request.destination_blocks = blocks;
        expect(plan.expand(request, spans).value().size() == 1, "one span");
    });
} catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
