//! Endpoints under virtual time, with a network between them that delays, splits, breaks and dies.
//!
//! Messages travel as encoded frames in random pieces. Jobs move real bytes between real buffers, a slice at a time, at
//! moments that have nothing to do with the messages' latency. Everything follows from the seed.

use crate::rng::Rng;
use kvlink::error::{Error, Status};
use kvlink::layout::Layout;
use kvlink::proto::{
    Action, Config, ConnId, Endpoint, Event, EventKind, Id, Identity, JobEnd, JobId, LinkInfo, Output,
};
use kvlink::wire::{FrameDecoder, LeaseMark, Message, encode_frame};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the network and the copies behave.
#[derive(Clone, Debug)]
pub struct Net {
    /// Microseconds a message takes.
    pub latency: std::ops::Range<u64>,
    /// Microseconds until the next slice of a job is copied.
    pub slice: std::ops::Range<u64>,
    /// Bytes of a slice.
    pub slice_bytes: std::ops::Range<u64>,
}

impl Default for Net {
    fn default() -> Net {
        Net { latency: 50..500, slice: 10..300, slice_bytes: 64..4096 }
    }
}

/// One process.
pub struct Node {
    pub endpoint: Option<Endpoint>,
    pub address: String,
    pub memory: Vec<Vec<u8>>,
    pub layout: Arc<Layout>,
    /// Can pull from others.
    pub pull: bool,
    /// Its transport refuses to send.
    pub mute: bool,
    pub events: Vec<(Instant, Event)>,
    pub connects: Vec<String>,
    pub links: usize,
    /// Outputs are observed, nothing is delivered before this time (a stopped process).
    paused: Option<Instant>,
    silent: bool,
    /// What peers that can peek see of its leases.
    board: HashMap<u64, u64>,
    conns: HashMap<ConnId, (usize, usize)>,
    tokens: HashMap<u64, ConnId>,
}

struct Pipe {
    ends: [(usize, ConnId); 2],
    decoders: [FrameDecoder; 2],
    /// When the last thing towards this side arrives: connections keep their order.
    last: [Instant; 2],
    open: [bool; 2],
    /// Messages of this type towards this side vanish.
    stream: bool,
}

#[derive(Debug)]
enum Item {
    Connect { node: usize, conn: ConnId, address: String },
    Deliver { pipe: usize, to: usize, bytes: Vec<u8> },
    Closed { pipe: usize, to: usize },
    Stream { node: usize, conn: ConnId, address: String, token: u64 },
    Linked { node: usize, conn: ConnId },
    Pull { job: Key },
    Push { flow: FlowKey },
    Arrive { flow: FlowKey, bytes: Vec<u8> },
    Abort { flow: FlowKey, receiver: bool, reason: Status },
    JobEnd { job: Key, result: Result<(), Error> },
}

/// How much later than its timers and copies a process that goes on sees its connections.
const DEAF: Duration = Duration::from_millis(1);

type Key = (usize, JobId);
/// Pipe, sending side, tag.
type FlowKey = (usize, usize, u64);

struct Job {
    pipe: Option<(usize, usize)>,
    conn: ConnId,
    action: Action,
    spans: Vec<kvlink::layout::Span>,
    total: u64,
    moved: u64,
    ending: bool,
    flow: Option<FlowKey>,
    mark: Option<LeaseMark>,
    held: bool,
}

#[derive(Default)]
struct Flow {
    send: Option<Key>,
    receive: Option<Key>,
    aborted: [Option<Status>; 2],
    last: Option<Instant>,
}

/// What the engine of a process does when an event comes, before anything else happens.
pub type Hook = Box<dyn FnMut(&mut Vec<Vec<u8>>, &Layout, usize, &Event)>;

/// Whether a message may pass: (sender, receiver, message).
pub type Filter = Box<dyn FnMut(usize, usize, &Message) -> bool>;

/// Region and offset in the source, the same in the destination, bytes.
type Piece = ((usize, usize), (usize, usize), usize);

pub struct Sim {
    pub now: Instant,
    pub rng: Rng,
    pub net: Net,
    pub config: Config,
    pub nodes: Vec<Node>,
    pub hook: Option<Hook>,
    /// Drops messages: (sender, receiver, message).
    pub filter: Option<Filter>,
    /// Every message, as sent.
    pub log: Vec<(usize, usize, Message)>,
    addresses: HashMap<String, usize>,
    pipes: Vec<Pipe>,
    queue: BTreeMap<(Instant, u64), Item>,
    seq: u64,
    jobs: HashMap<Key, Job>,
    flows: HashMap<FlowKey, Flow>,
    incarnations: u64,
}

pub fn error(status: Status, text: &str) -> Error {
    Error::new(status, text)
}

impl Sim {
    pub fn new(seed: u64) -> Sim {
        let now = Instant::now();
        Sim {
            now,
            rng: Rng::new(seed),
            net: Net::default(),
            config: Config::default(),
            nodes: Vec::new(),
            hook: None,
            filter: None,
            log: Vec::new(),
            addresses: HashMap::new(),
            pipes: Vec::new(),
            queue: BTreeMap::new(),
            seq: 0,
            jobs: HashMap::new(),
            flows: HashMap::new(),
            incarnations: 100,
        }
    }

    // ---- processes ----

    /// A process that has not been bound yet.
    pub fn spawn(&mut self, instance: &str, rank: u32, ranks: u32, layout: &Arc<Layout>) -> usize {
        self.incarnations += 1;
        let address = format!("{instance}-{rank}:1");
        let me = Identity {
            instance: instance.to_string(),
            incarnation: self.incarnations,
            rank,
            ranks,
            leader: format!("{instance}-0:1"),
        };
        self.nodes.push(Node {
            endpoint: Some(Endpoint::new(self.config.clone(), me, layout.clone())),
            address,
            memory: layout.regions().iter().map(|r| vec![0u8; r.len as usize]).collect(),
            layout: layout.clone(),
            pull: true,
            events: Vec::new(),
            connects: Vec::new(),
            links: 0,
            paused: None,
            silent: false,
            mute: false,
            board: HashMap::new(),
            conns: HashMap::new(),
            tokens: HashMap::new(),
        });
        self.nodes.len() - 1
    }

    /// Its regions are registered: it listens and joins its instance.
    pub fn bind(&mut self, node: usize) {
        let address = self.nodes[node].address.clone();
        self.addresses.insert(address.clone(), node);
        self.call(node, |e, now| e.bind(now, address, vec![("sim".into(), vec![1, 2, 3])]));
    }

    /// All ranks of an instance, bound.
    pub fn instance(&mut self, name: &str, layouts: &[Arc<Layout>], pull: bool) -> Vec<usize> {
        let n = layouts.len() as u32;
        let all: Vec<usize> = layouts.iter().zip(0..n).map(|(l, r)| self.spawn(name, r, n, l)).collect();
        for node in &all {
            self.nodes[*node].pull = pull;
            self.bind(*node);
        }
        all
    }

    /// The process ends. Its peers see their connections close, unless it dies in silence.
    pub fn kill(&mut self, node: usize, silent: bool) {
        self.nodes[node].endpoint = None;
        self.nodes[node].silent = silent;
        if silent {
            return;
        }
        let conns: Vec<(usize, usize)> = self.nodes[node].conns.values().copied().collect();
        for (pipe, side) in conns {
            self.close(pipe, side);
        }
        let flows: Vec<FlowKey> = self.flows.keys().copied().filter(|k| self.pipe_has(k.0, node)).collect();
        for f in flows {
            for receiver in [false, true] {
                self.after(1000, Item::Abort { flow: f, receiver, reason: Status::PeerDead });
            }
        }
    }

    /// The process stops running for a while; its memory stays readable, its copies go on.
    pub fn pause(&mut self, node: usize, time: Duration) {
        let until = self.now + time;
        let paused = &mut self.nodes[node].paused;
        *paused = Some(paused.map_or(until, |p| p.max(until)));
    }

    /// Breaks the connection between two processes, as a network does: both sides notice later.
    pub fn cut(&mut self, a: usize, b: usize) {
        for pipe in 0..self.pipes.len() {
            let ends = [self.pipes[pipe].ends[0].0, self.pipes[pipe].ends[1].0];
            if ends == [a, b] || ends == [b, a] {
                for to in 0..2 {
                    let delay = self.rng.below(1..2000);
                    self.after(delay, Item::Closed { pipe, to });
                }
            }
        }
    }

    fn pipe_has(&self, pipe: usize, node: usize) -> bool {
        self.pipes[pipe].ends.iter().any(|e| e.0 == node)
    }

    pub fn alive(&self, node: usize) -> bool {
        self.nodes[node].endpoint.is_some()
    }

    /// Calls an endpoint and carries out what it wants.
    pub fn call<T>(&mut self, node: usize, f: impl FnOnce(&mut Endpoint, Instant) -> T) -> T {
        let now = self.now;
        let out = f(self.nodes[node].endpoint.as_mut().expect("the process lives"), now);
        self.pump(node);
        out
    }

    // ---- time ----

    fn at(&mut self, when: Instant, item: Item) {
        self.seq += 1;
        self.queue.insert((when, self.seq), item);
    }

    fn after(&mut self, micros: u64, item: Item) {
        self.at(self.now + Duration::from_micros(micros), item);
    }

    fn due(&self) -> Option<(Instant, Option<usize>)> {
        let item = self.queue.keys().next().map(|(t, _)| (*t, None));
        let timer = |(i, n): (usize, &Node)| {
            let due = n.endpoint.as_ref()?.poll_timeout()?;
            Some((n.paused.map_or(due, |p| p.max(due)), Some(i)))
        };
        let timers = self.nodes.iter().enumerate().filter_map(timer);
        item.into_iter().chain(timers).min_by_key(|(t, n)| (*t, n.is_some()))
    }

    /// Does the next thing that is due until `end`; false if there is none.
    fn step(&mut self, end: Instant) -> bool {
        let Some((when, timer)) = self.due().filter(|(t, _)| *t <= end) else { return false };
        self.now = self.now.max(when);
        for n in &mut self.nodes {
            n.paused = n.paused.filter(|p| *p + DEAF > self.now);
        }
        match timer {
            Some(node) => self.call(node, |e, now| {
                e.handle_timeout(now);
                assert!(e.poll_timeout().is_none_or(|t| t > now), "a timer that is due stays due");
            }),
            None => {
                let ((_, seq), item) = self.queue.pop_first().expect("an item is due");
                self.handle(seq, item);
            }
        }
        true
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`; panics with the events so far if it takes longer than `limit`.
    pub fn until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&Sim) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            if !self.step(end) {
                let told: Vec<_> = self.nodes.iter().map(|n| &n.events).collect();
                panic!("{what} did not happen within {limit:?}: {told:#?}");
            }
        }
    }

    // ---- events ----

    pub fn events(&self, node: usize, kind: EventKind) -> Vec<&Event> {
        self.nodes[node].events.iter().map(|(_, e)| e).filter(|e| e.kind == kind).collect()
    }

    pub fn event_of(&self, node: usize, id: Id) -> Option<&Event> {
        self.nodes[node].events.iter().map(|(_, e)| e).find(|e| e.id == id.0)
    }

    pub fn sent(&self, f: impl Fn(&Message) -> bool) -> usize {
        self.log.iter().filter(|(_, _, m)| f(m)).count()
    }

    // ---- outputs ----

    fn pump(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].endpoint.as_mut().and_then(Endpoint::poll_output) {
            self.carry_out(node, output);
        }
    }

    fn latency(&mut self) -> Duration {
        self.rng.micros(self.net.latency.clone())
    }

    /// When something sent now towards this side arrives.
    fn arrival(&mut self, pipe: usize, to: usize) -> Instant {
        let when = (self.now + self.latency()).max(self.pipes[pipe].last[to]);
        self.pipes[pipe].last[to] = when;
        when
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        let n = &mut self.nodes[node];
        match output {
            Output::Connect { conn, address } => {
                n.connects.push(address.clone());
                let delay = self.rng.below(self.net.latency.clone());
                self.after(delay, Item::Connect { node, conn, address });
            }
            Output::Send { conn, message } => {
                if let Some((pipe, side)) = n.conns.get(&conn).copied() {
                    self.send(pipe, side, message);
                }
            }
            Output::Close { conn } => {
                n.tokens.retain(|_, c| *c != conn);
                if let Some((pipe, side)) = n.conns.remove(&conn) {
                    self.close(pipe, side);
                }
            }
            Output::Link { conn, offers } => {
                assert_eq!(offers, vec![("sim".to_string(), vec![1, 2, 3])]);
                let delay = self.rng.below(1..1000);
                self.after(delay, Item::Linked { node, conn });
            }
            Output::OpenStream { conn, address, token } => {
                let delay = self.rng.below(self.net.latency.clone());
                self.after(delay, Item::Stream { node, conn, address, token });
            }
            Output::ExpectStream { conn, token } => {
                n.tokens.insert(token, conn);
            }
            Output::Unlink { conn } => self.unlink(node, conn),
            Output::Post { job, conn, action, work, mark } => {
                let mut spans = Vec::new();
                work.expand(&mut spans).unwrap();
                self.post(node, job, conn, action, spans, mark);
            }
            Output::CancelJob { job, reason } => self.end_job((node, job), Err(error(reason, "cancelled")), true),
            Output::Board { offset, word } => {
                n.board.insert(offset, word);
            }
            Output::Event(e) => {
                if let Some(hook) = &mut self.hook {
                    hook(&mut n.memory, &n.layout, node, &e);
                }
                n.events.push((self.now, e));
            }
        }
    }

    /// Sends a message on a connection as if this side's endpoint had.
    pub fn inject(&mut self, from: usize, to: usize, message: Message) {
        let found = (0..self.pipes.len()).rev().find_map(|p| {
            let ends = &self.pipes[p].ends;
            let side = (0..2).find(|s| ends[*s].0 == from && ends[1 - *s].0 == to)?;
            (self.pipes[p].open == [true, true]).then_some((p, side))
        });
        let (pipe, side) = found.expect("a connection between the two");
        self.send(pipe, side, message);
    }

    fn send(&mut self, pipe: usize, side: usize, message: Message) {
        let (from, to) = (self.pipes[pipe].ends[side].0, self.pipes[pipe].ends[1 - side].0);
        self.log.push((from, to, message.clone()));
        if self.filter.as_mut().is_some_and(|f| !f(from, to, &message)) {
            return;
        }
        let bytes = encode_frame(&message);
        assert_eq!(Message::decode(message.type_code(), &bytes[8..]).as_ref(), Ok(&message));
        let mut rest = bytes.as_slice();
        // A frame may arrive in pieces.
        while !rest.is_empty() {
            let n = if self.rng.chance(70) { rest.len() } else { self.rng.below(1..rest.len() as u64 + 1) as usize };
            let (now, later) = rest.split_at(n);
            let when = self.arrival(pipe, 1 - side);
            self.at(when, Item::Deliver { pipe, to: 1 - side, bytes: now.to_vec() });
            rest = later;
        }
    }

    fn close(&mut self, pipe: usize, side: usize) {
        self.pipes[pipe].open[side] = false;
        let when = self.arrival(pipe, 1 - side);
        self.at(when, Item::Closed { pipe, to: 1 - side });
    }

    // ---- what happens later ----

    fn handle(&mut self, seq: u64, item: Item) {
        if let Some(node) = self.concerns(&item) {
            // Its copies have gone on: after a pause, their ends are the first thing it sees.
            let deaf = if matches!(item, Item::JobEnd { .. }) { Duration::ZERO } else { DEAF };
            if let Some(until) = self.nodes[node].paused.map(|p| p + deaf).filter(|u| *u > self.now) {
                // With its old number: what was sent first stays first.
                self.queue.insert((until, seq), item);
                return;
            }
        }
        match item {
            Item::Connect { node, conn, address } => self.connect(node, conn, &address),
            Item::Deliver { pipe, to, bytes } => self.deliver(pipe, to, &bytes),
            Item::Closed { pipe, to } => {
                let (node, conn) = self.pipes[pipe].ends[to];
                self.pipes[pipe].open[to] = false;
                if self.nodes[node].conns.remove(&conn).is_some() && self.alive(node) {
                    self.nodes[node].tokens.retain(|_, c| *c != conn);
                    self.call(node, |e, now| e.handle_closed(now, conn, error(Status::PeerDead, "closed")));
                }
            }
            Item::Linked { node, conn } => {
                let pull = self.nodes[node].pull;
                let report = if pull { "sim/pull" } else { "sim/stream" };
                let info = LinkInfo { transport: "sim".into(), report: report.into(), pull, rejected: Vec::new() };
                self.nodes[node].links += 1;
                if self.alive(node) {
                    self.call(node, |e, now| e.handle_linked(now, conn, Ok(info)));
                }
            }
            Item::Stream { node, conn, address, token } => {
                let target = self.addresses.get(&address).copied().filter(|t| self.alive(*t));
                let found = target.is_some_and(|t| self.nodes[t].tokens.contains_key(&token));
                if let (true, Some((pipe, _))) = (found, self.nodes[node].conns.get(&conn)) {
                    self.pipes[*pipe].stream = true;
                }
                let result = if found { Ok(()) } else { Err(error(Status::Unreachable, "no such stream")) };
                if self.alive(node) {
                    self.call(node, |e, now| e.handle_stream(now, conn, result));
                }
            }
            Item::Pull { job } => self.pull_slice(job),
            Item::Push { flow } => self.send_slice(flow),
            Item::Arrive { flow, bytes } => self.receive_slice(flow, &bytes),
            Item::Abort { flow, receiver, reason } => {
                let Some(f) = self.flows.get_mut(&flow) else { return };
                f.aborted[usize::from(receiver)].get_or_insert(reason);
                let job = if receiver { f.receive } else { f.send };
                if let Some(job) = job {
                    self.end_job(job, Err(error(reason, "the other side of the stream ended it")), false);
                }
            }
            Item::JobEnd { job, result } => {
                let Some(j) = self.jobs.remove(&job) else { return };
                let end = JobEnd { result, bytes: j.moved, spans: j.spans.len() as u64, quiescent: true, held: j.held };
                if self.alive(job.0) {
                    self.call(job.0, |e, now| e.handle_job(now, job.1, end));
                }
            }
        }
    }

    /// The process that must run to take this.
    fn concerns(&self, item: &Item) -> Option<usize> {
        match item {
            Item::Connect { address, .. } => self.addresses.get(address).copied(),
            Item::Deliver { pipe, to, .. } | Item::Closed { pipe, to } => Some(self.pipes[*pipe].ends[*to].0),
            Item::Stream { node, .. } | Item::Linked { node, .. } => Some(*node),
            Item::JobEnd { job, .. } => Some(job.0),
            Item::Push { flow } => Some(self.pipes[flow.0].ends[flow.1].0),
            Item::Pull { .. } | Item::Arrive { .. } | Item::Abort { .. } => None,
        }
    }

    fn connect(&mut self, node: usize, conn: ConnId, address: &str) {
        if !self.alive(node) {
            return;
        }
        let target = self.addresses.get(address).copied();
        if target.is_some_and(|t| !self.alive(t) && self.nodes[t].silent) {
            return;
        }
        let accepted = match target.filter(|t| self.alive(*t)) {
            Some(t) => self.call(t, |e, now| e.handle_accepted(now)).map(|c| (t, c)),
            None => Err(error(Status::Unreachable, "connection refused")),
        };
        match accepted {
            Ok(end) => {
                let pipe = self.pipes.len();
                self.pipes.push(Pipe {
                    ends: [(node, conn), end],
                    decoders: Default::default(),
                    last: [self.now; 2],
                    open: [true, true],
                    stream: false,
                });
                self.nodes[node].conns.insert(conn, (pipe, 0));
                self.nodes[end.0].conns.insert(end.1, (pipe, 1));
                let wanted = self.call(node, |e, now| e.handle_connected(now, conn));
                if !wanted {
                    self.nodes[node].conns.remove(&conn);
                    self.close(pipe, 0);
                }
            }
            Err(e) => self.call(node, |x, now| x.handle_closed(now, conn, e)),
        }
    }

    fn deliver(&mut self, pipe: usize, to: usize, bytes: &[u8]) {
        let (node, conn) = self.pipes[pipe].ends[to];
        if !self.alive(node) || !self.nodes[node].conns.contains_key(&conn) {
            return;
        }
        self.pipes[pipe].decoders[to].extend(bytes);
        loop {
            match self.pipes[pipe].decoders[to].next_message() {
                Ok(Some(m)) => self.call(node, |e, now| e.handle_message(now, conn, m)),
                Ok(None) => return,
                Err(e) => panic!("a frame that an endpoint sent cannot be decoded: {e}"),
            }
        }
    }

    // ---- jobs ----

    fn post(
        &mut self,
        node: usize,
        id: JobId,
        conn: ConnId,
        action: Action,
        spans: Vec<kvlink::layout::Span>,
        mark: Option<LeaseMark>,
    ) {
        let pipe = self.nodes[node].conns.get(&conn).copied();
        let total = spans.iter().map(|s| s.len).sum();
        let key = (node, id);
        let mut job = Job { pipe, conn, action, spans, total, moved: 0, ending: false, flow: None, mark, held: false };
        let Some((pipe, side)) = pipe else {
            self.jobs.insert(key, job);
            return self.end_job(key, Err(error(Status::PeerDead, "no such link")), false);
        };
        if self.nodes[node].mute && matches!(action, Action::Send { .. }) {
            self.jobs.insert(key, job);
            return self.end_job(key, Err(error(Status::Internal, "refused")), false);
        }
        let flow = match action {
            Action::Pull => {
                self.jobs.insert(key, job);
                return self.after(1, Item::Pull { job: key });
            }
            Action::Send { tag } => (pipe, side, tag),
            Action::Receive { tag } => (pipe, 1 - side, tag),
        };
        job.flow = Some(flow);
        self.jobs.insert(key, job);
        let sends = matches!(action, Action::Send { .. });
        let f = self.flows.entry(flow).or_default();
        let slot = if sends { &mut f.send } else { &mut f.receive };
        assert_eq!(slot.replace(key), None, "tag {} names two streams of one direction", flow.2);
        let aborted = f.aborted[usize::from(!sends)];
        let both = f.send.is_some() && f.receive.is_some();
        if let Some(reason) = aborted {
            self.end_job(key, Err(error(reason, "the stream was ended before")), false);
        } else if both {
            self.after(1, Item::Push { flow });
        }
    }

    /// Copies of a job end here; the endpoint hears of it a little later.
    fn end_job(&mut self, key: Key, result: Result<(), Error>, tell: bool) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if std::mem::replace(&mut job.ending, true) {
            return;
        }
        let (flow, action) = (job.flow, job.action);
        if let (Some(mark), Some((pipe, side)), Ok(())) = (job.mark, job.pipe, &result) {
            // Half of the time nobody looks: then the source must be asked.
            let source = self.pipes[pipe].ends[1 - side].0;
            let seen = self.nodes[source].board.get(&mark.offset) == Some(&mark.word);
            job.held = seen && self.rng.chance(50);
        }
        if let (Some(flow), Err(e), true) = (flow, &result, tell) {
            let delay = self.rng.below(self.net.latency.clone());
            let receiver = matches!(action, Action::Send { .. });
            self.after(delay, Item::Abort { flow, receiver, reason: e.status() });
        }
        let delay = self.rng.below(1..200);
        self.after(delay, Item::JobEnd { job: key, result });
    }

    fn unlink(&mut self, node: usize, conn: ConnId) {
        let mine: Vec<Key> = self.jobs.iter().filter(|(k, j)| k.0 == node && j.conn == conn).map(|(k, _)| *k).collect();
        let mut mine = mine;
        mine.sort();
        for key in mine {
            self.end_job(key, Err(error(Status::PeerDead, "the link is gone")), true);
        }
    }

    /// Regions and offsets of `n` bytes of a job from `from` on: (source, destination, length).
    fn pieces(job: &Job, from: u64, n: u64) -> Vec<Piece> {
        let (mut skip, mut left, mut out) = (from, n, Vec::new());
        for s in &job.spans {
            if skip >= s.len {
                skip -= s.len;
                continue;
            }
            let len = (s.len - skip).min(left);
            let at = |region: u32, offset: u64| (region as usize, (offset + skip) as usize);
            out.push((at(s.src_region, s.src_offset), at(s.dst_region, s.dst_offset), len as usize));
            (skip, left) = (0, left - len);
            if left == 0 {
                break;
            }
        }
        out
    }

    fn slice(&mut self, left: u64) -> u64 {
        self.rng.below(self.net.slice_bytes.clone()).clamp(1, left)
    }

    fn pull_slice(&mut self, key: Key) {
        let Some(job) = self.jobs.get(&key).filter(|j| !j.ending) else { return };
        let Some((pipe, side)) = job.pipe else { return };
        let source = self.pipes[pipe].ends[1 - side].0;
        if !self.alive(source) {
            // A copy from a host that went silent never ends by itself.
            if !self.nodes[source].silent {
                self.end_job(key, Err(error(Status::PeerDead, "the process is gone")), false);
            }
            return;
        }
        let (moved, left) = (job.moved, job.total - job.moved);
        if left == 0 {
            return self.end_job(key, Ok(()), false);
        }
        let n = self.slice(left);
        for (src, dst, len) in Self::pieces(&self.jobs[&key], moved, n) {
            let bytes = self.nodes[source].memory[src.0][src.1..src.1 + len].to_vec();
            self.nodes[key.0].memory[dst.0][dst.1..dst.1 + len].copy_from_slice(&bytes);
        }
        self.jobs.get_mut(&key).expect("it runs").moved += n;
        let delay = self.rng.below(self.net.slice.clone());
        self.after(delay, Item::Pull { job: key });
    }

    fn send_slice(&mut self, flow: FlowKey) {
        let Some(key) = self.flows.get(&flow).and_then(|f| f.send) else { return };
        let Some(job) = self.jobs.get(&key).filter(|j| !j.ending) else { return };
        if !self.alive(key.0) {
            return;
        }
        let receive = self.flows[&flow].receive.expect("both sides are there");
        if let Some(other) = self.jobs.get(&receive) {
            assert_eq!(job.total, other.total, "both sides expand the same request");
        }
        let (moved, left) = (job.moved, job.total - job.moved);
        let n = if left == 0 { 0 } else { self.slice(left) };
        let mut bytes = Vec::new();
        for (src, _, len) in Self::pieces(job_of(&self.jobs, &key), moved, n) {
            bytes.extend_from_slice(&self.nodes[key.0].memory[src.0][src.1..src.1 + len]);
        }
        self.jobs.get_mut(&key).expect("it runs").moved += n;
        let f = self.flows.get_mut(&flow).expect("it is there");
        let latency = self.rng.micros(self.net.latency.clone());
        let when = f.last.map_or(self.now + latency, |l| l.max(self.now + latency));
        f.last = Some(when);
        self.at(when, Item::Arrive { flow, bytes });
        if n == left {
            return self.end_job(key, Ok(()), false);
        }
        let delay = self.rng.below(self.net.slice.clone());
        self.after(delay, Item::Push { flow });
    }

    fn receive_slice(&mut self, flow: FlowKey, bytes: &[u8]) {
        let Some(key) = self.flows.get(&flow).and_then(|f| f.receive) else { return };
        let Some(job) = self.jobs.get(&key).filter(|j| !j.ending) else { return };
        if !self.alive(key.0) {
            return;
        }
        let mut rest = bytes;
        for (_, dst, len) in Self::pieces(job, job.moved, bytes.len() as u64) {
            let (now, later) = rest.split_at(len);
            self.nodes[key.0].memory[dst.0][dst.1..dst.1 + len].copy_from_slice(now);
            rest = later;
        }
        let job = self.jobs.get_mut(&key).expect("it runs");
        job.moved += bytes.len() as u64;
        if job.moved == job.total {
            self.end_job(key, Ok(()), false);
        }
    }
}

fn job_of<'a>(jobs: &'a HashMap<Key, Job>, key: &Key) -> &'a Job {
    &jobs[key]
}
