// A decode rank: it fetches the KV cache of requests from a prefill instance, or has it written into its blocks.
//
//   decode [--layout FILE] [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--transport NAME]
//
// Without --layout it describes a small hybrid model by hand; see layout_by_hand().
//
// Commands on the standard input:
//   connect ADDRESS                 READ mode: shakes hands with a prefill instance
//   read REQUEST TICKET BLOCKS      READ mode: fetches an offered request
//   accept REQUEST TOKENS BLOCKS    WRITE mode: names the blocks that a prefill instance writes to
//   quit
#include "common.hpp"

#include <charconv>
#include <iostream>
#include <stdexcept>

namespace {

// A hybrid of four layers: 0 and 2 keep recurrent state per request, 1 and 3 attention keys and values per token. An engine
// fills these structs from what it knows when it has allocated its cache.
kvlink::Layout layout_by_hand(const Options& options)
{
    constexpr std::uint32_t block_tokens = 32, num_blocks = 24, num_slots = 4;
    constexpr std::uint64_t heads = 8, head_dim = 64, state_heads = 8, state_width = 256, conv_width = 16, conv_rows = 3;

    // Tensor parallelism is nothing but the interval of heads that this rank keeps: first and count.
    const std::uint64_t own_heads = heads / options.ranks, own_state_heads = state_heads / options.ranks;

    // A group is one block-id space. The state's is indexed by slots, one per request; attention's by token blocks.
    kvlink::Group slots;
    slots.kind = kvlink::GroupKind::slots;
    slots.block_tokens = 1;
    slots.num_blocks = num_slots;
    kvlink::Group paged;
    paged.block_tokens = block_tokens;
    paged.num_blocks = num_blocks;

    // Region 0: for each layer, slots of [convolution (bf16) | recurrent state (f32)].
    const std::uint64_t conv_bytes = 3 * own_state_heads * conv_width * conv_rows * 2;
    const std::uint64_t state_bytes = own_state_heads * state_width * 4;
    kvlink::State state;
    state.layers = {0, 2};
    state.group = 0;
    state.region = 0;
    state.state_offset = conv_bytes;
    state.slot_stride = conv_bytes + state_bytes;
    state.layer_stride = state.slot_stride * num_slots;
    // Convolution channels are three sections, [q|k|v], each split by heads by itself.
    state.conv.assign(3, {state_heads, conv_width, options.rank * own_state_heads, own_state_heads});
    state.conv_rows = conv_rows;
    state.conv_dtype = kvlink::DType::bf16;
    state.state = {state_heads, state_width, options.rank * own_state_heads, own_state_heads};
    state.state_dtype = kvlink::DType::f32;

    // Region 1: both attention layers in one dense allocation. The prefill side's block size and order may differ.
    kvlink::Attention attention;
    attention.layers = {1, 3};
    attention.order = "LBHNC";
    attention.group = 1;
    attention.region = 1;
    attention.heads = heads;
    attention.first_head = options.rank * own_heads;
    attention.num_heads = own_heads;
    attention.key_dim = head_dim;
    attention.value_dim = head_dim;
    attention.dtype = kvlink::DType::bf16;

    kvlink::LayoutDescription description;
    description.model = "tiny-hybrid";
    description.region_bytes = {state.layer_stride * 2,
                                2 * num_blocks * own_heads * block_tokens * (head_dim + head_dim) * 2};
    description.groups = {slots, paged};
    description.states = {state};
    description.attention = {attention};
    return kvlink::Layout::create(description).value();
}

std::string from_hex(std::string_view text)
{
    std::string bytes(text.size() / 2, '\0');
    for (std::size_t i = 0; i < bytes.size(); i++) {
        const char* digits = text.data() + 2 * i;
        unsigned byte = 0;
        if (std::from_chars(digits, digits + 2, byte, 16).ptr != digits + 2)
            throw std::invalid_argument("the ticket is not hexadecimal");
        bytes[i] = static_cast<char>(byte);
    }
    return bytes;
}

class Decode : public Engine {
public:
    Decode(const Options& options, const kvlink::Layout& layout)
        : Engine(options, layout), num_groups_(layout.groups().value().size())
    {
    }

private:
    void on_command(const Words& words) override
    {
        if (words.size() == 2 && words[0] == "connect")
            peer_ = agent().handshake(words[1], kvlink::Direction::inbound).value();
        else if (words.size() == 4 && words[0] == "read")
            read(words[1], from_hex(words[2]), words[3]);
        else if (words.size() == 4 && words[0] == "accept")
            accept(words[1], number("tokens", words[2]), words[3]);
        else
            throw std::invalid_argument("decode: cannot do \"" + words[0] + "\" with these words");
    }

    void read(const std::string& name, const std::string& ticket, const std::string& blocks)
    {
        const auto [key, request] = requests_.add(name, blocks);
        kvlink::Read read;
        read.peer = peer_;
        read.ticket = ticket;
        read.blocks = request.blocks;
        read.user_data = key;
        request.pending = 1;
        agent().read(read).value();
    }

    void accept(const std::string& name, std::uint64_t tokens, const std::string& blocks)
    {
        const auto [key, request] = requests_.add(name, blocks);
        kvlink::Accept accept;
        accept.request = request.name.c_str();
        accept.blocks = request.blocks;
        accept.tokens = tokens;
        accept.user_data = key;
        request.pending = 1;
        agent().accept(accept).value();
        say("accepted " + name);
    }

    void on_event(const kvlink::Event& event) override
    {
        switch (event.kind()) {
        case kvlink::EventKind::ready:
            say("ready");
            break;
        case kvlink::EventKind::handshake:
            event.result().value();
            // Which transport is in effect for each rank, and why not a better one.
            say("linked " + one_line(event.payload()));
            break;
        case kvlink::EventKind::transfer:
        case kvlink::EventKind::received: {
            Request& request = requests_.of(event);
            std::string aux(event.payload());
            if (const auto result = event.result(); !result) {
                std::cerr << "request " << request.name << ": " << result.error().message() << '\n';
                if (event.transfer())
                    report_failed_blocks(event.transfer());
                aux.clear();
            }
            // From here on the model may decode: all bytes are in place, and nothing writes to the blocks any more.
            request.add(event);
            say("received " + request.report() + " aux=" + aux);
            requests_.remove(event);
            break;
        }
        case kvlink::EventKind::peer_down:
            say("peer-down " + one_line(event.payload()));
            break;
        default:
            break;
        }
    }

    // The blocks that a failed read left without valid data: just those must be recomputed.
    void report_failed_blocks(kvlink::TransferId transfer)
    {
        for (std::uint32_t group = 0; group < num_groups_; group++)
            std::cerr << "  group " << group << ": " << agent().failed_blocks(transfer, group).value().size()
                      << " blocks are not valid\n";
    }

    std::size_t num_groups_;
    kvlink::PeerId peer_;
    Requests requests_;
};

} // namespace

int main(int argc, char** argv)
{
    return run([&] {
        const Options options(argc, argv);
        Decode(options, options.layout.empty() ? layout_by_hand(options)
                                               : kvlink::Layout::from_json(read_file(options.layout)).value())
            .serve();
    });
}
