//! Memory that other processes of this host can map: a sealed memfd.
#![allow(unsafe_code)]

use crate::error::{Error, Result, Status};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A mapped memfd, unmapped when dropped.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    addr: usize,
    len: usize,
}

impl SharedMemory {
    /// Allocates `len` bytes of zeroed shareable memory. Its size is sealed: nobody can truncate it under a mapping.
    ///
    /// # Errors
    /// [`Status::NoMemory`] with the system's reason.
    pub fn allocate(len: usize) -> Result<SharedMemory> {
        let fail = |what: &str, e: rustix::io::Errno| {
            Error::new(Status::NoMemory, format!("{what} of {len} bytes of shared memory: {e}"))
        };
        if len == 0 {
            return Err(Error::new(Status::InvalidArgument, "0 bytes of shared memory"));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("kvlink", flags).map_err(|e| fail("memfd_create", e))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(|e| fail("ftruncate", e))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|e| fail("sealing", e))?;
        let addr = map(fd.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE).map_err(|e| fail("mmap", e))?;
        Ok(SharedMemory { fd, addr, len })
    }

    /// First address.
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: empty memory cannot be allocated.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores a word at a byte offset (a multiple of 8) so that other processes see it after everything before it.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if it does not lie inside.
    pub fn store_word(&self, offset: usize, word: u64) -> Result<()> {
        if !offset.is_multiple_of(8) || offset.checked_add(8).is_none_or(|end| end > self.len) {
            return Err(Error::new(Status::InvalidArgument, format!("word at byte {offset} of {} bytes", self.len)));
        }
        // SAFETY: aligned (mappings begin at a page), inside the mapping, which lives as long as `self`; every access to
        // words goes through atomics.
        let slot = unsafe { std::sync::atomic::AtomicU64::from_ptr((self.addr + offset) as *mut u64) };
        slot.store(word, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    /// The file behind it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this address and length and belongs to this value alone.
        let _ = unsafe { rustix::mm::munmap(self.addr as *mut _, self.len) };
    }
}

fn map(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> rustix::io::Result<usize> {
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
    let addr = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)? };
    Ok(addr as usize)
}
