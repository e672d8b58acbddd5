/* Plans: the mathematics without an agent. Part of kvlink.hpp. */

#ifndef KVLINK_PLAN_HPP
#define KVLINK_PLAN_HPP

#include <optional>
#include <type_traits>

#include "layout.hpp"

namespace kvlink {

/* A block list entry that holds nothing. */
inline constexpr std::uint32_t no_block = KVLINK_NO_BLOCK;

/* A kvlink_blocks_t that points to the ids of a vector, array or span: the blocks of one group of one request. */
class Blocks : public kvlink_blocks_t {
public:
    Blocks() noexcept : kvlink_blocks_t{} {}

    /* Not of a single id: a number here is a mistake. */
    template <class Ids, class = std::enable_if_t<std::is_convertible_v<const Ids&, Span<const std::uint32_t>> &&
                                                  !std::is_arithmetic_v<Ids>>>
    Blocks(const Ids& block_ids, std::uint64_t first_position = 0) noexcept : kvlink_blocks_t{}
    {
        const Span<const std::uint32_t> all = block_ids;
        ids = all.data();
        count = all.size();
        first = first_position;
    }
};
/* An array of them is handed to C as it is. */
static_assert(sizeof(Blocks) == sizeof(kvlink_blocks_t) && std::is_standard_layout_v<Blocks>);

/* A kvlink_plan_request_t. Block lists have one entry per group. */
struct PlanRequest {
    std::uint32_t layer_first = 0;
    std::uint32_t layer_count = 0;
    std::uint64_t token_begin = 0;
    std::uint64_t token_end = 0;
    std::uint64_t token_total = 0;
    Span<const Blocks> source_blocks;
    Span<const Blocks> destination_blocks;
};

/* One contiguous copy: {src_offset, dst_offset, len, src_region, dst_region} */
using CopySpan = ::kvlink_span_t;

/* A compiled and proven plan of one rank pair. Immutable; may be shared by threads. */
class Plan : public detail::Handle<kvlink_plan_t, kvlink_plan_destroy> {
public:
    using Handle::Handle;

    /* What destination rank `destination` takes from source rank `source`; nullopt: nothing. The layouts are those of all
     * ranks of either instance, by rank. */
    static Result<std::optional<Plan>> create(Span<const Layout> sources, Span<const Layout> destinations,
                                              std::uint32_t source, std::uint32_t destination)
    {
        const auto from = detail::c_handles(sources), to = detail::c_handles(destinations);
        kvlink_plan_t* plan = nullptr;
        const kvlink_status_t status =
            ::kvlink_plan_create(from.data(), from.size(), to.data(), to.size(), source, destination, &plan);
        return detail::result(status, plan == nullptr ? std::nullopt : std::optional<Plan>(plan));
    }

    /* Expands a request. The spans lie in `buffer`, which grows where it must and never shrinks: with the same one again,
     * nothing is allocated. */
    Result<Span<const CopySpan>> expand(const PlanRequest& request, std::vector<CopySpan>& buffer) const
    {
        kvlink_plan_request_t c{};
        c.struct_size = sizeof c;
        c.layer_first = request.layer_first;
        c.layer_count = request.layer_count;
        c.token_begin = request.token_begin;
        c.token_end = request.token_end;
        c.token_total = request.token_total;
        c.source_blocks = request.source_blocks.data();
        c.num_source_blocks = request.source_blocks.size();
        c.destination_blocks = request.destination_blocks.data();
        c.num_destination_blocks = request.destination_blocks.size();
        for (;;) {
            std::size_t count = 0;
            const kvlink_status_t status =
                ::kvlink_plan_expand(c_handle(), &c, buffer.data(), buffer.size(), &count);
            if (status == KVLINK_OK)
                return Span<const CopySpan>(buffer.data(), count);
            if (status != KVLINK_E_BUFFER_TOO_SMALL)
                return detail::last_error(status);
            buffer.resize(count);
        }
    }

    /* What the plan does, for people. */
    Result<std::string> explain() const
    {
        return detail::text(1, [this](char* buf, std::size_t cap, std::size_t* len) {
            return ::kvlink_plan_explain(c_handle(), buf, cap, len);
        });
    }
};

} // namespace kvlink

#endif
