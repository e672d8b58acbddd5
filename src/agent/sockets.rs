//! Control sockets: framed messages in both directions, never blocking.

use super::stream::{Stream, Terms};
use crate::error::{Error, Result, Status};
use crate::transport::Poller;
use crate::wire::{FrameDecoder, Message, Preamble, encode_frame};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;

const TERMS: Terms = Terms { max_unsent: 256 << 20, lost: Status::PeerDead };

/// One control connection.
pub(super) struct Socket {
    stream: Stream,
    decoder: FrameDecoder,
}

impl Socket {
    pub fn new(stream: TcpStream, key: u64, poller: &Poller) -> Result<Socket> {
        Ok(Socket { stream: Stream::new(stream, key, TERMS, poller)?, decoder: FrameDecoder::new() })
    }

    pub fn introduce(&mut self, preamble: &Preamble, poller: &Poller) -> Result<()> {
        self.stream.send(&preamble.encode(), poller)
    }

    pub fn send(&mut self, message: &Message, poller: &Poller) -> Result<()> {
        self.stream.send(&encode_frame(message), poller)
    }

    pub fn flush(&mut self, poller: &Poller) -> Result<()> {
        self.stream.flush(poller)
    }

    /// Reads what is there; whole messages go to `out`.
    pub fn receive(&mut self, buffer: &mut [u8], out: &mut Vec<Message>) -> Result<()> {
        // A bound, so that one busy peer does not starve the others; level-triggered readiness comes again.
        for _ in 0..16 {
            let n = self.stream.read(buffer)?;
            self.decoder.extend(buffer.get(..n).unwrap_or(buffer));
            while let Some(m) = self.decoder.next_message()? {
                out.push(m);
            }
            if n < buffer.len() {
                break;
            }
        }
        Ok(())
    }

    pub fn close(self, poller: &Poller) {
        self.stream.close(poller);
    }
}

fn gone(why: &str) -> Error {
    Error::new(Status::PeerDead, why)
}

/// An accepted connection that has not said what it is.
pub(super) struct Visitor {
    pub stream: TcpStream,
    pub since: std::time::Instant,
    got: Vec<u8>,
}

impl Visitor {
    pub fn new(stream: TcpStream, since: std::time::Instant) -> Visitor {
        Visitor { stream, since, got: Vec::with_capacity(Preamble::LEN) }
    }

    /// Reads towards the preamble, and not one byte further: what follows belongs to whoever takes the connection.
    pub fn read(&mut self) -> Result<Option<Preamble>> {
        let mut buffer = [0u8; Preamble::LEN];
        while self.got.len() < Preamble::LEN {
            let want = Preamble::LEN - self.got.len();
            match self.stream.read(&mut buffer[..want]) {
                Ok(0) => return Err(gone("closed before its preamble")),
                Ok(n) => self.got.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(&e.to_string())),
            }
        }
        Preamble::decode(&self.got).map(Some)
    }
}
