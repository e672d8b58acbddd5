//! Every unsafe operation of the MoRI transport: the functions of `libkvlink_mori.so` (mori/kvlink_mori.h), found at run time.
//!
//! The types carry the proof. A [`Library`] is never unloaded, so its functions stay. Sessions and transfers hold their
//! [`Engine`], so that they are never used after it; [`Engine::end`] refuses while any is left. What MoRI writes to is only ever
//! named by offsets in memory that was registered with the engine, which the transport keeps mapped until the engine is gone.
#![allow(unsafe_code)]

use crate::transport::vendor::sys::{self, Handle, symbol, text};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::sync::Arc;

/// `KVLINK_MORI_ABI`.
const ABI: u32 = 1;
/// `KVLINK_MORI_OK` and `KVLINK_MORI_RUNNING`.
const OK: c_int = 0;
const RUNNING: c_int = 1;

/// `kvlink_mori_config_t`.
#[repr(C)]
struct RawConfig {
    key: *const c_char,
    host: *const c_char,
    port: u32,
    backend: u32,
    qp_per_transfer: u32,
    post_batch_size: i32,
    num_workers: u32,
    poll_event: u32,
    devices: *const c_char,
}

macro_rules! table {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        struct Table {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Table {
            /// All functions, or the name of one that is missing.
            fn resolve(library: Handle) -> Result<Table, &'static str> {
                $(let $name = symbol(library, concat!("kvlink_mori_", stringify!($name), "\0"))?;)*
                // SAFETY: not null, and the C functions of these names have these signatures (kvlink_mori.h).
                Ok(unsafe { Table { $($name: std::mem::transmute::<Handle, unsafe extern "C" fn($($arg),*) $(-> $ret)?>($name),)* } })
            }
        }
    };
}

table! {
    abi() -> u32;
    version() -> *const c_char;
    error() -> *const c_char;
    engine_create(*const RawConfig, *mut Handle) -> c_int;
    engine_destroy(Handle);
    engine_desc(Handle, *mut *const u8, *mut usize) -> c_int;
    peer_check(*const c_char, *const u8, usize) -> c_int;
    peer_add(Handle, *const c_char, *const u8, usize) -> c_int;
    memory_register(Handle, *mut c_void, u64, u32, *mut u32, *mut *const u8, *mut usize) -> c_int;
    session_open(Handle, u32, *const c_char, *const u8, usize, u64, *mut Handle) -> c_int;
    session_close(Handle);
    read(Handle, *const u64, *const u64, *const u64, usize, *mut Handle) -> c_int;
    transfer_state(Handle) -> c_int;
    transfer_release(Handle);
}

/// The file that this code was loaded from.
pub(super) fn own_file() -> Option<std::path::PathBuf> {
    sys::file_of(own_file as *const c_void)
}

/// The functions of `libkvlink_mori.so`. Never unloaded: MoRI leaves what it has loaded in use.
pub(super) struct Library {
    table: Table,
    /// Of MoRI.
    pub version: String,
}

impl Library {
    /// Loads a file; says why not.
    pub fn load(file: &OsStr) -> Result<Library, String> {
        let handle = sys::open(file)?;
        let table = Table::resolve(handle).map_err(|name| format!("it lacks {name}"))?;
        // SAFETY: both only return constants.
        let (abi, version) = unsafe { ((table.abi)(), text((table.version)())) };
        if abi != ABI {
            return Err(format!("it has interface {abi}, this kvlink needs {ABI}: build both from the same source"));
        }
        Ok(Library { table, version })
    }

    /// Whether this describes an engine of this name.
    pub fn check_peer(&self, name: &CStr, desc: &[u8]) -> Result<(), String> {
        // SAFETY: name and bytes live through the call.
        self.check(unsafe { (self.table.peer_check)(name.as_ptr(), desc.as_ptr(), desc.len()) })
    }

    /// The reason of this thread's last failure.
    fn error(&self) -> String {
        // SAFETY: a C string that is valid until the next call of this thread.
        unsafe { text((self.table.error)()) }
    }

    fn check(&self, status: c_int) -> Result<(), String> {
        if status == OK { Ok(()) } else { Err(self.error()) }
    }
}

/// Text without zero bytes: names are ours, options were checked.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// `kvlink_mori_config_t`, with text that is owned.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub host: String,
    pub port: u16,
    pub xgmi: bool,
    pub qp_per_transfer: u32,
    pub post_batch_size: i32,
    pub num_workers: u32,
    pub poll_event: bool,
    pub devices: String,
}

/// One MoRI engine.
pub(super) struct Engine {
    library: &'static Library,
    raw: Handle,
}

// SAFETY: MoRI's engine guards itself: calls may overlap, but for its end, which takes it by value.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

/// A memory that was registered: its number, and what peers have to know of it.
pub(super) struct Registered {
    pub number: u32,
    pub desc: Vec<u8>,
}

impl Engine {
    pub fn new(library: &'static Library, name: &str, config: &Config) -> Result<Arc<Engine>, String> {
        let (key, host, devices) = (c_string(name), c_string(&config.host), c_string(&config.devices));
        let raw = RawConfig {
            key: key.as_ptr(),
            host: host.as_ptr(),
            port: config.port.into(),
            backend: config.xgmi.into(),
            qp_per_transfer: config.qp_per_transfer,
            post_batch_size: config.post_batch_size,
            num_workers: config.num_workers,
            poll_event: config.poll_event.into(),
            devices: devices.as_ptr(),
        };
        let mut out = std::ptr::null_mut();
        // SAFETY: the strings live through the call; `out` takes the result.
        library.check(unsafe { (library.table.engine_create)(&raw, &mut out) })?;
        Ok(Arc::new(Engine { library, raw: out }))
    }

    /// What peers have to know.
    pub fn desc(&self) -> Result<Vec<u8>, String> {
        let (mut data, mut len) = (std::ptr::null(), 0);
        // SAFETY: a live engine; on success the bytes live as long as it does.
        unsafe {
            self.library.check((self.library.table.engine_desc)(self.raw, &mut data, &mut len))?;
            Ok(std::slice::from_raw_parts(data, len).to_vec())
        }
    }

    /// Waits while MoRI connects to another.
    pub fn add_peer(&self, name: &CStr, desc: &[u8]) -> Result<(), String> {
        // SAFETY: a live engine; name and bytes live through the call.
        let status = unsafe { (self.library.table.peer_add)(self.raw, name.as_ptr(), desc.as_ptr(), desc.len()) };
        self.library.check(status)
    }

    /// Makes memory usable. The caller keeps it mapped until the engine is gone. With `verify`, it is locked once now to
    /// see whether it can be, otherwise when a session is opened: MoRI would end the process.
    pub fn register(&self, addr: usize, len: usize, verify: bool) -> Result<Registered, String> {
        let (mut number, mut data, mut size) = (0, std::ptr::null(), 0);
        let addr = addr as *mut c_void;
        // SAFETY: a live engine, memory as the caller says; on success the bytes live as long as the engine.
        unsafe {
            let register = self.library.table.memory_register;
            let status = register(self.raw, addr, len as u64, verify.into(), &mut number, &mut data, &mut size);
            self.library.check(status)?;
            Ok(Registered { number, desc: std::slice::from_raw_parts(data, size).to_vec() })
        }
    }

    /// Ends it: afterwards nothing of it runs, and nothing touches registered memory. An error: something uses it still.
    pub fn end(self: Arc<Self>) -> Result<(), String> {
        let users = Arc::strong_count(&self) - 1;
        Arc::into_inner(self).map(drop).ok_or_else(|| format!("{users} users of the engine are left"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: a live engine that nobody else has: sessions and transfers hold it.
        unsafe { (self.library.table.engine_destroy)(self.raw) };
    }
}

/// A connection of one memory of ours with one of a peer's.
pub(super) struct Session {
    engine: Arc<Engine>,
    raw: Handle,
}

// SAFETY: bound to no thread; nothing of it is shared but the engine.
unsafe impl Send for Session {}

impl Session {
    /// Waits for the peer, for seconds where it does not answer.
    pub fn open(engine: Arc<Engine>, memory: u32, peer: &CStr, desc: &[u8], len: u64) -> Result<Session, String> {
        let mut raw = std::ptr::null_mut();
        let library = engine.library;
        // SAFETY: a live engine; name and bytes live through the call; `raw` takes the result.
        library.check(unsafe {
            let (data, size) = (desc.as_ptr(), desc.len());
            (library.table.session_open)(engine.raw, memory, peer.as_ptr(), data, size, len, &mut raw)
        })?;
        Ok(Session { engine, raw })
    }

    /// Starts to read pieces, by their offsets in both memories: ours, the peer's, and how many bytes.
    pub fn read(&self, local: &[u64], remote: &[u64], len: &[u64]) -> Result<Transfer, String> {
        let mut raw = std::ptr::null_mut();
        let n = local.len().min(remote.len()).min(len.len());
        let library = self.engine.library;
        // SAFETY: a live session; three lists of `n` numbers; MoRI checks offsets against both memories.
        library.check(unsafe {
            (library.table.read)(self.raw, local.as_ptr(), remote.as_ptr(), len.as_ptr(), n, &mut raw)
        })?;
        Ok(Transfer { engine: self.engine.clone(), raw })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by `open`, closed nowhere else, its engine lives.
        unsafe { (self.engine.library.table.session_close)(self.raw) };
    }
}

/// A read that was started.
pub(super) struct Transfer {
    engine: Arc<Engine>,
    raw: Handle,
}

// SAFETY: bound to no thread.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Whether all of it is here; an error is MoRI's.
    pub fn is_complete(&self) -> Result<bool, String> {
        // SAFETY: its engine lives.
        match unsafe { (self.engine.library.table.transfer_state)(self.raw) } {
            OK => Ok(true),
            RUNNING => Ok(false),
            _ => Err(self.engine.library.error()),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // SAFETY: its engine lives, and keeps it while MoRI points to it.
        unsafe { (self.engine.library.table.transfer_release)(self.raw) };
    }
}
