//! A worker that stands opposite workers of vLLM's MoRIIOConnector: answers on a handshake port, hears on a notify port, asks
//! and tells others on theirs. Sans IO, like the endpoint.
//!
//! vLLM's listeners end for ever on what they do not know, so nothing is sent but what they know, in one frame. They never
//! answer a notification: what tells that it arrived is the heartbeat that follows it, which ZeroMQ answers when it has read
//! all that came before. A notification that may have arrived is never repeated, since workers count them.

mod link;

use super::endpoint::later;
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::zmq::Zmq;
use crate::error::{Error, Result, Status};
use crate::wire::moriio::{GET_META, Handshake, Notify, Role};
use link::{Call, Exchange, Link};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Bytes of a notification.
pub const MORIIO_MESSAGE_MAX: u64 = 4 << 20;
/// Bytes of an answer to a handshake.
const ANSWER_MAX: u64 = 16 << 20;
/// Connections that others have made.
const MAX_CALLERS: usize = 1024;
/// Bytes of an unfinished message that make a caller a big one, and how many of those are listened to at once.
const BIG: usize = 64 << 10;
const MAX_BIG: usize = 64;
/// Exchanges that are under way.
const MAX_EXCHANGES: usize = 1 << 16;
/// Time in which a connection must have become one of ZeroMQ.
const GREETING: Duration = Duration::from_secs(10);

/// What a worker is.
#[derive(Clone, Debug)]
pub struct MoriioArgs {
    /// What its instance does.
    pub role: Role,
    /// What it says on its handshake port.
    pub handshake: Option<Handshake>,
    /// Comes with what others say.
    pub user_data: u64,
}

/// Which port a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoriioPort {
    /// Others ask who we are.
    Handshake,
    /// Others tell us about requests.
    Notify,
}

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What a worker wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoriioOutput {
    /// Connect to "host:port", then [`Moriio::handle_connected`] or [`Moriio::handle_failed`].
    Connect(LinkId, String),
    /// Send over a connection.
    Send(LinkId, Vec<u8>),
    /// Close a connection, or forget the one that is being made.
    Close(LinkId),
    /// Tell the engine.
    Event(Event),
}

/// A worker.
pub struct Moriio {
    role: Role,
    user_data: u64,
    answers: Option<[Vec<u8>; 2]>,
    links: BTreeMap<LinkId, Link>,
    next: u64,
    exchanges: Slab<()>,
    outputs: VecDeque<MoriioOutput>,
}

impl Moriio {
    /// A worker; ids of its exchanges begin at the seed.
    pub fn new(args: MoriioArgs, seed: u64) -> Moriio {
        Moriio {
            role: args.role,
            user_data: args.user_data,
            answers: args.handshake.map(|h| h.encode()),
            links: BTreeMap::new(),
            next: 1,
            exchanges: Slab::new(Kind::Exchange, seed),
            outputs: VecDeque::new(),
        }
    }

    /// Asks the worker whose handshake port is at this address who it is.
    ///
    /// # Errors
    /// [`Status::Limit`], [`Status::InvalidArgument`].
    pub fn meet(&mut self, now: Instant, address: &str, timeout: Duration, user_data: u64) -> Result<Id> {
        let exchange = self.exchange(now, address, timeout, user_data, format!("handshake with {address}"))?;
        let (id, link) = (exchange.id, self.link());
        let call = Call::new(address, now);
        self.links.insert(link, Link::Meeting { call, exchange, asked: false, meta: None });
        self.advance(now, link);
        Ok(id)
    }

    /// Tells the worker whose notify port is at this address something.
    ///
    /// # Errors
    /// [`Status::Limit`], [`Status::InvalidArgument`] (not for a worker of our role to say).
    pub fn send(
        &mut self,
        now: Instant,
        address: &str,
        message: &Notify,
        timeout: Duration,
        user_data: u64,
    ) -> Result<Id> {
        message.check_sender(self.role)?;
        let frame = message.encode();
        if frame.len() as u64 > MORIIO_MESSAGE_MAX {
            let text = format!("a message of {} bytes, at most {MORIIO_MESSAGE_MAX}", frame.len());
            return Err(Error::new(Status::Limit, text));
        }
        let what = format!("{} of {} to {address}", message.name(), message.transfer_id());
        let exchange = self.exchange(now, address, timeout, user_data, what)?;
        let id = exchange.id;
        let known = self.links.iter().find(|(_, l)| matches!(l, Link::Line { call, .. } if call.address == address));
        let link = known.map(|(id, _)| *id).unwrap_or_else(|| {
            let link = self.link();
            let call = Call::new(address, now);
            self.links.insert(link, Link::Line { call, waiting: VecDeque::new(), unconfirmed: VecDeque::new() });
            link
        });
        if let Some(Link::Line { waiting, .. }) = self.links.get_mut(&link) {
            waiting.push_back((exchange, frame));
        }
        self.advance(now, link);
        Ok(id)
    }

    /// Ends an exchange early: its event says that it was cancelled, or what became of a message that has been sent.
    ///
    /// # Errors
    /// [`Status::BadHandle`]: it has ended, or never was.
    pub fn cancel(&mut self, id: Id) -> Result<()> {
        if self.exchanges.get(id).is_none() {
            let text = format!("exchange {:#x} has ended already, is foreign or never was", id.0);
            return Err(Error::new(Status::BadHandle, text));
        }
        let cancelled = Error::new(Status::Cancelled, "the engine does not want it any more");
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            match self.links.get_mut(&link) {
                Some(Link::Meeting { exchange, .. }) if exchange.id == id => {
                    self.end_meeting(link, Err(cancelled.clone()));
                }
                Some(Link::Line { waiting, .. }) => {
                    let at = waiting.iter().position(|(e, _)| e.id == id);
                    if let Some((exchange, _)) = at.and_then(|at| waiting.remove(at)) {
                        self.end(exchange, Err(cancelled.clone()));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Somebody connected to one of our ports. `None`: there are too many.
    pub fn handle_accepted(&mut self, now: Instant, port: MoriioPort) -> Option<LinkId> {
        let callers = self.links.values().filter(|l| matches!(l, Link::Caller { .. })).count();
        if callers >= MAX_CALLERS {
            return None;
        }
        let link = self.link();
        let zmq = Zmq::router(MORIIO_MESSAGE_MAX);
        self.links.insert(link, Link::Caller { zmq, port, greeted_by: later(now, GREETING) });
        self.flush(link);
        Some(link)
    }

    /// Whether others made a connection.
    pub fn is_caller(&self, link: LinkId) -> bool {
        matches!(self.links.get(&link), Some(Link::Caller { .. }))
    }

    /// A connection was made.
    pub fn handle_connected(&mut self, now: Instant, link: LinkId) {
        match self.links.get_mut(&link) {
            Some(Link::Meeting { call, .. }) => call.zmq = Some(Zmq::asking(ANSWER_MAX)),
            Some(Link::Line { call, .. }) => call.zmq = Some(Zmq::asking(MORIIO_MESSAGE_MAX)),
            _ => return self.outputs.push_back(MoriioOutput::Close(link)),
        }
        self.advance(now, link);
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, now: Instant, link: LinkId, bytes: &[u8]) {
        let Some(zmq) = self.links.get_mut(&link).and_then(Link::zmq) else { return };
        let fed = zmq.handle_bytes(bytes);
        let mut messages = Vec::new();
        while let Some(m) = zmq.take_message() {
            messages.push(m);
        }
        let pongs = zmq.take_pongs();
        self.flush(link);
        for parts in messages {
            self.on_message(now, link, parts);
        }
        self.confirm(link, pongs);
        match fed.and_then(|()| self.check_held(link)) {
            Ok(()) => self.advance(now, link),
            Err(e) => self.handle_failed(now, link, e),
        }
    }

    /// What callers have not finished to say takes memory.
    fn check_held(&self, link: LinkId) -> Result<()> {
        let big = |l: &Link| matches!(l, Link::Caller { zmq, .. } if zmq.held() > BIG);
        if !self.links.get(&link).is_some_and(big) || self.links.values().filter(|l| big(l)).count() <= MAX_BIG {
            return Ok(());
        }
        Err(Error::new(Status::Limit, format!("{MAX_BIG} callers are in the middle of a big message")))
    }

    /// A connection could not be made, or was lost.
    pub fn handle_failed(&mut self, now: Instant, link: LinkId, error: Error) {
        match self.links.get_mut(&link) {
            None => return,
            // It is not there to fail: it is waited with.
            Some(Link::Meeting { call, .. } | Link::Line { call, .. }) if call.again.is_some() => return,
            Some(Link::Caller { .. }) => {
                self.links.remove(&link);
            }
            Some(Link::Meeting { call, asked, meta, .. }) => {
                call.fail(now, &error);
                (*asked, *meta) = (false, None);
                // Another attempt does not change what the peer is.
                if error.status() != Status::Unreachable {
                    self.end_meeting(link, Err(error));
                }
            }
            Some(Link::Line { call, unconfirmed, .. }) => {
                call.fail(now, &error);
                for exchange in std::mem::take(unconfirmed) {
                    let text = format!("it may have arrived, or not: {}", error.message());
                    self.end(exchange, Err(Error::new(Status::PeerDead, text)));
                }
            }
        }
        self.outputs.push_back(MoriioOutput::Close(link));
        self.advance(now, link);
    }

    /// Ends all exchanges, and all connections.
    pub fn shut_down(&mut self) {
        for (link, it) in std::mem::take(&mut self.links) {
            let ended: Vec<Exchange> = match it {
                Link::Caller { .. } => vec![],
                Link::Meeting { exchange, .. } => vec![exchange],
                Link::Line { waiting, unconfirmed, .. } => {
                    unconfirmed.into_iter().chain(waiting.into_iter().map(|(e, _)| e)).collect()
                }
            };
            for exchange in ended {
                self.end(exchange, Err(Error::new(Status::Cancelled, "the worker was closed")));
            }
            self.outputs.push_back(MoriioOutput::Close(link));
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<MoriioOutput> {
        self.outputs.pop_front()
    }

    /// When [`Moriio::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::due).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |l: &Link| l.due().is_some_and(|at| at <= now);
        let links: Vec<LinkId> = self.links.iter().filter(|(_, l)| due(l)).map(|(id, _)| *id).collect();
        for link in links {
            self.expire(now, link);
            self.advance(now, link);
        }
    }

    /// Ends what was not in time.
    fn expire(&mut self, now: Instant, link: LinkId) {
        match self.links.get_mut(&link) {
            Some(Link::Caller { .. }) => {
                let e = Error::new(Status::Deadline, format!("no ZeroMQ handshake within {} s", GREETING.as_secs()));
                self.handle_failed(now, link, e);
            }
            Some(Link::Meeting { call, exchange, .. }) if exchange.until <= now => {
                let e = call.late();
                self.end_meeting(link, Err(e));
            }
            Some(Link::Line { call, waiting, unconfirmed }) => {
                // Confirmations come in order: with one that is missing the connection is of no use.
                if unconfirmed.iter().any(|e| e.until <= now) {
                    let text = "nothing confirms that it arrived";
                    return self.handle_failed(now, link, Error::new(Status::Deadline, text));
                }
                let late = call.late();
                let (over, rest) = waiting.drain(..).partition::<VecDeque<_>, _>(|(e, _)| e.until <= now);
                *waiting = rest;
                for (exchange, _) in over {
                    self.end(exchange, Err(late.clone()));
                }
            }
            _ => {}
        }
    }

    /// Connects and sends whatever can be now.
    fn advance(&mut self, now: Instant, link: LinkId) {
        match self.links.get_mut(&link) {
            Some(Link::Meeting { call, asked, .. }) => {
                if let Some(zmq) = call.zmq.as_mut().filter(|z| z.is_ready() && !*asked) {
                    zmq.send(GET_META);
                    *asked = true;
                }
                self.connect(now, link);
            }
            Some(Link::Line { call, waiting, unconfirmed }) => {
                if waiting.is_empty() && call.zmq.is_none() {
                    self.links.remove(&link);
                    return;
                }
                let mut sent = Vec::new();
                if let Some(zmq) = call.zmq.as_mut().filter(|z| z.is_ready()) {
                    for (exchange, frame) in waiting.drain(..) {
                        zmq.send(&frame);
                        if zmq.ping(Duration::ZERO) {
                            unconfirmed.push_back(exchange);
                        } else {
                            sent.push(exchange);
                        }
                    }
                }
                sent.into_iter().for_each(|e| self.end(e, Ok(String::new())));
                self.connect(now, link);
            }
            _ => {}
        }
        self.flush(link);
    }

    fn connect(&mut self, now: Instant, link: LinkId) {
        let Some(Link::Meeting { call, .. } | Link::Line { call, .. }) = self.links.get_mut(&link) else { return };
        if call.again.is_some_and(|at| at <= now) {
            call.again = None;
            self.outputs.push_back(MoriioOutput::Connect(link, call.address.clone()));
        }
    }

    fn on_message(&mut self, now: Instant, link: LinkId, parts: Vec<Vec<u8>>) {
        match self.links.get_mut(&link) {
            Some(Link::Caller { port: MoriioPort::Handshake, zmq, .. }) => {
                if let (true, Some(answers)) = (parts.len() == 1 && parts.concat() == GET_META, &self.answers) {
                    answers.iter().for_each(|a| zmq.send_parts(&[b"", a]));
                } else {
                    self.complain("on the handshake port", &Error::new(Status::Protocol, what_came(&parts)));
                    self.outputs.push_back(MoriioOutput::Close(link));
                    self.links.remove(&link);
                }
            }
            Some(Link::Caller { port: MoriioPort::Notify, .. }) => {
                let decoded = match parts.as_slice() {
                    [one] => Notify::decode(one, self.role),
                    _ => Err(Error::new(Status::Protocol, what_came(&parts))),
                };
                match decoded {
                    Ok(message) => self.tell(Status::Ok, message.to_json()),
                    Err(e) => self.complain("on the notify port", &e),
                }
            }
            Some(Link::Meeting { meta, .. }) => {
                let answer = match <[Vec<u8>; 2]>::try_from(parts) {
                    Ok([empty, answer]) if empty.is_empty() => answer,
                    Ok(parts) => return self.end_meeting(link, Err(Error::new(Status::Protocol, what_came(&parts)))),
                    Err(parts) => return self.end_meeting(link, Err(Error::new(Status::Protocol, what_came(&parts)))),
                };
                if let Some(meta) = meta.take() {
                    let end = Handshake::decode(&meta, &answer).map(|h| h.to_json());
                    return self.end_meeting(link, end);
                }
                *meta = Some(answer);
            }
            // Nobody answers a notification.
            Some(Link::Line { .. }) | None => {}
        }
        self.advance(now, link);
    }

    fn confirm(&mut self, link: LinkId, pongs: u32) {
        for _ in 0..pongs {
            let Some(Link::Line { unconfirmed, call, .. }) = self.links.get_mut(&link) else { return };
            call.holds();
            let Some(exchange) = unconfirmed.pop_front() else { return };
            self.end(exchange, Ok(String::new()));
        }
    }

    fn end_meeting(&mut self, link: LinkId, end: Result<String>) {
        if let Some(Link::Meeting { exchange, .. }) = self.links.remove(&link) {
            self.outputs.push_back(MoriioOutput::Close(link));
            self.end(exchange, end);
        }
    }

    fn end(&mut self, exchange: Exchange, end: Result<String>) {
        self.exchanges.remove(exchange.id);
        let (status, text) = match end {
            Ok(text) => (Status::Ok, text),
            Err(e) => (e.status(), format!("{}: {}", exchange.what, e.message())),
        };
        let (id, user_data) = (exchange.id.0, exchange.user_data);
        self.outputs.push_back(MoriioOutput::Event(Event {
            text,
            id,
            user_data,
            ..Event::new(EventKind::Moriio, status)
        }));
    }

    /// What others said.
    fn tell(&mut self, status: Status, text: String) {
        let user_data = self.user_data;
        self.outputs.push_back(MoriioOutput::Event(Event { text, user_data, ..Event::new(EventKind::Moriio, status) }));
    }

    fn complain(&mut self, place: &str, error: &Error) {
        self.tell(Status::Protocol, format!("{place}: {}", error.message()));
    }

    fn exchange(
        &mut self,
        now: Instant,
        address: &str,
        timeout: Duration,
        user_data: u64,
        what: String,
    ) -> Result<Exchange> {
        let port = address.rsplit_once(':').and_then(|(host, p)| Some((host, p.parse::<u16>().ok()?)));
        if !port.is_some_and(|(host, p)| !host.is_empty() && p != 0) {
            return Err(Error::new(Status::InvalidArgument, format!("address {address:?} is not host:port")));
        }
        if self.exchanges.len() >= MAX_EXCHANGES {
            let text = format!("{MAX_EXCHANGES} exchanges are under way, no more are begun");
            return Err(Error::new(Status::Limit, text));
        }
        Ok(Exchange { id: self.exchanges.insert(()), user_data, until: later(now, timeout), what })
    }

    fn link(&mut self) -> LinkId {
        self.next += 1;
        LinkId(self.next)
    }

    fn flush(&mut self, link: LinkId) {
        let bytes = self.links.get_mut(&link).and_then(Link::zmq).map(Zmq::take_output).unwrap_or_default();
        if !bytes.is_empty() {
            self.outputs.push_back(MoriioOutput::Send(link, bytes));
        }
    }
}

/// Names a message that is none.
fn what_came(parts: &[Vec<u8>]) -> String {
    let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
    let begin: String =
        parts.concat().iter().take(16).flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
    format!("a message of {} frames with {sizes:?} bytes, which begins with \"{begin}\"", parts.len())
}
