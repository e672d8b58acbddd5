//! The reactor: carries out what the endpoint wants, and tells it what happened. One thread at a time drives it
//! (`driver.rs`).

mod connections;

use super::config::AgentConfig;
use super::listener::Listener;
use super::net::{Connected, Order};
use super::sockets::{Socket, Visitor};
use super::transports::Transports;
use super::waker::LATER;
use super::{Shared, address};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::memory::{Memory, SharedMemory};
use crate::proto::{Action, ConnId, Event, EventKind, Id, JobEnd, JobId, Output};
use crate::transport::{self, Done, Job, LinkId, Poller, Ready, Slice};
use crate::wire::{BOARD_BYTES, BOARD_REGION, Message};
use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes that transports move before sockets and timers are looked at again.
pub(super) const SLICE: u64 = 1 << 20;
/// Lists of spans that are kept for reuse, and the longest.
const SPARE: usize = 64;
const SPARE_SPANS: usize = 1 << 16;

pub(super) struct Reactor {
    shared: Arc<Shared>,
    poller: Arc<Poller>,
    listener: Listener,
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
    /// Lists of spans that jobs had.
    spare: Vec<Vec<Span>>,
    /// Messages that are overtaken.
    held: Vec<(ConnId, Message)>,
    /// When they leave at the latest.
    held_until: Instant,
    told: bool,
    more: bool,
    due: Option<Instant>,
}

/// Whether an engine waits for the end of the turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
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
        shared.waker.watch(&poller, base + 1)?;
        let address = address::published(&listener, config)?;
        let listener = Listener::new(listener, base, &poller)?;
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
            spare: Vec::new(),
            held: Vec::new(),
            held_until: Instant::now(),
            told: false,
            more: false,
            due: None,
        })
    }

    /// One turn: what is ready, what callers left, timers, and a slice of the data.
    ///
    /// For an engine that loops, data and its event overtake messages, for a millisecond at most: sending wakes the other side, which
    /// takes longer than a small transfer, and the engine waits for its event.
    pub fn turn(&mut self, ready: &[Ready], slice: Slice) -> Result<()> {
        let haste = if slice.loops { Haste::Yes } else { Haste::No };
        self.on_ready(ready);
        let called = self.shared.waker.take();
        if called {
            self.take_inbox();
        }
        let now = Instant::now();
        // Some libraries move data while they are looked at.
        let looks = slice.loops && self.transports.busy();
        if called || looks || self.more || !ready.is_empty() || self.due.is_some_and(|at| at <= now) {
            self.told = false;
            self.pump(haste);
            self.more = self.move_data(ready, slice)?;
            // What follows from ended jobs may have to be moved, or reported by the transports.
            self.more |= self.pump(haste);
            let may_wait = (self.told || self.more) && now < self.held_until;
            if !self.held.is_empty() && !may_wait {
                self.more |= self.pump(Haste::No);
            }
            self.more |= !self.held.is_empty();
            self.listener.handle_timeout(now, &self.poller);
            let beat = self.serve_routers(now);
            let timer = self.shared.endpoint.lock().poll_timeout();
            let visitors = self.visitors_due();
            self.due = [timer, visitors, beat, self.listener.due()].into_iter().flatten().min();
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
        self.listener.close();
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
                if haste == Haste::No && !self.held.is_empty() {
                    // A message that cannot be sent has consequences.
                    self.send_held();
                    continue;
                }
                self.untold = 0;
                return worked;
            }
            worked = true;
            for o in outputs.drain(..) {
                match o {
                    Output::Send { conn, message } if haste == Haste::Yes || !self.held.is_empty() => {
                        if self.held.is_empty() {
                            self.held_until = now + LATER;
                        }
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
                let timeout = self.connect_timeout;
                self.connect(move || address::connect(&address, timeout), move |made| Connected::Control(conn, made));
            }
            Output::OpenStream { conn, address, token } => self.open_streams(conn, address, token),
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
            Output::Post { job, conn, action, work, mark } => {
                let action = match action {
                    Action::Pull => transport::Action::Pull,
                    Action::Send { tag } => transport::Action::Send { tag },
                    Action::Receive { tag } => transport::Action::Receive { tag },
                };
                let (id, link, staged) = (transport::JobId(job.0), LinkId(conn.0), work.staged());
                let mut spans = self.spare.pop().unwrap_or_default();
                let expanded = work.expand(&mut spans);
                let posted = expanded.and_then(|_| self.transports.post(Job { id, link, action, spans, staged, mark }));
                if let Err(e) = posted {
                    let end = JobEnd { result: Err(e), bytes: 0, spans: 0, quiescent: true, held: false };
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
    fn move_data(&mut self, ready: &[Ready], slice: Slice) -> Result<bool> {
        let mut done = std::mem::take(&mut self.done);
        let more = self.transports.progress(ready, slice, &mut done);
        let now = Instant::now();
        if !done.is_empty() {
            let mut endpoint = self.shared.endpoint.lock();
            for d in done.drain(..) {
                let Done { id, result, bytes, held, mut spans } = d;
                let quiescent = result.as_ref().err().is_none_or(|e| e.status() != Status::Quarantined);
                let end = JobEnd { result, bytes, spans: spans.len() as u64, quiescent, held };
                endpoint.handle_job(now, JobId(id.0), end);
                if self.spare.len() < SPARE && spans.capacity() <= SPARE_SPANS {
                    spans.clear();
                    self.spare.push(spans);
                }
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
                Some(Who::Router(id)) => {
                    self.shared.routers.lock().on_ready(id, *r, &mut self.buffer, &self.poller);
                }
                None => {}
            }
        }
        self.dismiss_late_visitors();
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
                self.move_data(&[], Slice::of(SLICE))?;
                self.pump(Haste::No);
                Ok(())
            }
            #[cfg(feature = "test-hooks")]
            Order::Panic => panic!("a panic on purpose in the reactor"),
        }
    }
}
