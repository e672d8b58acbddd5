//! Decoding of C arguments, with errors that name them.

use crate::error::{Error, Result, Status};
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

pub(super) fn null(name: &str) -> Error {
    Error::new(Status::NullPointer, format!("{name} is NULL"))
}

pub(super) fn unknown(name: &str, value: u32, known: &str) -> Error {
    Error::new(Status::UnknownEnum, format!("{name} is {value}, known are {known}"))
}

/// A field that must be zero, so that later versions can give it a meaning.
pub(super) fn reserved(name: &str, value: u32) -> Result<()> {
    if value == 0 {
        return Ok(());
    }
    Err(Error::new(Status::InvalidArgument, format!("{name}.reserved is {value}, must be 0")))
}

/// A field that is 0 or 1.
pub(super) fn flag(name: &str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        n => Err(unknown(name, n, "0..=1")),
    }
}

/// A place to store a result.
///
/// # Safety
/// `p` is null or valid for writes of `T` for the duration of the call.
pub(super) unsafe fn out<'a, T>(p: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: see above; MaybeUninit needs no initialised memory.
    unsafe { p.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(name))
}

/// A C array; NULL is fine if it is empty.
///
/// # Safety
/// `p` is null or valid for reads of `n` values for the duration of the call.
pub(super) unsafe fn slice<'a, T>(p: *const T, n: usize, name: &str) -> Result<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    if p.is_null() {
        return Err(Error::new(Status::NullPointer, format!("{name} is NULL, but has {n} entries")));
    }
    if n > isize::MAX as usize / std::mem::size_of::<T>().max(1) {
        return Err(Error::new(Status::InvalidArgument, format!("{name} has {n} entries, more than fit into memory")));
    }
    if !p.is_aligned() {
        return Err(Error::new(Status::InvalidArgument, format!("{name} at {p:p} is not aligned")));
    }
    // SAFETY: see above.
    Ok(unsafe { std::slice::from_raw_parts(p, n) })
}

/// A NUL-terminated UTF-8 string; NULL is an error.
///
/// # Safety
/// `p` is null or points to a NUL-terminated string that lives for the duration of the call.
pub(super) unsafe fn string<'a>(p: *const c_char, name: &str) -> Result<&'a str> {
    if p.is_null() {
        return Err(null(name));
    }
    // SAFETY: see above.
    let bytes = unsafe { CStr::from_ptr(p) };
    bytes
        .to_str()
        .map_err(|e| Error::new(Status::InvalidArgument, format!("{name} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// The same, where NULL means empty.
///
/// # Safety
/// As [`string`].
pub(super) unsafe fn optional_string<'a>(p: *const c_char, name: &str) -> Result<&'a str> {
    if p.is_null() {
        return Ok("");
    }
    // SAFETY: see above.
    unsafe { string(p, name) }
}

/// Plain structs that begin with `uint32_t struct_size` and for which all-zero bytes are a value.
///
/// # Safety
/// Implementors are `repr(C)`, begin with that field, and consist of integers and pointers.
pub(super) unsafe trait Sized32: Copy {
    const NAME: &'static str;
}

/// Reads a struct of the caller's version: missing fields are zero; an unknown tail must be zero.
///
/// # Safety
/// `p` is null or valid for reads of as many bytes as its first field says.
pub(super) unsafe fn read_struct<T: Sized32>(p: *const T) -> Result<T> {
    let name = T::NAME;
    if p.is_null() {
        return Err(null(name));
    }
    // SAFETY: the first field is a u32 in every version.
    let size = unsafe { p.cast::<u32>().read_unaligned() } as usize;
    check_size(name, size)?;
    let known = size.min(std::mem::size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable by contract and fit into `value`; zeroed is a value of `T`.
    let value = unsafe {
        std::ptr::copy_nonoverlapping(p.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        value.assume_init()
    };
    // SAFETY: the caller says that `size` bytes are there.
    let tail = unsafe { std::slice::from_raw_parts(p.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|b| *b != 0) {
        let ours = std::mem::size_of::<T>();
        let text = format!("{name}: struct_size {size}, this library knows {ours} bytes, and the rest is not zero");
        return Err(Error::new(Status::StructSize, text));
    }
    Ok(value)
}

/// Writes a struct to a caller's version of it: as many bytes as `struct_size` says, zero where this library knows none.
///
/// # Safety
/// `p` is null or valid for reads of its first field and writes of as many bytes as it says.
pub(super) unsafe fn write_struct<T: Sized32>(p: *mut T, value: T) -> Result<()> {
    if p.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: the first field is a u32 in every version.
    let size = unsafe { p.cast::<u32>().read_unaligned() };
    check_size(T::NAME, size as usize)?;
    let n = (size as usize).min(std::mem::size_of::<T>());
    // SAFETY: `size` bytes are writable by contract, `n` readable from `value`; the size field is restored.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), p.cast::<u8>(), n);
        std::ptr::write_bytes(p.cast::<u8>().add(n), 0, size as usize - n);
        p.cast::<u32>().write_unaligned(size);
    }
    Ok(())
}

fn check_size(name: &str, size: usize) -> Result<()> {
    const MAX: usize = 4096;
    if !(8..=MAX).contains(&size) {
        return Err(Error::new(Status::StructSize, format!("{name}: struct_size {size} is not in 8..={MAX}")));
    }
    Ok(())
}

/// A text as a NUL-terminated array; what does not fit is cut.
pub(super) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0 as c_char; N];
    out.iter_mut().zip(text.bytes().take(N.saturating_sub(1))).for_each(|(to, from)| *to = from as c_char);
    out
}

/// Copies bytes to a caller's buffer, all or nothing; `len` (may be null) gets their number without the NUL.
///
/// # Safety
/// `buf` is null or valid for `cap` bytes; `len` is null or valid for a write.
pub(super) unsafe fn copy_out(bytes: &[u8], nul: bool, buf: *mut u8, cap: usize, len: *mut usize) -> Result<()> {
    // SAFETY: see above.
    if let Some(len) = unsafe { len.as_mut() } {
        *len = bytes.len();
    }
    let needed = bytes.len() + usize::from(nul);
    if cap < needed {
        return Err(Error::new(Status::BufferTooSmall, format!("a buffer of {cap} bytes, {needed} are needed")));
    }
    if needed == 0 {
        return Ok(());
    }
    if buf.is_null() {
        return Err(null("buf"));
    }
    // SAFETY: `cap >= needed` bytes are writable.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf, bytes.len());
        if nul {
            buf.add(bytes.len()).write(0);
        }
    }
    Ok(())
}
