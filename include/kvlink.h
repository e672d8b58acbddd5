/* kvlink: moves KV cache between the prefill and decode instances of an LLM service.
 *
 * Caveats first:
 *  - Handles (kvlink_layout_t, kvlink_plan_t, kvlink_agent_t) are opaque; everything below an agent (peer, offer, accept,
 *    transfer) is a 64-bit id. A stale or foreign handle or id is an error, never undefined behaviour.
 *  - Calls that start something return at once. If the call returns an error, nothing was started and no event comes;
 *    otherwise exactly one event ends it.
 *  - Registered memory must stay mapped until kvlink_deregister or kvlink_agent_destroy has returned.
 *  - Every function may be called from any thread, except that destroying comes last and one thread polls an agent at a
 *    time. Agents do not survive fork: the child gets KVLINK_E_WRONG_STATE.
 *  - Structs begin with struct_size, set it to sizeof; zero means default in every other field.
 *  - Sizes and offsets are bytes, lengths of requests are tokens, times are milliseconds.
 *
 * Generated from the Rust sources by cbindgen; the sources are the place to change it. */

#ifndef KVLINK_H
#define KVLINK_H

#include <stddef.h>
#include <stdint.h>

/**
 * A block list entry that holds nothing: a position outside a window, say.
 */
#define KVLINK_NO_BLOCK UINT32_MAX

/**
 * All ranks of a peer.
 */
#define KVLINK_ALL_RANKS UINT32_MAX

/**
 * Waits without end.
 */
#define KVLINK_FOREVER -1

/**
 * Values of kvlink_status_t. The range says what must be repaired: -1.. this call, -100.. this host, -200.. the peer,
 * -300.. this transfer, -400.. a backend, -500.. kvlink itself.
 */
enum kvlink_error
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Success.
     */
    KVLINK_OK = 0,
    /**
     * An argument has a value that it cannot have.
     */
    KVLINK_E_INVALID_ARGUMENT = -1,
    /**
     * A pointer that must not be NULL is NULL.
     */
    KVLINK_E_NULL_POINTER = -2,
    /**
     * struct_size is unknown, or an unknown tail is not zero.
     */
    KVLINK_E_STRUCT_SIZE = -3,
    /**
     * An enum argument has no such value.
     */
    KVLINK_E_UNKNOWN_ENUM = -4,
    /**
     * A stale or foreign handle or id.
     */
    KVLINK_E_BAD_HANDLE = -5,
    /**
     * A layout contradicts itself, overlaps, or leaves its region.
     */
    KVLINK_E_INVALID_LAYOUT = -6,
    /**
     * A block list does not fit the layout or the token range.
     */
    KVLINK_E_INVALID_BLOCKS = -7,
    /**
     * A configured limit would be exceeded.
     */
    KVLINK_E_LIMIT = -8,
    /**
     * The buffer is too small; the needed size was stored.
     */
    KVLINK_E_BUFFER_TOO_SMALL = -9,
    /**
     * The object is not in a state that allows this call.
     */
    KVLINK_E_WRONG_STATE = -10,
    /**
     * A malformed ticket.
     */
    KVLINK_E_INVALID_TICKET = -11,
    /**
     * The request id is in use.
     */
    KVLINK_E_DUPLICATE = -12,
    /**
     * Memory could not be allocated or mapped.
     */
    KVLINK_E_NO_MEMORY = -100,
    /**
     * A system call failed.
     */
    KVLINK_E_SYSTEM = -101,
    /**
     * The kernel refuses access.
     */
    KVLINK_E_PERMISSION = -102,
    /**
     * A required transport is not available.
     */
    KVLINK_E_TRANSPORT_UNAVAILABLE = -103,
    /**
     * An address cannot be used.
     */
    KVLINK_E_ADDRESS = -104,
    /**
     * No connection to the peer could be made.
     */
    KVLINK_E_UNREACHABLE = -200,
    /**
     * The peer stopped answering or closed its connection.
     */
    KVLINK_E_PEER_DEAD = -201,
    /**
     * The two layouts cannot be copied into one another; the text lists why.
     */
    KVLINK_E_INCOMPATIBLE = -202,
    /**
     * No common wire version.
     */
    KVLINK_E_VERSION = -203,
    /**
     * The peer sent something that the protocol does not allow.
     */
    KVLINK_E_PROTOCOL = -204,
    /**
     * A ticket, key or acknowledgement of an earlier process of the peer.
     */
    KVLINK_E_INCARNATION = -205,
    /**
     * The peer refused.
     */
    KVLINK_E_REFUSED = -206,
    /**
     * Cancelled by the caller.
     */
    KVLINK_E_CANCELLED = -300,
    /**
     * The deadline passed.
     */
    KVLINK_E_DEADLINE = -301,
    /**
     * The source's lease ended before the transfer did: the data must not be used.
     */
    KVLINK_E_LEASE_EXPIRED = -302,
    /**
     * The other side knows no such request.
     */
    KVLINK_E_UNKNOWN_REQUEST = -303,
    /**
     * The sender said `last`, but bytes are missing.
     */
    KVLINK_E_INCOMPLETE = -304,
    /**
     * The end of all access could not be proven: do not reuse the buffers.
     */
    KVLINK_E_QUARANTINED = -305,
    /**
     * A third-party library below a transport failed.
     */
    KVLINK_E_BACKEND = -400,
    /**
     * A defect of kvlink.
     */
    KVLINK_E_INTERNAL = -500,
    /**
     * A defect stopped the agent earlier.
     */
    KVLINK_E_POISONED = -501,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_error kvlink_error;
#else
typedef int32_t kvlink_error;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Element types.
 */
enum kvlink_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A record that is moved whole; its size is `element_bytes`.
     */
    KVLINK_DTYPE_OPAQUE = 0,
    /**
     * IEEE binary32.
     */
    KVLINK_DTYPE_F32 = 1,
    /**
     * IEEE binary16.
     */
    KVLINK_DTYPE_F16 = 2,
    /**
     * bfloat16.
     */
    KVLINK_DTYPE_BF16 = 3,
    /**
     * 8-bit float E4M3.
     */
    KVLINK_DTYPE_F8_E4M3 = 4,
    /**
     * 8-bit float E5M2.
     */
    KVLINK_DTYPE_F8_E5M2 = 5,
    /**
     * Signed 8-bit integer.
     */
    KVLINK_DTYPE_I8 = 6,
    /**
     * Unsigned 8-bit integer.
     */
    KVLINK_DTYPE_U8 = 7,
    /**
     * IEEE binary64.
     */
    KVLINK_DTYPE_F64 = 8,
    /**
     * Signed 32-bit integer.
     */
    KVLINK_DTYPE_I32 = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_dtype kvlink_dtype;
#else
typedef uint32_t kvlink_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How block lists of a group are read.
 */
enum kvlink_group_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Entry j holds the tokens j * block_tokens and following.
     */
    KVLINK_GROUP_PAGED = 0,
    /**
     * The list is a ring of blocks per request.
     */
    KVLINK_GROUP_RING = 1,
    /**
     * No token axis: entry j is the j-th state slot of the request.
     */
    KVLINK_GROUP_SLOTS = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_group_kind kvlink_group_kind;
#else
typedef uint32_t kvlink_group_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which tokens before the end of a request a group still needs.
 */
enum kvlink_reach
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * All.
     */
    KVLINK_REACH_FULL = 0,
    /**
     * The last `reach_tokens` (sliding window).
     */
    KVLINK_REACH_WINDOW = 1,
    /**
     * The chunk of `reach_tokens` that the last token lies in.
     */
    KVLINK_REACH_CHUNK = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_reach kvlink_reach;
#else
typedef uint32_t kvlink_reach;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which way a handshake prepares.
 */
enum kvlink_direction
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Data may go either way.
     */
    KVLINK_DIRECTION_BOTH = 0,
    /**
     * We read from the peer, or accept its writes.
     */
    KVLINK_DIRECTION_INBOUND = 1,
    /**
     * We write to the peer.
     */
    KVLINK_DIRECTION_OUTBOUND = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_direction kvlink_direction;
#else
typedef uint32_t kvlink_direction;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What happened.
 */
enum kvlink_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * All ranks of the own instance are known: peers can shake hands. Otherwise the status and text say why that will
     * never be so.
     */
    KVLINK_EVENT_READY = 1,
    /**
     * A handshake ended; payload: the transports in effect, or why it failed.
     */
    KVLINK_EVENT_HANDSHAKE = 2,
    /**
     * A read or write ended.
     */
    KVLINK_EVENT_TRANSFER = 3,
    /**
     * The blocks of an offer may be reused.
     */
    KVLINK_EVENT_RELEASED = 4,
    /**
     * All bytes of an accepted request have arrived, or never will; payload: the side payload.
     */
    KVLINK_EVENT_RECEIVED = 5,
    /**
     * A peer's engine sent a message; payload: the message.
     */
    KVLINK_EVENT_NOTIFICATION = 6,
    /**
     * A peer is gone.
     */
    KVLINK_EVENT_PEER_DOWN = 7,
    /**
     * A defect of kvlink stopped the agent; it only reports and can be destroyed.
     */
    KVLINK_EVENT_AGENT_FAILED = 8,
    /**
     * The connection to a router was made (KVLINK_OK) or lost, or cannot be made; id: the registration.
     */
    KVLINK_EVENT_ROUTER = 9,
    /**
     * A worker of vLLM's MoRIIOConnector said something (id 0), or an exchange with one ended (id: the exchange).
     */
    KVLINK_EVENT_MORIIO = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_event_kind kvlink_event_kind;
#else
typedef uint32_t kvlink_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What an instance does.
 */
enum kvlink_role
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Prefill.
     */
    KVLINK_ROLE_PREFILL = 0,
    /**
     * Decode.
     */
    KVLINK_ROLE_DECODE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_role kvlink_role;
#else
typedef uint32_t kvlink_role;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who moves the data behind a router; all instances of a router agree.
 */
enum kvlink_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The decode side reads when the prefill side is done.
     */
    KVLINK_MODE_READ = 0,
    /**
     * The prefill side writes while it computes.
     */
    KVLINK_MODE_WRITE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvlink_mode kvlink_mode;
#else
typedef uint32_t kvlink_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One rank's endpoint; destroyed with kvlink_agent_destroy.
 */
typedef struct kvlink_agent_t kvlink_agent_t;

/**
 * A cache layout. Immutable; may be shared by threads; destroyed with kvlink_layout_destroy.
 */
typedef struct kvlink_layout_t kvlink_layout_t;

/**
 * A compiled and proven plan of one rank pair. Immutable; destroyed with kvlink_plan_destroy.
 */
typedef struct kvlink_plan_t kvlink_plan_t;

/**
 * Result of a call: 0, or a negative `KVLINK_E_*` value whose range says what must be repaired.
 */
typedef int32_t kvlink_status_t;

/**
 * A KV-cache group: one block-id space, the same on all ranks of an instance.
 */
typedef struct kvlink_group_t {
    /**
     * A kvlink_group_kind.
     */
    uint32_t kind;
    /**
     * Tokens of this rank in one block; 1 for slots.
     */
    uint32_t block_tokens;
    /**
     * Block ids are below this.
     */
    uint32_t num_blocks;
    /**
     * A kvlink_reach.
     */
    uint32_t reach;
    /**
     * Tokens of the window or chunk.
     */
    uint64_t reach_tokens;
    /**
     * Context-parallel size; 0 and 1: not parallel.
     */
    uint32_t context_size;
    /**
     * Context-parallel rank.
     */
    uint32_t context_rank;
    /**
     * Tokens of one interleaved chunk; 0: 1.
     */
    uint32_t context_interleave;
    /**
     * Zero.
     */
    uint32_t reserved;
} kvlink_group_t;

/**
 * Paged attention keys and values of several layers in one allocation.
 */
typedef struct kvlink_attention_t {
    /**
     * Global indices of the layers, in storage order.
     */
    const uint32_t *layers;
    /**
     * Number of layers.
     */
    size_t num_layers;
    /**
     * Role; NULL: "kv".
     */
    const char *role;
    /**
     * Storage order, outermost first: a permutation of "LBHNC" (layer, block, head, token, content); NULL: "LBHNC".
     */
    const char *order;
    /**
     * Group index.
     */
    uint32_t group;
    /**
     * Region index.
     */
    uint32_t region;
    /**
     * Byte offset of the allocation.
     */
    uint64_t offset;
    /**
     * Bytes from block to block; 0: dense.
     */
    uint64_t block_stride;
    /**
     * Bytes from layer to layer; 0: dense.
     */
    uint64_t layer_stride;
    /**
     * KV heads of the model.
     */
    uint64_t heads;
    /**
     * First head of this rank.
     */
    uint64_t first_head;
    /**
     * Heads of this rank.
     */
    uint64_t num_heads;
    /**
     * Elements of a key.
     */
    uint64_t key_dim;
    /**
     * Elements of a value.
     */
    uint64_t value_dim;
    /**
     * 0: keys and values packed into one content row; 1: two planes, values at `value_region`, `value_offset`.
     */
    uint32_t planes;
    /**
     * Region of the value plane.
     */
    uint32_t value_region;
    /**
     * Byte offset of the value plane.
     */
    uint64_t value_offset;
    /**
     * Tokens of a kernel block inside a block; 0: the whole block.
     */
    uint32_t kernel_tokens;
    /**
     * A kvlink_dtype.
     */
    uint32_t dtype;
} kvlink_attention_t;

/**
 * One record per token, equal on all tensor-parallel ranks, of several layers.
 */
typedef struct kvlink_record_t {
    /**
     * Global indices of the layers, in storage order.
     */
    const uint32_t *layers;
    /**
     * Number of layers.
     */
    size_t num_layers;
    /**
     * Role: names the format ("mla", "fp8_ds_mla", "indexer").
     */
    const char *role;
    /**
     * Group index.
     */
    uint32_t group;
    /**
     * Region index.
     */
    uint32_t region;
    /**
     * Byte offset of the allocation.
     */
    uint64_t offset;
    /**
     * Bytes from block to block; 0: dense.
     */
    uint64_t block_stride;
    /**
     * Bytes from layer to layer; 0: dense.
     */
    uint64_t layer_stride;
    /**
     * Bytes from token to token; 0: dense.
     */
    uint64_t token_stride;
    /**
     * Elements of a record; 0: 1 (an opaque record).
     */
    uint64_t elements;
    /**
     * A kvlink_dtype.
     */
    uint32_t dtype;
    /**
     * Bytes of an element; 0: those of the type.
     */
    uint32_t element_bytes;
} kvlink_record_t;

/**
 * One section of the convolution channels, sharded (or replicated) by itself.
 */
typedef struct kvlink_section_t {
    /**
     * Units of the model (heads, groups, channels).
     */
    uint64_t units;
    /**
     * Channels of one unit.
     */
    uint64_t width;
    /**
     * First unit of this rank.
     */
    uint64_t first;
    /**
     * Units of this rank.
     */
    uint64_t count;
} kvlink_section_t;

/**
 * Convolution and recurrent state per request (GDN, KDA, Mamba, lightning) of several layers.
 */
typedef struct kvlink_state_t {
    /**
     * Global indices of the layers, in storage order.
     */
    const uint32_t *layers;
    /**
     * Number of layers.
     */
    size_t num_layers;
    /**
     * Group index (of kind slots).
     */
    uint32_t group;
    /**
     * Region index.
     */
    uint32_t region;
    /**
     * Byte offset of the convolution state of slot 0 of the first layer.
     */
    uint64_t conv_offset;
    /**
     * Byte offset of the recurrent state of slot 0 of the first layer.
     */
    uint64_t state_offset;
    /**
     * Bytes from slot to slot.
     */
    uint64_t slot_stride;
    /**
     * Bytes from layer to layer.
     */
    uint64_t layer_stride;
    /**
     * Sections of the convolution channels ([x|B|C], [q|k|v]); none: no convolution state.
     */
    const struct kvlink_section_t *conv;
    /**
     * Number of sections.
     */
    size_t num_conv;
    /**
     * Rows that this rank keeps: kernel - 1 + speculative tokens.
     */
    uint64_t conv_rows;
    /**
     * 0: channels outside, rows inside; 1: rows outside.
     */
    uint32_t conv_rows_outside;
    /**
     * A kvlink_dtype.
     */
    uint32_t conv_dtype;
    /**
     * Heads (units) of the recurrent state and elements of one (width); count 0: no recurrent state.
     */
    struct kvlink_section_t state;
    /**
     * A kvlink_dtype.
     */
    uint32_t state_dtype;
    /**
     * Zero.
     */
    uint32_t reserved;
} kvlink_state_t;

/**
 * A global axis of a tensor; the token axis is not listed.
 */
typedef struct kvlink_axis_t {
    /**
     * Name ("head", "channel", ...), equal on both sides.
     */
    const char *name;
    /**
     * Global extent in elements.
     */
    uint64_t extent;
    /**
     * 0: both sides must have this extent; 1: only indices that both have are moved.
     */
    uint32_t common;
    /**
     * Zero.
     */
    uint32_t reserved;
} kvlink_axis_t;

/**
 * The interval of an axis that a part stores.
 */
typedef struct kvlink_extent_t {
    /**
     * First global index.
     */
    uint64_t begin;
    /**
     * Number of indices.
     */
    uint64_t len;
    /**
     * Bytes between neighbours.
     */
    uint64_t stride;
} kvlink_extent_t;

/**
 * A strided box: token t (within its block) and indices i of block id b begin at byte
 * offset + b * block_stride + (t / tile_tokens) * tile_stride + (t % tile_tokens) * token_stride
 * + sum (i - begin) * stride of the region.
 */
typedef struct kvlink_part_t {
    /**
     * Region index.
     */
    uint32_t region;
    /**
     * Tokens of a tile; 0: no tiles.
     */
    uint32_t tile_tokens;
    /**
     * Byte offset of the first element of block 0.
     */
    uint64_t offset;
    /**
     * Bytes between blocks.
     */
    uint64_t block_stride;
    /**
     * Bytes between tokens.
     */
    uint64_t token_stride;
    /**
     * Bytes between tiles.
     */
    uint64_t tile_stride;
    /**
     * One extent per axis.
     */
    const struct kvlink_extent_t *extents;
} kvlink_part_t;

/**
 * A cache tensor as this rank stores it; (layer, role) names it.
 */
typedef struct kvlink_tensor_t {
    /**
     * Global layer index.
     */
    uint32_t layer;
    /**
     * Group index.
     */
    uint32_t group;
    /**
     * A kvlink_dtype.
     */
    uint32_t dtype;
    /**
     * Bytes of an element; 0: those of the type.
     */
    uint32_t element_bytes;
    /**
     * What it is; names the format of opaque records too.
     */
    const char *role;
    /**
     * Axes.
     */
    const struct kvlink_axis_t *axes;
    /**
     * Number of axes, at most 4.
     */
    size_t num_axes;
    /**
     * Parts: logically disjoint boxes; sections of an axis are parts.
     */
    const struct kvlink_part_t *parts;
    /**
     * Number of parts.
     */
    size_t num_parts;
} kvlink_tensor_t;

/**
 * Everything that describes one rank's cache. Tensors of the common forms need only one entry for all their layers.
 */
typedef struct kvlink_layout_desc_t {
    /**
     * sizeof(kvlink_layout_desc_t).
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Name of the model; NULL or empty: not compared with the peer's.
     */
    const char *model;
    /**
     * Bytes of each region.
     */
    const uint64_t *region_bytes;
    /**
     * Number of regions.
     */
    size_t num_regions;
    /**
     * Groups.
     */
    const struct kvlink_group_t *groups;
    /**
     * Number of groups.
     */
    size_t num_groups;
    /**
     * Attention keys and values.
     */
    const struct kvlink_attention_t *attention;
    /**
     * Number of attention entries.
     */
    size_t num_attention;
    /**
     * Records per token (MLA latents, indexer keys, opaque records).
     */
    const struct kvlink_record_t *records;
    /**
     * Number of record entries.
     */
    size_t num_records;
    /**
     * Convolution and recurrent states.
     */
    const struct kvlink_state_t *states;
    /**
     * Number of state entries.
     */
    size_t num_states;
    /**
     * Anything else.
     */
    const struct kvlink_tensor_t *tensors;
    /**
     * Number of tensors.
     */
    size_t num_tensors;
} kvlink_layout_desc_t;

/**
 * One incompatibility of two sides: what, and both values. Texts are NUL-terminated and cut where they do not fit.
 */
typedef struct kvlink_finding_t {
    /**
     * The thing: "layer 3 state".
     */
    char subject[128];
    /**
     * Its field: "dtype".
     */
    char field[64];
    /**
     * The destination's value.
     */
    char destination[160];
    /**
     * The source's value.
     */
    char source[160];
} kvlink_finding_t;

/**
 * The blocks of one group of one request.
 */
typedef struct kvlink_blocks_t {
    /**
     * Block ids by position; KVLINK_NO_BLOCK is a hole. State groups: slot ids.
     */
    const uint32_t *ids;
    /**
     * Number of ids.
     */
    size_t count;
    /**
     * Block position of the first id: the list begins at token `first * block_tokens` of this rank.
     */
    uint64_t first;
} kvlink_blocks_t;

/**
 * What to expand. Block lists have one entry per group of the layout.
 */
typedef struct kvlink_plan_request_t {
    /**
     * sizeof(kvlink_plan_request_t).
     */
    uint32_t struct_size;
    /**
     * First layer.
     */
    uint32_t layer_first;
    /**
     * Number of layers; 0: all.
     */
    uint32_t layer_count;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * First token.
     */
    uint64_t token_begin;
    /**
     * One past the last token; 0: token_total.
     */
    uint64_t token_end;
    /**
     * Tokens of the whole request. State is moved if token_end is token_total.
     */
    uint64_t token_total;
    /**
     * The source's block lists.
     */
    const struct kvlink_blocks_t *source_blocks;
    /**
     * Their number.
     */
    size_t num_source_blocks;
    /**
     * The destination's block lists.
     */
    const struct kvlink_blocks_t *destination_blocks;
    /**
     * Their number.
     */
    size_t num_destination_blocks;
} kvlink_plan_request_t;

/**
 * One contiguous copy.
 */
typedef struct kvlink_span_t {
    /**
     * Byte offset in the source region.
     */
    uint64_t src_offset;
    /**
     * Byte offset in the destination region.
     */
    uint64_t dst_offset;
    /**
     * Bytes.
     */
    uint64_t len;
    /**
     * Index of the source's region.
     */
    uint32_t src_region;
    /**
     * Index of the destination's region.
     */
    uint32_t dst_region;
} kvlink_span_t;

/**
 * Configuration of an agent; zero means default everywhere. No environment variable is read.
 */
typedef struct kvlink_agent_config_t {
    /**
     * sizeof(kvlink_agent_config_t).
     */
    uint32_t struct_size;
    /**
     * This rank.
     */
    uint32_t rank;
    /**
     * Ranks of the instance; 0: 1.
     */
    uint32_t ranks;
    /**
     * 1: may listen on other than loopback addresses without authentication.
     */
    uint32_t allow_remote;
    /**
     * Name of the instance; required.
     */
    const char *instance;
    /**
     * Where to listen, "host:port"; NULL: a free port of 127.0.0.1.
     */
    const char *listen;
    /**
     * Address that others shall use, "host" or "host:port"; NULL: the one that is listened on.
     */
    const char *advertise;
    /**
     * Address of rank 0 (kvlink_agent_address there); required on every other rank.
     */
    const char *leader;
    /**
     * Transport that must be in effect ("host", "host/shm", "host/cma", "host/tcp", "nixl", "nixl/ucx", "mori",
     * "mori/rdma"): a handshake that would get another one fails. NULL: the best that works.
     */
    const char *require_transport;
    /**
     * Ways of the host transport that must not be used: bit 0 shared memory, bit 1 cross-process copies, bit 2 TCP.
     */
    uint32_t host_disable;
    /**
     * Silence in milliseconds after which a peer is asked for a sign of life; 0: 1000.
     */
    uint32_t heartbeat_ms;
    /**
     * Heartbeats without one after which it is dead; 0: 3.
     */
    uint32_t heartbeat_misses;
    /**
     * Milliseconds for a handshake; 0: 30000.
     */
    uint32_t handshake_timeout_ms;
    /**
     * Milliseconds for a transfer that names none; 0: 30000.
     */
    uint32_t transfer_timeout_ms;
    /**
     * Milliseconds of a lease that names none; 0: 30000.
     */
    uint32_t lease_ms;
    /**
     * Transfers in flight; 0: 4096.
     */
    uint32_t max_transfers;
    /**
     * Offers held; 0: 65536.
     */
    uint32_t max_offers;
    /**
     * Accepts held; 0: 65536.
     */
    uint32_t max_accepts;
    /**
     * Peers; 0: 1024.
     */
    uint32_t max_peers;
    /**
     * Events that may wait before peers that notify are cut off; 0: 65536.
     */
    uint32_t max_events;
    /**
     * Milliseconds until the instance must be complete, from the last registration on; 0: 600000.
     */
    uint32_t join_timeout_ms;
    /**
     * Backend of NIXL ("UCX"). NIXL is loaded where this or another nixl field is set, or require_transport begins with
     * "nixl"; if it cannot be loaded then, there is no agent. NULL: "UCX".
     */
    const char *nixl_backend;
    /**
     * Parameters of the backend, "key=value", one a line; NULL: none.
     */
    const char *nixl_params;
    /**
     * libnixl_capi.so, or the directory that Python packages are installed in; NULL: looked for.
     */
    const char *nixl_library;
    /**
     * Milliseconds that a NIXL read which is no longer wanted may go on, 0: 3000. Then the NIXL agent that runs it is
     * replaced.
     */
    uint32_t nixl_patience_ms;
    /**
     * Where NIXL's reads land: 0 in the blocks where they complete while they are posted, else in memory of kvlink's own, 1
     * always in the blocks, 2 never.
     */
    uint32_t nixl_landing;
    /**
     * Backend of MoRI-IO ("rdma", "xgmi"). MoRI is loaded where this or another mori field is set, or require_transport begins
     * with "mori"; if it cannot be used then, there is no agent. NULL: "rdma".
     */
    const char *mori_backend;
    /**
     * libkvlink_mori.so, or the directory that it is in; NULL: looked for beside libkvlink.so.
     */
    const char *mori_library;
    /**
     * IPv4 address of this machine for MoRI's control port, which peers have to reach; NULL: the one that others reach the
     * agent at.
     */
    const char *mori_host;
    /**
     * Names of RDMA devices, separated by commas, or "^" and those to leave out; NULL: all.
     */
    const char *mori_devices;
    /**
     * MoRI's control port; 0: any.
     */
    uint32_t mori_port;
    /**
     * Queue pairs that a transfer of MoRI's is spread over; 0: 1.
     */
    uint32_t mori_qp_per_transfer;
    /**
     * Work requests that MoRI posts at once; 0: its choice.
     */
    uint32_t mori_post_batch_size;
    /**
     * Threads of MoRI's that post; 0: 1.
     */
    uint32_t mori_num_workers;
    /**
     * How MoRI notices completions: 0 by polling, 1 by events.
     */
    uint32_t mori_poll_mode;
    /**
     * Milliseconds that a read of MoRI's which is no longer wanted may go on, 0: 3000. Then the MoRI engine that runs it is
     * replaced.
     */
    uint32_t mori_patience_ms;
} kvlink_agent_config_t;

/**
 * Counters since the agent's start.
 */
typedef struct kvlink_statistics_t {
    /**
     * sizeof(kvlink_statistics_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Bytes moved by completed transfers and accepts.
     */
    uint64_t bytes;
    /**
     * Spans moved by completed transfers.
     */
    uint64_t spans;
    /**
     * Transfers and accepts that completed.
     */
    uint64_t transfers;
    /**
     * Transfers, accepts and handshakes that failed.
     */
    uint64_t failures;
} kvlink_statistics_t;

/**
 * What a source offers.
 */
typedef struct kvlink_offer_t {
    /**
     * sizeof(kvlink_offer_t).
     */
    uint32_t struct_size;
    /**
     * Milliseconds of the lease; 0: the agent's default.
     */
    uint32_t lease_ms;
    /**
     * Names the request, 1 to 255 bytes; unique among the agent's offers.
     */
    const char *request;
    /**
     * Block lists, one per group.
     */
    const struct kvlink_blocks_t *blocks;
    /**
     * Number of lists.
     */
    size_t num_blocks;
    /**
     * Tokens of the request.
     */
    uint64_t tokens;
    /**
     * Returned in the event.
     */
    uint64_t user_data;
} kvlink_offer_t;

/**
 * What a ticket says.
 */
typedef struct kvlink_ticket_info_t {
    /**
     * sizeof(kvlink_ticket_info_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * The rank that issued it.
     */
    uint32_t rank;
    /**
     * The process that issued it.
     */
    uint64_t incarnation;
    /**
     * Tokens offered.
     */
    uint64_t tokens;
    /**
     * Address for a handshake with the source.
     */
    char address[256];
    /**
     * Name of the source's instance.
     */
    char instance[256];
    /**
     * The request.
     */
    char request[256];
} kvlink_ticket_info_t;

/**
 * What a sink reads.
 */
typedef struct kvlink_read_t {
    /**
     * sizeof(kvlink_read_t).
     */
    uint32_t struct_size;
    /**
     * Milliseconds allowed; 0: the agent's default.
     */
    uint32_t timeout_ms;
    /**
     * The source.
     */
    uint64_t peer;
    /**
     * The source's ticket.
     */
    const void *ticket;
    /**
     * Its length.
     */
    size_t ticket_len;
    /**
     * Where the data goes: block lists, one per group.
     */
    const struct kvlink_blocks_t *blocks;
    /**
     * Number of lists.
     */
    size_t num_blocks;
    /**
     * First token to fetch: what lies before is here already.
     */
    uint64_t token_begin;
    /**
     * One past the last token to fetch; 0: all that is offered.
     */
    uint64_t token_end;
    /**
     * First layer.
     */
    uint32_t layer_first;
    /**
     * Number of layers; 0: all.
     */
    uint32_t layer_count;
    /**
     * Returned in the event.
     */
    uint64_t user_data;
} kvlink_read_t;

/**
 * What a sink accepts.
 */
typedef struct kvlink_accept_t {
    /**
     * sizeof(kvlink_accept_t).
     */
    uint32_t struct_size;
    /**
     * Milliseconds allowed; 0: the agent's default for transfers.
     */
    uint32_t timeout_ms;
    /**
     * Names the request, 1 to 255 bytes; unique among the agent's accepts.
     */
    const char *request;
    /**
     * Where the data goes: block lists, one per group.
     */
    const struct kvlink_blocks_t *blocks;
    /**
     * Number of lists.
     */
    size_t num_blocks;
    /**
     * First token wanted: what lies before is here already.
     */
    uint64_t token_begin;
    /**
     * Tokens of the whole request.
     */
    uint64_t tokens;
    /**
     * Returned in the event.
     */
    uint64_t user_data;
} kvlink_accept_t;

/**
 * What a source writes.
 */
typedef struct kvlink_write_t {
    /**
     * sizeof(kvlink_write_t).
     */
    uint32_t struct_size;
    /**
     * Milliseconds allowed; 0: the agent's default.
     */
    uint32_t timeout_ms;
    /**
     * The destination.
     */
    uint64_t peer;
    /**
     * The request that the destination accepts.
     */
    const char *request;
    /**
     * Where the data lies: block lists of the whole request so far, one per group.
     */
    const struct kvlink_blocks_t *blocks;
    /**
     * Number of lists.
     */
    size_t num_blocks;
    /**
     * First token of this chunk.
     */
    uint64_t token_begin;
    /**
     * One past its last token; 0: token_total. State goes with the writes whose token_end is token_total.
     */
    uint64_t token_end;
    /**
     * Tokens of the whole request.
     */
    uint64_t token_total;
    /**
     * First layer.
     */
    uint32_t layer_first;
    /**
     * Number of layers; 0: all.
     */
    uint32_t layer_count;
    /**
     * 1: this source's last write of the request.
     */
    uint32_t last;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Side payload of up to 1 MiB, with the last write only: arrives with KVLINK_EVENT_RECEIVED.
     */
    const void *aux;
    /**
     * Its length.
     */
    size_t aux_len;
    /**
     * Returned in the event.
     */
    uint64_t user_data;
} kvlink_write_t;

/**
 * An instance as a router shall know it.
 */
typedef struct kvlink_router_t {
    /**
     * sizeof(kvlink_router_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * A kvlink_role.
     */
    uint32_t role;
    /**
     * A kvlink_mode.
     */
    uint32_t mode;
    /**
     * Milliseconds between heartbeats, 10 to 2500; 0: 1000.
     */
    uint32_t beat_ms;
    /**
     * Data-parallel size; 0: 1.
     */
    uint32_t dp_size;
    /**
     * Tensor-parallel size; 0: 1.
     */
    uint32_t tp_size;
    /**
     * The router's discovery address, "host:port".
     */
    const char *discovery;
    /**
     * Where the engine's HTTP server listens, "host:port"; the router tells instances apart by it.
     */
    const char *http_address;
    /**
     * Where the other kind of instance reaches this one, as kvlink_router_zmq_address writes it; NULL: this agent's
     * address.
     */
    const char *zmq_address;
    /**
     * Comes with the events.
     */
    uint64_t user_data;
} kvlink_router_t;

/**
 * What the id of a request says that came through a router.
 */
typedef struct kvlink_route_t {
    /**
     * sizeof(kvlink_route_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * Handshake port of the prefill instance.
     */
    uint32_t prefill_handshake;
    /**
     * Notify port of the prefill instance.
     */
    uint32_t prefill_notify;
    /**
     * Handshake port of the decode instance.
     */
    uint32_t decode_handshake;
    /**
     * Notify port of the decode instance.
     */
    uint32_t decode_notify;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Host of the prefill instance.
     */
    char prefill_host[256];
    /**
     * Host of the decode instance.
     */
    char decode_host[256];
    /**
     * 32 hexadecimal digits that tell the request from others.
     */
    char unique[64];
} kvlink_route_t;

/**
 * What a prefill instance answers in READ mode.
 */
typedef struct kvlink_router_answer_t {
    /**
     * sizeof(kvlink_router_answer_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * Data-parallel rank that has the cache.
     */
    uint32_t dp_rank;
    /**
     * Data-parallel size; 0: 1.
     */
    uint32_t dp_size;
    /**
     * Tensor-parallel size; 0: 1.
     */
    uint32_t tp_size;
    /**
     * Of the request's own parameters.
     */
    const char *transfer_id;
    /**
     * The prefill instance's address, as it was registered.
     */
    const char *zmq_address;
    /**
     * The ticket.
     */
    const void *ticket;
    /**
     * Bytes of the ticket.
     */
    size_t ticket_len;
} kvlink_router_answer_t;

/**
 * What `kv_transfer_params` of a request say.
 */
typedef struct kvlink_router_params_t {
    /**
     * sizeof(kvlink_router_params_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * 1: a prefill request, whose cache a decode instance needs.
     */
    uint32_t do_remote_decode;
    /**
     * 1: a decode request, whose cache a prefill instance has or will have.
     */
    uint32_t do_remote_prefill;
    /**
     * Data-parallel size of the other side.
     */
    uint32_t remote_dp_size;
    /**
     * Tensor-parallel size of the other side; 0: not said.
     */
    uint32_t remote_tp_size;
    /**
     * Data-parallel rank of the other side; KVLINK_ALL_RANKS: not said.
     */
    uint32_t remote_dp_rank;
    /**
     * Names the request on both sides.
     */
    char transfer_id[256];
} kvlink_router_params_t;

/**
 * A worker as workers of vLLM's MoRIIOConnector shall see it.
 */
typedef struct kvlink_moriio_t {
    /**
     * sizeof(kvlink_moriio_t); set by the caller.
     */
    uint32_t struct_size;
    /**
     * A kvlink_role: prefill is vLLM's producer, decode its consumer.
     */
    uint32_t role;
    /**
     * First handshake port of the instance; 0: nobody can ask.
     */
    uint32_t handshake_port;
    /**
     * First notify port of the instance; 0: nobody can tell.
     */
    uint32_t notify_port;
    /**
     * Data-parallel rank on this host.
     */
    uint32_t dp_rank;
    /**
     * Data-parallel size on this host; 0: 1.
     */
    uint32_t dp_size;
    /**
     * Tensor-parallel rank.
     */
    uint32_t tp_rank;
    /**
     * Tensor-parallel size; 0: 1.
     */
    uint32_t tp_size;
    /**
     * Host to listen on; NULL: 127.0.0.1. Others need the agent's allow_remote: nobody is authenticated.
     */
    const char *host;
    /**
     * What it says on its handshake port: JSON as docs/moriio.md has it.
     */
    const void *handshake;
    /**
     * Bytes of the handshake.
     */
    size_t handshake_len;
    /**
     * Comes with the events of what others say.
     */
    uint64_t user_data;
} kvlink_moriio_t;

/**
 * One event: 64 bytes, frozen.
 */
typedef struct kvlink_event_t {
    /**
     * A kvlink_event_kind.
     */
    uint32_t kind;
    /**
     * How it ended: KVLINK_OK or a KVLINK_E_* value. If it failed, the payload is a text that says why.
     */
    int32_t status;
    /**
     * The caller's value.
     */
    uint64_t user_data;
    /**
     * Id of the transfer, offer, accept, registration or exchange; 0: none.
     */
    uint64_t id;
    /**
     * Id of the peer; 0: none.
     */
    uint64_t peer;
    /**
     * Bytes moved.
     */
    uint64_t bytes;
    /**
     * Spans moved.
     */
    uint64_t spans;
    /**
     * Payload, followed by a NUL that does not count; valid until the agent's next kvlink_poll or its destruction.
     */
    const void *payload;
    /**
     * Bytes of the payload.
     */
    uint32_t payload_len;
    /**
     * Rank of the peer that it is about; KVLINK_ALL_RANKS: all.
     */
    uint32_t rank;
} kvlink_event_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library, "major.minor.patch": a constant string. Any thread.
 */
const char *kvlink_version(void);

/**
 * Copies the message of this thread's last failed call, NUL-terminated, into `buf`.
 *
 * `len` (may be NULL) receives the length without the NUL. The message names the thing that was wrong and both values.
 * Successful calls do not change it, nor does this one. Any thread.
 *
 * Errors: KVLINK_E_BUFFER_TOO_SMALL (nothing is written but `len`), KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_last_error(char *buf,
                                  size_t cap,
                                  size_t *len);

/**
 * A constant text for a status, never NULL: "lease expired". Any thread.
 */
const char *kvlink_status_text(int32_t status);

/**
 * Makes a layout from a description.
 *
 * The description is copied; nothing of it is kept. Any thread.
 *
 * Errors: KVLINK_E_INVALID_LAYOUT (the message lists the contradictions, the first 16 of many), KVLINK_E_LIMIT, KVLINK_E_UNKNOWN_ENUM,
 * KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_layout_create(const struct kvlink_layout_desc_t *desc,
                                     struct kvlink_layout_t **out_layout);

/**
 * Makes a layout from JSON: a complete description, or a model `geometry` with a `placement` (docs/layout.md). Any thread.
 *
 * Errors: KVLINK_E_INVALID_LAYOUT, KVLINK_E_INVALID_ARGUMENT (an impossible placement, not UTF-8), KVLINK_E_LIMIT,
 * KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_layout_from_json(const char *json,
                                        size_t len,
                                        struct kvlink_layout_t **out_layout);

/**
 * Destroys a layout; NULL is fine. Agents and plans made from it keep what they need.
 *
 * Errors: KVLINK_E_BAD_HANDLE.
 */
kvlink_status_t kvlink_layout_destroy(struct kvlink_layout_t *layout);

/**
 * Copies the complete description of a layout as JSON, NUL-terminated: what kvlink understood.
 *
 * `len` (may be NULL) receives the length without the NUL.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
 */
kvlink_status_t kvlink_layout_explain(const struct kvlink_layout_t *layout,
                                      char *buf,
                                      size_t cap,
                                      size_t *len);

/**
 * Stores the bytes that each region needs. `count` receives the number of regions.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL (`count` is stored).
 */
kvlink_status_t kvlink_layout_regions(const struct kvlink_layout_t *layout,
                                      uint64_t *bytes,
                                      size_t cap,
                                      size_t *count);

/**
 * Stores kind, size and reach of each group. `count` receives the number of groups.
 *
 * Errors: as kvlink_layout_regions.
 */
kvlink_status_t kvlink_layout_groups(const struct kvlink_layout_t *layout,
                                     struct kvlink_group_t *groups,
                                     size_t cap,
                                     size_t *count);

/**
 * Whether destination rank `rank` can get its cache from the source instance. Pure; any thread.
 *
 * `sources` and `destinations` are the layouts of all ranks of either instance, by rank. On KVLINK_E_INCOMPATIBLE every
 * incompatibility is a finding: `count` receives their number, the first `cap` are stored (`findings` may be NULL with
 * `cap` 0), and kvlink_last_error has them as one text.
 *
 * Errors: KVLINK_E_INCOMPATIBLE, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_layout_check(const struct kvlink_layout_t *const *sources,
                                    size_t num_sources,
                                    const struct kvlink_layout_t *const *destinations,
                                    size_t num_destinations,
                                    uint32_t rank,
                                    struct kvlink_finding_t *findings,
                                    size_t cap,
                                    size_t *count);

/**
 * Compiles and proves what destination rank `destination` takes from source rank `source`. Pure; any thread.
 *
 * `sources` and `destinations` are the layouts of all ranks of either instance, by rank. `out_plan` is NULL, with status
 * KVLINK_OK, if the two ranks have nothing to exchange.
 *
 * Errors: KVLINK_E_INCOMPATIBLE (kvlink_last_error lists why), KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BAD_HANDLE,
 * KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_plan_create(const struct kvlink_layout_t *const *sources,
                                   size_t num_sources,
                                   const struct kvlink_layout_t *const *destinations,
                                   size_t num_destinations,
                                   uint32_t source,
                                   uint32_t destination,
                                   struct kvlink_plan_t **out_plan);

/**
 * Destroys a plan; NULL is fine.
 *
 * Errors: KVLINK_E_BAD_HANDLE.
 */
kvlink_status_t kvlink_plan_destroy(struct kvlink_plan_t *plan);

/**
 * Expands a request into spans, merged where neighbours touch on both sides.
 *
 * `count` receives the number of spans also when `cap` is too small. Any thread; calls on one plan take turns. In the
 * steady state nothing is allocated per span.
 *
 * Errors: KVLINK_E_INVALID_BLOCKS, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER,
 * KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_plan_expand(const struct kvlink_plan_t *plan,
                                   const struct kvlink_plan_request_t *request,
                                   struct kvlink_span_t *spans,
                                   size_t cap,
                                   size_t *count);

/**
 * Copies a text that says what the plan does: ranks, average run, whether its runs should be packed and by which rule.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
 */
kvlink_status_t kvlink_plan_explain(const struct kvlink_plan_t *plan,
                                    char *buf,
                                    size_t cap,
                                    size_t *len);

/**
 * Allocates `len` bytes of zeroed memory that kvlink peers on this host can map: the fastest path between processes.
 *
 * Register the whole allocation to profit from it. Free it with kvlink_shared_free after its region was deregistered and
 * the agent destroyed. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (0 bytes), KVLINK_E_NO_MEMORY, KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_shared_alloc(size_t len,
                                    void **out_memory);

/**
 * Frees memory of kvlink_shared_alloc; NULL is fine. While a region uses it, it stays mapped and is freed with the region.
 *
 * Errors: KVLINK_E_BAD_HANDLE (not such an address, or freed already).
 */
kvlink_status_t kvlink_shared_free(void *memory);

/**
 * Starts an agent for a rank with this layout: one thread, one listener.
 *
 * The agent keeps what it needs of the layout. It can be reached by peers once all regions are registered and all ranks
 * of the instance have joined (event KVLINK_EVENT_READY). Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_ADDRESS, KVLINK_E_TRANSPORT_UNAVAILABLE, KVLINK_E_SYSTEM,
 * KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_agent_create(const struct kvlink_agent_config_t *config,
                                    const struct kvlink_layout_t *layout,
                                    struct kvlink_agent_t **out_agent);

/**
 * Stops an agent; NULL is fine. When it returns, nothing touches registered memory any more. Peers see the agent as dead.
 *
 * Comes last: calls that wait on other threads (kvlink_poll, kvlink_register) are woken and fail with KVLINK_E_BAD_HANDLE, as
 * do all later ones. After a fork the child's copy is forgotten and the parent's agent goes on.
 *
 * Errors: KVLINK_E_BAD_HANDLE.
 */
kvlink_status_t kvlink_agent_destroy(struct kvlink_agent_t *agent);

/**
 * Copies the address that others reach this agent at, "host:port", NUL-terminated.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
 */
kvlink_status_t kvlink_agent_address(const struct kvlink_agent_t *agent, char *buf, size_t cap, size_t *len);

/**
 * Binds memory to a region of the layout.
 *
 * `memory` must stay mapped, readable and writable until the region is deregistered or the agent destroyed. `len` is at
 * least the region's size in the layout. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (no such region, memory too small or NULL), KVLINK_E_WRONG_STATE (registered already),
 * KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_register(const struct kvlink_agent_t *agent,
                                uint32_t region,
                                void *memory,
                                size_t len);

/**
 * Takes a region away. All transfers and accepts end with their events, offers are withdrawn; when the call returns, no
 * byte of the region is written any more, nor read as valid data, and it may be freed. The agent moves nothing afterwards.
 *
 * Errors: KVLINK_E_WRONG_STATE (not registered), KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_deregister(const struct kvlink_agent_t *agent,
                                  uint32_t region);

/**
 * Stores the agent's counters; fields of a newer header that this library does not know become zero. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_statistics(const struct kvlink_agent_t *agent,
                                  struct kvlink_statistics_t *out_statistics);

/**
 * Begins a handshake with the instance at `address` ("host:port" of any of its ranks, best the first). Returns at once.
 *
 * Ends with one KVLINK_EVENT_HANDSHAKE that carries `user_data`: with KVLINK_OK all ranks that the plans need are linked and
 * the payload text names the transport in effect for each; otherwise the status and text say why, and the id is void.
 * Handshakes before the own instance is complete wait for it. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_UNKNOWN_ENUM, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (the own instance will
 * never be complete), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_handshake(const struct kvlink_agent_t *agent,
                                 const char *address,
                                 uint32_t direction,
                                 uint64_t user_data,
                                 uint64_t *out_peer);

/**
 * Lets a peer go: what runs with it fails, its sessions close, the id becomes stale. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_disconnect(const struct kvlink_agent_t *agent, uint64_t peer);

/**
 * Copies the transports in effect with a peer, NUL-terminated: one line per linked rank ("rank 0: host/shm"), with the
 * reasons why better ones were not chosen. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_effective_transport(const struct kvlink_agent_t *agent,
                                           uint64_t peer,
                                           char *buf,
                                           size_t cap,
                                           size_t *len);

/**
 * Sends a message of up to 1 MiB to the engine at one rank of a peer, or at all linked ranks (KVLINK_ALL_RANKS).
 *
 * Messages to one rank arrive in order, as KVLINK_EVENT_NOTIFICATION. With `after` (a transfer id; 0: none) the message
 * leaves when that transfer has completed, to the ranks that it dealt with, and not at all if it fails. The data is
 * copied. Any thread.
 *
 * Errors: KVLINK_E_LIMIT, KVLINK_E_BAD_HANDLE, KVLINK_E_PEER_DEAD, KVLINK_E_WRONG_STATE, KVLINK_E_NULL_POINTER,
 * KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_notify(const struct kvlink_agent_t *agent,
                              uint64_t peer,
                              uint32_t rank,
                              const void *data,
                              size_t len,
                              uint64_t after);

/**
 * Offers a request's blocks under a lease. Every rank of the source instance offers its own.
 *
 * Ends with one KVLINK_EVENT_RELEASED: with KVLINK_OK all consumers have the data; with KVLINK_E_LEASE_EXPIRED or
 * KVLINK_E_CANCELLED consumers that had not finished are told that their data is stale. Afterwards the blocks may be
 * reused. The lists are copied. Any thread.
 *
 * Errors: KVLINK_E_DUPLICATE, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE
 * (regions are missing), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_offer(const struct kvlink_agent_t *agent,
                             const struct kvlink_offer_t *offer,
                             uint64_t *out_offer);

/**
 * Copies the ticket of an offer: opaque bytes that a sink needs to read it. One ticket serves all ranks of both instances
 * if the block ids are the same on all ranks of the source. With `offer` 0: a ticket of no request, for
 * kvlink_ticket_write. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL (`len` is stored), KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_ticket(const struct kvlink_agent_t *agent,
                              uint64_t offer,
                              void *buf,
                              size_t cap,
                              size_t *len);

/**
 * Writes the ticket of an offer that is made elsewhere: for engines whose scheduler knows requests and their blocks while
 * its workers have the agents.
 *
 * `like` is a ticket of any rank of the source; the offer is the one that the ranks make, before the ticket is used. It must
 * be the first offer of its request id. Lease and user data do not matter. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_BUFFER_TOO_SMALL (`len` is stored),
 * KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_ticket_write(const void *like,
                                    size_t like_len,
                                    const struct kvlink_offer_t *offer,
                                    void *buf,
                                    size_t cap,
                                    size_t *len);

/**
 * Says what a ticket contains, without an agent. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_ticket_info(const void *ticket, size_t len, struct kvlink_ticket_info_t *out_info);

/**
 * Reads an offered request into this rank's blocks. Returns at once.
 *
 * Ends with one KVLINK_EVENT_TRANSFER. With KVLINK_OK all bytes are here and were valid; otherwise kvlink_failed_blocks
 * names the blocks that are not. A call that returns an error started nothing. Lists and ticket are copied. Any thread.
 *
 * Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_INCARNATION, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INCOMPATIBLE, KVLINK_E_LIMIT,
 * KVLINK_E_PEER_DEAD, KVLINK_E_WRONG_STATE, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE,
 * KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_read_blocks(const struct kvlink_agent_t *agent,
                                   const struct kvlink_read_t *read,
                                   uint64_t *out_transfer);

/**
 * Accepts a request's data into this rank's blocks; every rank of the destination instance accepts its own.
 *
 * Ends with one KVLINK_EVENT_RECEIVED, after the last byte of all source ranks or when that has become impossible;
 * afterwards nothing writes to the blocks. The payload is the side payload. Lists are copied. Any thread.
 *
 * Errors: as kvlink_offer.
 */
kvlink_status_t kvlink_accept(const struct kvlink_agent_t *agent,
                              const struct kvlink_accept_t *accept,
                              uint64_t *out_accept);

/**
 * Writes a part of a request (layers, a chunk of tokens) to all ranks of the peer that need it. Returns at once.
 *
 * The source's blocks must not change until the KVLINK_EVENT_TRANSFER that ends it. A call that returns an error started
 * nothing. Lists and payload are copied. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INCOMPATIBLE, KVLINK_E_LIMIT, KVLINK_E_PEER_DEAD,
 * KVLINK_E_WRONG_STATE, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_write_blocks(const struct kvlink_agent_t *agent,
                                    const struct kvlink_write_t *write,
                                    uint64_t *out_transfer);

/**
 * Ends a transfer, an offer, an accept or an exchange early. Its event still comes, when nothing touches its blocks any more, and says
 * what really happened. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE (it has ended already, or never was), KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_cancel(const struct kvlink_agent_t *agent,
                              uint64_t id);

/**
 * Stores the ids of one group's blocks that a failed read left without valid data, so that just those are recomputed.
 *
 * `count` receives their number also when `cap` is too small. The last 1024 failed reads are remembered. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE (it did not fail, or too long ago), KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER,
 * KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_failed_blocks(const struct kvlink_agent_t *agent,
                                     uint64_t transfer,
                                     uint32_t group,
                                     uint32_t *ids,
                                     size_t cap,
                                     size_t *count);

/**
 * Registers this instance with a router, and keeps it registered from the agent's own thread. Returns at once.
 *
 * For one rank of an instance. KVLINK_EVENT_ROUTER tells every change, with `user_data`: KVLINK_OK when the router's
 * socket takes the registration, otherwise why it cannot be reached; it is tried again until it can. The router never
 * answers: it drops instances of another mode than the first that it saw, and only its log says so. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_UNKNOWN_ENUM, KVLINK_E_LIMIT (64 registrations), KVLINK_E_BAD_HANDLE,
 * KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_router_attach(const struct kvlink_agent_t *agent,
                                     const struct kvlink_router_t *router,
                                     uint64_t *out_registration);

/**
 * Ends a registration. No event follows. The router forgets the instance when it was silent for its time to live (5
 * seconds): until then it may still send requests. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_router_detach(const struct kvlink_agent_t *agent,
                                     uint64_t registration);

/**
 * Writes "host:10.0.0.1,handshake:6301,notify:61005", NUL-terminated. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_router_zmq_address(const char *host,
                                          uint32_t handshake,
                                          uint32_t notify,
                                          char *buf,
                                          size_t cap,
                                          size_t *len);

/**
 * The port of a rank: `base + dp_rank + tp_rank`, as vLLM's connector counts. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (a rank that does not exist, a port above 65535, or dp_size and tp_size both above 1:
 * ranks would share ports), KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_router_port(uint32_t base,
                                   uint32_t dp_rank,
                                   uint32_t dp_size,
                                   uint32_t tp_rank,
                                   uint32_t tp_size,
                                   uint32_t *out_port);

/**
 * Says which instances a router chose, from the id that it gave to the request, or from what vLLM made of that id.
 *
 * In WRITE mode the prefill side finds the decode side by it. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (the request did not come through a router, or a field cannot be),
 * KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_route_parse(const char *request_id,
                                   struct kvlink_route_t *out_route);

/**
 * Writes a request id as a router does, NUL-terminated. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_route_format(const struct kvlink_route_t *route, char *buf, size_t cap, size_t *len);

/**
 * Writes the JSON of a prefill instance's answer in READ mode, NUL-terminated: the value of `kv_transfer_params`.
 *
 * The router hands it to the decode instance, where kvlink_router_params finds the ticket. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_router_answer(const struct kvlink_router_answer_t *answer,
                                     char *buf,
                                     size_t cap,
                                     size_t *len);

/**
 * Reads `kv_transfer_params` of a request, and copies the ticket in them, if any; `ticket_len` receives its size.
 *
 * A decode request without a ticket is of WRITE mode: it accepts `transfer_id`. `out_params` is stored also when `cap` is
 * too small. Pure; any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (naming the key), KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER,
 * KVLINK_E_STRUCT_SIZE.
 */
kvlink_status_t kvlink_router_params(const char *json,
                                     size_t len,
                                     struct kvlink_router_params_t *out_params,
                                     void *ticket,
                                     size_t cap,
                                     size_t *ticket_len);

/**
 * Opens the one worker that an agent can be opposite workers of vLLM's MoRIIOConnector: it listens on base + dp_rank +
 * tp_rank, as they do.
 *
 * What others say on the notify port comes as KVLINK_EVENT_MORIIO with the struct's `user_data`, id 0 and the message as
 * JSON; with KVLINK_E_PROTOCOL and a text if it cannot be. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (also dp_size and tp_size both above 1: ranks would share ports),
 * KVLINK_E_UNKNOWN_ENUM, KVLINK_E_WRONG_STATE (one is open), KVLINK_E_ADDRESS, KVLINK_E_SYSTEM, KVLINK_E_BAD_HANDLE,
 * KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_moriio_open(const struct kvlink_agent_t *agent,
                                   const struct kvlink_moriio_t *worker);

/**
 * Closes the worker. Exchanges that are under way end with KVLINK_E_CANCELLED; nothing comes afterwards. Any thread.
 *
 * Errors: KVLINK_E_WRONG_STATE (none is open), KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_moriio_close(const struct kvlink_agent_t *agent);

/**
 * Asks the worker of vLLM whose handshake port is at `address` ("host:port", of its rank) who it is. Returns at once.
 *
 * Ends with one KVLINK_EVENT_MORIIO that carries `user_data`: with KVLINK_OK the payload is its handshake as JSON. Tries
 * again until `timeout_ms` (0: 10000) have passed. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (no worker is open), KVLINK_E_BAD_HANDLE,
 * KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_moriio_meet(const struct kvlink_agent_t *agent,
                                   const char *address,
                                   uint32_t timeout_ms,
                                   uint64_t user_data,
                                   uint64_t *out_exchange);

/**
 * Tells the worker of vLLM whose notify port is at `address` ("host:port", of its rank) something: JSON as docs/moriio.md
 * has it, which is checked, since vLLM's listener ends for ever on what it does not know. Returns at once.
 *
 * Ends with one KVLINK_EVENT_MORIIO that carries `user_data`: with KVLINK_OK the message has arrived; with
 * KVLINK_E_PEER_DEAD it may have, and is not sent again, since workers count messages; otherwise it has not, within
 * `timeout_ms` (0: 10000). Messages to one address arrive in order. The message is copied. Any thread.
 *
 * Errors: KVLINK_E_INVALID_ARGUMENT (also a message of the other role), KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (no worker is
 * open), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
 */
kvlink_status_t kvlink_moriio_send(const struct kvlink_agent_t *agent,
                                   const char *address,
                                   const void *message,
                                   size_t len,
                                   uint32_t timeout_ms,
                                   uint64_t user_data,
                                   uint64_t *out_exchange);

/**
 * Takes up to `cap` events, oldest first; waits up to `timeout_ms` (0: not at all, KVLINK_FOREVER: without end) for the first.
 *
 * `count` receives their number; 0 after the time is over, with KVLINK_OK. One thread polls at a time. Payloads of the
 * previous poll are freed.
 *
 * Errors: KVLINK_E_BAD_HANDLE (also if the agent is destroyed meanwhile), KVLINK_E_NULL_POINTER, KVLINK_E_INVALID_ARGUMENT,
 * KVLINK_E_WRONG_STATE (after fork).
 */
kvlink_status_t kvlink_poll(const struct kvlink_agent_t *agent,
                            struct kvlink_event_t *events,
                            size_t cap,
                            int timeout_ms,
                            size_t *count);

/**
 * Stores a descriptor that is readable exactly while events wait: for epoll, poll and event loops. It belongs to the agent:
 * neither read nor close it. Any thread.
 *
 * Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER.
 */
kvlink_status_t kvlink_event_fd(const struct kvlink_agent_t *agent,
                                int *out_fd);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KVLINK_H */
