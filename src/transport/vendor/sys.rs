//! A vendor's library: loading it, and the memory that it is told of, with copies out of staging memory.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A shared object, or an address in one.
pub type Handle = *mut c_void;

/// Loads a shared object for good; says why not.
pub fn open(name: &OsStr) -> Result<Handle, String> {
    let name = CString::new(name.as_bytes()).map_err(|_| "its name contains a zero byte".to_string())?;
    // SAFETY: a C string. Initialisers of the object run: that is what loading means.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failure it is null or a string that is valid until the next call on this thread.
        return Err(unsafe { text(libc::dlerror()) });
    }
    Ok(handle)
}

/// A function of an object that [`open`] has loaded; `name` ends with a zero. The error is the name without it.
pub fn symbol(library: Handle, name: &'static str) -> Result<Handle, &'static str> {
    // SAFETY: a handle of `dlopen`, a name that ends with a zero.
    let at = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    if at.is_null() { Err(name.trim_end_matches('\0')) } else { Ok(at) }
}

/// The file that an address was loaded from.
pub fn file_of(at: *const c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; when one was found, the name is null or a string that lives with the object.
    unsafe {
        if at.is_null() || libc::dladdr(at, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
    }
}

/// # Safety
/// Null or a C string.
pub unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return "no reason was given".into();
    }
    // SAFETY: not null, so a C string.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// One descriptor of a read: bytes of ours, bytes of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In memory that is registered with what reads.
    pub local: usize,
    /// In memory that the peer registered; only the library ever follows it.
    pub remote: usize,
    /// Bytes.
    pub len: usize,
}

/// Bytes of this process that stay mapped while the value is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    addr: usize,
    len: usize,
}

impl Range {
    /// Memory that the caller keeps mapped as long as it uses the value.
    pub const fn new(addr: usize, len: usize) -> Range {
        Range { addr, len }
    }

    /// Where it begins.
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it, if it lies inside.
    pub fn part(&self, offset: u64, len: u64) -> Option<Range> {
        let end = offset.checked_add(len)?;
        (end <= self.len as u64).then(|| Range { addr: self.addr + offset as usize, len: len as usize })
    }

    /// Its first 8 bytes.
    pub fn word(&self) -> Option<u64> {
        // SAFETY: mapped, and long enough; it need not be aligned.
        (self.len >= 8).then(|| unsafe { (self.addr as *const u64).read_unaligned() })
    }

    /// Copies as many bytes as both have.
    pub fn copy_from(&self, source: Range) {
        // SAFETY: both are mapped, and no longer than stated; `memmove` allows overlap.
        unsafe { std::ptr::copy(source.addr as *const u8, self.addr as *mut u8, self.len.min(source.len)) };
    }
}
