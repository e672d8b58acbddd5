//! What NIXL's C functions take and return, as in its `wrapper.h`, the same from 1.0 to 1.5.

use std::ffi::{c_int, c_void};

/// Success, of every C function.
pub const OK: c_int = 0;
/// `NIXL_CAPI_ERROR_INVALID_PARAM`.
pub const INVALID: c_int = -1;
/// A transfer that is under way.
pub const IN_PROGRESS: c_int = 1;
/// `NIXL_CAPI_MEM_DRAM`.
pub const DRAM: c_int = 0;
/// `NIXL_CAPI_XFER_OP_READ`.
pub const READ: c_int = 0;
/// `NIXL_CAPI_THREAD_SYNC_STRICT`.
const STRICT: c_int = 1;

pub type Handle = *mut c_void;

/// `nixl_capi_agent_config_s`.
#[repr(C)]
pub struct Config {
    progress_thread: bool,
    listen_thread: bool,
    listen_port: c_int,
    sync: c_int,
    workers: u32,
    progress_delay_us: u64,
    listen_delay_us: u64,
    telemetry: bool,
}

impl Config {
    /// Calls are ordered by a lock. With a delay, a thread looks for work, at least every so many µs (never 0: that would
    /// spin); without, the calls that look do its work.
    pub fn new(delay_us: Option<u64>) -> Config {
        Config {
            progress_thread: delay_us.is_some(),
            listen_thread: false,
            listen_port: 0,
            sync: STRICT,
            workers: 1,
            progress_delay_us: delay_us.unwrap_or(1).max(1),
            listen_delay_us: 0,
            telemetry: false,
        }
    }
}
