// The "model" of the example instances: a formula, the same as in instance.py, and a rank's cache of what it computes.
#ifndef MODEL_HPP
#define MODEL_HPP

#define KVLINK_EXCEPTIONS
#include <kvlink.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <openssl/evp.h>

constexpr std::uint32_t layers = 4, heads = 8, dim = 64, width = 2 * dim, max_tokens = 512, max_requests = 64;

// A layer of a prompt's cache: [token][head][content].
using LayerCache = std::vector<std::uint16_t>;

// What the model computes for one layer.
inline LayerCache cache_of(std::string_view prompt, std::uint32_t layer)
{
    LayerCache values;
    values.reserve(prompt.size() * heads * width);
    for (std::uint32_t token = 0; token < prompt.size(); token++) {
        const std::uint32_t text = static_cast<unsigned char>(prompt[token]) * 257u + token * 31 + layer * 7919;
        for (std::uint32_t place = 0; place < heads * width; place++)
            values.push_back(static_cast<std::uint16_t>(text * (place * 2 + 1) >> 3));
    }
    return values;
}

// Of a whole prompt's cache: whoever asked can tell whether every byte is right.
inline std::string digest(const std::vector<LayerCache>& cache)
{
    const auto check = [](int good) {
        if (good != 1)
            throw std::runtime_error("SHA-256 does not work");
    };
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    check(EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr));
    for (const LayerCache& layer : cache)
        check(EVP_DigestUpdate(context.get(), layer.data(), layer.size() * sizeof layer[0]));
    std::array<unsigned char, 32> bytes;
    check(EVP_DigestFinal_ex(context.get(), bytes.data(), nullptr));
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const unsigned char byte : bytes) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

using BlockIds = std::vector<std::uint32_t>;

// One rank's blocks: prefill instances store heads outside and blocks of 16 tokens, decode instances neither.
class Cache {
public:
    Cache(kvlink::Role role, std::uint32_t rank, std::uint32_t ranks)
        : heads_outside_(role == kvlink::Role::prefill), block_tokens_(heads_outside_ ? 16 : 32),
          num_heads_(heads / ranks), first_head_(rank * num_heads_),
          memory_(kvlink::SharedMemory::allocate(bytes()).value()), layout_(describe())
    {
    }

    const kvlink::Layout& layout() const { return layout_; }
    const kvlink::SharedMemory& memory() const { return memory_; }
    std::uint32_t block_tokens() const { return block_tokens_; }
    std::uint32_t num_blocks() const { return max_requests * max_tokens / block_tokens_; }

    // Writes this rank's heads of a layer of a request, or reads them.
    void store(const BlockIds& blocks, std::uint32_t layer, const LayerCache& values) const
    {
        each_row(blocks, layer, values.size() / (heads * width),
                 [&](std::size_t row, std::uint16_t* mine) { std::copy_n(&values[row * width], width, mine); });
    }
    void load(const BlockIds& blocks, std::uint32_t layer, LayerCache& values) const
    {
        each_row(blocks, layer, values.size() / (heads * width),
                 [&](std::size_t row, const std::uint16_t* mine) { std::copy_n(mine, width, &values[row * width]); });
    }

private:
    std::size_t bytes() const { return std::size_t{2} * layers * max_requests * max_tokens * num_heads_ * width; }

    kvlink::Layout describe() const
    {
        kvlink::Group group;
        group.num_blocks = num_blocks();
        group.block_tokens = block_tokens_;
        kvlink::Attention attention;
        attention.layers.resize(layers);
        std::iota(attention.layers.begin(), attention.layers.end(), 0);
        attention.order = heads_outside_ ? "LBHNC" : "LBNHC";
        attention.heads = heads;
        attention.first_head = first_head_;
        attention.num_heads = num_heads_;
        attention.key_dim = attention.value_dim = dim;
        attention.dtype = kvlink::DType::bf16;
        kvlink::LayoutDescription description;
        description.region_bytes = {bytes()};
        description.groups = {group};
        description.attention = {attention};
        return kvlink::Layout::create(description).value();
    }

    // Calls `use(row, memory)` for every token and own head of a layer; a row is token * heads + head.
    template <class Use>
    void each_row(const BlockIds& blocks, std::uint32_t layer, std::size_t tokens, Use use) const
    {
        auto* data = static_cast<std::uint16_t*>(memory_.data());
        for (std::size_t token = 0; token < tokens; token++) {
            const std::size_t block = std::size_t{layer} * num_blocks() + blocks.at(token / block_tokens_);
            const std::size_t within = token % block_tokens_;
            for (std::size_t head = 0; head < num_heads_; head++) {
                const std::size_t place = heads_outside_ ? head * block_tokens_ + within : within * num_heads_ + head;
                use(token * heads + first_head_ + head, data + (block * num_heads_ * block_tokens_ + place) * width);
            }
        }
    }

    bool heads_outside_;
    std::uint32_t block_tokens_, num_heads_, first_head_;
    kvlink::SharedMemory memory_;
    kvlink::Layout layout_;
};

#endif
