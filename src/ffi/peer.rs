//! Peers: handshakes, notifications.

use super::decode::{copy_out, out, slice, string, unknown};
use super::guard::{guard, kvlink_status_t};
use super::handle::{agent as find, kvlink_agent_t};
use super::types::KVLINK_ALL_RANKS;
use crate::proto::{Direction, Id};
use std::ffi::{c_char, c_void};

/// Which way a handshake prepares.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_direction {
    /// Data may go either way.
    KVLINK_DIRECTION_BOTH = 0,
    /// We read from the peer, or accept its writes.
    KVLINK_DIRECTION_INBOUND = 1,
    /// We write to the peer.
    KVLINK_DIRECTION_OUTBOUND = 2,
}

/// Begins a handshake with the instance at `address` ("host:port" of any of its ranks, best the first). Returns at once.
///
/// Ends with one KVLINK_EVENT_HANDSHAKE that carries `user_data`: with KVLINK_OK all ranks that the plans need are linked and
/// the payload text names the transport in effect for each; otherwise the status and text say why, and the id is void.
/// Handshakes before the own instance is complete wait for it. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_UNKNOWN_ENUM, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (the own instance will
/// never be complete), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_handshake(
    agent: *const kvlink_agent_t,
    address: *const c_char,
    direction: u32,
    user_data: u64,
    out_peer: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, address) = unsafe { (out(out_peer, "out_peer")?, string(address, "address")?) };
        let direction = match direction {
            0 => Direction::Both,
            1 => Direction::Inbound,
            2 => Direction::Outbound,
            n => return Err(unknown("direction", n, "0..=2")),
        };
        slot.write(handle.agent.handshake(address, direction, user_data)?.0);
        Ok(())
    })
}

/// Lets a peer go: what runs with it fails, its sessions close, the id becomes stale. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_disconnect(agent: *const kvlink_agent_t, peer: u64) -> kvlink_status_t {
    guard(|| find(agent)?.agent.disconnect(Id(peer)))
}

/// Copies the transports in effect with a peer, NUL-terminated: one line per linked rank ("rank 0: host/shm"), with the
/// reasons why better ones were not chosen. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_effective_transport(
    agent: *const kvlink_agent_t,
    peer: u64,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let text = find(agent)?.agent.effective_transports(Id(peer))?;
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// Sends a message of up to 1 MiB to the engine at one rank of a peer, or at all linked ranks (KVLINK_ALL_RANKS).
///
/// Messages to one rank arrive in order, as KVLINK_EVENT_NOTIFICATION. With `after` (a transfer id; 0: none) the message
/// leaves when that transfer has completed, to the ranks that it dealt with, and not at all if it fails. The data is
/// copied. Any thread.
///
/// Errors: KVLINK_E_LIMIT, KVLINK_E_BAD_HANDLE, KVLINK_E_PEER_DEAD, KVLINK_E_WRONG_STATE, KVLINK_E_NULL_POINTER,
/// KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_notify(
    agent: *const kvlink_agent_t,
    peer: u64,
    rank: u32,
    data: *const c_void,
    len: usize,
    after: u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let payload = unsafe { slice(data.cast::<u8>(), len, "data") }?;
        let rank = (rank != KVLINK_ALL_RANKS).then_some(rank);
        handle.agent.notify(Id(peer), rank, payload, (after != 0).then_some(Id(after)))
    })
}
