//! Memory that can be registered: where it is, how long, and how another process can reach it.

mod shared;

pub use shared::SharedMemory;

use crate::error::{Error, Result, Status};
use std::sync::Arc;

/// A byte range of this process.
///
/// kvlink never dereferences it except in jobs of a transport, and only while it is registered: whoever registers it
/// promises that it stays mapped, readable and writable until deregistration has returned.
#[derive(Clone, Debug)]
pub struct Memory {
    addr: usize,
    len: usize,
    shared: Option<Arc<SharedMemory>>,
}

impl Memory {
    /// Memory of the caller's own.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if it is null, empty or wraps around the address space.
    pub fn new(addr: usize, len: usize) -> Result<Memory> {
        if addr == 0 || len == 0 || addr.checked_add(len).is_none() {
            return Err(Error::new(Status::InvalidArgument, format!("memory at {addr:#x} of {len} bytes")));
        }
        Ok(Memory { addr, len, shared: None })
    }

    /// A whole shareable allocation.
    pub fn shared(memory: Arc<SharedMemory>) -> Memory {
        Memory { addr: memory.addr(), len: memory.len(), shared: Some(memory) }
    }

    /// First address.
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: empty memory cannot be made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The shareable allocation behind it, if it is one.
    pub fn backing(&self) -> Option<&Arc<SharedMemory>> {
        self.shared.as_ref()
    }
}
