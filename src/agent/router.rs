//! Registrations with routers: their sockets, and the calls that begin and end them.

use super::Agent;
use crate::error::{Error, Result, Status};
use crate::proto::{Event, Id, Kind, Registration, RegistrationOutput, RouterArgs, Slab};
use crate::transport::{Interest, Poller, Ready};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Time for a connection to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Time that the kernel waits for a router to acknowledge what was sent: then its host is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// Bytes that may wait for a router that does not read.
const MAX_UNSENT: usize = 64 << 10;
/// Registrations of one agent.
const MAX: usize = 64;

/// What the reactor does for a registration.
pub(super) enum Wish {
    Connect(Id, String),
    /// The descriptor of this key is closed.
    Forget(u64),
    Tell(Event),
}

/// All registrations of an agent.
pub(super) struct Routers {
    life: u64,
    begun: u64,
    entries: Slab<Entry>,
}

struct Entry {
    registration: Registration,
    link: Option<Link>,
    /// Nobody wants it any more.
    ended: bool,
}

struct Link {
    stream: TcpStream,
    key: u64,
    unsent: Vec<u8>,
    waits_for_room: bool,
}

impl Routers {
    pub fn new(life: u64) -> Routers {
        Routers { life, begun: 0, entries: Slab::new(Kind::Registration, life) }
    }

    fn attach(&mut self, now: Instant, args: RouterArgs) -> Result<Id> {
        if self.entries.len() >= MAX {
            return Err(Error::new(Status::Limit, format!("{MAX} registrations are held, no more are taken")));
        }
        self.begun += 1;
        let name = format!("kvlink {} {:x}.{}", args.register.http_address, self.life, self.begun);
        let registration = Registration::new(now, args, name)?;
        Ok(self.entries.insert(Entry { registration, link: None, ended: false }))
    }

    fn detach(&mut self, id: Id) -> Result<()> {
        match self.entries.get_mut(id) {
            Some(e) if !e.ended => {
                e.ended = true;
                Ok(())
            }
            _ => Err(Error::new(
                Status::BadHandle,
                format!("registration {:#x} is stale, foreign or never was one", id.0),
            )),
        }
    }

    /// When a turn is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|(_, e)| e.registration.poll_timeout()).min()
    }

    /// Carries out what is due; returns what only the reactor can do.
    pub fn turn(&mut self, now: Instant, poller: &Poller) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for id in self.entries.ids() {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            if entry.ended {
                wishes.extend(entry.close(poller));
                self.entries.remove(id);
                continue;
            }
            entry.registration.handle_timeout(now);
            while let Some(output) = entry.registration.poll_output() {
                match output {
                    RegistrationOutput::Connect => {
                        wishes.push(Wish::Connect(id, entry.registration.args().address().to_string()));
                    }
                    RegistrationOutput::Send(bytes) => entry.send(now, &bytes),
                    RegistrationOutput::Close => wishes.extend(entry.close(poller)),
                    RegistrationOutput::Event(e) => wishes.push(Wish::Tell(Event { id: id.0, ..e })),
                }
            }
            entry.wait_for_room(poller);
        }
        wishes
    }

    /// A connection was made, or could not be; returns whether its descriptor is waited for under the key.
    pub fn connected(&mut self, now: Instant, id: Id, made: Result<TcpStream>, key: u64, poller: &Poller) -> bool {
        let Some(entry) = self.entries.get_mut(id).filter(|e| !e.ended) else { return false };
        match made.and_then(|stream| Link::new(stream, key, poller)) {
            Ok(link) => {
                entry.link = Some(link);
                entry.registration.handle_connected(now);
                true
            }
            Err(e) => {
                entry.registration.handle_failed(now, e);
                false
            }
        }
    }

    pub fn on_ready(&mut self, id: Id, ready: Ready, buffer: &mut [u8]) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let now = Instant::now();
        if ready.write {
            entry.send(now, &[]);
        }
        if ready.read {
            entry.receive(now, buffer);
        }
    }

    /// Closes all connections.
    pub fn hang_up(&mut self, poller: &Poller) {
        for id in self.entries.ids() {
            self.entries.get_mut(id).and_then(|e| e.close(poller));
        }
    }
}

impl Entry {
    /// Queues bytes and sends what the kernel takes.
    fn send(&mut self, now: Instant, bytes: &[u8]) {
        let sent = self.link.as_mut().map_or(Ok(()), |l| l.send(bytes));
        if let Err(e) = sent {
            self.registration.handle_failed(now, e);
        }
    }

    /// One buffer: level-triggered readiness comes again.
    fn receive(&mut self, now: Instant, buffer: &mut [u8]) {
        let Some(link) = &mut self.link else { return };
        match link.stream.read(buffer) {
            Ok(0) => self.registration.handle_failed(now, gone("it closed the connection")),
            Ok(n) => self.registration.handle_bytes(now, buffer.get(..n).unwrap_or(buffer)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => self.registration.handle_failed(now, gone(&e.to_string())),
        }
    }

    fn wait_for_room(&mut self, poller: &Poller) {
        let Some(link) = &mut self.link else { return };
        let wait = !link.unsent.is_empty();
        if wait != link.waits_for_room {
            link.waits_for_room = wait;
            if let Err(e) = poller.modify(&link.stream, link.key, Interest { read: true, write: wait }) {
                log::error!("kvlink: waiting for a router to read: {e}");
            }
        }
    }

    fn close(&mut self, poller: &Poller) -> Option<Wish> {
        let link = self.link.take()?;
        poller.remove(&link.stream);
        // The router shall see the end even if a forked child holds a copy of the descriptor.
        let _ = link.stream.shutdown(Shutdown::Both);
        Some(Wish::Forget(link.key))
    }
}

impl Link {
    fn new(stream: TcpStream, key: u64, poller: &Poller) -> Result<Link> {
        let fail = |what: &str, e: std::io::Error| Error::new(Status::System, format!("{what}: {e}"));
        stream.set_nonblocking(true).map_err(|e| fail("O_NONBLOCK", e))?;
        stream.set_nodelay(true).map_err(|e| fail("TCP_NODELAY", e))?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED.as_millis() as u32)
            .map_err(|e| fail("TCP_USER_TIMEOUT", e.into()))?;
        poller.add(&stream, key, Interest { read: true, write: false })?;
        Ok(Link { stream, key, unsent: Vec::new(), waits_for_room: false })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.unsent.extend_from_slice(bytes);
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(gone("the connection takes no more data")),
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(&e.to_string())),
            }
        }
        match self.unsent.len() {
            n if n > MAX_UNSENT => Err(gone(&format!("it does not read: {n} bytes wait for it"))),
            _ => Ok(()),
        }
    }
}

fn gone(why: &str) -> Error {
    Error::new(Status::Unreachable, why)
}

impl Agent {
    /// Registers this instance with a router and keeps it registered until [`Agent::detach_router`]; see
    /// [`Registration`].
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field, [`Status::Limit`].
    pub fn attach_router(&self, args: RouterArgs) -> Result<Id> {
        self.check()?;
        let id = self.shared.routers.lock().attach(Instant::now(), args)?;
        self.shared.wake();
        Ok(id)
    }

    /// Ends a registration: the router forgets the instance when its time to live is over.
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn detach_router(&self, id: Id) -> Result<()> {
        self.check()?;
        self.shared.routers.lock().detach(id)?;
        self.shared.wake();
        Ok(())
    }
}
