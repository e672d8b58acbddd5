//! Version of the library.

use std::ffi::c_char;

/// Version of the library, "major.minor.patch": a constant string. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvlink_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
