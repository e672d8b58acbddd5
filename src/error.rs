//! The one error type of the crate.
//!
//! A [`Status`] says *who has to repair something* (its range), the message names the thing and both values.

use std::fmt;

/// Why something failed. Values are part of the ABI and never change; ranges say what must be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// Success.
    Ok = 0,

    // -1 .. -99: this call
    /// An argument has a value that it cannot have.
    InvalidArgument = -1,
    /// A pointer that must not be null is null.
    NullPointer = -2,
    /// `struct_size` is unknown, or an unknown tail of a larger struct is not zero.
    StructSize = -3,
    /// An enum argument has no such value.
    UnknownEnum = -4,
    /// A handle or id that is stale, foreign, or was never given out.
    BadHandle = -5,
    /// A layout contradicts itself, overlaps, or leaves its region.
    InvalidLayout = -6,
    /// A block list does not fit the layout or the token range.
    InvalidBlocks = -7,
    /// A configured limit would be exceeded.
    Limit = -8,
    /// The caller's buffer is too small; the needed size was stored.
    BufferTooSmall = -9,
    /// The object is not in a state that allows this call.
    WrongState = -10,
    /// A ticket is malformed.
    InvalidTicket = -11,
    /// The request id is in use.
    Duplicate = -12,

    // -100 .. -199: this host
    /// Memory could not be allocated or mapped.
    NoMemory = -100,
    /// A system call failed.
    System = -101,
    /// The kernel refuses access.
    Permission = -102,
    /// A required transport is not available here.
    TransportUnavailable = -103,
    /// A network address cannot be used.
    Address = -104,

    // -200 .. -299: the peer
    /// No connection to the peer could be made.
    Unreachable = -200,
    /// The peer stopped answering or closed its connection.
    PeerDead = -201,
    /// The two layouts describe caches that cannot be copied into one another.
    Incompatible = -202,
    /// The two sides share no wire version.
    Version = -203,
    /// The peer sent something that the protocol does not allow.
    Protocol = -204,
    /// The ticket, key or acknowledgement belongs to an earlier process of the peer.
    Incarnation = -205,
    /// The peer refused.
    Refused = -206,

    // -300 .. -399: this transfer
    /// Cancelled by the caller.
    Cancelled = -300,
    /// The deadline passed.
    Deadline = -301,
    /// The source's lease ended before the transfer did: the data must not be used.
    LeaseExpired = -302,
    /// The other side knows no such request.
    UnknownRequest = -303,
    /// The sender said `last`, but bytes are missing.
    Incomplete = -304,
    /// The end of all access could not be proven: the buffers stay quarantined.
    Quarantined = -305,

    // -400 .. -499: a backend
    /// A third-party library below a transport failed.
    Backend = -400,

    // -500 .. -599: kvlink itself
    /// A defect of kvlink.
    Internal = -500,
    /// A defect stopped the agent earlier; it only reports and can be destroyed.
    Poisoned = -501,
}

impl Status {
    /// Every status, for tables and decoders.
    pub const ALL: &'static [Status] = &[
        Status::Ok,
        Status::InvalidArgument,
        Status::NullPointer,
        Status::StructSize,
        Status::UnknownEnum,
        Status::BadHandle,
        Status::InvalidLayout,
        Status::InvalidBlocks,
        Status::Limit,
        Status::BufferTooSmall,
        Status::WrongState,
        Status::InvalidTicket,
        Status::Duplicate,
        Status::NoMemory,
        Status::System,
        Status::Permission,
        Status::TransportUnavailable,
        Status::Address,
        Status::Unreachable,
        Status::PeerDead,
        Status::Incompatible,
        Status::Version,
        Status::Protocol,
        Status::Incarnation,
        Status::Refused,
        Status::Cancelled,
        Status::Deadline,
        Status::LeaseExpired,
        Status::UnknownRequest,
        Status::Incomplete,
        Status::Quarantined,
        Status::Backend,
        Status::Internal,
        Status::Poisoned,
    ];

    /// The ABI value.
    pub fn code(self) -> i32 {
        self as i32
    }

    /// The status with this ABI value, if there is one.
    pub fn from_code(code: i32) -> Option<Status> {
        Status::ALL.iter().copied().find(|s| s.code() == code)
    }

    /// A short constant text for people.
    pub fn text(self) -> &'static str {
        match self {
            Status::Ok => "success",
            Status::InvalidArgument => "invalid argument",
            Status::NullPointer => "null pointer",
            Status::StructSize => "unsupported struct size",
            Status::UnknownEnum => "unknown enum value",
            Status::BadHandle => "stale or foreign handle",
            Status::InvalidLayout => "invalid layout",
            Status::InvalidBlocks => "invalid block list",
            Status::Limit => "limit exceeded",
            Status::BufferTooSmall => "buffer too small",
            Status::WrongState => "wrong state",
            Status::InvalidTicket => "invalid ticket",
            Status::Duplicate => "already in use",
            Status::NoMemory => "out of memory",
            Status::System => "system call failed",
            Status::Permission => "permission denied",
            Status::TransportUnavailable => "transport unavailable",
            Status::Address => "bad address",
            Status::Unreachable => "peer unreachable",
            Status::PeerDead => "peer dead",
            Status::Incompatible => "incompatible layouts",
            Status::Version => "no common wire version",
            Status::Protocol => "protocol violation",
            Status::Incarnation => "earlier incarnation",
            Status::Refused => "refused by peer",
            Status::Cancelled => "cancelled",
            Status::Deadline => "deadline passed",
            Status::LeaseExpired => "lease expired",
            Status::UnknownRequest => "unknown request",
            Status::Incomplete => "transfer incomplete",
            Status::Quarantined => "quarantined",
            Status::Backend => "backend failed",
            Status::Internal => "internal error",
            Status::Poisoned => "agent poisoned",
        }
    }
}

/// A status with the sentence that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

impl Error {
    /// An error with this status and message. The message names the thing and both values.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, message: message.into() }
    }

    /// What kind of repair is needed.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The sentence that explains it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context: ` in front of its message.
    pub fn within(self, context: impl fmt::Display) -> Error {
        Error { status: self.status, message: format!("{context}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.text(), self.message)
    }
}

impl std::error::Error for Error {}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_decode_to_themselves() {
        for (i, s) in Status::ALL.iter().enumerate() {
            assert_eq!(Status::from_code(s.code()), Some(*s));
            assert!(Status::ALL[i + 1..].iter().all(|o| o.code() != s.code()));
        }
        assert_eq!(Status::from_code(-9999), None);
    }
}
