//! The reactor: carries out what the endpoint wants, and tells it what happened. One thread at a time drives it
//! (`driver.rs`).

use super::config::AgentConfig;
use super::net::{Connected, Order};
use super::router::{self, Wish};
use super::sockets::{Socket, Visitor};
use super::transports::Transports;
use super::{Shared, address};
use crate::error::{Error, Result, Status};
use crate::memory::{Memory, SharedMemory};
use crate::proto::{Action, ConnId, Event, EventKind, Id, JobEnd, JobId, Output};
use crate::transport::{self, Done, Interest, Job, LinkId, Poller, Ready};
use crate::wire::{BOARD_BYTES, BOARD_REGION, Message, Preamble, StreamKind};
use std::collections::HashMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes that transports move before sockets and timers are looked at again.
pub(super) const SLICE: u64 = 1 << 20;
/// Accepted connections that have not introduced themselves.
const MAX_VISITORS: usize = 256;
/// Time they have for it.
const VISITOR_TIME: Duration = Duration::from_secs(10);
/// Data connections of a link that is not made yet: as many as any transport asks for.
const MAX_EARLY: usize = 64;
pub(super) struct Reactor {
    shared: Arc<Shared>,
    poller: Arc<Poller>,
    listener: TcpListener,
    transports: Transports,
    sockets: HashMap<ConnId, Socket>,
    keys: HashMap<u64, Who>,
    next_key: u64,
    visitors: HashMap<u64, Visitor>,
    /// Tokens of data connections that may come, and those that came before their link was made.
    tokens: HashMap<u64, ConnId>,
    early: HashMap<ConnId, Vec<TcpStream>>,
    /// Shows peers which of our leases hold.
    board: Arc<SharedMemory>,
    connect_timeout: Duration,
    max_events: usize,
    /// Notifications that are on their way to the queue.
    untold: usize,
    address: String,
    buffer: Vec<u8>,
    outputs: Vec<Output>,
    done: Vec<Done>,
    /// Messages that events overtake.
    held: Vec<(ConnId, Message)>,
    told: bool,
    more: bool,
    due: Option<Instant>,
}

/// Whether an engine waits for the end of the turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    Yes,
    No,
}

#[derive(Clone, Copy)]
enum Who {
    Listener,
    Socket(ConnId),
    Visitor,
    Router(Id),
}

impl Reactor {
    pub fn new(
        shared: Arc<Shared>,
        poller: Arc<Poller>,
        listener: TcpListener,
        mut transports: Transports,
        config: &AgentConfig,
    ) -> Result<Reactor> {
        let board = Arc::new(SharedMemory::allocate(BOARD_BYTES)?);
        transports.register(BOARD_REGION, &Memory::shared(board.clone()))?;
        let base = transports.keys();
        let only_read = Interest { read: true, write: false };
        poller.add(&listener, base, only_read)?;
        poller.add(&shared.wake, base + 1, only_read)?;
        let address = address::published(&listener, config)?;
        Ok(Reactor {
            shared,
            poller,
            listener,
            transports,
            sockets: HashMap::new(),
            keys: HashMap::from([(base, Who::Listener)]),
            next_key: base + 2,
            visitors: HashMap::new(),
            tokens: HashMap::new(),
            early: HashMap::new(),
            board,
            connect_timeout: config.endpoint.handshake_timeout,
            max_events: config.max_events,
            untold: 0,
            address,
            buffer: vec![0; 64 << 10],
            outputs: Vec::new(),
            done: Vec::new(),
            held: Vec::new(),
            told: false,
            more: false,
            due: None,
        })
    }

    /// One turn: what is ready, what callers left, timers, and a slice of the data.
    ///
    /// With `haste`, messages that an event has overtaken are left to the next turn: sending wakes the other side, which
    /// takes longer than a small transfer, and the engine waits for its event.
    pub fn turn(&mut self, ready: &[Ready], budget: u64, haste: Haste) -> Result<()> {
        self.on_ready(ready);
        let called = self.shared.pending.swap(false, Ordering::SeqCst);
        if called {
            self.take_inbox();
        }
        let now = Instant::now();
        if called || self.more || !ready.is_empty() || self.due.is_some_and(|at| at <= now) {
            self.told = false;
            self.pump(haste);
            self.more = self.move_data(ready, budget)?;
            // What follows from ended jobs may have to be moved, or reported by the transports.
            self.more |= self.pump(haste);
            if !self.told || haste == Haste::No {
                self.send_held();
            }
            self.more |= !self.held.is_empty();
            let beat = self.serve_routers(now);
            let timer = self.shared.endpoint.lock().poll_timeout();
            let visitors = (!self.visitors.is_empty()).then(|| now + VISITOR_TIME);
            self.due = [timer, visitors, beat].into_iter().flatten().min();
        }
        Ok(())
    }

    /// It would go on at once.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// When it has to go on at the latest.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends everything: afterwards nothing touches registered memory, and peers see the end of their connections. Closing
    /// alone is not enough for that: a forked child has copies of the descriptors.
    pub fn hang_up(&mut self) {
        if std::panic::catch_unwind(AssertUnwindSafe(|| self.transports.close())).is_err() {
            log::error!("kvlink: closing the transports panicked");
        }
        for (_, socket) in self.sockets.drain() {
            socket.close(&self.poller);
        }
        self.shared.routers.lock().hang_up(&self.poller);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }

    /// Timers, then outputs until there are none; returns whether there were any.
    fn pump(&mut self, haste: Haste) -> bool {
        let mut worked = false;
        let now = Instant::now();
        self.shared.endpoint.lock().handle_timeout(now);
        loop {
            let mut outputs = std::mem::take(&mut self.outputs);
            {
                let mut endpoint = self.shared.endpoint.lock();
                while let Some(o) = endpoint.poll_output() {
                    outputs.push(o);
                }
            }
            if outputs.is_empty() {
                self.outputs = outputs;
                self.untold = 0;
                return worked;
            }
            worked = true;
            for o in outputs.drain(..) {
                match o {
                    Output::Send { conn, message } if haste == Haste::Yes || !self.held.is_empty() => {
                        self.held.push((conn, message));
                    }
                    // These may overtake messages; anything else keeps its place behind them.
                    Output::Post { .. } | Output::Board { .. } | Output::Event(_) => self.carry_out(o),
                    o => {
                        self.send_held();
                        self.carry_out(o);
                    }
                }
            }
            self.outputs = outputs;
            if haste == Haste::No {
                self.send_held();
            }
        }
    }

    fn send_held(&mut self) {
        for (conn, message) in std::mem::take(&mut self.held) {
            self.carry_out(Output::Send { conn, message });
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Connect { conn, address } => {
                self.connect(conn, move |timeout| Connected::Control(conn, address::connect(&address, timeout)));
            }
            Output::OpenStream { conn, address, token } => {
                let count = self.transports.streams(conn);
                self.connect(conn, move |timeout| {
                    let one = |i| open_stream(&address, token, timeout).map_err(|e| e.within(nth_of(i, count)));
                    Connected::Data(conn, (0..count).map(one).collect())
                });
            }
            Output::ExpectStream { conn, token } => {
                self.tokens.insert(token, conn);
            }
            Output::Send { conn, message } => {
                let failed = self.sockets.get_mut(&conn).and_then(|s| s.send(&message, &self.poller).err());
                if let Some(e) = failed {
                    self.lose(conn, e);
                }
            }
            Output::Close { conn } => self.close(conn),
            Output::Link { conn, offers } => {
                let linked = self.transports.connect(conn, &offers);
                let early = self.early.remove(&conn).unwrap_or_default();
                if linked.is_ok() {
                    for stream in early {
                        self.attach(conn, stream);
                    }
                }
                self.shared.endpoint.lock().handle_linked(Instant::now(), conn, linked);
            }
            Output::Unlink { conn } => self.transports.disconnect(conn),
            Output::Post { job, conn, action, spans, staged, mark } => {
                let action = match action {
                    Action::Pull => transport::Action::Pull,
                    Action::Send { tag } => transport::Action::Send { tag },
                    Action::Receive { tag } => transport::Action::Receive { tag },
                };
                let (id, link) = (transport::JobId(job.0), LinkId(conn.0));
                if let Err(e) = self.transports.post(Job { id, link, action, spans, staged }, mark) {
                    let end = JobEnd { result: Err(e), bytes: 0, spans: Vec::new(), quiescent: true, held: false };
                    self.shared.endpoint.lock().handle_job(Instant::now(), job, end);
                }
            }
            Output::CancelJob { job, reason } => self.transports.cancel(transport::JobId(job.0), reason),
            Output::Board { offset, word } => {
                if let Err(e) = self.board.store_word(offset as usize, word) {
                    log::error!("kvlink: the lease board: {e}");
                }
            }
            Output::Event(e) => self.tell(e),
        }
    }

    fn tell(&mut self, e: Event) {
        self.told = true;
        use EventKind::{Handshake, Received, Transfer};
        let stats = &self.shared.stats;
        match (e.kind, e.status) {
            (Transfer | Received, Status::Ok) => {
                stats.transfers.fetch_add(1, Ordering::Relaxed);
                stats.bytes.fetch_add(e.bytes, Ordering::Relaxed);
                stats.spans.fetch_add(e.spans, Ordering::Relaxed);
            }
            (Transfer | Received | Handshake, _) if e.status != Status::Ok => {
                stats.failures.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.shared.queue.push(e);
    }

    /// Lets the transports work for a slice; returns whether they would go on.
    fn move_data(&mut self, ready: &[Ready], budget: u64) -> Result<bool> {
        let mut done = std::mem::take(&mut self.done);
        let more = self.transports.progress(ready, budget, &mut done);
        let now = Instant::now();
        if !done.is_empty() {
            let mut endpoint = self.shared.endpoint.lock();
            for d in done.drain(..) {
                let job = JobId(d.id.0);
                let quiescent = d.result.as_ref().err().is_none_or(|e| e.status() != Status::Quarantined);
                let held = self.transports.held(d.id);
                let end = JobEnd { result: d.result, bytes: d.bytes, spans: d.spans, quiescent, held };
                endpoint.handle_job(now, job, end);
            }
        }
        self.done = done;
        Ok(more)
    }

    fn on_ready(&mut self, ready: &[Ready]) {
        for r in ready {
            match self.keys.get(&r.key).copied() {
                Some(Who::Listener) => self.accept(),
                Some(Who::Socket(conn)) => self.serve_socket(conn, *r),
                Some(Who::Visitor) => self.serve_visitor(r.key),
                Some(Who::Router(id)) => self.shared.routers.lock().on_ready(id, *r, &mut self.buffer),
                None => {}
            }
        }
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

    fn serve_socket(&mut self, conn: ConnId, r: Ready) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let mut messages = Vec::new();
        let mut result = Ok(());
        if r.write {
            result = socket.flush(&self.poller);
        }
        if r.read && result.is_ok() {
            result = socket.receive(&mut self.buffer, &mut messages);
        }
        let now = Instant::now();
        let mut endpoint = self.shared.endpoint.lock();
        for m in messages {
            let notification = matches!(m, Message::Notify(_));
            if notification && self.shared.queue.len() + self.untold >= self.max_events {
                let text = format!("{} events wait for the engine, no more notifications are taken", self.max_events);
                result = Err(Error::new(Status::Limit, text));
                break;
            }
            self.untold += usize::from(notification);
            endpoint.handle_message(now, conn, m);
        }
        drop(endpoint);
        if let Err(e) = result {
            // What came before the end still counts; its answers may not reach anybody.
            self.pump(Haste::No);
            self.lose(conn, e);
        }
    }

    fn lose(&mut self, conn: ConnId, error: Error) {
        self.close(conn);
        self.shared.endpoint.lock().handle_closed(Instant::now(), conn, error);
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(mut socket) = self.sockets.remove(&conn) {
            let _ = socket.flush(&self.poller);
            socket.close(&self.poller);
        }
        self.keys.retain(|_, w| !matches!(w, Who::Socket(c) if *c == conn));
        self.tokens.retain(|_, c| *c != conn);
        self.early.remove(&conn);
    }

    fn key(&mut self, who: Who) -> u64 {
        self.next_key += 1;
        self.keys.insert(self.next_key, who);
        self.next_key
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
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
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn forget_visitor(&mut self, key: u64) -> Option<Visitor> {
        self.keys.remove(&key);
        let visitor = self.visitors.remove(&key)?;
        self.poller.remove(&visitor.stream);
        Some(visitor)
    }

    fn serve_visitor(&mut self, key: u64) {
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

    fn attach(&mut self, conn: ConnId, stream: TcpStream) {
        if let Err(e) = self.transports.attach(conn, stream) {
            self.lose(conn, e);
        }
    }

    fn add_socket(&mut self, conn: ConnId, stream: TcpStream, first: Option<&[u8]>) {
        let key = self.key(Who::Socket(conn));
        let made = Socket::new(stream, key, &self.poller).and_then(|mut s| {
            first.map_or(Ok(()), |bytes| s.send_bytes(bytes, &self.poller))?;
            Ok(s)
        });
        match made {
            Ok(socket) => {
                self.sockets.insert(conn, socket);
            }
            Err(e) => self.lose(conn, e),
        }
    }

    /// Names are resolved and connections made on a thread of their own: both can block for seconds.
    fn connect(&mut self, conn: ConnId, make: impl FnOnce(Duration) -> Connected + Send + 'static) {
        let (shared, timeout) = (self.shared.clone(), self.connect_timeout);
        let work = move || {
            let connected = make(timeout);
            shared.inbox.lock().connected.push(connected);
            shared.wake();
        };
        if let Err(e) = std::thread::Builder::new().name("kvlink-connect".into()).spawn(work) {
            let error = Error::new(Status::System, format!("starting a thread to connect: {e}"));
            self.shared.endpoint.lock().handle_closed(Instant::now(), conn, error);
        }
    }

    /// Beats that are due, and what follows from what came; returns when the next is.
    fn serve_routers(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared.clone();
        let mut routers = shared.routers.lock();
        for wish in routers.turn(now, &self.poller) {
            match wish {
                Wish::Connect(id, address) => self.connect_router(id, address),
                Wish::Forget(key) => drop(self.keys.remove(&key)),
                Wish::Tell(e) => self.tell(e),
            }
        }
        routers.poll_timeout()
    }

    fn connect_router(&mut self, id: Id, address: String) {
        let shared = self.shared.clone();
        let work = move || {
            let made = address::connect(&address, router::CONNECT);
            shared.inbox.lock().connected.push(Connected::Router(id, made));
            shared.wake();
        };
        if let Err(e) = std::thread::Builder::new().name("kvlink-connect".into()).spawn(work) {
            let error = Error::new(Status::System, format!("starting a thread to connect: {e}"));
            self.shared.inbox.lock().connected.push(Connected::Router(id, Err(error)));
            self.shared.wake();
        }
    }

    fn take_inbox(&mut self) {
        let (connected, orders) = {
            let mut inbox = self.shared.inbox.lock();
            (std::mem::take(&mut inbox.connected), std::mem::take(&mut inbox.orders))
        };
        for c in connected {
            self.on_connected(c);
        }
        for (ticket, order) in orders {
            let answer = self.obey(order);
            let mut inbox = self.shared.inbox.lock();
            inbox.answers.push((ticket, answer));
            self.shared.answered.notify_all();
        }
    }

    fn on_connected(&mut self, c: Connected) {
        let now = Instant::now();
        match c {
            Connected::Control(conn, Ok(stream)) => {
                self.add_socket(conn, stream, Some(&Preamble(StreamKind::Control).encode()));
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

    fn obey(&mut self, order: Order) -> Result<()> {
        let now = Instant::now();
        match order {
            Order::Register { region, memory, publish } => {
                self.transports.register(region, &memory)?;
                if publish {
                    let metadata = self.transports.metadata();
                    self.shared.endpoint.lock().bind(now, self.address.clone(), metadata);
                }
                Ok(())
            }
            Order::Deregister { region } => {
                self.shared.endpoint.lock().close(now, Error::new(Status::Cancelled, "a region was deregistered"));
                self.pump(Haste::No);
                self.transports.deregister(region)?;
                self.move_data(&[], SLICE)?;
                self.pump(Haste::No);
                Ok(())
            }
            #[cfg(feature = "test-hooks")]
            Order::Panic => panic!("a panic on purpose in the reactor"),
        }
    }
}

/// A data connection, its preamble sent.
fn open_stream(address: &str, token: u64, timeout: Duration) -> Result<TcpStream> {
    let mut stream = address::connect(address, timeout)?;
    let fail = |e: std::io::Error| Error::new(Status::Unreachable, format!("{address}: {e}"));
    stream.write_all(&Preamble(StreamKind::Data { token }).encode()).map_err(fail)?;
    Ok(stream)
}

fn nth_of(i: usize, count: usize) -> String {
    format!("data connection {} of {count}", i + 1)
}
