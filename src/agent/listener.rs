//! A listening socket, left alone for a while when it cannot accept: it stays readable then, and would be looked at for ever.

use crate::error::Result;
use crate::transport::{Interest, Poller};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Time after which a connection that could not be taken, for lack of descriptors, is tried again.
const REST: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    socket: TcpListener,
    key: u64,
    /// It is not in the poller until then.
    rests: Mutex<Option<Instant>>,
}

impl Listener {
    /// The poller says under `key` when there is a connection.
    pub fn new(socket: TcpListener, key: u64, poller: &Poller) -> Result<Listener> {
        poller.add(&socket, key, Interest { read: true, write: false })?;
        Ok(Listener { socket, key, rests: Mutex::new(None) })
    }

    pub fn key(&self) -> u64 {
        self.key
    }

    /// The next connection that was made.
    pub fn accept(&self, now: Instant, poller: &Poller) -> Option<TcpStream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) => {
                    log::warn!("kvlink: a connection cannot be accepted: {e}");
                    poller.remove(&self.socket);
                    *self.rests.lock() = Some(now + REST);
                    return None;
                }
            }
        }
    }

    /// When [`Listener::handle_timeout`] is due.
    pub fn due(&self) -> Option<Instant> {
        *self.rests.lock()
    }

    /// Looks for connections again, if it is time.
    pub fn handle_timeout(&self, now: Instant, poller: &Poller) {
        let mut rests = self.rests.lock();
        if rests.is_some_and(|until| until <= now) {
            let again = poller.add(&self.socket, self.key, Interest { read: true, write: false });
            *rests = again.is_err().then(|| now + REST);
        }
    }

    /// Nobody can connect any more, even if a forked child holds a copy of the descriptor.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_accept_is_left_alone_and_tried_again() {
        let poller = Poller::new().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = Listener::new(socket, 7, &poller).unwrap();
        let (mut ready, now) = (Vec::new(), Instant::now());
        let mut looked_at = |within: Duration| {
            poller.wait(Some(within), &mut ready).unwrap();
            ready.iter().any(|r| r.key == 7)
        };
        // Readable for ever, and nothing to be accepted.
        listener.close();
        assert!(looked_at(Duration::from_secs(10)));
        assert!(listener.accept(now, &poller).is_none());
        let due = listener.due().unwrap();
        listener.handle_timeout(now, &poller);
        assert!(!looked_at(Duration::ZERO));
        listener.handle_timeout(due, &poller);
        assert_eq!(listener.due(), None);
        assert!(looked_at(Duration::from_secs(10)));
    }
}
