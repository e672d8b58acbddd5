//! Registrations with routers: their sockets, and the calls that begin and end them.

use super::Agent;
use super::stream::{Stream, Terms};
use crate::error::{Error, Result, Status};
use crate::proto::{Event, Id, Kind, Registration, RegistrationOutput, RouterArgs, Slab};
use crate::transport::{Poller, Ready};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Time for a connection to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Time that the kernel waits for a router to acknowledge what was sent: then its host is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
const TERMS: Terms = Terms { max_unsent: 64 << 10, lost: Status::Unreachable };
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
    stream: Option<Stream>,
    /// Nobody wants it any more.
    ended: bool,
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
        Ok(self.entries.insert(Entry { registration, stream: None, ended: false }))
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
                    RegistrationOutput::Send(bytes) => entry.send(now, &bytes, poller),
                    RegistrationOutput::Close => wishes.extend(entry.close(poller)),
                    RegistrationOutput::Event(e) => wishes.push(Wish::Tell(Event { id: id.0, ..e })),
                }
            }
        }
        wishes
    }

    /// A connection was made, or could not be; returns whether its descriptor is waited for under the key.
    pub fn connected(&mut self, now: Instant, id: Id, made: Result<TcpStream>, key: u64, poller: &Poller) -> bool {
        let Some(entry) = self.entries.get_mut(id).filter(|e| !e.ended) else { return false };
        match made.and_then(|socket| watched(socket, key, poller)) {
            Ok(stream) => {
                entry.stream = Some(stream);
                entry.registration.handle_connected(now);
                true
            }
            Err(e) => {
                entry.registration.handle_failed(now, e);
                false
            }
        }
    }

    pub fn on_ready(&mut self, id: Id, ready: Ready, buffer: &mut [u8], poller: &Poller) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let now = Instant::now();
        if ready.write {
            entry.send(now, &[], poller);
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
    fn send(&mut self, now: Instant, bytes: &[u8], poller: &Poller) {
        let sent = self.stream.as_mut().map_or(Ok(()), |s| s.send(bytes, poller));
        if let Err(e) = sent {
            self.registration.handle_failed(now, e);
        }
    }

    /// One buffer: level-triggered readiness comes again.
    fn receive(&mut self, now: Instant, buffer: &mut [u8]) {
        let Some(stream) = &mut self.stream else { return };
        match stream.read(buffer) {
            Ok(n) => self.registration.handle_bytes(now, buffer.get(..n).unwrap_or(buffer)),
            Err(e) => self.registration.handle_failed(now, e),
        }
    }

    fn close(&mut self, poller: &Poller) -> Option<Wish> {
        let stream = self.stream.take()?;
        let key = stream.key();
        stream.close(poller);
        Some(Wish::Forget(key))
    }
}

fn watched(socket: TcpStream, key: u64, poller: &Poller) -> Result<Stream> {
    rustix::net::sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED.as_millis() as u32)
        .map_err(|e| Error::new(Status::System, format!("TCP_USER_TIMEOUT: {e}")))?;
    Stream::new(socket, key, TERMS, poller)
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
