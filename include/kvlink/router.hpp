/* Life behind a router. Part of kvlink.hpp. */

#ifndef KVLINK_ROUTER_HPP
#define KVLINK_ROUTER_HPP

#include "agent.hpp"

namespace kvlink {

/* A kvlink_route_t: which instances a router chose for a request. */
struct Route {
    std::string prefill_host;
    std::uint32_t prefill_handshake = 0;
    std::uint32_t prefill_notify = 0;
    std::string decode_host;
    std::uint32_t decode_handshake = 0;
    std::uint32_t decode_notify = 0;
    std::string unique;
};

/* A kvlink_router_answer_t: what a prefill instance answers in READ mode. */
struct RouterAnswer {
    std::string transfer_id;
    std::string zmq_address;
    std::string_view ticket;
    std::uint32_t dp_rank = 0;
    std::uint32_t dp_size = 0;
    std::uint32_t tp_size = 0;
};

/* A kvlink_router_params_t, and the ticket: what `kv_transfer_params` of a request say. */
struct RouterParams {
    bool do_remote_decode = false;
    bool do_remote_prefill = false;
    std::uint32_t remote_dp_size = 0;
    std::uint32_t remote_tp_size = 0;
    std::uint32_t remote_dp_rank = 0;
    std::string transfer_id;
    std::string ticket;
};

/* "host:10.0.0.1,handshake:6301,notify:61005". */
inline Result<std::string> router_zmq_address(const std::string& host, std::uint32_t handshake, std::uint32_t notify)
{
    return detail::text(1, [&](char* buf, std::size_t cap, std::size_t* len) {
        return ::kvlink_router_zmq_address(host.c_str(), handshake, notify, buf, cap, len);
    });
}

/* The port of a rank, as vLLM's connector counts. */
inline Result<std::uint32_t> router_port(
    std::uint32_t base, std::uint32_t dp_rank, std::uint32_t dp_size, std::uint32_t tp_rank, std::uint32_t tp_size)
{
    std::uint32_t port = 0;
    const kvlink_status_t status = ::kvlink_router_port(base, dp_rank, dp_size, tp_rank, tp_size, &port);
    return detail::result(status, port);
}

/* From a request id of the router, or what vLLM made of one. */
inline Result<Route> route_parse(const std::string& request_id)
{
    kvlink_route_t c{};
    c.struct_size = sizeof c;
    if (const kvlink_status_t status = ::kvlink_route_parse(request_id.c_str(), &c); status != KVLINK_OK)
        return detail::last_error(status);
    return Route{c.prefill_host, c.prefill_handshake, c.prefill_notify, c.decode_host,
                 c.decode_handshake, c.decode_notify, c.unique};
}

/* As a router writes it. */
inline Result<std::string> route_format(const Route& route)
{
    kvlink_route_t c{};
    c.struct_size = sizeof c;
    c.prefill_handshake = route.prefill_handshake;
    c.prefill_notify = route.prefill_notify;
    c.decode_handshake = route.decode_handshake;
    c.decode_notify = route.decode_notify;
    /* What is too long for the array fills it, and is refused: it has no NUL. */
    route.prefill_host.copy(c.prefill_host, sizeof c.prefill_host);
    route.decode_host.copy(c.decode_host, sizeof c.decode_host);
    route.unique.copy(c.unique, sizeof c.unique);
    return detail::text(1, [&](char* buf, std::size_t cap, std::size_t* len) {
        return ::kvlink_route_format(&c, buf, cap, len);
    });
}

/* The JSON of a prefill instance's `kv_transfer_params` in READ mode. */
inline Result<std::string> router_answer(const RouterAnswer& answer)
{
    kvlink_router_answer_t c{};
    c.struct_size = sizeof c;
    c.dp_rank = answer.dp_rank;
    c.dp_size = answer.dp_size;
    c.tp_size = answer.tp_size;
    c.transfer_id = answer.transfer_id.c_str();
    c.zmq_address = answer.zmq_address.c_str();
    c.ticket = answer.ticket.data();
    c.ticket_len = answer.ticket.size();
    return detail::text(1, [&](char* buf, std::size_t cap, std::size_t* len) {
        return ::kvlink_router_answer(&c, buf, cap, len);
    });
}

/* Reads the JSON of `kv_transfer_params`. */
inline Result<RouterParams> router_params(std::string_view json)
{
    kvlink_router_params_t c{};
    c.struct_size = sizeof c;
    Result<std::string> ticket = detail::text(0, [&](char* buf, std::size_t cap, std::size_t* len) {
        return ::kvlink_router_params(json.data(), json.size(), &c, buf, cap, len);
    });
    if (!ticket)
        return ticket.error();
    return RouterParams{c.do_remote_decode != 0, c.do_remote_prefill != 0, c.remote_dp_size, c.remote_tp_size,
                        c.remote_dp_rank, c.transfer_id, *std::move(ticket)};
}

} // namespace kvlink

#endif
