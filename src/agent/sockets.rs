//! Control sockets: framed messages in both directions, never blocking.

use crate::error::{Error, Result, Status};
use crate::transport::{Interest, Poller};
use crate::wire::{FrameDecoder, Message, Preamble, encode_frame};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

/// Bytes that may wait for a peer that does not read.
const MAX_UNSENT: usize = 256 << 20;

/// One control connection.
pub(super) struct Socket {
    stream: TcpStream,
    key: u64,
    decoder: FrameDecoder,
    unsent: Vec<u8>,
    sent: usize,
    waits_for_room: bool,
}

impl Socket {
    pub fn new(stream: TcpStream, key: u64, poller: &Poller) -> Result<Socket> {
        let fail = |e: std::io::Error| Error::new(Status::System, format!("preparing a socket: {e}"));
        stream.set_nonblocking(true).map_err(fail)?;
        stream.set_nodelay(true).map_err(fail)?;
        poller.add(&stream, key, Interest { read: true, write: false })?;
        let decoder = FrameDecoder::new();
        Ok(Socket { stream, key, decoder, unsent: Vec::new(), sent: 0, waits_for_room: false })
    }

    /// Queues raw bytes and sends what the kernel takes.
    pub fn send_bytes(&mut self, bytes: &[u8], poller: &Poller) -> Result<()> {
        if self.unsent.len() - self.sent + bytes.len() > MAX_UNSENT {
            let have = self.unsent.len() - self.sent;
            return Err(Error::new(Status::PeerDead, format!("the peer does not read: {have} bytes wait for it")));
        }
        self.unsent.extend_from_slice(bytes);
        self.flush(poller)
    }

    pub fn send(&mut self, message: &Message, poller: &Poller) -> Result<()> {
        self.send_bytes(&encode_frame(message), poller)
    }

    pub fn flush(&mut self, poller: &Poller) -> Result<()> {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(0) => return Err(gone("the connection takes no more data")),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(&e.to_string())),
            }
        }
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
        }
        let wait = !self.unsent.is_empty();
        if wait != self.waits_for_room {
            self.waits_for_room = wait;
            poller.modify(&self.stream, self.key, Interest { read: true, write: wait })?;
        }
        Ok(())
    }

    /// Reads what is there; whole messages go to `out`.
    pub fn receive(&mut self, buffer: &mut [u8], out: &mut Vec<Message>) -> Result<()> {
        // A bound, so that one busy peer does not starve the others; level-triggered readiness comes again.
        for _ in 0..16 {
            match self.stream.read(buffer) {
                Ok(0) => return Err(gone("the peer closed the connection")),
                Ok(n) => {
                    self.decoder.extend(&buffer[..n]);
                    while let Some(m) = self.decoder.next_message()? {
                        out.push(m);
                    }
                    if n < buffer.len() {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(&e.to_string())),
            }
        }
        Ok(())
    }

    pub fn close(self, poller: &Poller) {
        poller.remove(&self.stream);
        // The peer shall see the end even if a forked child holds a copy of the descriptor.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
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
