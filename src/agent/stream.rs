//! A connected socket that never blocks: what its peer does not read yet waits here.

use crate::error::{Error, Result, Status};
use crate::transport::{Interest, Poller};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// What users of a stream differ in.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Bytes that may wait for a peer that does not read.
    pub max_unsent: usize,
    /// What the loss of the connection means.
    pub lost: Status,
}

/// A stream that a poller watches.
pub(super) struct Stream {
    socket: TcpStream,
    key: u64,
    terms: Terms,
    unsent: Vec<u8>,
    sent: usize,
    waits_for_room: bool,
}

impl Stream {
    /// Takes a connected socket; the poller says under `key` when it can be read, or written to while bytes wait.
    pub fn new(socket: TcpStream, key: u64, terms: Terms, poller: &Poller) -> Result<Stream> {
        let fail = |e: std::io::Error| Error::new(Status::System, format!("preparing a socket: {e}"));
        socket.set_nonblocking(true).map_err(fail)?;
        socket.set_nodelay(true).map_err(fail)?;
        poller.add(&socket, key, Interest { read: true, write: false })?;
        Ok(Stream { socket, key, terms, unsent: Vec::new(), sent: 0, waits_for_room: false })
    }

    pub fn key(&self) -> u64 {
        self.key
    }

    /// Queues bytes and sends what the kernel takes.
    pub fn send(&mut self, bytes: &[u8], poller: &Poller) -> Result<()> {
        let wait = self.unsent.len() - self.sent;
        if wait + bytes.len() > self.terms.max_unsent {
            return Err(self.lost(&format!("the peer does not read: {wait} bytes wait for it")));
        }
        self.unsent.extend_from_slice(bytes);
        self.flush(poller)
    }

    /// Sends what waits, as far as the kernel takes it.
    pub fn flush(&mut self, poller: &Poller) -> Result<()> {
        while let Some(rest @ [_, ..]) = self.unsent.get(self.sent..) {
            match self.socket.write(rest) {
                Ok(0) => return Err(self.lost("the connection takes no more data")),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(&e.to_string())),
            }
        }
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
        }
        let wait = !self.unsent.is_empty();
        if wait != self.waits_for_room {
            self.waits_for_room = wait;
            poller.modify(&self.socket, self.key, Interest { read: true, write: wait })?;
        }
        Ok(())
    }

    /// Reads what is there, a buffer at most; 0: nothing at present.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self.socket.read(buffer) {
            Ok(0) => Err(self.lost("the peer closed the connection")),
            Ok(n) => Ok(n),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(e) => Err(self.lost(&e.to_string())),
        }
    }

    /// Closes it for the peer as well, even if a forked child holds a copy of the descriptor.
    pub fn close(self, poller: &Poller) {
        poller.remove(&self.socket);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn lost(&self, why: &str) -> Error {
        Error::new(self.terms.lost, why)
    }
}
