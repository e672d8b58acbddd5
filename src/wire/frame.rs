//! The preamble of a connection, and frames on control connections.

use super::codec::{Reader, Writer};
use super::{Message, limit};
use crate::error::{Error, Result, Status};

const MAGIC: &[u8; 4] = b"KVLK";
const FRAME_HEADER: usize = 8;
/// Bytes of buffer that an idle decoder keeps.
const KEPT: usize = 1 << 20;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Frames with messages.
    Control,
    /// A transport's stream, for the session with this token.
    Data {
        /// The token from [`Message::Welcome`].
        token: u64,
    },
}

/// The first bytes that a connecting side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble(pub StreamKind);

impl Preamble {
    /// Bytes of a preamble.
    pub const LEN: usize = 16;

    /// Its bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut w = Writer::new();
        let (kind, token) = match self.0 {
            StreamKind::Control => (1, 0),
            StreamKind::Data { token } => (2, token),
        };
        w.u32(u32::from_le_bytes(*MAGIC));
        w.u16(1);
        w.u16(kind);
        w.u64(token);
        w.finish()
    }

    /// From its bytes.
    ///
    /// # Errors
    /// [`Status::Protocol`]: not kvlink, or an unknown kind.
    pub fn decode(bytes: &[u8]) -> Result<Preamble> {
        let mut r = Reader::new(bytes);
        let magic = r.u32("preamble magic")?;
        if magic != u32::from_le_bytes(*MAGIC) {
            return Err(Error::new(
                Status::Protocol,
                format!(
                    "preamble begins with {:02x?}, not with {:02x?}: not a kvlink peer",
                    magic.to_le_bytes(),
                    MAGIC
                ),
            ));
        }
        let layout = r.u16("preamble version")?;
        let kind = r.u16("preamble kind")?;
        let token = r.u64("preamble token")?;
        r.end("preamble")?;
        match (layout, kind) {
            (1, 1) => Ok(Preamble(StreamKind::Control)),
            (1, 2) => Ok(Preamble(StreamKind::Data { token })),
            _ => Err(Error::new(
                Status::Protocol,
                format!("preamble version {layout} kind {kind}, known are 1 and 1..=2"),
            )),
        }
    }
}

/// A message as a frame: length (u32), type (u16), reserved (u16), body.
pub fn encode_frame(message: &Message) -> Vec<u8> {
    let mut w = Writer::new();
    message.encode(&mut w);
    let body = w.finish();
    let mut f = Writer::new();
    f.u32(body.len() as u32);
    f.u16(message.type_code());
    f.u16(0);
    let mut out = f.finish();
    out.extend_from_slice(&body);
    out
}

/// Cuts a byte stream into messages.
#[derive(Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameDecoder {
    /// An empty decoder.
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// Adds received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            // One large frame must not hold its memory for the connection's life.
            self.buffer.shrink_to(KEPT);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// [`Status::Protocol`]: the connection cannot be used any more.
    pub fn next_message(&mut self) -> Result<Option<Message>> {
        let rest = self.buffer.get(self.start..).unwrap_or(&[]);
        let Some((header, tail)) = rest.split_at_checked(FRAME_HEADER) else { return Ok(None) };
        let mut r = Reader::new(header);
        let len = r.u32("frame length")? as usize;
        let kind = r.u16("frame type")?;
        let reserved = r.u16("frame reserved")?;
        if len > limit::FRAME {
            return Err(Error::new(Status::Protocol, format!("a frame of {len} bytes, at most {}", limit::FRAME)));
        }
        if reserved != 0 {
            return Err(Error::new(Status::Protocol, format!("frame reserved field is {reserved}, not 0")));
        }
        let Some(body) = tail.get(..len) else { return Ok(None) };
        let message = Message::decode(kind, body)?;
        self.start += FRAME_HEADER + len;
        // Keeps the consumed prefix from growing without bound.
        if self.start > 64 << 10 {
            self.buffer.drain(..self.start.min(self.buffer.len()));
            self.start = 0;
        }
        Ok(Some(message))
    }
}
