/* Descriptions of caches, and layouts. Part of kvlink.hpp. */

#ifndef KVLINK_LAYOUT_HPP
#define KVLINK_LAYOUT_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "handle.hpp"
#include "span.hpp"

namespace kvlink {

enum class DType : std::uint32_t {
    opaque = KVLINK_DTYPE_OPAQUE,
    f32 = KVLINK_DTYPE_F32,
    f16 = KVLINK_DTYPE_F16,
    bf16 = KVLINK_DTYPE_BF16,
    f8_e4m3 = KVLINK_DTYPE_F8_E4M3,
    f8_e5m2 = KVLINK_DTYPE_F8_E5M2,
    i8 = KVLINK_DTYPE_I8,
    u8 = KVLINK_DTYPE_U8,
    f64 = KVLINK_DTYPE_F64,
    i32 = KVLINK_DTYPE_I32,
};

enum class GroupKind : std::uint32_t {
    paged = KVLINK_GROUP_PAGED,
    ring = KVLINK_GROUP_RING,
    slots = KVLINK_GROUP_SLOTS,
};

enum class Reach : std::uint32_t {
    full = KVLINK_REACH_FULL,
    window = KVLINK_REACH_WINDOW,
    chunk = KVLINK_REACH_CHUNK,
};

/* A kvlink_group_t. */
struct Group {
    GroupKind kind = GroupKind::paged;
    std::uint32_t block_tokens = 0;
    std::uint32_t num_blocks = 0;
    Reach reach = Reach::full;
    std::uint64_t reach_tokens = 0;
    std::uint32_t context_size = 0;
    std::uint32_t context_rank = 0;
    std::uint32_t context_interleave = 0;
};

/* A kvlink_attention_t: paged keys and values of several layers. */
struct Attention {
    std::vector<std::uint32_t> layers;
    std::string role;  /* empty: "kv" */
    std::string order; /* empty: "LBHNC" */
    std::uint32_t group = 0;
    std::uint32_t region = 0;
    std::uint64_t offset = 0;
    std::uint64_t block_stride = 0;
    std::uint64_t layer_stride = 0;
    std::uint64_t heads = 0;
    std::uint64_t first_head = 0;
    std::uint64_t num_heads = 0;
    std::uint64_t key_dim = 0;
    std::uint64_t value_dim = 0;
    bool planes = false;
    std::uint32_t value_region = 0;
    std::uint64_t value_offset = 0;
    std::uint32_t kernel_tokens = 0;
    DType dtype = DType::opaque;
};

/* A kvlink_record_t: one record per token of several layers (MLA latents, indexer keys). */
struct Record {
    std::vector<std::uint32_t> layers;
    std::string role;
    std::uint32_t group = 0;
    std::uint32_t region = 0;
    std::uint64_t offset = 0;
    std::uint64_t block_stride = 0;
    std::uint64_t layer_stride = 0;
    std::uint64_t token_stride = 0;
    std::uint64_t elements = 0;
    DType dtype = DType::opaque;
    std::uint32_t element_bytes = 0;
};

/* {units, width, first, count} */
using Section = ::kvlink_section_t;

/* A kvlink_state_t: convolution and recurrent state per request of several layers. */
struct State {
    std::vector<std::uint32_t> layers;
    std::uint32_t group = 0;
    std::uint32_t region = 0;
    std::uint64_t conv_offset = 0;
    std::uint64_t state_offset = 0;
    std::uint64_t slot_stride = 0;
    std::uint64_t layer_stride = 0;
    std::vector<Section> conv;
    std::uint64_t conv_rows = 0;
    bool conv_rows_outside = false;
    DType conv_dtype = DType::opaque;
    Section state{};
    DType state_dtype = DType::opaque;
};

/* A kvlink_axis_t. */
struct Axis {
    std::string name;
    std::uint64_t extent = 0;
    bool common = false;
};

/* {begin, len, stride} */
using Extent = ::kvlink_extent_t;

/* A kvlink_part_t: a strided box with one extent per axis. */
struct Part {
    std::uint32_t region = 0;
    std::uint32_t tile_tokens = 0;
    std::uint64_t offset = 0;
    std::uint64_t block_stride = 0;
    std::uint64_t token_stride = 0;
    std::uint64_t tile_stride = 0;
    std::vector<Extent> extents;
};

/* A kvlink_tensor_t: anything that the other forms do not describe. */
struct Tensor {
    std::uint32_t layer = 0;
    std::uint32_t group = 0;
    DType dtype = DType::opaque;
    std::uint32_t element_bytes = 0;
    std::string role;
    std::vector<Axis> axes;
    std::vector<Part> parts;
};

/* Everything that describes one rank's cache. */
struct LayoutDescription {
    std::string model; /* empty: not compared with the peer's */
    std::vector<std::uint64_t> region_bytes;
    std::vector<Group> groups;
    std::vector<Attention> attention;
    std::vector<Record> records;
    std::vector<State> states;
    std::vector<Tensor> tensors;
};

/* A cache layout. Immutable; may be shared by threads. */
class Layout : public detail::Handle<kvlink_layout_t, kvlink_layout_destroy> {
public:
    using Handle::Handle;

    static Result<Layout> create(const LayoutDescription& description);
    static Result<Layout> from_json(std::string_view json)
    {
        kvlink_layout_t* layout = nullptr;
        const kvlink_status_t status = ::kvlink_layout_from_json(json.data(), json.size(), &layout);
        return detail::result(status, Layout(layout));
    }

    /* The complete description as JSON: what kvlink understood. */
    Result<std::string> explain() const
    {
        return detail::text(1, [this](char* buf, std::size_t cap, std::size_t* len) {
            return ::kvlink_layout_explain(c_handle(), buf, cap, len);
        });
    }

    /* Bytes that each region needs. */
    Result<std::vector<std::uint64_t>> regions() const
    {
        return detail::list<std::uint64_t>([this](std::uint64_t* bytes, std::size_t cap, std::size_t* count) {
            return ::kvlink_layout_regions(c_handle(), bytes, cap, count);
        });
    }

    Result<std::vector<Group>> groups() const;
};

/* One incompatibility of two sides: what, and both values. */
struct Finding {
    std::string subject;
    std::string field;
    std::string destination;
    std::string source;
};

/* Whether destination rank `rank` can get its cache from the source instance. On Status::incompatible the message lists all
 * reasons, and `findings`, if given, gets them one by one. */
Result<void> check(Span<const Layout> sources, Span<const Layout> destinations, std::uint32_t rank,
                   std::vector<Finding>* findings = nullptr);

namespace detail {

inline const char* optional_text(const std::string& text) noexcept { return text.empty() ? nullptr : text.c_str(); }

inline kvlink_group_t to_c(const Group& group) noexcept
{
    kvlink_group_t c{};
    c.kind = static_cast<std::uint32_t>(group.kind);
    c.block_tokens = group.block_tokens;
    c.num_blocks = group.num_blocks;
    c.reach = static_cast<std::uint32_t>(group.reach);
    c.reach_tokens = group.reach_tokens;
    c.context_size = group.context_size;
    c.context_rank = group.context_rank;
    c.context_interleave = group.context_interleave;
    return c;
}

inline Group from_c(const kvlink_group_t& c) noexcept
{
    Group group;
    group.kind = static_cast<GroupKind>(c.kind);
    group.block_tokens = c.block_tokens;
    group.num_blocks = c.num_blocks;
    group.reach = static_cast<Reach>(c.reach);
    group.reach_tokens = c.reach_tokens;
    group.context_size = c.context_size;
    group.context_rank = c.context_rank;
    group.context_interleave = c.context_interleave;
    return group;
}

inline kvlink_attention_t to_c(const Attention& attention) noexcept
{
    kvlink_attention_t c{};
    c.layers = attention.layers.data();
    c.num_layers = attention.layers.size();
    c.role = optional_text(attention.role);
    c.order = optional_text(attention.order);
    c.group = attention.group;
    c.region = attention.region;
    c.offset = attention.offset;
    c.block_stride = attention.block_stride;
    c.layer_stride = attention.layer_stride;
    c.heads = attention.heads;
    c.first_head = attention.first_head;
    c.num_heads = attention.num_heads;
    c.key_dim = attention.key_dim;
    c.value_dim = attention.value_dim;
    c.planes = attention.planes ? 1 : 0;
    c.value_region = attention.value_region;
    c.value_offset = attention.value_offset;
    c.kernel_tokens = attention.kernel_tokens;
    c.dtype = static_cast<std::uint32_t>(attention.dtype);
    return c;
}

inline kvlink_record_t to_c(const Record& record) noexcept
{
    kvlink_record_t c{};
    c.layers = record.layers.data();
    c.num_layers = record.layers.size();
    c.role = record.role.c_str();
    c.group = record.group;
    c.region = record.region;
    c.offset = record.offset;
    c.block_stride = record.block_stride;
    c.layer_stride = record.layer_stride;
    c.token_stride = record.token_stride;
    c.elements = record.elements;
    c.dtype = static_cast<std::uint32_t>(record.dtype);
    c.element_bytes = record.element_bytes;
    return c;
}

inline kvlink_state_t to_c(const State& state) noexcept
{
    kvlink_state_t c{};
    c.layers = state.layers.data();
    c.num_layers = state.layers.size();
    c.group = state.group;
    c.region = state.region;
    c.conv_offset = state.conv_offset;
    c.state_offset = state.state_offset;
    c.slot_stride = state.slot_stride;
    c.layer_stride = state.layer_stride;
    c.conv = state.conv.data();
    c.num_conv = state.conv.size();
    c.conv_rows = state.conv_rows;
    c.conv_rows_outside = state.conv_rows_outside ? 1 : 0;
    c.conv_dtype = static_cast<std::uint32_t>(state.conv_dtype);
    c.state = state.state;
    c.state_dtype = static_cast<std::uint32_t>(state.state_dtype);
    return c;
}

inline kvlink_axis_t to_c(const Axis& axis) noexcept
{
    kvlink_axis_t c{};
    c.name = axis.name.c_str();
    c.extent = axis.extent;
    c.common = axis.common ? 1 : 0;
    return c;
}

inline kvlink_part_t to_c(const Part& part) noexcept
{
    kvlink_part_t c{};
    c.region = part.region;
    c.tile_tokens = part.tile_tokens;
    c.offset = part.offset;
    c.block_stride = part.block_stride;
    c.token_stride = part.token_stride;
    c.tile_stride = part.tile_stride;
    c.extents = part.extents.data();
    return c;
}

template <class C, class T>
std::vector<C> all_to_c(const std::vector<T>& items)
{
    std::vector<C> all;
    all.reserve(items.size());
    for (const T& item : items)
        all.push_back(to_c(item));
    return all;
}

/* Tensors as in C; the arrays that they point to are kept here. */
class Tensors {
public:
    explicit Tensors(const std::vector<Tensor>& tensors)
    {
        for (const Tensor& tensor : tensors) {
            const auto& axes = axes_.emplace_back(all_to_c<kvlink_axis_t>(tensor.axes));
            const auto& parts = parts_.emplace_back(all_to_c<kvlink_part_t>(tensor.parts));
            kvlink_tensor_t c{};
            c.layer = tensor.layer;
            c.group = tensor.group;
            c.dtype = static_cast<std::uint32_t>(tensor.dtype);
            c.element_bytes = tensor.element_bytes;
            c.role = tensor.role.c_str();
            c.axes = axes.data();
            c.num_axes = axes.size();
            c.parts = parts.data();
            c.num_parts = parts.size();
            tensors_.push_back(c);
        }
    }

    const std::vector<kvlink_tensor_t>& all() const noexcept { return tensors_; }

private:
    /* Growing moves the inner vectors; their arrays stay where they are. */
    std::vector<std::vector<kvlink_axis_t>> axes_;
    std::vector<std::vector<kvlink_part_t>> parts_;
    std::vector<kvlink_tensor_t> tensors_;
};

/* C takes the number of extents from the axes: a part with fewer would be read past its end. */
inline Result<void> check_extents(const std::vector<Tensor>& tensors)
{
    for (std::size_t t = 0; t < tensors.size(); t++)
        for (std::size_t p = 0; p < tensors[t].parts.size(); p++) {
            const std::size_t extents = tensors[t].parts[p].extents.size(), axes = tensors[t].axes.size();
            if (extents != axes)
                return error(Status::invalid_layout, "tensor " + std::to_string(t) + " part " + std::to_string(p) + ": " +
                                                         std::to_string(extents) + " extents for " +
                                                         std::to_string(axes) + " axes");
        }
    return {};
}

inline std::vector<const kvlink_layout_t*> c_handles(Span<const Layout> layouts)
{
    std::vector<const kvlink_layout_t*> handles;
    handles.reserve(layouts.size());
    for (const Layout& layout : layouts)
        handles.push_back(layout.c_handle());
    return handles;
}

} // namespace detail

inline Result<Layout> Layout::create(const LayoutDescription& description)
{
    if (auto fit = detail::check_extents(description.tensors); !fit)
        return fit.error();
    const auto groups = detail::all_to_c<kvlink_group_t>(description.groups);
    const auto attention = detail::all_to_c<kvlink_attention_t>(description.attention);
    const auto records = detail::all_to_c<kvlink_record_t>(description.records);
    const auto states = detail::all_to_c<kvlink_state_t>(description.states);
    const detail::Tensors tensors(description.tensors);
    kvlink_layout_desc_t c{};
    c.struct_size = sizeof c;
    c.model = detail::optional_text(description.model);
    c.region_bytes = description.region_bytes.data();
    c.num_regions = description.region_bytes.size();
    c.groups = groups.data();
    c.num_groups = groups.size();
    c.attention = attention.data();
    c.num_attention = attention.size();
    c.records = records.data();
    c.num_records = records.size();
    c.states = states.data();
    c.num_states = states.size();
    c.tensors = tensors.all().data();
    c.num_tensors = tensors.all().size();
    kvlink_layout_t* layout = nullptr;
    const kvlink_status_t status = ::kvlink_layout_create(&c, &layout);
    return detail::result(status, Layout(layout));
}

inline Result<std::vector<Group>> Layout::groups() const
{
    auto all = detail::list<kvlink_group_t>([this](kvlink_group_t* groups, std::size_t cap, std::size_t* count) {
        return ::kvlink_layout_groups(c_handle(), groups, cap, count);
    });
    if (!all)
        return all.error();
    std::vector<Group> groups;
    for (const kvlink_group_t& group : *all)
        groups.push_back(detail::from_c(group));
    return groups;
}

inline Result<void> check(Span<const Layout> sources, Span<const Layout> destinations, std::uint32_t rank,
                          std::vector<Finding>* findings)
{
    const auto from = detail::c_handles(sources), to = detail::c_handles(destinations);
    std::vector<kvlink_finding_t> found;
    std::size_t count = 0;
    const auto call = [&] {
        return ::kvlink_layout_check(from.data(), from.size(), to.data(), to.size(), rank, found.data(), found.size(),
                                     &count);
    };
    kvlink_status_t status = call();
    if (findings != nullptr) {
        if (status == KVLINK_E_INCOMPATIBLE) {
            found.resize(count);
            status = call();
        }
        findings->clear();
        for (const kvlink_finding_t& f : found)
            findings->push_back({f.subject, f.field, f.destination, f.source});
    }
    return detail::result(status);
}

} // namespace kvlink

#endif
