//! Pure codecs of everything that crosses the network: the preamble, frames, messages, tickets.
//!
//! docs/wire-format.md is the normative text. Decoders take untrusted bytes: every length is checked before it is
//! believed, nothing panics, and an error names the field and both values.

mod board;
mod codec;
mod frame;
mod message;
pub mod moriio;
mod ticket;
pub mod zmtp;

pub use board::{BOARD_BYTES, BOARD_REGION, BOARD_SLOTS, LeaseMark};
pub use codec::{Reader, Writer};
pub use frame::{FrameDecoder, Preamble, StreamKind, encode_frame};
pub use message::{Blocks, Entry, Message, Purpose, Range, ReadRequest, WriteRequest};
pub use ticket::Ticket;

use crate::error::{Error, Result, Status};

/// Oldest wire version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest wire version that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// The newest version that both sides speak.
///
/// # Errors
/// [`Status::Version`] naming both ranges.
pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16> {
    let version = ours.1.min(theirs.1);
    if version < ours.0 || version < theirs.0 || theirs.0 > theirs.1 {
        return Err(Error::new(
            Status::Version,
            format!("we speak wire versions {}..={}, the peer {}..={}", ours.0, ours.1, theirs.0, theirs.1),
        ));
    }
    Ok(version)
}

/// Limits of decoders.
pub mod limit {
    /// Bytes of one frame.
    pub const FRAME: usize = 64 << 20;
    /// Bytes of a name (instance, request id, address, transport).
    pub const NAME: usize = 255;
    /// Bytes of a notification or a side payload.
    pub const PAYLOAD: usize = 1 << 20;
    /// Bytes of a message text.
    pub const TEXT: usize = 64 << 10;
    /// Groups of a request.
    pub const GROUPS: usize = 256;
    /// Block ids of one request in one group.
    pub const BLOCKS: usize = 4 << 20;
    /// Bytes of a host name.
    pub const HOST: usize = 200;
    /// Ranks of an instance.
    pub const RANKS: usize = 1024;
    /// Transports of one rank.
    pub const TRANSPORTS: usize = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(negotiate((1, 3), (2, 5)), Ok(3));
        assert_eq!(negotiate((2, 2), (1, 2)), Ok(2));
        assert_eq!(negotiate((1, 1), (2, 3)).map_err(|e| e.status()), Err(Status::Version));
        assert_eq!(negotiate((3, 4), (1, 2)).map_err(|e| e.status()), Err(Status::Version));
        assert_eq!(negotiate((1, 9), (5, 4)).map_err(|e| e.status()), Err(Status::Version));
    }
}
