//! Every unsafe operation of the host transport: raw scatter-gather, cross-process reads, mappings, copies.
//!
//! The types carry the proof: a [`Source`] or [`Target`] can only be made in bounds of registered memory, of a mapping or
//! of a Rust slice. No caller keeps one beyond the call of `progress` that made it, and memory is only unregistered,
//! unmapped or freed between such calls: what a piece names is there as long as the piece is.
#![allow(unsafe_code)]

use crate::memory::Memory;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Pieces that one system call takes.
pub(super) const PIECES: usize = 1024;

/// Bytes of this process that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Source {
    addr: usize,
    len: usize,
}

/// Bytes of this process that may be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Target {
    addr: usize,
    len: usize,
}

/// Bytes of another process; only the kernel ever follows this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Foreign {
    pub addr: usize,
    pub len: usize,
}

macro_rules! same_layout_as_iovec {
    ($($t:ty),*) => {$(
        const _: () = assert!(
            size_of::<$t>() == size_of::<libc::iovec>()
                && align_of::<$t>() == align_of::<libc::iovec>()
                && std::mem::offset_of!($t, addr) == std::mem::offset_of!(libc::iovec, iov_base)
                && std::mem::offset_of!($t, len) == std::mem::offset_of!(libc::iovec, iov_len)
        );
    )*};
}
same_layout_as_iovec!(Source, Target, Foreign);

impl Source {
    pub fn of(bytes: &[u8]) -> Source {
        Source { addr: bytes.as_ptr() as usize, len: bytes.len() }
    }
}

impl Target {
    pub fn of(bytes: &mut [u8]) -> Target {
        Target { addr: bytes.as_mut_ptr() as usize, len: bytes.len() }
    }

    /// The first `len` bytes, if there are as many.
    pub fn first(&self, len: usize) -> Option<Target> {
        (len <= self.len).then_some(Target { addr: self.addr, len })
    }
}

/// A list entry that may swallow the entry after it.
pub(super) trait Join: Sized {
    fn len(&self) -> usize;
    /// Grows by `next` if that begins where this ends.
    fn join(&mut self, next: &Self) -> bool;
}

macro_rules! join {
    ($($t:ty),*) => {$(
        impl Join for $t {
            #[inline]
            fn len(&self) -> usize {
                self.len
            }
            #[inline]
            fn join(&mut self, next: &Self) -> bool {
                let adjacent = self.addr.checked_add(self.len) == Some(next.addr);
                if adjacent {
                    self.len += next.len;
                }
                adjacent
            }
        }
    )*};
}
join!(Source, Target, Foreign);

/// Adds a piece to a list, merged with the last one where possible.
#[inline]
pub(super) fn push<T: Join>(list: &mut Vec<T>, piece: T) {
    if !list.last_mut().is_some_and(|last| last.join(&piece)) {
        list.push(piece);
    }
}

/// A registered region of this process. Holds its shareable allocation, if it is one.
#[derive(Debug)]
pub(super) struct Own {
    memory: Memory,
}

impl Own {
    pub fn new(memory: Memory) -> Own {
        Own { memory }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    #[inline]
    fn range(&self, offset: u64, len: u64) -> Option<(usize, usize)> {
        let end = offset.checked_add(len)?;
        (end <= self.memory.len() as u64).then(|| (self.memory.addr() + offset as usize, len as usize))
    }

    #[inline]
    pub fn source(&self, offset: u64, len: u64) -> Option<Source> {
        self.range(offset, len).map(|(addr, len)| Source { addr, len })
    }

    #[inline]
    pub fn target(&self, offset: u64, len: u64) -> Option<Target> {
        self.range(offset, len).map(|(addr, len)| Target { addr, len })
    }
}

/// A read-only mapping of a peer's memory, unmapped when dropped. Its file is sealed against shrinking.
#[derive(Debug)]
pub(super) struct Mapping {
    addr: usize,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of a file that is sealed against shrinking and at least as long.
    pub fn new(fd: BorrowedFd<'_>, len: usize) -> Result<Mapping, Errno> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let addr = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, fd, 0)? };
        Ok(Mapping { addr: addr as usize, len })
    }

    #[inline]
    pub fn source(&self, offset: u64, len: u64) -> Option<Source> {
        let end = offset.checked_add(len)?;
        (end <= self.len as u64).then(|| Source { addr: self.addr + offset as usize, len: len as usize })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this address and length; no piece of it lives between calls of `progress`.
        let _ = unsafe { rustix::mm::munmap(self.addr as *mut _, self.len) };
    }
}

/// Copies as many bytes as both have.
#[inline]
pub(super) fn copy(target: Target, source: Source) {
    let len = target.len.min(source.len);
    // SAFETY: both are in bounds of memory that is there (see the module's documentation). A mapping and our own memory
    // never overlap as addresses; two ranges of our own may, and `memmove` allows it.
    unsafe { std::ptr::copy(source.addr as *const u8, target.addr as *mut u8, len) };
}

/// What a call that moves bytes returned.
fn moved(n: isize) -> Result<usize, Errno> {
    usize::try_from(n).map_err(|_| {
        let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Errno::from_raw_os_error(code)
    })
}

fn message(pieces: *const libc::iovec, n: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = pieces.cast_mut();
    m.msg_iovlen = n.min(PIECES) as _;
    m
}

/// Sends the pieces in order; never blocks, never raises a signal. `more`: the rest follows at once.
pub(super) fn send(socket: BorrowedFd<'_>, pieces: &[Source], more: bool) -> Result<usize, Errno> {
    let m = message(pieces.as_ptr().cast(), pieces.len());
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: the list has the layout of iovecs, at most as many as stated, and every piece may be read.
    moved(unsafe { libc::sendmsg(socket.as_raw_fd(), &m, flags) })
}

/// Receives into the pieces in order; never blocks.
pub(super) fn receive(socket: BorrowedFd<'_>, pieces: &[Target]) -> Result<usize, Errno> {
    let mut m = message(pieces.as_ptr().cast(), pieces.len());
    // SAFETY: the list has the layout of iovecs, at most as many as stated, and every piece may be written.
    moved(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut m, libc::MSG_DONTWAIT) })
}

/// Copies out of another process.
pub(super) fn read_process(pid: i32, local: &[Target], remote: &[Foreign]) -> Result<usize, Errno> {
    let (ln, rn) = (local.len().min(PIECES) as libc::c_ulong, remote.len().min(PIECES) as libc::c_ulong);
    // SAFETY: both lists have the layout of iovecs, at most as many as stated; every local piece may be written, and the
    // kernel checks the remote ones against the other process.
    moved(unsafe { libc::process_vm_readv(pid, local.as_ptr().cast(), ln, remote.as_ptr().cast(), rn, 0) })
}
