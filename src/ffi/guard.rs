//! The boundary that every entry crosses: errors become a status and a message, panics stop.

use super::decode::copy_out;
use crate::error::{Error, Result, Status};
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::AssertUnwindSafe;

/// Result of a call: 0, or a negative `KVLINK_E_*` value whose range says what must be repaired.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvlink_status_t(i32);

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs an entry. With [`guard_silently`] the only way to make a [`kvlink_status_t`], so no entry can do without.
pub(super) fn guard(f: impl FnOnce() -> Result<()>) -> kvlink_status_t {
    let result = contain(f);
    if let Err(e) = &result {
        // A thread that is ending has no slot any more; its status still arrives.
        let _ = LAST.try_with(|last| *last.borrow_mut() = e.to_string());
    }
    status(result)
}

/// Runs the entry that tells the last message: its own failure does not replace that.
fn guard_silently(f: impl FnOnce() -> Result<()>) -> kvlink_status_t {
    status(contain(f))
}

fn status(result: Result<()>) -> kvlink_status_t {
    kvlink_status_t(result.map_or_else(|e| e.status().code(), |()| 0))
}

fn contain(f: impl FnOnce() -> Result<()>) -> Result<()> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::new(Status::Internal, format!("a defect of kvlink: {text}")))
    })
}

/// Copies the message of this thread's last failed call, NUL-terminated, into `buf`.
///
/// `len` (may be NULL) receives the length without the NUL. The message names the thing that was wrong and both values.
/// Successful calls do not change it, nor does this one. Any thread.
///
/// Errors: KVLINK_E_BUFFER_TOO_SMALL (nothing is written but `len`), KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_last_error(buf: *mut c_char, cap: usize, len: *mut usize) -> kvlink_status_t {
    let text = LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
    guard_silently(|| {
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// A constant text for a status, never NULL: "lease expired". Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvlink_status_text(status: i32) -> *const c_char {
    text_of(status).as_ptr().cast()
}

fn text_of(status: i32) -> &'static str {
    macro_rules! texts {
        ($($s:ident => $t:literal),* $(,)?) => {
            match Status::from_code(status) {
                $(Some(Status::$s) => concat!($t, "\0"),)*
                None => "unknown status\0",
            }
        };
    }
    texts! {
        Ok => "success", InvalidArgument => "invalid argument", NullPointer => "null pointer",
        StructSize => "unsupported struct size", UnknownEnum => "unknown enum value",
        BadHandle => "stale or foreign handle", InvalidLayout => "invalid layout",
        InvalidBlocks => "invalid block list", Limit => "limit exceeded", BufferTooSmall => "buffer too small",
        WrongState => "wrong state", InvalidTicket => "invalid ticket", Duplicate => "already in use",
        NoMemory => "out of memory", System => "system call failed", Permission => "permission denied",
        TransportUnavailable => "transport unavailable", Address => "bad address",
        Unreachable => "peer unreachable", PeerDead => "peer dead", Incompatible => "incompatible layouts",
        Version => "no common wire version", Protocol => "protocol violation",
        Incarnation => "earlier incarnation", Refused => "refused by peer", Cancelled => "cancelled",
        Deadline => "deadline passed", LeaseExpired => "lease expired", UnknownRequest => "unknown request",
        Incomplete => "transfer incomplete", Quarantined => "quarantined", Backend => "backend failed",
        Internal => "internal error", Poisoned => "agent poisoned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_texts_are_those_of_the_statuses() {
        for s in Status::ALL {
            assert_eq!(text_of(s.code()), format!("{}\0", s.text()));
        }
    }
}
