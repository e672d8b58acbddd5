//! Memory that a vendor's library is told of: what is read from where, and copies out of staging memory.
#![allow(unsafe_code)]

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
