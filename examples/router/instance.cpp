// A prefill or decode instance behind vLLM's router, as instance.py is one: an HTTP server whose "model" is a formula; its
// cache is real.
//
//   instance --role prefill|decode --mode read|write --discovery HOST:PORT [--tp N] [--layer-seconds S]
//
// The prefill instance computes the cache of a prompt layer by layer; the decode instance gets it through kvlink and answers
// with a digest of what arrived. If the cache does not come, it computes the cache itself: no request waits for ever.
#include "engine.hpp"

#include <csignal>
#include <cstdlib>

#include <httplib.h>
#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::json;

// After this a router has forgotten who left: its time to live, and a second and a half for rounding.
constexpr std::chrono::milliseconds farewell{6500};

struct Options {
    kvlink::Role role = kvlink::Role::prefill;
    kvlink::Mode mode = kvlink::Mode::read;
    std::string discovery;
    std::uint32_t tp = 1;
    std::chrono::duration<double> layer_time{0};
};

Options parse(int argc, char** argv)
{
    Options options;
    std::set<std::string> given;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i], value = argv[i + 1];
        given.insert(name);
        if (name == "--role" && (value == "prefill" || value == "decode"))
            options.role = value == "prefill" ? kvlink::Role::prefill : kvlink::Role::decode;
        else if (name == "--mode" && (value == "read" || value == "write"))
            options.mode = value == "read" ? kvlink::Mode::read : kvlink::Mode::write;
        else if (name == "--discovery")
            options.discovery = value;
        else if (name == "--tp" && (value == "1" || value == "2" || value == "4" || value == "8"))
            options.tp = static_cast<std::uint32_t>(value[0] - '0');
        else if (name == "--layer-seconds")
            options.layer_time = std::chrono::duration<double>(std::stod(value));
        else
            throw std::invalid_argument(name + " " + value + " is not understood");
    }
    if (argc % 2 == 0 || !given.count("--role") || !given.count("--mode") || !given.count("--discovery"))
        throw std::invalid_argument("usage: instance --role prefill|decode --mode read|write --discovery HOST:PORT "
                                    "[--tp 1|2|4|8] [--layer-seconds S]");
    return options;
}

// What both roles share.
class Instance {
public:
    explicit Instance(const Options& options) : options_(options), engine_(options.role, options.tp)
    {
        const std::string address = engine_.address();
        const std::size_t colon = address.rfind(':');
        const auto port = static_cast<std::uint32_t>(std::stoul(address.substr(colon + 1)));
        zmq_address_ = kvlink::router_zmq_address(address.substr(0, colon), port, port).value();
    }
    virtual ~Instance() = default;

    // Answers a completion request.
    virtual Json complete(const Json& body, const std::string& request_id) = 0;

    kvlink::RegistrationId attach(const std::string& http_address) const
    {
        kvlink::Router router;
        router.role = options_.role;
        router.mode = options_.mode;
        router.discovery = options_.discovery;
        router.http_address = http_address;
        router.zmq_address = zmq_address_;
        router.tp_size = options_.tp;
        return engine_.ranks()[0]->agent().attach_router(router).value();
    }
    void detach(kvlink::RegistrationId registration) const
    {
        engine_.ranks()[0]->agent().detach_router(registration).value();
    }
    std::string address() const { return engine_.address(); }

protected:
    // The model's work.
    void compute(const std::string& prompt, const BlockIds& blocks, std::uint32_t layer) const
    {
        std::this_thread::sleep_for(options_.layer_time);
        const LayerCache values = cache_of(prompt, layer);
        for (const auto& rank : engine_.ranks())
            rank->cache().store(blocks, layer, values);
    }

    const Options options_;
    Engine engine_;
    std::string zmq_address_;
};

// Computes caches.
class Prefill : public Instance {
public:
    using Instance::Instance;

    // Computes a prompt's cache; sends it layer by layer, or offers it when it is complete.
    Json complete(const Json& body, const std::string& request_id) override
    {
        const std::string prompt = body.at("prompt");
        const auto params = kvlink::router_params(body.at("kv_transfer_params").dump()).value();
        const Engine::Lease lease = engine_.take(prompt.size());
        if (options_.mode == kvlink::Mode::write) {
            push(prompt, params.transfer_id, *lease, request_id);
            return Json::object();
        }
        for (std::uint32_t layer = 0; layer < layers; layer++)
            compute(prompt, *lease, layer);
        return {{"kv_transfer_params", offer(params.transfer_id, prompt.size(), lease)}};
    }

private:
    // Writes each layer as soon as it is computed to the decode instance that the request's id names.
    void push(const std::string& prompt, const std::string& transfer_id, const BlockIds& blocks,
              const std::string& request_id)
    {
        const kvlink::Route route = kvlink::route_parse(request_id).value();
        const std::string to = route.decode_host + ":" + std::to_string(route.decode_handshake);
        const Engine::Peers peers = engine_.meet(to, kvlink::Direction::outbound);
        const kvlink::Blocks list(blocks);
        Batch writes;
        for (std::uint32_t layer = 0; layer < layers; layer++) {
            compute(prompt, blocks, layer);
            for (std::size_t rank = 0; rank < peers.size(); rank++) {
                kvlink::Write write;
                write.peer = peers[rank];
                write.request = transfer_id.c_str();
                write.blocks = list;
                write.token_total = prompt.size();
                write.layer_first = layer;
                write.layer_count = 1;
                write.last = layer + 1 == layers;
                const auto begin = [&](const kvlink::Agent& agent, std::uint64_t number) {
                    write.user_data = number;
                    return agent.write(write);
                };
                (void)engine_.ranks()[rank]->begin(begin, writes.one());
            }
        }
        writes.wait();
    }

    // Offers a cache until the decode instance has it, or never will; the ticket of one rank serves all.
    Json offer(const std::string& transfer_id, std::size_t tokens, const Engine::Lease& lease)
    {
        const kvlink::Blocks list(*lease);
        kvlink::Offer offer;
        offer.request = transfer_id.c_str();
        offer.blocks = list;
        offer.tokens = tokens;
        offer.lease_ms = static_cast<std::uint32_t>(2 * patience.count());
        std::string ticket;
        for (const auto& rank : engine_.ranks()) {
            const auto begin = [&](const kvlink::Agent& agent, std::uint64_t number) {
                offer.user_data = number;
                return agent.offer(offer);
            };
            const auto id = rank->begin(begin, [lease](const kvlink::Result<void>&) {});
            if (!id)
                throw std::runtime_error(id.error().message()); // those before it expire
            if (ticket.empty())
                ticket = rank->agent().ticket(*id).value();
        }
        kvlink::RouterAnswer answer;
        answer.transfer_id = transfer_id;
        answer.zmq_address = zmq_address_;
        answer.ticket = ticket;
        answer.tp_size = options_.tp;
        return Json::parse(kvlink::router_answer(answer).value());
    }
};

// Gets caches.
class Decode : public Instance {
public:
    using Instance::Instance;

    // Gets a prompt's cache and says its digest, and how it came.
    Json complete(const Json& body, const std::string& request_id) override
    {
        const std::string prompt = body.at("prompt");
        const kvlink::Route route = kvlink::route_parse(request_id).value();
        const Engine::Lease lease = engine_.take(prompt.size());
        std::string way = "received";
        try {
            fetch(body.value("kv_transfer_params", Json::object()), prompt.size(), *lease);
        } catch (const std::exception& failure) {
            way = std::string("computed, since ") + failure.what();
            for (std::uint32_t layer = 0; layer < layers; layer++)
                compute(prompt, *lease, layer);
        }
        std::vector<LayerCache> whole(layers, LayerCache(prompt.size() * heads * width));
        for (std::uint32_t layer = 0; layer < layers; layer++)
            for (const auto& rank : engine_.ranks())
                rank->cache().load(*lease, layer, whole[layer]);
        return {{"choices", {{{"index", 0}, {"text", digest(whole)}}}},
                {"kvlink", {{"cache", way}, {"prefill", route.prefill_handshake}, {"decode", route.decode_handshake}}}};
    }

private:
    // Reads the cache, or lets it be written; either ends in time.
    void fetch(const Json& parameters, std::size_t tokens, const BlockIds& blocks)
    {
        const auto params = kvlink::router_params(parameters.dump()).value();
        if (options_.mode == kvlink::Mode::write)
            accept(params.transfer_id, tokens, blocks);
        else
            read(params.ticket, blocks);
    }

    void accept(const std::string& transfer_id, std::size_t tokens, const BlockIds& blocks)
    {
        const kvlink::Blocks list(blocks);
        kvlink::Accept accept;
        accept.request = transfer_id.c_str();
        accept.blocks = list;
        accept.tokens = tokens;
        accept.timeout_ms = static_cast<std::uint32_t>(patience.count());
        Batch accepts;
        for (const auto& rank : engine_.ranks()) {
            const auto begin = [&](const kvlink::Agent& agent, std::uint64_t number) {
                accept.user_data = number;
                return agent.accept(accept);
            };
            (void)rank->begin(begin, accepts.one());
        }
        accepts.wait();
    }

    void read(const std::string& ticket, const BlockIds& blocks)
    {
        const kvlink::TicketInfo source = kvlink::ticket_info(ticket).value();
        const Engine::Peers peers = engine_.meet(source.address, kvlink::Direction::inbound);
        const kvlink::Blocks list(blocks);
        Batch reads;
        for (std::size_t rank = 0; rank < peers.size(); rank++) {
            kvlink::Read read;
            read.peer = peers[rank];
            read.ticket = ticket;
            read.blocks = list;
            read.timeout_ms = static_cast<std::uint32_t>(patience.count());
            const auto begin = [&](const kvlink::Agent& agent, std::uint64_t number) {
                read.user_data = number;
                return agent.read(read);
            };
            (void)engine_.ranks()[rank]->begin(begin, reads.one());
        }
        reads.wait();
    }
};

// A completion as server-sent events, eight characters each.
void stream(Json said, httplib::Response& response)
{
    const std::string text = said["choices"][0]["text"];
    response.set_chunked_content_provider(
        "text/event-stream", [said, text, at = std::size_t{0}](std::size_t, httplib::DataSink& sink) mutable {
            std::string event = "data: [DONE]\n\n";
            if (at < text.size()) {
                said["choices"][0]["text"] = text.substr(at, 8);
                event = "data: " + said.dump() + "\n\n";
            }
            sink.write(event.data(), event.size());
            if (at >= text.size())
                sink.done();
            at += 8;
            return true;
        });
}

void answer(Instance& instance, const httplib::Request& request, httplib::Response& response)
{
    try {
        const Json body = Json::parse(request.body);
        const Json said = instance.complete(body, request.get_header_value("X-Request-Id"));
        if (body.value("stream", false))
            stream(said, response);
        else
            response.set_content(said.dump(), "application/json");
    } catch (const std::exception& failure) {
        response.status = 500;
        response.set_content(Json{{"error", failure.what()}}.dump(), "application/json");
    }
}

// Serves until SIGTERM; then leaves the router before it leaves its requests.
void serve(Instance& instance, const sigset_t& leave, const char* role)
{
    httplib::Server server;
    server.new_task_queue = [] { return new httplib::ThreadPool(max_requests); };
    server.set_keep_alive_max_count(1);
    server.Post(".*", [&](const httplib::Request& q, httplib::Response& r) { answer(instance, q, r); });
    server.Get(".*", [](const httplib::Request&, httplib::Response& r) { r.set_content("{}", "application/json"); });
    const int port = server.bind_to_any_port("127.0.0.1");
    if (port < 0)
        throw std::runtime_error("no port for HTTP");
    std::thread listener([&] { server.listen_after_bind(); });
    const std::string http = "127.0.0.1:" + std::to_string(port);
    const kvlink::RegistrationId registration = instance.attach(http);
    std::cout << role << ' ' << http << ' ' << instance.address() << std::endl;
    int signal = 0;
    sigwait(&leave, &signal);
    instance.detach(registration);
    std::this_thread::sleep_for(farewell);
    server.stop();
    listener.join();
}

} // namespace

int main(int argc, char** argv)
{
    try {
        const Options options = parse(argc, argv);
        // Before there are threads: all of them leave the signal to sigwait.
        sigset_t leave;
        sigemptyset(&leave);
        sigaddset(&leave, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &leave, nullptr);
        if (options.role == kvlink::Role::prefill) {
            Prefill instance(options);
            serve(instance, leave, "prefill");
        } else {
            Decode instance(options);
            serve(instance, leave, "decode");
        }
        return 0;
    } catch (const std::exception& failure) {
        std::cerr << failure.what() << '\n';
        return 1;
    }
}
