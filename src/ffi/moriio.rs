//! A worker that stands opposite workers of vLLM's MoRIIOConnector.

use super::decode::{Sized32, flag, optional_string, out, read_struct, slice, string};
use super::guard::{guard, kvlink_status_t};
use super::handle::{agent as find, kvlink_agent_t};
use super::types::sized;
use crate::agent::MoriioConfig;
use crate::error::{Error, Result, Status};
use crate::proto::MoriioArgs;
use crate::wire::moriio::{Handshake, Notify, PortRanks, Role};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// Time for an exchange unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A worker as workers of vLLM's MoRIIOConnector shall see it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_moriio_t {
    /// sizeof(kvlink_moriio_t); set by the caller.
    pub struct_size: u32,
    /// A kvlink_role: prefill is vLLM's producer, decode its consumer.
    pub role: u32,
    /// First handshake port of the instance; 0: nobody can ask.
    pub handshake_port: u32,
    /// First notify port of the instance; 0: nobody can tell.
    pub notify_port: u32,
    /// Data-parallel rank on this host.
    pub dp_rank: u32,
    /// Data-parallel size on this host; 0: 1.
    pub dp_size: u32,
    /// Tensor-parallel rank.
    pub tp_rank: u32,
    /// Tensor-parallel size; 0: 1.
    pub tp_size: u32,
    /// Host to listen on; NULL: 127.0.0.1. Others need the agent's allow_remote: nobody is authenticated.
    pub host: *const c_char,
    /// What it says on its handshake port: JSON as docs/moriio.md has it.
    pub handshake: *const c_void,
    /// Bytes of the handshake.
    pub handshake_len: usize,
    /// Comes with the events of what others say.
    pub user_data: u64,
}

sized!(kvlink_moriio_t);

/// Opens the one worker that an agent can be opposite workers of vLLM's MoRIIOConnector: it listens on base + dp_rank +
/// tp_rank, as they do.
///
/// What others say on the notify port comes as KVLINK_EVENT_MORIIO with the struct's `user_data`, id 0 and the message as
/// JSON; with KVLINK_E_PROTOCOL and a text if it cannot be. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (also dp_size and tp_size both above 1: ranks would share ports),
/// KVLINK_E_UNKNOWN_ENUM, KVLINK_E_WRONG_STATE (one is open), KVLINK_E_ADDRESS, KVLINK_E_SYSTEM, KVLINK_E_BAD_HANDLE,
/// KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_moriio_open(
    agent: *const kvlink_agent_t,
    worker: *const kvlink_moriio_t,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (w, host, handshake) = unsafe {
            let w = read_struct(worker)?;
            (w, optional_string(w.host, "host")?, slice(w.handshake.cast::<u8>(), w.handshake_len, "handshake")?)
        };
        let handshake = if handshake.is_empty() { None } else { Some(Handshake::from_json(handshake)?) };
        let role = if flag("role", w.role)? { Role::Decode } else { Role::Prefill };
        handle.agent.open_moriio(MoriioConfig {
            args: MoriioArgs { role, handshake, user_data: w.user_data },
            host: if host.is_empty() { "127.0.0.1".into() } else { host.into() },
            handshake_port: port("handshake_port", w.handshake_port)?,
            notify_port: port("notify_port", w.notify_port)?,
            ranks: PortRanks { dp: (w.dp_rank, w.dp_size.max(1)), tp: (w.tp_rank, w.tp_size.max(1)) },
        })
    })
}

/// Closes the worker. Exchanges that are under way end with KVLINK_E_CANCELLED; nothing comes afterwards. Any thread.
///
/// Errors: KVLINK_E_WRONG_STATE (none is open), KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_moriio_close(agent: *const kvlink_agent_t) -> kvlink_status_t {
    guard(|| find(agent)?.agent.close_moriio())
}

/// Asks the worker of vLLM whose handshake port is at `address` ("host:port", of its rank) who it is. Returns at once.
///
/// Ends with one KVLINK_EVENT_MORIIO that carries `user_data`: with KVLINK_OK the payload is its handshake as JSON. Tries
/// again until `timeout_ms` (0: 10000) have passed. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (no worker is open), KVLINK_E_BAD_HANDLE,
/// KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_moriio_meet(
    agent: *const kvlink_agent_t,
    address: *const c_char,
    timeout_ms: u32,
    user_data: u64,
    out_exchange: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, address) = unsafe { (out(out_exchange, "out_exchange")?, string(address, "address")?) };
        slot.write(handle.agent.meet_moriio(address, time(timeout_ms), user_data)?.0);
        Ok(())
    })
}

/// Tells the worker of vLLM whose notify port is at `address` ("host:port", of its rank) something: JSON as docs/moriio.md
/// has it, which is checked, since vLLM's listener ends for ever on what it does not know. Returns at once.
///
/// Ends with one KVLINK_EVENT_MORIIO that carries `user_data`: with KVLINK_OK the message has arrived; with
/// KVLINK_E_PEER_DEAD it may have, and is not sent again, since workers count messages; otherwise it has not, within
/// `timeout_ms` (0: 10000). Messages to one address arrive in order. The message is copied. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (also a message of the other role), KVLINK_E_LIMIT, KVLINK_E_WRONG_STATE (no worker is
/// open), KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_moriio_send(
    agent: *const kvlink_agent_t,
    address: *const c_char,
    message: *const c_void,
    len: usize,
    timeout_ms: u32,
    user_data: u64,
    out_exchange: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, address, message) = unsafe {
            let message = slice(message.cast::<u8>(), len, "message")?;
            (out(out_exchange, "out_exchange")?, string(address, "address")?, Notify::from_json(message)?)
        };
        slot.write(handle.agent.send_moriio(address, &message, time(timeout_ms), user_data)?.0);
        Ok(())
    })
}

fn time(ms: u32) -> Duration {
    if ms == 0 { TIMEOUT } else { Duration::from_millis(u64::from(ms)) }
}

fn port(name: &str, value: u32) -> Result<u16> {
    u16::try_from(value)
        .map_err(|_| Error::new(Status::InvalidArgument, format!("{name} is {value}, must be 0..=65535")))
}
