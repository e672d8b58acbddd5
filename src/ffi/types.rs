//! Constants and small structs of the header.

use super::decode::{slice, unknown};
use crate::error::Result;
use crate::layout::DType;
use crate::wire;

/// Values of kvlink_status_t. The range says what must be repaired: -1.. this call, -100.. this host, -200.. the peer,
/// -300.. this transfer, -400.. a backend, -500.. kvlink itself.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_error {
    /// Success.
    KVLINK_OK = 0,
    /// An argument has a value that it cannot have.
    KVLINK_E_INVALID_ARGUMENT = -1,
    /// A pointer that must not be NULL is NULL.
    KVLINK_E_NULL_POINTER = -2,
    /// struct_size is unknown, or an unknown tail is not zero.
    KVLINK_E_STRUCT_SIZE = -3,
    /// An enum argument has no such value.
    KVLINK_E_UNKNOWN_ENUM = -4,
    /// A stale or foreign handle or id.
    KVLINK_E_BAD_HANDLE = -5,
    /// A layout contradicts itself, overlaps, or leaves its region.
    KVLINK_E_INVALID_LAYOUT = -6,
    /// A block list does not fit the layout or the token range.
    KVLINK_E_INVALID_BLOCKS = -7,
    /// A configured limit would be exceeded.
    KVLINK_E_LIMIT = -8,
    /// The buffer is too small; the needed size was stored.
    KVLINK_E_BUFFER_TOO_SMALL = -9,
    /// The object is not in a state that allows this call.
    KVLINK_E_WRONG_STATE = -10,
    /// A malformed ticket.
    KVLINK_E_INVALID_TICKET = -11,
    /// The request id is in use.
    KVLINK_E_DUPLICATE = -12,
    /// Memory could not be allocated or mapped.
    KVLINK_E_NO_MEMORY = -100,
    /// A system call failed.
    KVLINK_E_SYSTEM = -101,
    /// The kernel refuses access.
    KVLINK_E_PERMISSION = -102,
    /// A required transport is not available.
    KVLINK_E_TRANSPORT_UNAVAILABLE = -103,
    /// An address cannot be used.
    KVLINK_E_ADDRESS = -104,
    /// No connection to the peer could be made.
    KVLINK_E_UNREACHABLE = -200,
    /// The peer stopped answering or closed its connection.
    KVLINK_E_PEER_DEAD = -201,
    /// The two layouts cannot be copied into one another; the text lists why.
    KVLINK_E_INCOMPATIBLE = -202,
    /// No common wire version.
    KVLINK_E_VERSION = -203,
    /// The peer sent something that the protocol does not allow.
    KVLINK_E_PROTOCOL = -204,
    /// A ticket, key or acknowledgement of an earlier process of the peer.
    KVLINK_E_INCARNATION = -205,
    /// The peer refused.
    KVLINK_E_REFUSED = -206,
    /// Cancelled by the caller.
    KVLINK_E_CANCELLED = -300,
    /// The deadline passed.
    KVLINK_E_DEADLINE = -301,
    /// The source's lease ended before the transfer did: the data must not be used.
    KVLINK_E_LEASE_EXPIRED = -302,
    /// The other side knows no such request.
    KVLINK_E_UNKNOWN_REQUEST = -303,
    /// The sender said `last`, but bytes are missing.
    KVLINK_E_INCOMPLETE = -304,
    /// The end of all access could not be proven: do not reuse the buffers.
    KVLINK_E_QUARANTINED = -305,
    /// A third-party library below a transport failed.
    KVLINK_E_BACKEND = -400,
    /// A defect of kvlink.
    KVLINK_E_INTERNAL = -500,
    /// A defect stopped the agent earlier.
    KVLINK_E_POISONED = -501,
}

/// Element types.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_dtype {
    /// A record that is moved whole; its size is `element_bytes`.
    KVLINK_DTYPE_OPAQUE = 0,
    /// IEEE binary32.
    KVLINK_DTYPE_F32 = 1,
    /// IEEE binary16.
    KVLINK_DTYPE_F16 = 2,
    /// bfloat16.
    KVLINK_DTYPE_BF16 = 3,
    /// 8-bit float E4M3.
    KVLINK_DTYPE_F8_E4M3 = 4,
    /// 8-bit float E5M2.
    KVLINK_DTYPE_F8_E5M2 = 5,
    /// Signed 8-bit integer.
    KVLINK_DTYPE_I8 = 6,
    /// Unsigned 8-bit integer.
    KVLINK_DTYPE_U8 = 7,
    /// IEEE binary64.
    KVLINK_DTYPE_F64 = 8,
    /// Signed 32-bit integer.
    KVLINK_DTYPE_I32 = 9,
}

pub(super) fn element(name: &str, dtype: u32, bytes: u32) -> Result<crate::layout::Element> {
    let dtype = DType::from_code(dtype).ok_or_else(|| unknown(&format!("{name}.dtype"), dtype, "0..=9"))?;
    let bytes = if bytes == 0 { dtype.bytes().unwrap_or(0) } else { bytes };
    Ok(crate::layout::Element { dtype, bytes })
}

/// A block list entry that holds nothing: a position outside a window, say.
pub const KVLINK_NO_BLOCK: u32 = u32::MAX;
/// All ranks of a peer.
pub const KVLINK_ALL_RANKS: u32 = u32::MAX;
/// Waits without end.
pub const KVLINK_FOREVER: i32 = -1;

/// The blocks of one group of one request.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_blocks_t {
    /// Block ids by position; KVLINK_NO_BLOCK is a hole. State groups: slot ids.
    pub ids: *const u32,
    /// Number of ids.
    pub count: usize,
    /// Block position of the first id: the list begins at token `first * block_tokens` of this rank.
    pub first: u64,
}

/// One contiguous copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_span_t {
    /// Byte offset in the source region.
    pub src_offset: u64,
    /// Byte offset in the destination region.
    pub dst_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Index of the source's region.
    pub src_region: u32,
    /// Index of the destination's region.
    pub dst_region: u32,
}

/// Block lists of all groups.
///
/// # Safety
/// Pointers as the header says.
pub(super) unsafe fn blocks(p: *const kvlink_blocks_t, n: usize, name: &str) -> Result<Vec<wire::Blocks>> {
    // SAFETY: the caller's contract.
    let lists = unsafe { slice(p, n, name) }?;
    lists
        .iter()
        .enumerate()
        .map(|(g, l)| {
            // SAFETY: the caller's contract.
            let ids = unsafe { slice(l.ids, l.count, &format!("{name}[{g}].ids")) }?;
            Ok(wire::Blocks { first: l.first, ids: ids.to_vec() })
        })
        .collect()
}

macro_rules! sized {
    ($($t:ty),* $(,)?) => {
        $(
            // SAFETY: repr(C), begins with struct_size, integers and pointers only.
            unsafe impl Sized32 for $t {
                const NAME: &'static str = stringify!($t);
            }
        )*
    };
}
pub(super) use sized;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn header_values_are_those_of_the_crate() {
        use kvlink_error::*;
        let all = [
            KVLINK_OK,
            KVLINK_E_INVALID_ARGUMENT,
            KVLINK_E_NULL_POINTER,
            KVLINK_E_STRUCT_SIZE,
            KVLINK_E_UNKNOWN_ENUM,
            KVLINK_E_BAD_HANDLE,
            KVLINK_E_INVALID_LAYOUT,
            KVLINK_E_INVALID_BLOCKS,
            KVLINK_E_LIMIT,
            KVLINK_E_BUFFER_TOO_SMALL,
            KVLINK_E_WRONG_STATE,
            KVLINK_E_INVALID_TICKET,
            KVLINK_E_DUPLICATE,
            KVLINK_E_NO_MEMORY,
            KVLINK_E_SYSTEM,
            KVLINK_E_PERMISSION,
            KVLINK_E_TRANSPORT_UNAVAILABLE,
            KVLINK_E_ADDRESS,
            KVLINK_E_UNREACHABLE,
            KVLINK_E_PEER_DEAD,
            KVLINK_E_INCOMPATIBLE,
            KVLINK_E_VERSION,
            KVLINK_E_PROTOCOL,
            KVLINK_E_INCARNATION,
            KVLINK_E_REFUSED,
            KVLINK_E_CANCELLED,
            KVLINK_E_DEADLINE,
            KVLINK_E_LEASE_EXPIRED,
            KVLINK_E_UNKNOWN_REQUEST,
            KVLINK_E_INCOMPLETE,
            KVLINK_E_QUARANTINED,
            KVLINK_E_BACKEND,
            KVLINK_E_INTERNAL,
            KVLINK_E_POISONED,
        ];
        let theirs: Vec<i32> = all.iter().map(|e| *e as i32).collect();
        let ours: Vec<i32> = Status::ALL.iter().map(|s| s.code()).collect();
        assert_eq!(theirs, ours);
        for d in DType::ALL {
            assert_eq!(DType::from_code(d.code()), Some(*d));
        }
        assert_eq!(kvlink_dtype::KVLINK_DTYPE_I32 as u32, DType::I32.code());
        assert_eq!(std::mem::size_of::<kvlink_span_t>(), std::mem::size_of::<crate::layout::Span>());
    }
}
