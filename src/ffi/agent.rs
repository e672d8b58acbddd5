//! Agents and their regions.

use super::config::kvlink_agent_config_t;
use super::decode::{Sized32, copy_out, out, read_struct, write_struct};
use super::guard::{guard, kvlink_status_t};
use super::handle::{AGENTS, AgentHandle, LAYOUTS, agent as find, kvlink_agent_t, kvlink_layout_t};
use super::memory::memory_at;
use super::types::sized;
use crate::agent::Agent;
use parking_lot::Mutex;
use std::ffi::{c_char, c_void};

/// Counters since the agent's start.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_statistics_t {
    /// sizeof(kvlink_statistics_t); set by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes moved by completed transfers and accepts.
    pub bytes: u64,
    /// Spans moved by completed transfers.
    pub spans: u64,
    /// Transfers and accepts that completed.
    pub transfers: u64,
    /// Transfers, accepts and handshakes that failed.
    pub failures: u64,
}

sized!(kvlink_statistics_t);

/// Starts an agent for a rank with this layout: one thread, one listener.
///
/// The agent keeps what it needs of the layout. It can be reached by peers once all regions are registered and all ranks
/// of the instance have joined (event KVLINK_EVENT_READY). Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_ADDRESS, KVLINK_E_TRANSPORT_UNAVAILABLE, KVLINK_E_SYSTEM,
/// KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_agent_create(
    config: *const kvlink_agent_config_t,
    layout: *const kvlink_layout_t,
    out_agent: *mut *mut kvlink_agent_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (slot, config) = unsafe { (out(out_agent, "out_agent")?, read_struct(config)?.decode()?) };
        let layout = LAYOUTS.find(layout)?;
        let agent = Agent::new(config, layout)?;
        slot.write(AGENTS.insert(AgentHandle { agent, polled: Mutex::default() }));
        Ok(())
    })
}

/// Stops an agent; NULL is fine. When it returns, nothing touches registered memory any more. Peers see the agent as dead.
///
/// Comes last: calls that wait on other threads (kvlink_poll, kvlink_register) are woken and fail with KVLINK_E_BAD_HANDLE, as
/// do all later ones. After a fork the child's copy is forgotten and the parent's agent goes on.
///
/// Errors: KVLINK_E_BAD_HANDLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_agent_destroy(agent: *mut kvlink_agent_t) -> kvlink_status_t {
    guard(|| {
        if let Some(handle) = AGENTS.remove(agent)? {
            handle.agent.shut_down();
        }
        Ok(())
    })
}

/// Copies the address that others reach this agent at, "host:port", NUL-terminated.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_agent_address(
    agent: *const kvlink_agent_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(handle.agent.address().as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// Binds memory to a region of the layout.
///
/// `memory` must stay mapped, readable and writable until the region is deregistered or the agent destroyed. `len` is at
/// least the region's size in the layout. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (no such region, memory too small or NULL), KVLINK_E_WRONG_STATE (registered already),
/// KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_register(
    agent: *const kvlink_agent_t,
    region: u32,
    memory: *mut c_void,
    len: usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        handle.agent.register(region, memory_at(memory.addr(), len)?)
    })
}

/// Takes a region away. All transfers and accepts end with their events, offers are withdrawn; when the call returns, no
/// byte of the region is written any more, nor read as valid data, and it may be freed. The agent moves nothing afterwards.
///
/// Errors: KVLINK_E_WRONG_STATE (not registered), KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_deregister(agent: *const kvlink_agent_t, region: u32) -> kvlink_status_t {
    guard(|| find(agent)?.agent.deregister(region))
}

/// Stores the agent's counters; fields of a newer header that this library does not know become zero. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_statistics(
    agent: *const kvlink_agent_t,
    out_statistics: *mut kvlink_statistics_t,
) -> kvlink_status_t {
    guard(|| {
        let s = find(agent)?.agent.statistics();
        let value = kvlink_statistics_t {
            struct_size: 0,
            reserved: 0,
            bytes: s.bytes,
            spans: s.spans,
            transfers: s.transfers,
            failures: s.failures,
        };
        // SAFETY: the module's contract for pointers.
        unsafe { write_struct(out_statistics, value) }
    })
}
