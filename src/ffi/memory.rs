//! Shareable memory.

use super::decode::out;
use super::guard::{guard, kvlink_status_t};
use crate::error::{Error, Result, Status};
use crate::memory::{Memory, SharedMemory};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, LazyLock};

/// Allocations by address.
static SHARED: LazyLock<Mutex<HashMap<usize, Arc<SharedMemory>>>> = LazyLock::new(|| Mutex::new(HashMap::new()));

/// The memory at this address: shareable if kvlink allocated it as such.
pub(super) fn memory_at(addr: usize, len: usize) -> Result<Memory> {
    if let Some(found) = SHARED.lock().get(&addr)
        && len == found.len()
    {
        return Ok(Memory::shared(found.clone()));
    }
    Memory::new(addr, len)
}

/// Allocates `len` bytes of zeroed memory that kvlink peers on this host can map: the fastest path between processes.
///
/// Register the whole allocation to profit from it. Free it with kvlink_shared_free after its region was deregistered and
/// the agent destroyed. Any thread.
///
/// Errors: KVLINK_E_INVALID_ARGUMENT (0 bytes), KVLINK_E_NO_MEMORY, KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_shared_alloc(len: usize, out_memory: *mut *mut c_void) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let slot = unsafe { out(out_memory, "out_memory") }?;
        let memory = SharedMemory::allocate(len)?;
        let addr = memory.addr();
        SHARED.lock().insert(addr, Arc::new(memory));
        slot.write(addr as *mut c_void);
        Ok(())
    })
}

/// Frees memory of kvlink_shared_alloc; NULL is fine. While a region uses it, it stays mapped and is freed with the region.
///
/// Errors: KVLINK_E_BAD_HANDLE (not such an address, or freed already).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_shared_free(memory: *mut c_void) -> kvlink_status_t {
    guard(|| {
        if memory.is_null() || SHARED.lock().remove(&memory.addr()).is_some() {
            return Ok(());
        }
        let text = format!("{memory:p} was not allocated by kvlink_shared_alloc, or was freed");
        Err(Error::new(Status::BadHandle, text))
    })
}
