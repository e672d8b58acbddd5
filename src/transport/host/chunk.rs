//! The 32-byte header of everything on a data socket.
//!
//! ```text
//! 0  u32 magic and kind | 4  u32 flags, zero | 8  u64 tag | 16 u64 offset | 24 u32 length | 28 i32 status
//! ```
//!
//! little-endian. *Open* has the total in `offset` and the digest in the last eight bytes. A stream is Open, then, once
//! the receiver said Accept, Data in order of offset, then End. Cancel and End with a status end it early.

use crate::error::{Error, Result, Status};

/// Bytes of a header.
pub(super) const HEADER: usize = 32;

const MAGIC: u32 = 0x4B56_0000;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Sender: a stream of `total` bytes whose spans have this digest.
    Open { tag: u64, total: u64, digest: u64 },
    /// Receiver: the stream may begin.
    Accept { tag: u64 },
    /// Sender: `length` bytes follow.
    Data { tag: u64, offset: u64, length: u32 },
    /// Sender: nothing follows; how it went.
    End { tag: u64, status: Status },
    /// Receiver: stop; why.
    Cancel { tag: u64, status: Status },
}

impl Chunk {
    pub fn encode(self) -> [u8; HEADER] {
        let (kind, tag, offset, last) = match self {
            Chunk::Open { tag, total, digest } => (1, tag, total, digest),
            Chunk::Accept { tag } => (2, tag, 0, 0),
            Chunk::Data { tag, offset, length } => (3, tag, offset, u64::from(length)),
            Chunk::End { tag, status } => (4, tag, 0, in_status_field(status)),
            Chunk::Cancel { tag, status } => (5, tag, 0, in_status_field(status)),
        };
        let mut b = [0; HEADER];
        b[0..4].copy_from_slice(&(MAGIC | kind).to_le_bytes());
        b[8..16].copy_from_slice(&tag.to_le_bytes());
        b[16..24].copy_from_slice(&offset.to_le_bytes());
        b[24..32].copy_from_slice(&last.to_le_bytes());
        b
    }

    /// Reads a header; fields without a meaning for its kind must be zero.
    pub fn decode(b: &[u8; HEADER]) -> Result<Chunk> {
        let kind = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let flags = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&b[at..at + 8]);
            u64::from_le_bytes(w)
        };
        let (tag, offset, last) = (word(8), word(16), word(24));
        let (length, status) = (last as u32, (last >> 32) as u32 as i32);
        let wrong = |what: &str, got: u64, want: u64| {
            Err(Error::new(Status::Protocol, format!("chunk header: {what} {got:#x} where {want:#x} is allowed")))
        };
        if kind & 0xFFFF_0000 != MAGIC {
            return wrong("magic", u64::from(kind & 0xFFFF_0000), u64::from(MAGIC));
        }
        if flags != 0 {
            return wrong("flags", u64::from(flags), 0);
        }
        match kind & 0xFFFF {
            1 => Ok(Chunk::Open { tag, total: offset, digest: last }),
            2 | 4 | 5 if offset != 0 => wrong("offset", offset, 0),
            2 | 4 | 5 if length != 0 => wrong("length", u64::from(length), 0),
            2 | 3 if status != 0 => wrong("status", u64::from(status as u32), 0),
            2 => Ok(Chunk::Accept { tag }),
            3 if length == 0 => wrong("length", 0, 1),
            3 => Ok(Chunk::Data { tag, offset, length }),
            4 => Ok(Chunk::End { tag, status: from_status_field(status)? }),
            5 => match from_status_field(status)? {
                Status::Ok => wrong("status", 0, u64::from(Status::Cancelled.code() as u32)),
                status => Ok(Chunk::Cancel { tag, status }),
            },
            other => wrong("kind", u64::from(other), 5),
        }
    }
}

fn in_status_field(s: Status) -> u64 {
    u64::from(s.code() as u32) << 32
}

/// A negative value that this version does not know is a newer peer's reason: its refusal is what counts.
fn from_status_field(code: i32) -> Result<Status> {
    match Status::from_code(code) {
        Some(s) => Ok(s),
        None if code < 0 => Ok(Status::Refused),
        None => Err(Error::new(Status::Protocol, format!("chunk header: status {code} where at most 0 is allowed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(b in prop::array::uniform32(any::<u8>()), kind in 0u32..8) {
            let mut framed = b;
            framed[0..4].copy_from_slice(&(MAGIC | kind).to_le_bytes());
            framed[4..8].fill(0);
            for bytes in [b, framed] {
                match Chunk::decode(&bytes) {
                    Ok(c) => prop_assert_eq!(Chunk::decode(&c.encode()).unwrap(), c),
                    Err(e) => prop_assert_eq!(e.status(), Status::Protocol),
                }
            }
        }

        #[test]
        fn chunks_survive_the_wire(tag: u64, total: u64, digest: u64, length in 1u32.., s in 0..Status::ALL.len()) {
            let status = Status::ALL[s];
            let failed = if status == Status::Ok { Status::Cancelled } else { status };
            for c in [
                Chunk::Open { tag, total, digest },
                Chunk::Accept { tag },
                Chunk::Data { tag, offset: total, length },
                Chunk::End { tag, status },
                Chunk::Cancel { tag, status: failed },
            ] {
                prop_assert_eq!(Chunk::decode(&c.encode()).unwrap(), c);
            }
        }
    }

    #[test]
    fn a_newer_peers_status_is_a_refusal() {
        let mut b = Chunk::End { tag: 1, status: Status::Ok }.encode();
        b[28..32].copy_from_slice(&(-777i32).to_le_bytes());
        assert_eq!(Chunk::decode(&b).unwrap(), Chunk::End { tag: 1, status: Status::Refused });
        b[28..32].copy_from_slice(&7i32.to_le_bytes());
        assert!(Chunk::decode(&b).unwrap_err().message().contains("status 7"));
    }
}
