//! A worker that stands opposite vLLM's: its ports, its connections, and the thread that serves them.

use super::address;
use super::calls::PoisonOnUnwind;
use super::listener::Listener;
use super::stream::{Stream, Terms};
use super::{Agent, Shared};
use crate::error::{Error, Result, Status};
use crate::proto::{Id, LinkId, MORIIO_MESSAGE_MAX, Moriio, MoriioArgs, MoriioOutput, MoriioPort};
use crate::transport::{Interest, Poller, Ready};
use crate::wire::moriio::{Notify, PortRanks, port_of_rank};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Keys of the poller that are no connections.
const WAKE: u64 = u64::MAX;
const HANDSHAKE: u64 = u64::MAX - 1;
const NOTIFY: u64 = u64::MAX - 2;
/// Time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// What waits for a peer that does not read: some of the largest messages.
const TERMS: Terms = Terms { max_unsent: 16 * MORIIO_MESSAGE_MAX as usize, lost: Status::Unreachable };

/// What a worker is, and where it listens.
#[derive(Clone, Debug)]
pub struct MoriioConfig {
    /// What it is.
    pub args: MoriioArgs,
    /// Host to listen on.
    pub host: String,
    /// First handshake port of the instance; 0: nobody can ask.
    pub handshake_port: u16,
    /// First notify port of the instance; 0: nobody can tell.
    pub notify_port: u16,
    /// Which rank it is.
    pub ranks: PortRanks,
}

/// A worker that is open.
pub(super) struct Worker {
    inner: Arc<Inner>,
    thread: JoinHandle<()>,
}

struct Inner {
    shared: Arc<Shared>,
    max_events: usize,
    poller: Poller,
    stop: AtomicBool,
    listeners: Vec<Listener>,
    state: Mutex<State>,
    arrivals: Arc<Arrivals>,
}

/// What connecting threads bring back; they may outlive the worker.
struct Arrivals {
    made: Mutex<Vec<(LinkId, Result<TcpStream>)>>,
    wake: OwnedFd,
}

impl Arrivals {
    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn add(&self, link: LinkId, made: Result<TcpStream>) {
        self.made.lock().push((link, made));
        self.wake();
    }
}

struct State {
    moriio: Moriio,
    streams: BTreeMap<LinkId, Stream>,
}

impl Worker {
    fn open(shared: Arc<Shared>, config: MoriioConfig, remote: bool, max_events: usize, seed: u64) -> Result<Worker> {
        if config.args.handshake.is_some() != (config.handshake_port != 0) {
            let text = "a handshake and a handshake port are given together, or neither";
            return Err(Error::new(Status::InvalidArgument, text));
        }
        let poller = Poller::new()?;
        let mut listeners = Vec::new();
        for (key, base) in [(HANDSHAKE, config.handshake_port), (NOTIFY, config.notify_port)] {
            if base != 0 {
                let port = port_of_rank(base, config.ranks)?;
                let socket = address::listen_at(&format!("{}:{port}", config.host), remote)?;
                listeners.push(Listener::new(socket, key, &poller)?);
            }
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::new(Status::System, format!("eventfd: {e}")))?;
        poller.add(&wake, WAKE, Interest { read: true, write: false })?;
        let state = State { moriio: Moriio::new(config.args, seed), streams: BTreeMap::new() };
        let inner = Arc::new(Inner {
            shared,
            max_events,
            poller,
            stop: AtomicBool::new(false),
            listeners,
            state: Mutex::new(state),
            arrivals: Arc::new(Arrivals { made: Mutex::default(), wake }),
        });
        let here = inner.clone();
        let thread = std::thread::Builder::new()
            .name("kvlink-moriio".into())
            .spawn(move || here.run())
            .map_err(|e| Error::new(Status::System, format!("starting the thread of a worker: {e}")))?;
        Ok(Worker { inner, thread })
    }

    /// Ends it. A fork has no thread to wait for: there it is only forgotten.
    pub fn close(self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        self.inner.arrivals.wake();
        let _ = self.thread.join();
    }

    /// Begins an exchange, or ends one.
    fn begin<T>(&self, call: impl FnOnce(&mut Moriio, Instant) -> Result<T>) -> Result<T> {
        let done = call(&mut self.inner.state.lock().moriio, Instant::now())?;
        self.inner.arrivals.wake();
        Ok(done)
    }
}

impl Inner {
    /// The thread. A panic poisons the agent instead of ending the process.
    fn run(self: Arc<Inner>) {
        let poison = PoisonOnUnwind(&self.shared);
        let served = self.serve();
        std::mem::forget(poison);
        if let Err(e) = served {
            log::error!("kvlink: a worker's thread ended: {e}");
            self.shared.poisoned.store(true, Ordering::SeqCst);
            self.shared.wake();
        }
        let mut state = self.state.lock();
        state.moriio.shut_down();
        self.carry_out(&mut state);
        std::mem::take(&mut state.streams).into_values().for_each(|s| s.close(&self.poller));
    }

    fn serve(self: &Arc<Inner>) -> Result<()> {
        let (mut ready, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let mut state = self.state.lock();
            for (link, made) in std::mem::take(&mut *self.arrivals.made.lock()) {
                self.on_connected(&mut state, link, made);
            }
            for r in &ready {
                self.on_ready(&mut state, *r, &mut buffer);
            }
            let now = Instant::now();
            state.moriio.handle_timeout(now);
            self.carry_out(&mut state);
            self.listeners.iter().for_each(|l| l.handle_timeout(now, &self.poller));
            let due = self.listeners.iter().filter_map(Listener::due).chain(state.moriio.poll_timeout()).min();
            let timeout = due.map(|at| at.saturating_duration_since(now));
            drop(state);
            // After wake-ups were taken: whoever stops us wakes us then.
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.poller.wait(timeout, &mut ready)?;
        }
    }

    fn on_ready(&self, state: &mut State, ready: Ready, buffer: &mut [u8]) {
        match ready.key {
            WAKE => drop(rustix::io::read(&self.arrivals.wake, &mut [0u8; 8])),
            HANDSHAKE => self.accept(state, HANDSHAKE, MoriioPort::Handshake),
            NOTIFY => self.accept(state, NOTIFY, MoriioPort::Notify),
            key => {
                let link = LinkId(key);
                let Some(stream) = state.streams.get_mut(&link) else { return };
                let now = Instant::now();
                let room = if ready.write { stream.flush(&self.poller) } else { Ok(()) };
                let read = room.and_then(|()| if ready.read { stream.read(buffer) } else { Ok(0) });
                match read {
                    Ok(_) if self.shared.queue.len() >= self.max_events && state.moriio.is_caller(link) => {
                        let text = format!("{} events wait for the engine, no more is heard", self.max_events);
                        log::warn!("kvlink: a connection of a worker was closed: {text}");
                        state.moriio.handle_failed(now, link, Error::new(Status::Limit, text));
                    }
                    Ok(n) => state.moriio.handle_bytes(now, link, buffer.get(..n).unwrap_or_default()),
                    Err(e) => state.moriio.handle_failed(now, link, e),
                }
                self.carry_out(state);
            }
        }
    }

    fn accept(&self, state: &mut State, key: u64, port: MoriioPort) {
        let Some(listener) = self.listeners.iter().find(|l| l.key() == key) else { return };
        while let Some(socket) = listener.accept(Instant::now(), &self.poller) {
            let Some(link) = state.moriio.handle_accepted(Instant::now(), port) else {
                log::warn!("kvlink: a worker has too many connections, one was closed");
                continue;
            };
            self.add(state, link, socket);
            self.carry_out(state);
        }
    }

    fn on_connected(&self, state: &mut State, link: LinkId, made: Result<TcpStream>) {
        match made {
            Ok(socket) => {
                if self.add(state, link, socket) {
                    state.moriio.handle_connected(Instant::now(), link);
                }
            }
            Err(e) => state.moriio.handle_failed(Instant::now(), link, e),
        }
        self.carry_out(state);
    }

    fn add(&self, state: &mut State, link: LinkId, socket: TcpStream) -> bool {
        match Stream::new(socket, link.0, TERMS, &self.poller) {
            Ok(stream) => {
                state.streams.insert(link, stream);
                true
            }
            Err(e) => {
                state.moriio.handle_failed(Instant::now(), link, e);
                false
            }
        }
    }

    fn carry_out(&self, state: &mut State) {
        while let Some(output) = state.moriio.poll_output() {
            match output {
                MoriioOutput::Connect(link, address) => self.connect(link, address),
                MoriioOutput::Send(link, bytes) => {
                    let sent = state.streams.get_mut(&link).map_or(Ok(()), |s| s.send(&bytes, &self.poller));
                    if let Err(e) = sent {
                        state.moriio.handle_failed(Instant::now(), link, e);
                    }
                }
                MoriioOutput::Close(link) => {
                    if let Some(stream) = state.streams.remove(&link) {
                        stream.close(&self.poller);
                    }
                }
                MoriioOutput::Event(e) => self.shared.queue.push(e),
            }
        }
    }

    /// On a thread of its own: names are resolved, and both can block for seconds.
    fn connect(&self, link: LinkId, address: String) {
        let arrivals = self.arrivals.clone();
        let made = std::thread::Builder::new()
            .name("kvlink-connect".into())
            .spawn(move || arrivals.add(link, address::connect(&address, CONNECT)));
        if let Err(e) = made {
            let e = Error::new(Status::System, format!("starting a thread to connect: {e}"));
            self.arrivals.add(link, Err(e));
        }
    }
}

impl Agent {
    /// Opens the one worker that an agent can be opposite vLLM's.
    ///
    /// # Errors
    /// [`Status::WrongState`] (it is open), [`Status::Address`], [`Status::InvalidArgument`], [`Status::System`].
    pub fn open_moriio(&self, config: MoriioConfig) -> Result<()> {
        self.check()?;
        let mut worker = self.moriio.lock();
        if worker.is_some() {
            return Err(Error::new(Status::WrongState, "a worker is open already"));
        }
        *worker = Some(Worker::open(self.shared.clone(), config, self.remote, self.max_events, super::incarnation()?)?);
        Ok(())
    }

    /// Closes it: what is under way ends with its event, and nothing comes afterwards.
    ///
    /// # Errors
    /// [`Status::WrongState`]: none is open.
    pub fn close_moriio(&self) -> Result<()> {
        self.check()?;
        let worker = self.moriio.lock().take();
        worker.map(Worker::close).ok_or_else(closed)
    }

    /// Asks a worker of vLLM who it is; see [`Moriio::meet`].
    ///
    /// # Errors
    /// [`Status::WrongState`] (no worker is open), and those of [`Moriio::meet`].
    pub fn meet_moriio(&self, address: &str, timeout: Duration, user_data: u64) -> Result<Id> {
        self.check()?;
        let worker = self.moriio.lock();
        worker.as_ref().ok_or_else(closed)?.begin(|m, now| m.meet(now, address, timeout, user_data))
    }

    /// Ends an exchange early; see [`Moriio::cancel`].
    pub(super) fn cancel_moriio(&self, id: Id) -> Result<()> {
        self.check()?;
        let stale = || Error::new(Status::BadHandle, format!("exchange {:#x} has ended with its worker", id.0));
        self.moriio.lock().as_ref().ok_or_else(stale)?.begin(|m, _| m.cancel(id))
    }

    /// Tells a worker of vLLM something; see [`Moriio::send`].
    ///
    /// # Errors
    /// [`Status::WrongState`] (no worker is open), and those of [`Moriio::send`].
    pub fn send_moriio(&self, address: &str, message: &Notify, timeout: Duration, user_data: u64) -> Result<Id> {
        self.check()?;
        let worker = self.moriio.lock();
        worker.as_ref().ok_or_else(closed)?.begin(|m, now| m.send(now, address, message, timeout, user_data))
    }
}

fn closed() -> Error {
    Error::new(Status::WrongState, "no worker is open")
}
