//! Life behind a router of vLLM's `moriio` protocol.

use super::decode::{
    Sized32, copy_out, fixed, flag, optional_string, out, read_struct, reserved, slice, string, write_struct,
};
use super::guard::{guard, kvlink_status_t};
use super::handle::{agent as find, kvlink_agent_t};
use super::types::sized;
use crate::error::{Error, Result, Status};
use crate::proto::{Id, RouterArgs};
use crate::wire::moriio::{
    Answer, Params, PortRanks, Register, RequestRoute, Role, TransferMode, ZmqAddress, port_of_rank,
};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// What an instance does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_role {
    /// Prefill.
    KVLINK_ROLE_PREFILL = 0,
    /// Decode.
    KVLINK_ROLE_DECODE = 1,
}

/// Who moves the data behind a router; all instances of a router agree.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_mode {
    /// The decode side reads when the prefill side is done.
    KVLINK_MODE_READ = 0,
    /// The prefill side writes while it computes.
    KVLINK_MODE_WRITE = 1,
}

/// An instance as a router shall know it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_router_t {
    /// sizeof(kvlink_router_t); set by the caller.
    pub struct_size: u32,
    /// A kvlink_role.
    pub role: u32,
    /// A kvlink_mode.
    pub mode: u32,
    /// Milliseconds between heartbeats, 10 to 2500; 0: 1000.
    pub beat_ms: u32,
    /// Data-parallel size; 0: 1.
    pub dp_size: u32,
    /// Tensor-parallel size; 0: 1.
    pub tp_size: u32,
    /// The router's discovery address, "host:port".
    pub discovery: *const c_char,
    /// Where the engine's HTTP server listens, "host:port"; the router tells instances apart by it.
    pub http_address: *const c_char,
    /// Where the other kind of instance reaches this one, as kvlink_router_zmq_address writes it; NULL: this agent's
    /// address.
    pub zmq_address: *const c_char,
    /// Comes with the events.
    pub user_data: u64,
}

/// What the id of a request says that came through a router.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_route_t {
    /// sizeof(kvlink_route_t); set by the caller.
    pub struct_size: u32,
    /// Handshake port of the prefill instance.
    pub prefill_handshake: u32,
    /// Notify port of the prefill instance.
    pub prefill_notify: u32,
    /// Handshake port of the decode instance.
    pub decode_handshake: u32,
    /// Notify port of the decode instance.
    pub decode_notify: u32,
    /// Zero.
    pub reserved: u32,
    /// Host of the prefill instance.
    pub prefill_host: [c_char; 256],
    /// Host of the decode instance.
    pub decode_host: [c_char; 256],
    /// 32 hexadecimal digits that tell the request from others.
    pub unique: [c_char; 64],
}

/// What a prefill instance answers in READ mode.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_router_answer_t {
    /// sizeof(kvlink_router_answer_t); set by the caller.
    pub struct_size: u32,
    /// Data-parallel rank that has the cache.
    pub dp_rank: u32,
    /// Data-parallel size; 0: 1.
    pub dp_size: u32,
    /// Tensor-parallel size; 0: 1.
    pub tp_size: u32,
    /// Of the request's own parameters.
    pub transfer_id: *const c_char,
    /// The prefill instance's address, as it was registered.
    pub zmq_address: *const c_char,
    /// The ticket.
    pub ticket: *const c_void,
    /// Bytes of the ticket.
    pub ticket_len: usize,
}

/// What `kv_transfer_params` of a request say.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_router_params_t {
    /// sizeof(kvlink_router_params_t); set by the caller.
    pub struct_size: u32,
    /// 1: a prefill request, whose cache a decode instance needs.
    pub do_remote_decode: u32,
    /// 1: a decode request, whose cache a prefill instance has or will have.
    pub do_remote_prefill: u32,
    /// Data-parallel size of the other side.
    pub remote_dp_size: u32,
    /// Tensor-parallel size of the other side; 0: not said.
    pub remote_tp_size: u32,
    /// Data-parallel rank of the other side; KVLINK_ALL_RANKS: not said.
    pub remote_dp_rank: u32,
    /// Names the request on both sides.
    pub transfer_id: [c_char; 256],
}

sized!(kvlink_router_t, kvlink_route_t, kvlink_router_answer_t, kvlink_router_params_t);

/// Registers this instance with a router, and keeps it registered from the agent's own thread. Returns at once.
///
/// For one rank of an instance. KVLINK_EVENT_ROUTER tells every change, with `user_data`: KVLINK_OK when the router's
/// socket takes the registration, otherwise why it cannot be reached; it is tried again until it can. The router never
/// answers: it drops instances of another mode than the first that it saw, and only its log says so. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_UNKNOWN_ENUM, KVLINK_E_LIMIT (64 registrations), KVLINK_E_BAD_HANDLE,
/// KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_attach(
    agent: *const kvlink_agent_t,
    router: *const kvlink_router_t,
    out_registration: *mut u64,
) -> kvlink_status_t {
    guard(|| {
        let handle = find(agent)?;
        // SAFETY: the module's contract for pointers.
        let (slot, r) = unsafe { (out(out_registration, "out_registration")?, read_struct(router)?) };
        // SAFETY: the same.
        let (discovery, http, zmq) = unsafe {
            (
                string(r.discovery, "discovery")?,
                string(r.http_address, "http_address")?,
                optional_string(r.zmq_address, "zmq_address")?,
            )
        };
        let role = if flag("role", r.role)? { Role::Decode } else { Role::Prefill };
        let mode = if flag("mode", r.mode)? { TransferMode::Write } else { TransferMode::Read };
        let zmq_address = if zmq.is_empty() { own(handle.agent.address())? } else { ZmqAddress::parse(zmq)? };
        let register = Register {
            role,
            http_address: http.to_string(),
            zmq_address,
            dp_size: r.dp_size.max(1),
            tp_size: r.tp_size.max(1),
            mode,
        };
        let beat = if r.beat_ms == 0 { RouterArgs::BEAT } else { Duration::from_millis(u64::from(r.beat_ms)) };
        let args = RouterArgs { discovery: discovery.to_string(), register, beat, user_data: r.user_data };
        slot.write(handle.agent.attach_router(args)?.0);
        Ok(())
    })
}

/// An agent's address as a zmq address: one port serves both purposes.
fn own(address: &str) -> Result<ZmqAddress> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = parts else {
        return Err(Error::new(Status::InvalidArgument, format!("the agent's address {address:?} is not host:port")));
    };
    ZmqAddress::new(host.trim_start_matches('[').trim_end_matches(']'), port, port)
}

/// Ends a registration. No event follows. The router forgets the instance when it was silent for its time to live (5
/// seconds): until then it may still send requests. Any thread.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_POISONED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_detach(agent: *const kvlink_agent_t, registration: u64) -> kvlink_status_t {
    guard(|| find(agent)?.agent.detach_router(Id(registration)))
}

/// Writes "host:10.0.0.1,handshake:6301,notify:61005", NUL-terminated. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_zmq_address(
    host: *const c_char,
    handshake: u32,
    notify: u32,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let host = unsafe { string(host, "host") }?;
        let text = ZmqAddress::new(host, port("handshake", handshake)?, port("notify", notify)?)?.to_string();
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// The port of a rank: `base + dp_rank + tp_rank`, as vLLM's connector counts. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (a rank that does not exist, a port above 65535, or dp_size and tp_size both above 1:
/// ranks would share ports), KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_port(
    base: u32,
    dp_rank: u32,
    dp_size: u32,
    tp_rank: u32,
    tp_size: u32,
    out_port: *mut u32,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let slot = unsafe { out(out_port, "out_port") }?;
        let ranks = PortRanks { dp: (dp_rank, dp_size), tp: (tp_rank, tp_size) };
        slot.write(u32::from(port_of_rank(port("base", base)?, ranks)?));
        Ok(())
    })
}

/// Says which instances a router chose, from the id that it gave to the request, or from what vLLM made of that id.
///
/// In WRITE mode the prefill side finds the decode side by it. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (the request did not come through a router, or a field cannot be),
/// KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_route_parse(
    request_id: *const c_char,
    out_route: *mut kvlink_route_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let r = RequestRoute::parse(unsafe { string(request_id, "request_id") }?)?;
        let route = kvlink_route_t {
            struct_size: 0,
            prefill_handshake: r.prefill.handshake().into(),
            prefill_notify: r.prefill.notify().into(),
            decode_handshake: r.decode.handshake().into(),
            decode_notify: r.decode.notify().into(),
            reserved: 0,
            prefill_host: fixed(r.prefill.host()),
            decode_host: fixed(r.decode.host()),
            unique: fixed(r.unique()),
        };
        // SAFETY: the module's contract for pointers.
        unsafe { write_struct(out_route, route) }
    })
}

/// Writes a request id as a router does, NUL-terminated. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_route_format(
    route: *const kvlink_route_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let r = unsafe { read_struct(route) }?;
        reserved("kvlink_route_t", r.reserved)?;
        let address = |name: &str, host: &[c_char], handshake, notify| {
            let host = text_in(name, host)?;
            ZmqAddress::new(&host, port("handshake", handshake)?, port("notify", notify)?)
        };
        let prefill = address("prefill_host", &r.prefill_host, r.prefill_handshake, r.prefill_notify)?;
        let decode = address("decode_host", &r.decode_host, r.decode_handshake, r.decode_notify)?;
        let text = RequestRoute::new(prefill, decode, &text_in("unique", &r.unique)?)?.to_string();
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// Writes the JSON of a prefill instance's answer in READ mode, NUL-terminated: the value of `kv_transfer_params`.
///
/// The router hands it to the decode instance, where kvlink_router_params finds the ticket. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_answer(
    answer: *const kvlink_router_answer_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let text = unsafe {
            let a = read_struct(answer)?;
            let zmq_address = ZmqAddress::parse(string(a.zmq_address, "zmq_address")?)?;
            let transfer_id = string(a.transfer_id, "transfer_id")?;
            let ticket = slice(a.ticket.cast::<u8>(), a.ticket_len, "ticket")?;
            let (dp, tp_size) = ((a.dp_rank, a.dp_size.max(1)), a.tp_size.max(1));
            Answer { transfer_id, zmq_address: &zmq_address, dp, tp_size, ticket }.to_json()?
        };
        // SAFETY: the same.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// Reads `kv_transfer_params` of a request, and copies the ticket in them, if any; `ticket_len` receives its size.
///
/// A decode request without a ticket is of WRITE mode: it accepts `transfer_id`. `out_params` is stored also when `cap` is
/// too small. Pure; any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (naming the key), KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_NULL_POINTER,
/// KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_router_params(
    json: *const c_char,
    len: usize,
    out_params: *mut kvlink_router_params_t,
    ticket: *mut c_void,
    cap: usize,
    ticket_len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let p = Params::from_json(unsafe { slice(json.cast::<u8>(), len, "json") }?)?;
        let params = kvlink_router_params_t {
            struct_size: 0,
            do_remote_decode: p.do_remote_decode.into(),
            do_remote_prefill: p.do_remote_prefill.into(),
            remote_dp_size: p.remote_dp_size,
            remote_tp_size: p.remote_tp_size.unwrap_or(0),
            remote_dp_rank: p.remote_dp_rank.unwrap_or(u32::MAX),
            transfer_id: fixed(&p.transfer_id),
        };
        // SAFETY: the module's contract for pointers.
        unsafe {
            write_struct(out_params, params)?;
            copy_out(&p.ticket, false, ticket.cast(), cap, ticket_len)
        }
    })
}

fn port(name: &str, value: u32) -> Result<u16> {
    u16::try_from(value)
        .map_err(|_| Error::new(Status::InvalidArgument, format!("{name} port {value}, must be 1..=65535")))
}

/// A NUL-terminated text in an array.
fn text_in(name: &str, field: &[c_char]) -> Result<String> {
    let bytes: Vec<u8> = field.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    let bad = |what: &str| Error::new(Status::InvalidArgument, format!("{name} {what}"));
    if bytes.len() == field.len() {
        return Err(bad("has no NUL"));
    }
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))
}
