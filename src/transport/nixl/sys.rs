//! Every unsafe operation of the NIXL transport: its C functions, found at run time.
//!
//! The types carry the proof. A [`Library`] is never unloaded, so its functions stay. An [`Agent`] is used by one thread at
//! a time (it is `Send`, not `Sync`, and its methods that touch transfers take `&mut self`). What NIXL writes to is only
//! ever named by a [`Piece`] of registered memory, which the worker keeps until the piece's request has ended or the agent
//! is gone.
#![allow(unsafe_code)]

use super::abi::{Config, DRAM, Handle, IN_PROGRESS, INVALID, OK, READ};
use crate::transport::vendor::sys::{file_of, open, symbol};
pub(super) use crate::transport::vendor::{Piece, Range};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::path::PathBuf;

macro_rules! table {
    ($($name:ident($($arg:ty),*) -> $ret:ty;)*) => {
        /// NIXL's C functions, in the signatures of 1.5.
        struct Table {
            $($name: unsafe extern "C" fn($($arg),*) -> $ret,)*
        }

        impl Table {
            /// How many they are.
            const COUNT: usize = [$(stringify!($name)),*].len();

            /// All of them, or the names of those that are missing.
            fn resolve(library: Handle) -> Result<Table, Vec<&'static str>> {
                let mut missing = Vec::new();
                let mut find = |name| symbol(library, name).unwrap_or_else(|lacking| {
                    missing.push(lacking);
                    std::ptr::null_mut()
                });
                $(let $name = find(concat!("nixl_capi_", stringify!($name), "\0"));)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                // SAFETY: not null, and the C functions of these names have these signatures (wrapper.h of NIXL 1.5).
                Ok(unsafe { Table { $($name: std::mem::transmute::<Handle, unsafe extern "C" fn($($arg),*) -> $ret>($name),)* } })
            }
        }
    };
}

table! {
    is_stub() -> bool;
    create_configured_agent(*const c_char, *const Config, *mut Handle) -> c_int;
    destroy_agent(Handle) -> c_int;
    get_local_md(Handle, *mut Handle, *mut usize) -> c_int;
    load_remote_md(Handle, *const c_void, usize, *mut *mut c_char) -> c_int;
    invalidate_remote_md(Handle, *const c_char) -> c_int;
    get_available_plugins(Handle, *mut Handle) -> c_int;
    string_list_size(Handle, *mut usize) -> c_int;
    string_list_get(Handle, usize, *mut *const c_char) -> c_int;
    destroy_string_list(Handle) -> c_int;
    create_params(*mut Handle) -> c_int;
    params_add(Handle, *const c_char, *const c_char) -> c_int;
    destroy_params(Handle) -> c_int;
    create_backend(Handle, *const c_char, Handle, *mut Handle) -> c_int;
    destroy_backend(Handle) -> c_int;
    create_opt_args(*mut Handle) -> c_int;
    opt_args_add_backend(Handle, Handle) -> c_int;
    destroy_opt_args(Handle) -> c_int;
    create_reg_dlist(c_int, *mut Handle) -> c_int;
    reg_dlist_add_desc(Handle, usize, usize, u64, *const c_void, usize) -> c_int;
    destroy_reg_dlist(Handle) -> c_int;
    register_mem(Handle, Handle, Handle) -> c_int;
    create_xfer_dlist(c_int, *mut Handle) -> c_int;
    xfer_dlist_add_desc(Handle, usize, usize, u64) -> c_int;
    destroy_xfer_dlist(Handle) -> c_int;
    create_xfer_req(Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle) -> c_int;
    post_xfer_req(Handle, Handle, Handle) -> c_int;
    get_xfer_status(Handle, Handle) -> c_int;
    release_xfer_req(Handle, Handle) -> c_int;
    destroy_xfer_req(Handle) -> c_int;
    create_notif_map(*mut Handle) -> c_int;
    get_notifs(Handle, Handle, Handle) -> c_int;
    destroy_notif_map(Handle) -> c_int;
}

/// Loads a library for good; an error says why it cannot be.
pub(super) fn preload(name: &OsStr) -> Result<(), String> {
    open(name).map(|_| ())
}

/// Whether a library of this name is loaded.
pub(super) fn is_loaded(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: a C string; nothing is loaded.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) }.is_null()
}

/// The file of the function of this name that libraries which are loaded from now on would be bound to.
pub(super) fn global(name: &CStr) -> Option<PathBuf> {
    // SAFETY: null stands for the program itself, through which all that is global is found; then a C string.
    let at = unsafe {
        let program = libc::dlopen(std::ptr::null(), libc::RTLD_NOW);
        if program.is_null() { program } else { libc::dlsym(program, name.as_ptr()) }
    };
    file_of(at)
}

/// NIXL's C functions. Never unloaded: threads of its backends may outlive every agent.
pub(super) struct Library {
    table: Table,
    /// Where it was found.
    pub file: PathBuf,
}

/// Why a library cannot be used.
pub(super) enum Unusable {
    /// The loader says why.
    NotLoaded(String),
    /// It has none of the functions.
    Other,
    /// These functions are missing, of so many.
    Missing(Vec<&'static str>, usize),
    /// It is the placeholder that aborts when it is called.
    Stub,
}

impl Library {
    pub fn load(name: &OsStr) -> Result<Library, Unusable> {
        let handle = open(name).map_err(Unusable::NotLoaded)?;
        let table = Table::resolve(handle).map_err(|missing| match missing.len() {
            Table::COUNT => Unusable::Other,
            _ => Unusable::Missing(missing, Table::COUNT),
        })?;
        // SAFETY: takes nothing and only returns a constant, in the placeholder too.
        if unsafe { (table.is_stub)() } {
            return Err(Unusable::Stub);
        }
        let file = file_of(table.is_stub as Handle).unwrap_or_else(|| PathBuf::from(name));
        Ok(Library { table, file })
    }
}

/// A failed call: its name and NIXL's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub call: &'static str,
    pub code: c_int,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.code {
            -1 => "invalid parameter",
            -2 => "backend error",
            -3 => "invalid state",
            -4 => "exception",
            -6 => "not found",
            _ => "unknown status",
        };
        write!(f, "{} returned {} ({what})", self.call, self.code)
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), Failure> {
    if code == OK { Ok(()) } else { Err(Failure { call, code }) }
}

macro_rules! call {
    ($table:expr, $name:ident($($arg:expr),*)) => {
        check(concat!("nixl_capi_", stringify!($name)), ($table.$name)($($arg),*))
    };
}

/// A C object that is destroyed with this.
struct Owned {
    raw: Handle,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the matching create function, destroyed nowhere else. Its status says nothing that could be done.
        unsafe { (self.destroy)(self.raw) };
    }
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Complete,
    Failed(Failure),
}

fn state(call: &'static str, code: c_int) -> State {
    match code {
        OK => State::Complete,
        IN_PROGRESS => State::Running,
        code => State::Failed(Failure { call, code }),
    }
}

/// A transfer request of one agent; given back to it with [`Agent::release`].
#[derive(Debug)]
pub struct Request {
    raw: Handle,
}

// SAFETY: a handle that nothing follows but the agent that made it, which moves between threads with it.
unsafe impl Send for Request {}

/// A NIXL agent with one backend. See the module's documentation for who may touch it.
pub(super) struct Agent {
    library: &'static Library,
    raw: Handle,
    options: Owned,
    _backend: Owned,
}

// SAFETY: nothing in it is bound to a thread; methods need `&mut self`, so that calls never overlap.
unsafe impl Send for Agent {}

/// Why an agent could not be made.
pub(super) enum NoAgent {
    Call(Failure),
    /// There is no such backend among these.
    NoBackend(Vec<String>),
    /// The backend refused to start.
    Backend(Failure),
    /// The backend has nothing that a peer could use.
    Local(Failure),
}

impl From<Failure> for NoAgent {
    fn from(e: Failure) -> NoAgent {
        NoAgent::Call(e)
    }
}

impl Agent {
    /// An agent, with a progress thread or without; see [`Config::new`].
    pub fn new(
        library: &'static Library,
        name: &CStr,
        backend: &CStr,
        params: &[(CString, CString)],
        delay_us: Option<u64>,
    ) -> Result<Agent, NoAgent> {
        let t = &library.table;
        let config = Config::new(delay_us);
        let mut raw = std::ptr::null_mut();
        // SAFETY: strings and config live through the call; `raw` takes the result.
        unsafe { call!(t, create_configured_agent(name.as_ptr(), &config, &mut raw)) }?;
        let agent = Owned { raw, destroy: t.destroy_agent };
        let known = plugins(t, raw)?;
        if !known.iter().any(|k| k.as_bytes() == backend.to_bytes()) {
            return Err(NoAgent::NoBackend(known));
        }
        let made = owned(t.create_params, t.destroy_params, "nixl_capi_create_params")?;
        for (key, value) in params {
            // SAFETY: strings live through the call, which copies them.
            unsafe { call!(t, params_add(made.raw, key.as_ptr(), value.as_ptr())) }?;
        }
        let mut b = std::ptr::null_mut();
        // SAFETY: a live agent and live parameters; `b` takes the result.
        unsafe { call!(t, create_backend(raw, backend.as_ptr(), made.raw, &mut b)) }.map_err(NoAgent::Backend)?;
        let backend = Owned { raw: b, destroy: t.destroy_backend };
        let options = owned(t.create_opt_args, t.destroy_opt_args, "nixl_capi_create_opt_args")?;
        // SAFETY: both are live.
        unsafe { call!(t, opt_args_add_backend(options.raw, backend.raw)) }?;
        std::mem::forget(agent);
        let mut agent = Agent { library, raw, options, _backend: backend };
        match agent.metadata() {
            Err(e) if e.code == INVALID => {
                agent.destroy()?;
                Err(NoAgent::Local(e))
            }
            _ => Ok(agent),
        }
    }

    /// Makes memory usable by transfers. The caller keeps it mapped until the agent is destroyed.
    pub fn register(&mut self, addr: usize, len: usize) -> Result<(), Failure> {
        let t = &self.library.table;
        let list = list(t.create_reg_dlist, t.destroy_reg_dlist, "nixl_capi_create_reg_dlist")?;
        // SAFETY: a live list, no metadata; then a live agent, list and options.
        unsafe {
            call!(t, reg_dlist_add_desc(list.raw, addr, len, 0, std::ptr::null(), 0))?;
            call!(t, register_mem(self.raw, list.raw, self.options.raw))
        }
    }

    /// What a peer needs to read from this agent.
    pub fn metadata(&mut self) -> Result<Vec<u8>, Failure> {
        let (mut data, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: a live agent; on success `data` is a malloc of `len` bytes that is ours to free.
        unsafe {
            call!(self.library.table, get_local_md(self.raw, &mut data, &mut len))?;
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len).to_vec();
            libc::free(data);
            Ok(bytes)
        }
    }

    /// Takes a peer's metadata; returns the name in it, which need not be text.
    pub fn load(&mut self, metadata: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut name = std::ptr::null_mut();
        // SAFETY: a live agent, bytes that live through the call; on success `name` is a C string that is ours to free.
        unsafe {
            let (data, len) = (metadata.as_ptr().cast(), metadata.len());
            call!(self.library.table, load_remote_md(self.raw, data, len, &mut name))?;
            let bytes = CStr::from_ptr(name).to_bytes().to_vec();
            libc::free(name.cast());
            Ok(bytes)
        }
    }

    /// Forgets a peer, so that its connections go.
    pub fn forget(&mut self, name: &CStr) -> Result<(), Failure> {
        // SAFETY: a live agent and a C string.
        unsafe { call!(self.library.table, invalidate_remote_md(self.raw, name.as_ptr())) }
    }

    /// Moves on what no thread does and nobody looks at: connections that are made, and that end. Notifications are dropped.
    pub fn go_on(&mut self) -> Result<(), Failure> {
        let t = &self.library.table;
        let map = owned(t.create_notif_map, t.destroy_notif_map, "nixl_capi_create_notif_map")?;
        // SAFETY: a live agent, map and options.
        unsafe { call!(t, get_notifs(self.raw, map.raw, self.options.raw)) }
    }

    /// Prepares a read from a peer whose metadata was loaded. NIXL checks the bounds of both sides.
    pub fn read(&mut self, peer: &CStr, pieces: &[Piece]) -> Result<Request, Failure> {
        let t = &self.library.table;
        let name = "nixl_capi_create_xfer_dlist";
        let local = list(t.create_xfer_dlist, t.destroy_xfer_dlist, name)?;
        let remote = list(t.create_xfer_dlist, t.destroy_xfer_dlist, name)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: live lists, agent and options. The lists are copied into the request.
        unsafe {
            for p in pieces {
                call!(t, xfer_dlist_add_desc(local.raw, p.local, p.len, 0))?;
                call!(t, xfer_dlist_add_desc(remote.raw, p.remote, p.len, 0))?;
            }
            let options = self.options.raw;
            call!(t, create_xfer_req(self.raw, READ, local.raw, remote.raw, peer.as_ptr(), &mut raw, options))?;
        }
        Ok(Request { raw })
    }

    /// Starts a request; may do all of the copying before it returns.
    pub fn post(&mut self, request: &Request) -> State {
        // SAFETY: a request of this agent that was not released.
        let code = unsafe { (self.library.table.post_xfer_req)(self.raw, request.raw, std::ptr::null_mut()) };
        state("nixl_capi_post_xfer_req", code)
    }

    pub fn state(&mut self, request: &Request) -> State {
        // SAFETY: as above.
        let code = unsafe { (self.library.table.get_xfer_status)(self.raw, request.raw) };
        state("nixl_capi_get_xfer_status", code)
    }

    /// Gives a request back. One that is still running goes on writing until it ends or the agent is destroyed.
    pub fn release(&mut self, request: Request) -> Result<(), Failure> {
        let t = &self.library.table;
        // SAFETY: as above; it is consumed. One that cannot be released stays with NIXL.
        unsafe {
            call!(t, release_xfer_req(self.raw, request.raw))?;
            call!(t, destroy_xfer_req(request.raw))
        }
    }

    /// Ends the agent: when this succeeds, nothing of it runs any more and nothing touches registered memory.
    pub fn destroy(self) -> Result<(), Failure> {
        let Agent { library, raw, options, _backend } = self;
        drop(options);
        // SAFETY: a live agent, consumed. Its backend's handle, a plain wrapper, goes afterwards.
        unsafe { call!(library.table, destroy_agent(raw)) }
    }
}

fn owned(
    create: unsafe extern "C" fn(*mut Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    call: &'static str,
) -> Result<Owned, Failure> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: `raw` takes the result.
    check(call, unsafe { create(&mut raw) })?;
    Ok(Owned { raw, destroy })
}

fn list(
    create: unsafe extern "C" fn(c_int, *mut Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    call: &'static str,
) -> Result<Owned, Failure> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: `raw` takes the result.
    check(call, unsafe { create(DRAM, &mut raw) })?;
    Ok(Owned { raw, destroy })
}

fn plugins(t: &Table, agent: Handle) -> Result<Vec<String>, Failure> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: a live agent; `raw` takes the result.
    unsafe { call!(t, get_available_plugins(agent, &mut raw)) }?;
    let names = Owned { raw, destroy: t.destroy_string_list };
    let mut n = 0;
    // SAFETY: a live list.
    unsafe { call!(t, string_list_size(names.raw, &mut n)) }?;
    let one = |i| {
        let mut text = std::ptr::null();
        // SAFETY: a live list, an index below its size; the string lives as long as the list.
        unsafe {
            call!(t, string_list_get(names.raw, i, &mut text))?;
            Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    (0..n).map(one).collect()
}
