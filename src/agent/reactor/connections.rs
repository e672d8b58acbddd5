//! The connections of a reactor: those that come, those that it makes, and which of them the endpoint, the transports and
//! the registrations get.

use super::{Reactor, Who};
use crate::agent::address;
use crate::agent::net::Connected;
use crate::agent::router::{self, Wish};
use crate::agent::sockets::{Socket, Visitor};
use crate::error::{Error, Result, Status};
use crate::proto::ConnId;
use crate::transport::Interest;
use crate::wire::{Preamble, StreamKind};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Accepted connections that have not introduced themselves.
const MAX_VISITORS: usize = 256;
/// Time they have for it.
const VISITOR_TIME: Duration = Duration::from_secs(10);
/// Data connections of a link that is not made yet: as many as any transport asks for.
const MAX_EARLY: usize = 64;

impl Reactor {
    pub(super) fn accept(&mut self) {
        while let Some(stream) = self.listener.accept(Instant::now(), &self.poller) {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.visitors.len() >= MAX_VISITORS {
                // The one that has been silent longest: who means it speaks at once.
                let oldest = self.visitors.iter().min_by_key(|(_, v)| v.since).map(|(k, _)| *k);
                oldest.and_then(|k| self.forget_visitor(k));
            }
            let key = self.key(Who::Visitor);
            if self.poller.add(&stream, key, Interest { read: true, write: false }).is_ok() {
                self.visitors.insert(key, Visitor::new(stream, Instant::now()));
            }
        }
    }

    fn forget_visitor(&mut self, key: u64) -> Option<Visitor> {
        self.keys.remove(&key);
        let visitor = self.visitors.remove(&key)?;
        self.poller.remove(&visitor.stream);
        Some(visitor)
    }

    pub(super) fn serve_visitor(&mut self, key: u64) {
        let Some(visitor) = self.visitors.get_mut(&key) else { return };
        let preamble = match visitor.read() {
            Ok(None) => return,
            Ok(Some(p)) => p,
            Err(e) => {
                log::debug!("kvlink: a connection was dropped: {e}");
                self.forget_visitor(key);
                return;
            }
        };
        let Some(visitor) = self.forget_visitor(key) else { return };
        match preamble.0 {
            StreamKind::Control => {
                let accepted = self.shared.endpoint.lock().handle_accepted(Instant::now());
                match accepted {
                    Ok(conn) => self.add_socket(conn, visitor.stream, None),
                    Err(e) => log::warn!("kvlink: a connection was refused: {e}"),
                }
            }
            StreamKind::Data { token } => match self.tokens.get(&token).copied() {
                Some(conn) if self.transports.has_link(conn) => self.attach(conn, visitor.stream),
                Some(conn) if self.early.get(&conn).is_some_and(|e| e.len() >= MAX_EARLY) => {
                    log::warn!("kvlink: a data connection beyond {MAX_EARLY} that came before their link was dropped");
                }
                Some(conn) => self.early.entry(conn).or_default().push(visitor.stream),
                None => log::warn!("kvlink: a data connection with an unknown token was dropped"),
            },
        }
    }

    pub(super) fn attach(&mut self, conn: ConnId, stream: TcpStream) {
        if let Err(e) = self.transports.attach(conn, stream) {
            self.lose(conn, e);
        }
    }

    fn add_socket(&mut self, conn: ConnId, stream: TcpStream, preamble: Option<Preamble>) {
        let key = self.key(Who::Socket(conn));
        let made = Socket::new(stream, key, &self.poller).and_then(|mut s| {
            preamble.map_or(Ok(()), |p| s.introduce(&p, &self.poller))?;
            Ok(s)
        });
        match made {
            Ok(socket) => {
                self.sockets.insert(conn, socket);
            }
            Err(e) => self.lose(conn, e),
        }
    }

    /// When the first visitor's time is over.
    pub(super) fn visitors_due(&self) -> Option<Instant> {
        self.visitors.values().map(|v| v.since + VISITOR_TIME).min()
    }

    pub(super) fn dismiss_late_visitors(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .visitors
            .iter()
            .filter(|(_, v)| now.saturating_duration_since(v.since) >= VISITOR_TIME)
            .map(|(k, _)| *k)
            .collect();
        for key in late {
            self.forget_visitor(key);
        }
    }

    /// Names are resolved and connections made on a thread of their own: both can block for seconds.
    pub(super) fn connect<T>(
        &self,
        make: impl FnOnce() -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) -> Connected + Clone + Send + 'static,
    ) {
        let shared = self.shared.clone();
        let report = move |made| {
            shared.inbox.lock().connected.push(done(made));
            shared.wake();
        };
        let here = report.clone();
        if let Err(e) = std::thread::Builder::new().name("kvlink-connect".into()).spawn(move || report(make())) {
            here(Err(Error::new(Status::System, format!("starting a thread to connect: {e}"))));
        }
    }

    /// Opens the data connections of a link.
    pub(super) fn open_streams(&self, conn: ConnId, address: String, token: u64) {
        let (count, timeout) = (self.transports.streams(conn), self.connect_timeout);
        let nth = move |i: usize| format!("data connection {} of {count}", i + 1);
        self.connect(
            move || (0..count).map(|i| open_stream(&address, token, timeout).map_err(|e| e.within(nth(i)))).collect(),
            move |made| Connected::Data(conn, made),
        );
    }

    pub(super) fn on_connected(&mut self, c: Connected) {
        let now = Instant::now();
        match c {
            Connected::Control(conn, Ok(stream)) => {
                self.add_socket(conn, stream, Some(Preamble(StreamKind::Control)));
                if self.sockets.contains_key(&conn) && !self.shared.endpoint.lock().handle_connected(now, conn) {
                    self.close(conn);
                }
            }
            Connected::Control(conn, Err(e)) => self.shared.endpoint.lock().handle_closed(now, conn, e),
            Connected::Router(id, made) => {
                let key = self.key(Who::Router(id));
                let shared = self.shared.clone();
                if !shared.routers.lock().connected(now, id, made, key, &self.poller) {
                    self.keys.remove(&key);
                }
            }
            Connected::Data(conn, made) => {
                let attached = made.and_then(|all| all.into_iter().try_for_each(|s| self.transports.attach(conn, s)));
                self.shared.endpoint.lock().handle_stream(now, conn, attached);
            }
        }
    }

    /// Beats that are due, and what follows from what came; returns when the next is.
    pub(super) fn serve_routers(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared.clone();
        let mut routers = shared.routers.lock();
        for wish in routers.turn(now, &self.poller) {
            match wish {
                Wish::Connect(id, address) => self.connect(
                    move || address::connect(&address, router::CONNECT),
                    move |made| Connected::Router(id, made),
                ),
                Wish::Forget(key) => drop(self.keys.remove(&key)),
                Wish::Tell(e) => self.tell(e),
            }
        }
        routers.poll_timeout()
    }
}

/// A data connection, its preamble sent.
fn open_stream(address: &str, token: u64, timeout: Duration) -> Result<TcpStream> {
    let mut stream = address::connect(address, timeout)?;
    let fail = |e: std::io::Error| Error::new(Status::Unreachable, format!("{address}: {e}"));
    stream.write_all(&Preamble(StreamKind::Data { token }).encode()).map_err(fail)?;
    Ok(stream)
}
