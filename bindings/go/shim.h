/* The C API for cgo. The message of a failed call is kept for each thread, and a goroutine may change threads between two
 * calls: so each function here is one C call that returns the status together with its message. */
#ifndef KVLINK_GO_SHIM_H
#define KVLINK_GO_SHIM_H

#include <kvlink.h>
#include <stddef.h>

/* text: NULL, or the message, to be freed. */
typedef struct go_result {
    kvlink_status_t status;
    char *text;
} go_result;

/* This thread's last message, NULL if there is no memory for it. */
char *go_last_error(void);

static inline go_result go_end(kvlink_status_t status)
{
    go_result result = {status, NULL};
    if (status != KVLINK_OK)
        result.text = go_last_error();
    return result;
}

#define GO_CALL(name, parameters, arguments) \
    static inline go_result go_##name parameters { return go_end(name arguments); }

GO_CALL(kvlink_layout_create, (const kvlink_layout_desc_t *d, kvlink_layout_t **out), (d, out))
GO_CALL(kvlink_layout_from_json, (const char *json, size_t len, kvlink_layout_t **out), (json, len, out))
GO_CALL(kvlink_layout_destroy, (kvlink_layout_t *l), (l))
GO_CALL(kvlink_layout_explain, (const kvlink_layout_t *l, char *buf, size_t cap, size_t *len), (l, buf, cap, len))
GO_CALL(kvlink_layout_regions, (const kvlink_layout_t *l, uint64_t *bytes, size_t cap, size_t *n), (l, bytes, cap, n))
GO_CALL(kvlink_layout_groups, (const kvlink_layout_t *l, kvlink_group_t *groups, size_t cap, size_t *n), (l, groups, cap, n))
GO_CALL(kvlink_layout_check, (const kvlink_layout_t **s, size_t ns, const kvlink_layout_t **d, size_t nd, uint32_t rank,
        kvlink_finding_t *findings, size_t cap, size_t *n), (s, ns, d, nd, rank, findings, cap, n))

GO_CALL(kvlink_plan_create, (const kvlink_layout_t **s, size_t ns, const kvlink_layout_t **d, size_t nd, uint32_t from,
        uint32_t to, kvlink_plan_t **out), (s, ns, d, nd, from, to, out))
GO_CALL(kvlink_plan_destroy, (kvlink_plan_t *p), (p))
GO_CALL(kvlink_plan_expand, (const kvlink_plan_t *p, const kvlink_plan_request_t *r, kvlink_span_t *spans, size_t cap,
        size_t *n), (p, r, spans, cap, n))
GO_CALL(kvlink_plan_explain, (const kvlink_plan_t *p, char *buf, size_t cap, size_t *len), (p, buf, cap, len))

GO_CALL(kvlink_shared_alloc, (size_t len, void **out), (len, out))
GO_CALL(kvlink_shared_free, (void *memory), (memory))

GO_CALL(kvlink_agent_create, (const kvlink_agent_config_t *c, const kvlink_layout_t *l, kvlink_agent_t **out), (c, l, out))
GO_CALL(kvlink_agent_destroy, (kvlink_agent_t *a), (a))
GO_CALL(kvlink_agent_address, (const kvlink_agent_t *a, char *buf, size_t cap, size_t *len), (a, buf, cap, len))
GO_CALL(kvlink_register, (const kvlink_agent_t *a, uint32_t region, void *memory, size_t len), (a, region, memory, len))
GO_CALL(kvlink_deregister, (const kvlink_agent_t *a, uint32_t region), (a, region))
GO_CALL(kvlink_statistics, (const kvlink_agent_t *a, kvlink_statistics_t *out), (a, out))

GO_CALL(kvlink_handshake, (const kvlink_agent_t *a, const char *address, uint32_t direction, uint64_t user_data,
        uint64_t *out), (a, address, direction, user_data, out))
GO_CALL(kvlink_disconnect, (const kvlink_agent_t *a, uint64_t peer), (a, peer))
GO_CALL(kvlink_effective_transport, (const kvlink_agent_t *a, uint64_t peer, char *buf, size_t cap, size_t *len),
        (a, peer, buf, cap, len))
GO_CALL(kvlink_notify, (const kvlink_agent_t *a, uint64_t peer, uint32_t rank, const void *data, size_t len,
        uint64_t after), (a, peer, rank, data, len, after))

GO_CALL(kvlink_offer, (const kvlink_agent_t *a, const kvlink_offer_t *o, uint64_t *out), (a, o, out))
GO_CALL(kvlink_ticket, (const kvlink_agent_t *a, uint64_t offer, void *buf, size_t cap, size_t *len),
        (a, offer, buf, cap, len))
GO_CALL(kvlink_ticket_info, (const void *ticket, size_t len, kvlink_ticket_info_t *out), (ticket, len, out))
GO_CALL(kvlink_ticket_write, (const void *like, size_t like_len, const kvlink_offer_t *o, void *buf, size_t cap, size_t *len),
        (like, like_len, o, buf, cap, len))
GO_CALL(kvlink_read_blocks, (const kvlink_agent_t *a, const kvlink_read_t *r, uint64_t *out), (a, r, out))
GO_CALL(kvlink_accept, (const kvlink_agent_t *a, const kvlink_accept_t *r, uint64_t *out), (a, r, out))
GO_CALL(kvlink_write_blocks, (const kvlink_agent_t *a, const kvlink_write_t *w, uint64_t *out), (a, w, out))
GO_CALL(kvlink_cancel, (const kvlink_agent_t *a, uint64_t id), (a, id))
GO_CALL(kvlink_failed_blocks, (const kvlink_agent_t *a, uint64_t transfer, uint32_t group, uint32_t *ids, size_t cap,
        size_t *n), (a, transfer, group, ids, cap, n))

GO_CALL(kvlink_router_attach, (const kvlink_agent_t *a, const kvlink_router_t *r, uint64_t *out), (a, r, out))
GO_CALL(kvlink_router_detach, (const kvlink_agent_t *a, uint64_t id), (a, id))
GO_CALL(kvlink_router_zmq_address, (const char *host, uint32_t handshake, uint32_t notify, char *buf, size_t cap,
        size_t *len), (host, handshake, notify, buf, cap, len))
GO_CALL(kvlink_router_port, (uint32_t base, uint32_t dp, uint32_t dps, uint32_t tp, uint32_t tps, uint32_t *out),
        (base, dp, dps, tp, tps, out))
GO_CALL(kvlink_route_parse, (const char *id, kvlink_route_t *out), (id, out))
GO_CALL(kvlink_route_format, (const kvlink_route_t *r, char *buf, size_t cap, size_t *len), (r, buf, cap, len))
GO_CALL(kvlink_router_answer, (const kvlink_router_answer_t *r, char *buf, size_t cap, size_t *len), (r, buf, cap, len))
GO_CALL(kvlink_router_params, (const char *json, size_t n, kvlink_router_params_t *out, void *buf, size_t cap,
        size_t *len), (json, n, out, buf, cap, len))

GO_CALL(kvlink_moriio_open, (const kvlink_agent_t *a, const kvlink_moriio_t *w), (a, w))
GO_CALL(kvlink_moriio_close, (const kvlink_agent_t *a), (a))
GO_CALL(kvlink_moriio_meet, (const kvlink_agent_t *a, const char *address, uint32_t timeout_ms, uint64_t user_data,
        uint64_t *out), (a, address, timeout_ms, user_data, out))
GO_CALL(kvlink_moriio_send, (const kvlink_agent_t *a, const char *address, const void *message, size_t len,
        uint32_t timeout_ms, uint64_t user_data, uint64_t *out), (a, address, message, len, timeout_ms, user_data, out))

GO_CALL(kvlink_poll, (const kvlink_agent_t *a, kvlink_event_t *events, size_t cap, int timeout_ms, size_t *n),
        (a, events, cap, timeout_ms, n))
GO_CALL(kvlink_event_fd, (const kvlink_agent_t *a, int *out), (a, out))

#endif
