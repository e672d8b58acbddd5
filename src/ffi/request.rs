//! Requests: offer and read, accept and write.

use super::decode::{Sized32, copy_out, fixed, flag, out, read_struct, reserved, slice, string};
use super::guard::{guard, kvlink_status_t};
use super::handle::{agent as find, kvlink_agent_t};
use super::layout::copy_list;
use super::plan::layers;
use super::types::{blocks, kvlink_blocks_t, sized};
use crate::error::{Error, Status};
use crate::proto::{AcceptArgs, Id, Offer, ReadArgs, WriteArgs};
use crate::wire::{Range, Ticket};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// What a source offers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_offer_t {
    /// sizeof(kvlink_offer_t).
    pub struct_size: u32,
    /// Milliseconds of the lease; 0: the agent's default.
    pub lease_ms: u32,
    /// Names the request, 1 to 255 bytes; unique among the agent's offers.
    pub request: *const c_char,
    /// Block lists, one per group.
    pub blocks: *const kvlink_blocks_t,
    /// Number of lists.
    pub num_blocks: usize,
    /// Tokens of the request.
    pub tokens: u64,
    /// Returned in the event.
    pub user_data: u64,
}

/// What a sink reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_read_t {
    /// sizeof(kvlink_read_t).
    pub struct_size: u32,
    /// Milliseconds allowed; 0: the agent's default.
    pub timeout_ms: u32,
    /// The source.
    pub peer: u64,
    /// The source's ticket.
    pub ticket: *const c_void,
    /// Its length.
    pub ticket_len: usize,
    /// Where the data goes: block lists, one per group.
    pub blocks: *const kvlink_blocks_t,
    /// Number of lists.
    pub num_blocks: usize,
    /// First token to fetch: what lies before is here already.
    pub token_begin: u64,
    /// One past the last token to fetch; 0: all that is offered.
    pub token_end: u64,
    /// First layer.
    pub layer_first: u32,
    /// Number of layers; 0: all.
    pub layer_count: u32,
    /// Returned in the event.
    pub user_data: u64,
}

/// What a sink accepts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_accept_t {
    /// sizeof(kvlink_accept_t).
    pub struct_size: u32,
    /// Milliseconds allowed; 0: the agent's default for transfers.
    pub timeout_ms: u32,
    /// Names the request, 1 to 255 bytes; unique among the agent's accepts.
    pub request: *const c_char,
    /// Where the data goes: block lists, one per group.
    pub blocks: *const kvlink_blocks_t,
    /// Number of lists.
    pub num_blocks: usize,
    /// First token wanted: what lies before is here already.
    pub token_begin: u64,
    /// Tokens of the whole request.
    pub tokens: u64,
    /// Returned in the event.
    pub user_data: u64,
}

/// What a source writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_write_t {
    /// sizeof(kvlink_write_t).
    pub struct_size: u32,
    /// Milliseconds allowed; 0: the agent's default.
    pub timeout_ms: u32,
    /// The destination.
    pub peer: u64,
    /// The request that the destination accepts.
    pub request: *const c_char,
    /// Where the data lies: block lists of the whole request so far, one per group.
    pub blocks: *const kvlink_blocks_t,
    /// Number of lists.
    pub num_blocks: usize,
    /// First token of this chunk.
    pub token_begin: u64,
    /// One past its last token; 0: token_total. State goes with the writes whose token_end is token_total.
    pub token_end: u64,
    /// Tokens of the whole request.
    pub token_total: u64,
    /// First layer.
    pub layer_first: u32,
    /// Number of layers; 0: all.
    pub layer_count: u32,
    /// 1: this source's last write of the request.
    pub last: u32,
    /// Zero.
    pub reserved: u32,
    /// Side payload of up to 1 MiB, with the last write only: arrives with KVLINK_EVENT_RECEIVED.
    pub aux: *const c_void,
    /// Its length.
    pub aux_len: usize,
    /// Returned in the event.
    pub user_data: u64,
}

/// What a ticket says.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_ticket_info_t {
    /// sizeof(kvlink_ticket_info_t); set by the caller.
    pub struct_size: u32,
    /// The rank that issued it.
    pub rank: u32,
    /// The process that issued it.
    pub incarnation: u64,
    /// Tokens offered.
    pub tokens: u64,
    /// Address for a handshake with the source.
    pub address: [c_char; 256],
    /// Name of the source's instance.
    pub instance: [c_char; 256],
    /// The request.
    pub request: [c_char; 256],
}

sized!(kvlink_offer_t, kvlink_read_t, kvlink_accept_t, kvlink_write_t, kvlink_ticket_info_t);

fn time(ms: u32) -> Option<Duration> {
    (ms != 0).then(|| Duration::from_millis(u64::from(ms)))
}

/// Offers a request's blocks under a lease. Every rank of the source instance offers its own.
///
/// Ends with one KVLINK_EVENT_RELEASED: with KVLINK_OK all consumers have the data; with KVLINK_E_LEASE_EXPIRED or
/// KVLINK_E_CANCELLED consumers that had not finished are told that their data is stale. Afterwards the blocks may be
/// reused. The lists are copied. Any thread.
///
/// Errors: KVLINK_E_DUPLICATE, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE
/// (regions are missing), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_offer(
    agent: *const kvlink_agent_t,
    offer: *const kvlink_offer_t,
    out_offer: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, offer) = unsafe {
            let o = read_struct(offer)?;
            let request = string(o.request, "request")?.to_string();
            let blocks = blocks(o.blocks, o.num_blocks, "blocks")?;
            let offer = Offer { request, blocks, tokens: o.tokens, lease: time(o.lease_ms), user_data: o.user_data };
            (out(out_offer, "out_offer")?, offer)
        };
        slot.write(handle.agent.offer(offer)?.0);
        Ok(())
    })
}

/// Copies the ticket of an offer: opaque bytes that a sink needs to read it. One ticket serves all ranks of both instances
/// if the block ids are the same on all ranks of the source. With `offer` 0: a ticket of no request, for
/// kvlink_ticket_write. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL (`len` is stored), KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_ticket(
    agent: *const kvlink_agent_t,
    offer: u64,
    buf: *mut c_void,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let ticket = find(agent)?.agent.ticket(Id(offer))?;
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(&ticket, false, buf.cast(), cap, len) }
    })
}

/// Writes the ticket of an offer that is made elsewhere: for engines whose scheduler knows requests and their blocks while
/// its workers have the agents.
///
/// `like` is a ticket of any rank of the source; the offer is the one that the ranks make, before the ticket is used. It must
/// be the first offer of its request id. Lease and user data do not matter. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_BUFFER_TOO_SMALL (`len` is stored),
/// KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_ticket_write(
    like: *const c_void,
    like_len: usize,
    offer: *const kvlink_offer_t,
    buf: *mut c_void,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (like, request, tokens, blocks) = unsafe {
            let o = read_struct(offer)?;
            let bytes = slice(like.cast::<u8>(), like_len, "like")?;
            let request = string(o.request, "request")?.to_string();
            (Ticket::decode(bytes)?, request, o.tokens, blocks(o.blocks, o.num_blocks, "blocks")?)
        };
        let ticket = like.like(request, tokens, blocks)?.encode();
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(&ticket, false, buf.cast(), cap, len) }
    })
}

/// Says what a ticket contains, without an agent. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_ticket_info(
    ticket: *const c_void,
    len: usize,
    out_info: *mut kvlink_ticket_info_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let bytes = unsafe { slice(ticket.cast::<u8>(), len, "ticket") }?;
        let t = Ticket::decode(bytes)?;
        let info = kvlink_ticket_info_t {
            struct_size: 0,
            rank: t.rank,
            incarnation: t.incarnation,
            tokens: t.tokens,
            address: fixed(&t.address),
            instance: fixed(&t.instance),
            request: fixed(&t.request),
        };
        // SAFETY: the module's contract for pointers.
        unsafe { super::decode::write_struct(out_info, info) }
    })
}

/// Reads an offered request into this rank's blocks. Returns at once.
///
/// Ends with one KVLINK_EVENT_TRANSFER. With KVLINK_OK all bytes are here and were valid; otherwise kvlink_failed_blocks
/// names the blocks that are not. A call that returns an error started nothing. Lists and ticket are copied. Any thread.
///
/// Errors: KVLINK_E_INVALID_TICKET, KVLINK_E_INCARNATION, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INCOMPATIBLE, KVLINK_E_LIMIT,
/// KVLINK_E_PEER_DEAD, KVLINK_E_WRONG_STATE, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE,
/// KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_read_blocks(
    agent: *const kvlink_agent_t,
    read: *const kvlink_read_t,
    out_transfer: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, args) = unsafe {
            let r = read_struct(read)?;
            let layers = layers(r.layer_first, r.layer_count);
            let args = ReadArgs {
                peer: Id(r.peer),
                ticket: slice(r.ticket.cast::<u8>(), r.ticket_len, "ticket")?,
                blocks: blocks(r.blocks, r.num_blocks, "blocks")?,
                token_begin: r.token_begin,
                token_end: (r.token_end != 0).then_some(r.token_end),
                layers: (layers.start, layers.end),
                timeout: time(r.timeout_ms),
                user_data: r.user_data,
            };
            (out(out_transfer, "out_transfer")?, args)
        };
        slot.write(handle.agent.read(args)?.0);
        Ok(())
    })
}

/// Accepts a request's data into this rank's blocks; every rank of the destination instance accepts its own.
///
/// Ends with one KVLINK_EVENT_RECEIVED, after the last byte of all source ranks or when that has become impossible;
/// afterwards nothing writes to the blocks. The payload is the side payload. Lists are copied. Any thread.
///
/// Errors: as kvlink_offer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_accept(
    agent: *const kvlink_agent_t,
    accept: *const kvlink_accept_t,
    out_accept: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, args) = unsafe {
            let a = read_struct(accept)?;
            let args = AcceptArgs {
                request: string(a.request, "request")?.to_string(),
                blocks: blocks(a.blocks, a.num_blocks, "blocks")?,
                token_begin: a.token_begin,
                tokens: a.tokens,
                timeout: time(a.timeout_ms),
                user_data: a.user_data,
            };
            (out(out_accept, "out_accept")?, args)
        };
        slot.write(handle.agent.accept(args)?.0);
        Ok(())
    })
}

/// Writes a part of a request (layers, a chunk of tokens) to all ranks of the peer that need it. Returns at once.
///
/// The source's blocks must not change until the KVLINK_EVENT_TRANSFER that ends it. A call that returns an error started
/// nothing. Lists and payload are copied. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_INVALID_BLOCKS, KVLINK_E_INCOMPATIBLE, KVLINK_E_LIMIT, KVLINK_E_PEER_DEAD,
/// KVLINK_E_WRONG_STATE, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_write_blocks(
    agent: *const kvlink_agent_t,
    write: *const kvlink_write_t,
    out_transfer: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, args) = unsafe {
            let w = read_struct(write)?;
            reserved(kvlink_write_t::NAME, w.reserved)?;
            let layers = layers(w.layer_first, w.layer_count);
            let range = Range {
                token_begin: w.token_begin,
                token_end: if w.token_end == 0 { w.token_total } else { w.token_end },
                token_total: w.token_total,
                layer_begin: layers.start,
                layer_end: layers.end,
            };
            let args = WriteArgs {
                peer: Id(w.peer),
                request: string(w.request, "request")?.to_string(),
                blocks: blocks(w.blocks, w.num_blocks, "blocks")?,
                range,
                last: flag("last", w.last)?,
                aux: slice(w.aux.cast::<u8>(), w.aux_len, "aux")?.to_vec(),
                timeout: time(w.timeout_ms),
                user_data: w.user_data,
            };
            (out(out_transfer, "out_transfer")?, args)
        };
        slot.write(handle.agent.write(args)?.0);
        Ok(())
    })
}

/// Ends a transfer, an offer, an accept or an exchange early. Its event still comes, when nothing touches its blocks any more, and says
/// what really happened. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE (it has ended already, or never was), KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_cancel(agent: *const kvlink_agent_t, id: u64) -> kvlink_status_t {
    guard(|| find(agent)?.agent.cancel(Id(id)))
}

/// Stores the ids of one group's blocks that a failed read left without valid data, so that just those are recomputed.
///
/// `count` receives their number also when `cap` is too small. The last 1024 failed reads are remembered. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE (it did not fail, or too long ago), KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER,
/// KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_failed_blocks(
    agent: *const kvlink_agent_t,
    transfer: u64,
    group: u32,
    ids: *mut u32,
    cap: usize,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        let groups = handle.agent.layout().groups().len();
        if group as usize >= groups {
            return Err(Error::new(Status::InvalidArgument, format!("group {group} of {groups} groups")));
        }
        let failed = handle.agent.failed_blocks(Id(transfer))?;
        let none = Vec::new();
        let list = failed.iter().find(|(g, _)| *g == group).map_or(&none, |(_, ids)| ids);
        // SAFETY: the module's contract for pointers.
        unsafe { copy_list(list, ids, cap, count) }
    })
}
