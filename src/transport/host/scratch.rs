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

/// What a call on a socket costs in a budget of bytes: short pieces take longer than their bytes, packed ones most of all.
pub(super) fn cost_of_call(bytes: u64, pieces: usize, packed: bool) -> u64 {
    bytes * if packed { 4 } else { 1 } + 128 * pieces as u64
}

/// How many bytes to offer the next system call on a socket: somewhat more than it will take. Listing a thousand pieces,
/// and having the kernel check them, costs more than the call itself if it then takes ten.
#[derive(Debug)]
pub(super) struct Ask {
    bytes: u64,
}

impl Default for Ask {
    fn default() -> Ask {
        Ask { bytes: 1 << 20 }
    }
}

impl Ask {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the call took of what it was offered.
    pub fn took(&mut self, bytes: u64, offered: u64) {
        if bytes < offered {
            self.bytes = (bytes * 2).clamp(128 << 10, 4 << 20);
        } else if offered >= self.bytes {
            self.bytes = (self.bytes * 2).min(4 << 20);
        }
    }
}
