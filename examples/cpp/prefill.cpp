// A prefill rank: it has the KV cache of requests and lets a decode instance read it, or writes it there.
//
//   prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader HOST:PORT] [--layers N] [--transport NAME]
//
// Commands on the standard input:
//   offer REQUEST TOKENS BLOCKS    READ mode: prints the ticket that a decode rank reads with
//   connect ADDRESS                WRITE mode: shakes hands with a decode instance
//   write REQUEST TOKENS BLOCKS    WRITE mode: writes layer by layer to that instance
//   quit
#include "common.hpp"

#include <iostream>
#include <stdexcept>

namespace {

// The ticket travels with the request, in an HTTP body say: it is opaque, and any text encoding will do.
std::string to_hex(std::string_view bytes)
{
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

class Prefill : public Engine {
public:
    Prefill(const Options& options, const kvlink::Layout& layout) : Engine(options, layout), layers_(options.layers) {}

private:
    void on_command(const Words& words) override
    {
        if (words.size() == 4 && words[0] == "offer")
            offer(words[1], number("tokens", words[2]), words[3]);
        else if (words.size() == 2 && words[0] == "connect")
            peer_ = agent().handshake(words[1], kvlink::Direction::outbound).value();
        else if (words.size() == 4 && words[0] == "write")
            write_layers(words[1], number("tokens", words[2]), words[3]);
        else
            throw std::invalid_argument("prefill: cannot do \"" + words[0] + "\" with these words");
    }

    void offer(const std::string& name, std::uint64_t tokens, const std::string& blocks)
    {
        const auto [key, request] = requests_.add(name, blocks);
        kvlink::Offer offer;
        offer.request = request.name.c_str();
        offer.blocks = request.blocks;
        offer.tokens = tokens;
        offer.user_data = key;
        const kvlink::OfferId id = agent().offer(offer).value();
        say("ticket " + name + " " + to_hex(agent().ticket(id).value()));
    }

    void write_layers(const std::string& name, std::uint64_t tokens, const std::string& blocks)
    {
        const auto [key, request] = requests_.add(name, blocks);
        // What else the decode rank needs to go on: the first sampled token, say.
        const std::string aux = "token=" + std::to_string(tokens * 7 % 32000);
        kvlink::Write write;
        write.peer = peer_;
        write.request = request.name.c_str();
        write.blocks = request.blocks;
        write.token_total = tokens;
        write.layer_count = 1;
        write.user_data = key;
        for (std::uint32_t layer = 0; layer < layers_; layer++) {
            // Here a real engine computes the layer and waits until the device has written it.
            write.layer_first = layer;
            write.last = layer + 1 == layers_;
            if (write.last)
                write.aux = aux;
            agent().write(write).value();
            request.pending++;
        }
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
        case kvlink::EventKind::transfer: {
            Request& request = requests_.of(event);
            if (const auto result = event.result(); !result)
                std::cerr << "write of " << request.name << ": " << result.error().message() << '\n';
            if (request.add(event)) {
                // Only now may the blocks be reused.
                say("wrote " + request.report());
                requests_.remove(event);
            }
            break;
        }
        case kvlink::EventKind::released: {
            Request& request = requests_.of(event);
            if (const auto result = event.result(); !result)
                std::cerr << "offer of " << request.name << ": " << result.error().message() << '\n';
            request.status = static_cast<std::int32_t>(event.status());
            say("released " + request.report());
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

    std::uint32_t layers_;
    kvlink::PeerId peer_;
    Requests requests_;
};

} // namespace

int main(int argc, char** argv)
{
    return run([&] {
        const Options options(argc, argv);
        if (options.layout.empty())
            throw std::invalid_argument("usage: prefill --layout FILE [--instance NAME] [--rank N --ranks N --leader "
                                        "HOST:PORT] [--layers N] [--transport NAME]");
        Prefill(options, kvlink::Layout::from_json(read_file(options.layout)).value()).serve();
    });
}
