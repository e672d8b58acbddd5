// Descriptions reach the library whole: every form, with all its fields, says what its JSON says. Verdicts and plans.
#include "check.hpp"

using kvlink::Status;

static void every_form_arrives_with_its_fields()
{
    kvlink::LayoutDescription d;
    d.model = "all forms";
    d.region_bytes = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
    d.groups.resize(2);
    d.groups[0].block_tokens = 16;
    d.groups[0].num_blocks = 8;
    d.groups[0].reach = kvlink::Reach::window;
    d.groups[0].reach_tokens = 48;
    d.groups[0].context_size = 2;
    d.groups[0].context_rank = 1;
    d.groups[0].context_interleave = 4;
    d.groups[1].kind = kvlink::GroupKind::slots;
    d.groups[1].block_tokens = 1;
    d.groups[1].num_blocks = 4;

    kvlink::Attention attention;
    attention.layers = {3, 1};
    attention.role = "kv2";
    attention.order = "BLNHC";
    attention.offset = 256;
    attention.heads = 8;
    attention.first_head = 4;
    attention.num_heads = 2;
    attention.key_dim = 16;
    attention.value_dim = 8;
    attention.planes = true;
    attention.value_region = 1;
    attention.value_offset = 512;
    attention.kernel_tokens = 8;
    attention.dtype = kvlink::DType::f16;
    d.attention = {attention};

    kvlink::Record records;
    records.layers = {2};
    records.role = "mla";
    records.region = 2;
    records.offset = 128;
    records.block_stride = 16 * 80;
    records.token_stride = 80;
    records.elements = 18;
    records.dtype = kvlink::DType::f32;
    d.records = {records};

    kvlink::State state;
    state.layers = {0, 4};
    state.group = 1;
    state.region = 3;
    state.conv_offset = 64;
    state.state_offset = 4096;
    state.slot_stride = 8192;
    state.layer_stride = 4 * 8192;
    state.conv = {{4, 8, 2, 2}, {4, 16, 2, 2}};
    state.conv_rows = 3;
    state.conv_rows_outside = true;
    state.conv_dtype = kvlink::DType::bf16;
    state.state = {4, 32, 2, 2};
    state.state_dtype = kvlink::DType::f32;
    d.states = {state};

    kvlink::Tensor tensor;
    tensor.layer = 5;
    tensor.dtype = kvlink::DType::u8;
    tensor.role = "own";
    tensor.axes = {{"head", 6, false}, {"channel", 8, true}};
    kvlink::Part part;
    part.region = 2;
    part.offset = 65536;
    part.block_stride = 16 * 16;
    part.token_stride = 16;
    part.extents = {{0, 2, 8}, {0, 8, 1}};
    tensor.parts = {part};
    part.offset = 131072;
    part.tile_tokens = 4;
    part.tile_stride = 64;
    part.extents = {{3, 2, 8}, {0, 8, 1}};
    tensor.parts.push_back(part);
    d.tensors = {tensor, tensor};
    d.tensors[1].layer = 6;
    for (kvlink::Part& p : d.tensors[1].parts)
        p.offset += 4096;

    const kvlink::Layout layout = OK(kvlink::Layout::create(d));
    CHECK(OK(layout.regions()) == d.region_bytes);
    const auto groups = OK(layout.groups());
    CHECK(groups.size() == 2 && groups[0].reach == kvlink::Reach::window && groups[0].reach_tokens == 48);
    CHECK(groups[0].block_tokens == 16 && groups[0].num_blocks == 8 && groups[0].kind == kvlink::GroupKind::paged);
    CHECK(groups[0].context_size == 2 && groups[0].context_rank == 1 && groups[0].context_interleave == 4);
    CHECK(groups[1].kind == kvlink::GroupKind::slots && groups[1].reach == kvlink::Reach::full);

    // The runner compares this with the layout that C makes of the same description.
    const std::string json = OK(layout.explain());
    CHECK(json.front() == '{' && json.back() == '}');
    std::printf("LAYOUT %s\n", json.c_str());
    CHECK(OK(OK(kvlink::Layout::from_json(json)).explain()) == json);
}

static void parts_need_an_extent_for_each_axis()
{
    kvlink::Tensor tensor;
    tensor.axes = {{"head", 4, false}, {"channel", 4, false}};
    tensor.parts.resize(2);
    tensor.parts[0].extents = {{0, 4, 4}, {0, 4, 1}};
    tensor.parts[1].extents = {{0, 4, 4}};
    kvlink::LayoutDescription d = description();
    d.tensors = {tensor};
    FAILS(kvlink::Layout::create(d), Status::invalid_layout, "tensor 0 part 1: 1 extents for 2 axes");
}

static void a_verdict_lists_what_differs()
{
    const kvlink::Layout one = OK(kvlink::Layout::create(description(64)));
    const kvlink::Layout other = OK(kvlink::Layout::create(description(32)));
    std::vector<kvlink::Finding> findings(3);
    OK(kvlink::check(one, one, 0, &findings));
    CHECK(findings.empty());
    const auto verdict = kvlink::check(one, other, 0, &findings);
    CHECK(!findings.empty());
    for (const kvlink::Finding& f : findings) {
        FAILS(verdict, Status::incompatible, f.subject.c_str());
        CHECK(f.destination.find("32") != f.destination.npos && f.source.find("64") != f.source.npos && !f.field.empty());
    }
    FAILS(kvlink::check(one, other, 0), Status::incompatible, "layer 0");
    FAILS(kvlink::check(one, one, 1, &findings), Status::invalid_argument, "rank 1 of 1");
    CHECK(findings.empty());
    FAILS(kvlink::Plan::create(one, other, 0, 0), Status::incompatible, "layer 0");
}

// Two heads on one rank each, from a rank that has both.
static kvlink::Layout heads(std::uint64_t first, std::uint64_t count)
{
    kvlink::Group group;
    group.block_tokens = 4;
    group.num_blocks = 8;
    kvlink::Attention kv;
    kv.layers = {0};
    kv.heads = 2;
    kv.first_head = first;
    kv.num_heads = count;
    kv.key_dim = kv.value_dim = 4;
    kv.dtype = kvlink::DType::f32;
    kvlink::LayoutDescription d;
    d.region_bytes = {8 * count * 4 * 8 * 4};
    d.groups = {group};
    d.attention = {kv};
    return OK(kvlink::Layout::create(d));
}

static void plans_expand_to_spans()
{
    std::vector<kvlink::Layout> split;
    split.push_back(heads(0, 1));
    split.push_back(heads(1, 1));
    const kvlink::Layout whole = heads(0, 2);
    const kvlink::Plan plan = *OK(kvlink::Plan::create(whole, split, 0, 1));
    CHECK(OK(plan.explain()).find("rank") != std::string::npos);

    const std::vector<std::uint32_t> from{2, 5}, to{1, 2};
    const kvlink::Blocks source(from), destination(to);
    kvlink::PlanRequest request;
    request.token_total = 8;
    request.source_blocks = source;
    request.destination_blocks = destination;
    std::vector<kvlink::CopySpan> buffer;
    auto spans = OK(plan.expand(request, buffer));
    CHECK(spans.size() == 2 && spans.data() == buffer.data());
    for (std::size_t i = 0; i < 2; i++) {
        CHECK(spans[i].src_offset == (from[i] * 2 + 1) * 128 && spans[i].dst_offset == to[i] * 128);
        CHECK(spans[i].len == 128 && spans[i].src_region == 0 && spans[i].dst_region == 0);
    }
    request.token_begin = 4;
    spans = OK(plan.expand(request, buffer));
    CHECK(spans.size() == 1 && spans[0].dst_offset == 2 * 128 && buffer.size() == 2);
    request.layer_first = 1;
    request.layer_count = 1;
    CHECK(OK(plan.expand(request, buffer)).empty());

    request.source_blocks = {};
    FAILS(plan.expand(request, buffer), Status::invalid_blocks, "0");

    // Rank 0 of the destination has nothing to take from a replica that another rank serves.
    std::vector<kvlink::Layout> replicas;
    replicas.push_back(heads(0, 2));
    replicas.push_back(heads(0, 2));
    std::size_t sources = 0;
    for (std::uint32_t rank = 0; rank < 2; rank++)
        sources += OK(kvlink::Plan::create(replicas, whole, rank, 0)).has_value() ? 1 : 0;
    CHECK(sources == 1);
}

int main()
{
    RUN(every_form_arrives_with_its_fields);
    RUN(parts_need_an_extent_for_each_axis);
    RUN(a_verdict_lists_what_differs);
    RUN(plans_expand_to_spans);
}
