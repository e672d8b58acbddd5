//! Events.

use super::decode::out;
use super::guard::{guard, kvlink_status_t};
use super::handle::{agent as find, kvlink_agent_t};
use crate::error::{Error, Status};
use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What happened.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_event_kind {
    /// All ranks of the own instance are known: peers can shake hands. Otherwise the status and text say why that will
    /// never be so.
    KVLINK_EVENT_READY = 1,
    /// A handshake ended; payload: the transports in effect, or why it failed.
    KVLINK_EVENT_HANDSHAKE = 2,
    /// A read or write ended.
    KVLINK_EVENT_TRANSFER = 3,
    /// The blocks of an offer may be reused.
    KVLINK_EVENT_RELEASED = 4,
    /// All bytes of an accepted request have arrived, or never will; payload: the side payload.
    KVLINK_EVENT_RECEIVED = 5,
    /// A peer's engine sent a message; payload: the message.
    KVLINK_EVENT_NOTIFICATION = 6,
    /// A peer is gone.
    KVLINK_EVENT_PEER_DOWN = 7,
    /// A defect of kvlink stopped the agent; it only reports and can be destroyed.
    KVLINK_EVENT_AGENT_FAILED = 8,
    /// The connection to a router was made (KVLINK_OK) or lost, or cannot be made; id: the registration.
    KVLINK_EVENT_ROUTER = 9,
    /// A worker of vLLM's MoRIIOConnector said something (id 0), or an exchange with one ended (id: the exchange).
    KVLINK_EVENT_MORIIO = 10,
}

/// One event: 64 bytes, frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_event_t {
    /// A kvlink_event_kind.
    pub kind: u32,
    /// How it ended: KVLINK_OK or a KVLINK_E_* value. If it failed, the payload is a text that says why.
    pub status: i32,
    /// The caller's value.
    pub user_data: u64,
    /// Id of the transfer, offer, accept, registration or exchange; 0: none.
    pub id: u64,
    /// Id of the peer; 0: none.
    pub peer: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Spans moved.
    pub spans: u64,
    /// Payload, followed by a NUL that does not count; valid until the agent's next kvlink_poll or its destruction.
    pub payload: *const c_void,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// Rank of the peer that it is about; KVLINK_ALL_RANKS: all.
    pub rank: u32,
}

const _: () = assert!(std::mem::size_of::<kvlink_event_t>() == 64);

/// Takes up to `cap` events, oldest first; waits up to `timeout_ms` (0: not at all, KVLINK_FOREVER: without end) for the first.
///
/// `count` receives their number; 0 after the time is over, with KVLINK_OK. One thread polls at a time. Payloads of the
/// previous poll are freed.
///
/// Errors: KVLINK_E_BAD_HANDLE (also if the agent is destroyed meanwhile), KVLINK_E_NULL_POINTER, KVLINK_E_INVALID_ARGUMENT,
/// KVLINK_E_WRONG_STATE (after fork).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_poll(
    agent: *const kvlink_agent_t,
    events: *mut kvlink_event_t,
    cap: usize,
    timeout_ms: c_int,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let slot = unsafe { out(count, "count") }?;
        slot.write(0);
        if cap > 0 && events.is_null() {
            return Err(super::decode::null("events"));
        }
        let timeout = match timeout_ms {
            -1 => None,
            n if n >= 0 => Some(Duration::from_millis(n as u64)),
            n => return Err(Error::new(Status::InvalidArgument, format!("timeout_ms is {n}"))),
        };
        let mut taken = handle.agent.poll(cap, timeout);
        for (i, e) in taken.iter_mut().enumerate() {
            if e.payload.is_empty() && !e.text.is_empty() {
                e.payload = std::mem::take(&mut e.text).into_bytes();
            }
            let len = e.payload.len();
            e.payload.push(0);
            let event = kvlink_event_t {
                kind: e.kind as u32,
                status: e.status.code(),
                user_data: e.user_data,
                id: e.id,
                peer: e.peer,
                bytes: e.bytes,
                spans: e.spans,
                payload: e.payload.as_ptr().cast(),
                payload_len: len as u32,
                rank: e.rank,
            };
            // SAFETY: `i < taken.len() <= cap`; the payload's buffer moves with its Vec but stays where it is.
            unsafe { events.add(i).write(event) };
        }
        if taken.is_empty() {
            handle.agent.check_running()?;
        }
        slot.write(taken.len());
        *handle.polled.lock() = taken;
        Ok(())
    })
}

/// Stores a descriptor that is readable exactly while events wait: for epoll, poll and event loops. It belongs to the agent:
/// neither read nor close it. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_event_fd(agent: *const kvlink_agent_t, out_fd: *mut c_int) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        unsafe { out(out_fd, "out_fd") }?.write(handle.agent.events().fd().as_raw_fd());
        Ok(())
    })
}
