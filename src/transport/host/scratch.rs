//! Buffers that are reused by every job.

use super::sys::{Foreign, PIECES, Source, Target};

/// Bytes that one staged read may cover.
pub(super) const COVER_BYTES: usize = 256 << 10;

/// Bytes of a socket that are thrown away or unpacked at a time.
pub(super) const PACKED_BYTES: usize = 256 << 10;

/// Piece lists and a bounce buffer. Lists are only filled and used within one step of one job.
#[derive(Debug)]
pub(super) struct Scratch {
    pub sources: Vec<Source>,
    pub targets: Vec<Target>,
    pub foreign: Vec<Foreign>,
    /// Where in the buffer each staged span begins.
    pub places: Vec<u64>,
    pub nonce: [u8; 16],
    pub buffer: Buffer,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch {
            sources: Vec::with_capacity(PIECES),
            targets: Vec::with_capacity(PIECES),
            foreign: Vec::with_capacity(PIECES),
            places: Vec::new(),
            nonce: [0; 16],
            buffer: Buffer::default(),
        }
    }
}

/// Memory that is allocated when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// Its first `len` bytes, whatever they contain.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[..len]
    }
}
