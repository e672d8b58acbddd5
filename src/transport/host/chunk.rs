//! The 48-byte header of everything on a data socket.
//!
//! ```text
//! 0  u32 magic and kind | 4  i32 status | 8  u64 tag | 16 u64 offset | 24 u64 length | 32 u64 total | 40 u64 digest
//! ```
//!
//! little-endian. A stream travels in lanes, each a contiguous part of its bytes on a socket of its own. A lane is Open,
//! then, once the receiver said Accept, Data in order of offset, then End. Cancel and End with a status end the whole
//! stream early.

use crate::error::{Error, Result, Status};

/// Bytes of a header.
pub(super) const HEADER: usize = 48;

const MAGIC: u32 = 0x4B56_0000;

/// A contiguous part of a stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub begin: u64,
    pub length: u64,
}

impl Lane {
    /// What comes after it. Lanes lie within a total.
    pub fn end(self) -> u64 {
        self.begin + self.length
    }
}

/// What a sender says of a lane and of the stream that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub lane: Lane,
    /// Bytes of all lanes.
    pub total: u64,
    /// Of the stream's spans.
    pub digest: u64,
}

impl Opening {
    /// A lane lies within its stream, and has bytes if the stream has.
    fn new(tag: u64, lane: Lane, total: u64, digest: u64) -> Result<Opening> {
        let Lane { begin, length } = lane;
        let fits = begin.checked_add(length).is_some_and(|end| end <= total);
        if !fits || (length == 0 && total != 0) {
            let what = format!("stream {tag}: a lane of {length} bytes at {begin}, the stream has {total}");
            return Err(Error::new(Status::Protocol, what));
        }
        Ok(Opening { lane, total, digest })
    }
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Sender: a lane of a stream.
    Open { tag: u64, opening: Opening },
    /// Receiver: the lane of this socket may begin.
    Accept { tag: u64 },
    /// Sender: `length` bytes follow, which are at `offset` of the stream.
    Data { tag: u64, offset: u64, length: u64 },
    /// Sender: nothing of the lane follows; how it went.
    End { tag: u64, status: Status },
    /// Receiver: stop all lanes; why.
    Cancel { tag: u64, status: Status },
}

impl Chunk {
    pub fn encode(self) -> [u8; HEADER] {
        let (kind, tag, status, words) = match self {
            Chunk::Open { tag, opening: Opening { lane, total, digest } } => {
                (1, tag, Status::Ok, [lane.begin, lane.length, total, digest])
            }
            Chunk::Accept { tag } => (2, tag, Status::Ok, [0; 4]),
            Chunk::Data { tag, offset, length } => (3, tag, Status::Ok, [offset, length, 0, 0]),
            Chunk::End { tag, status } => (4, tag, status, [0; 4]),
            Chunk::Cancel { tag, status } => (5, tag, status, [0; 4]),
        };
        let mut b = [0; HEADER];
        b[0..4].copy_from_slice(&(MAGIC | kind).to_le_bytes());
        b[4..8].copy_from_slice(&status.code().to_le_bytes());
        b[8..16].copy_from_slice(&tag.to_le_bytes());
        for (at, word) in b[16..].chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        b
    }

    /// Reads a header; fields without a meaning for its kind must be zero.
    pub fn decode(b: &[u8; HEADER]) -> Result<Chunk> {
        let kind = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let status = i32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&b[at..at + 8]);
            u64::from_le_bytes(w)
        };
        let (tag, offset, length, total, digest) = (word(8), word(16), word(24), word(32), word(40));
        let wrong = |what: &str, got: u64, want: u64| {
            Err(Error::new(Status::Protocol, format!("chunk header: {what} {got:#x} where {want:#x} is allowed")))
        };
        if kind & 0xFFFF_0000 != MAGIC {
            return wrong("magic", u64::from(kind & 0xFFFF_0000), u64::from(MAGIC));
        }
        match kind & 0xFFFF {
            1..=3 if status != 0 => wrong("status", u64::from(status as u32), 0),
            2 | 4 | 5 if offset != 0 => wrong("offset", offset, 0),
            2 | 4 | 5 if length != 0 => wrong("length", length, 0),
            2..=5 if total != 0 => wrong("total", total, 0),
            2..=5 if digest != 0 => wrong("digest", digest, 0),
            1 => {
                let opening = Opening::new(tag, Lane { begin: offset, length }, total, digest)?;
                Ok(Chunk::Open { tag, opening })
            }
            2 => Ok(Chunk::Accept { tag }),
            3 if length == 0 => wrong("length", 0, 1),
            3 => Ok(Chunk::Data { tag, offset, length }),
            4 => Ok(Chunk::End { tag, status: known(status)? }),
            5 => match known(status)? {
                Status::Ok => wrong("status", 0, u64::from(Status::Cancelled.code() as u32)),
                status => Ok(Chunk::Cancel { tag, status }),
            },
            other => wrong("kind", u64::from(other), 5),
        }
    }
}

/// A negative value that this version does not know is a newer peer's reason: its refusal is what counts.
fn known(code: i32) -> Result<Status> {
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
        fn any_bytes_decode_or_are_refused(b in prop::collection::vec(any::<u8>(), HEADER), kind in 0u32..8) {
            let plain: [u8; HEADER] = b.try_into().unwrap();
            let mut framed = plain;
            framed[0..4].copy_from_slice(&(MAGIC | kind).to_le_bytes());
            framed[4..8].fill(0);
            let mut sparse = framed;
            sparse[32..].fill(0);
            for bytes in [plain, framed, sparse] {
                match Chunk::decode(&bytes) {
                    Ok(c) => prop_assert_eq!(Chunk::decode(&c.encode()).unwrap(), c),
                    Err(e) => prop_assert_eq!(e.status(), Status::Protocol),
                }
            }
        }

        #[test]
        fn chunks_survive_the_wire(tag: u64, total: u64, digest: u64, cut: u64, length in 1u64.., s in 0..Status::ALL.len()) {
            let status = Status::ALL[s];
            let failed = if status == Status::Ok { Status::Cancelled } else { status };
            let begin = cut % total.max(1);
            let lane = Lane { begin, length: total - begin };
            for c in [
                Chunk::Open { tag, opening: Opening { lane, total, digest } },
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
    fn a_lane_outside_of_its_stream_is_refused_with_its_values() {
        for (begin, length, total) in [(0, 101, 100), (90, 11, 100), (u64::MAX, 2, 100), (50, 0, 100), (1, 0, 0)] {
            let opening = Opening { lane: Lane { begin, length }, total, digest: 3 };
            let e = Chunk::decode(&Chunk::Open { tag: 7, opening }.encode()).unwrap_err();
            assert_eq!(e.status(), Status::Protocol);
            let says = format!("stream 7: a lane of {length} bytes at {begin}, the stream has {total}");
            assert_eq!(e.message(), says);
        }
    }

    #[test]
    fn a_newer_peers_status_is_a_refusal() {
        let mut b = Chunk::End { tag: 1, status: Status::Ok }.encode();
        b[4..8].copy_from_slice(&(-777i32).to_le_bytes());
        assert_eq!(Chunk::decode(&b).unwrap(), Chunk::End { tag: 1, status: Status::Refused });
        b[4..8].copy_from_slice(&7i32.to_le_bytes());
        assert!(Chunk::decode(&b).unwrap_err().message().contains("status 7"));
    }
}
