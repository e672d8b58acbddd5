//! Accepts: the destination's side of writes.

use super::coverage::Coverage;
use super::endpoint::{Endpoint, JobOwner, Timer};
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::lease::check_request;
use super::output::{Action, ConnId, JobEnd, JobId, Output};
use crate::error::{Error, Result, Status};
use crate::layout::{Form, Plan};
use crate::wire::{Blocks, Message, Range, WriteRequest};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// What a destination accepts.
#[derive(Clone, Debug)]
pub struct AcceptArgs {
    /// The request.
    pub request: String,
    /// Where its data goes, by group.
    pub blocks: Vec<Blocks>,
    /// First token wanted: what lies before is here already.
    pub token_begin: u64,
    /// Tokens of the whole request.
    pub tokens: u64,
    /// Time allowed; `None`: the configured default for transfers.
    pub timeout: Option<Duration>,
    /// Returned in the event.
    pub user_data: u64,
}

/// One announced write.
struct Op {
    conn: ConnId,
    op: u64,
    rank: u32,
    job: Option<JobId>,
    range: Range,
    last: bool,
    aux: Vec<u8>,
}

#[derive(Default)]
struct Producer {
    coverage: Coverage,
    last: bool,
    open: usize,
}

pub(super) struct Accept {
    args: AcceptArgs,
    deadline: Instant,
    /// The instance that writes; the first write decides.
    peer: Option<Id>,
    ops: Vec<Option<Op>>,
    producers: BTreeMap<u32, Producer>,
    aux: Vec<u8>,
    bytes: u64,
    failure: Option<Error>,
    quarantined: bool,
}

struct Parked {
    conn: ConnId,
    write: WriteRequest,
    until: Instant,
}

pub(super) struct Accepts {
    slab: Slab<Accept>,
    by_request: HashMap<String, Id>,
    parked: Vec<Parked>,
}

impl Accepts {
    pub fn new(seed: u64) -> Accepts {
        Accepts { slab: Slab::new(Kind::Accept, seed), by_request: HashMap::new(), parked: Vec::new() }
    }

    pub fn ids(&self) -> Vec<Id> {
        self.slab.ids()
    }
}

impl Endpoint {
    /// Accepts a request's data into these blocks. Ends with one [`EventKind::Received`] event, after which nothing writes
    /// to them.
    ///
    /// # Errors
    /// [`Status::Limit`], [`Status::Duplicate`], [`Status::InvalidBlocks`], [`Status::InvalidArgument`].
    pub fn accept(&mut self, now: Instant, args: AcceptArgs) -> Result<Id> {
        self.limit("accepts", self.accepts.slab.len(), self.config.max_accepts)?;
        check_request(&args.request)?;
        self.check_blocks(&args.blocks)?;
        if args.token_begin > args.tokens {
            let text = format!("token_begin {} of a request of {} tokens", args.token_begin, args.tokens);
            return Err(Error::new(Status::InvalidArgument, text));
        }
        if self.accepts.by_request.contains_key(&args.request) {
            return Err(Error::new(Status::Duplicate, format!("request {:?} is accepted already", args.request)));
        }
        let deadline = now + args.timeout.unwrap_or(self.config.transfer_timeout);
        let request = args.request.clone();
        let id = self.accepts.slab.insert(Accept {
            args,
            deadline,
            peer: None,
            ops: Vec::new(),
            producers: BTreeMap::new(),
            aux: Vec::new(),
            bytes: 0,
            failure: None,
            quarantined: false,
        });
        self.accepts.by_request.insert(request.clone(), id);
        self.timer(deadline, Timer::Accept(id));
        let (mine, others) =
            std::mem::take(&mut self.accepts.parked).into_iter().partition(|p| p.write.request == request);
        self.accepts.parked = others;
        let mine: Vec<Parked> = mine;
        for p in mine {
            self.take_write(now, p.conn, p.write);
        }
        Ok(id)
    }

    pub(super) fn on_write(&mut self, now: Instant, conn: ConnId, w: WriteRequest) -> Result<()> {
        if self.accepts.by_request.contains_key(&w.request) {
            self.take_write(now, conn, w);
        } else if self.accepts.parked.len() < self.config.max_parked {
            let until = now + self.config.transfer_timeout;
            self.timer(until, Timer::Parked);
            self.accepts.parked.push(Parked { conn, write: w, until });
        } else {
            let text = format!("{} writes wait for an accept already", self.accepts.parked.len());
            self.write_done(conn, w.op, &Err(Error::new(Status::Limit, text)), 0);
        }
        Ok(())
    }

    pub(super) fn parked_timeout(&mut self, now: Instant) {
        let (late, rest): (Vec<Parked>, Vec<Parked>) =
            std::mem::take(&mut self.accepts.parked).into_iter().partition(|p| p.until <= now);
        self.accepts.parked = rest;
        for p in late {
            let text = format!("request {:?} was not accepted in time", p.write.request);
            self.write_done(p.conn, p.write.op, &Err(Error::new(Status::UnknownRequest, text)), 0);
        }
    }

    fn write_done(&mut self, conn: ConnId, op: u64, result: &Result<()>, bytes: u64) {
        let (status, text) = match result {
            Ok(()) => (0, String::new()),
            Err(e) => (e.status().code(), e.message().to_string()),
        };
        self.send(conn, Message::WriteDone { op, status, text, bytes });
    }

    /// Starts to take a write whose request is accepted.
    fn take_write(&mut self, now: Instant, conn: ConnId, w: WriteRequest) {
        let op = w.op;
        let Some(id) = self.accepts.by_request.get(&w.request).copied() else { return };
        if let Err(e) = self.begin_write(now, conn, id, w) {
            self.write_done(conn, op, &Err(e.clone()), 0);
            self.fail_accept(now, id, e);
        }
    }

    fn begin_write(&mut self, now: Instant, conn: ConnId, id: Id, w: WriteRequest) -> Result<()> {
        let Some((peer, _, rank)) = self.peer_for(conn) else {
            return Err(Error::new(Status::Protocol, "write before the directory"));
        };
        let inbound = self.inbound(peer)?;
        let plan = inbound.plans.iter().find(|p| p.source() == rank);
        let plan =
            plan.ok_or_else(|| Error::new(Status::Protocol, format!("rank {rank} has nothing to write here")))?;
        let Some(a) = self.accepts.slab.get_mut(id) else { return Ok(()) };
        if let Some(e) = &a.failure {
            return Err(e.clone());
        }
        let wanted = a.args.clone();
        if *a.peer.get_or_insert(peer) != peer {
            let text = format!("request {:?} is being written by another instance", w.request);
            return Err(Error::new(Status::Refused, text));
        }
        if a.producers.get(&rank).is_some_and(|p| p.last) {
            let text = format!("rank {rank} writes to request {:?} after its last write", w.request);
            return Err(Error::new(Status::Protocol, text));
        }
        if w.range.token_total != wanted.tokens {
            let text =
                format!("request {:?}: {} tokens accepted, {} written", w.request, wanted.tokens, w.range.token_total);
            return Err(Error::new(Status::InvalidBlocks, text));
        }
        let mut range = w.range;
        range.token_begin = range.token_begin.max(wanted.token_begin).min(range.token_end);
        let (spans, _) = self.expand(plan, &w.blocks, &wanted.blocks, &range)?;
        let pull = self.sessions.get(conn).is_some_and(|s| s.we_pull());
        let Some(a) = self.accepts.slab.get_mut(id) else { return Ok(()) };
        let producer = a.producers.entry(rank).or_default();
        producer.open += 1;
        producer.last |= w.last;
        let index = a.ops.len();
        a.ops.push(Some(Op { conn, op: w.op, rank, job: None, range, last: w.last, aux: w.aux }));
        if pull && spans.is_empty() {
            self.give_spans(spans);
            let end = JobEnd { result: Ok(()), bytes: 0, spans: Vec::new(), quiescent: true, held: false };
            self.sink_job_ended(now, id, index, end);
            return Ok(());
        }
        let job = self.new_job(JobOwner::Sink { accept: id, op: index });
        if let Some(Some(o)) = self.accepts.slab.get_mut(id).and_then(|a| a.ops.get_mut(index)) {
            o.job = Some(job);
        }
        let staged = matches!(plan.form(), Form::Staged { .. });
        let action = if pull { Action::Pull } else { Action::Receive { tag: w.op } };
        self.outputs.push_back(Output::Post { job, conn, action, spans, staged, mark: None });
        if !pull {
            // The source expands exactly what we expect: the same range, our blocks.
            let blocks = wanted.blocks;
            self.send(conn, Message::WriteGo { op: w.op, range, blocks });
        }
        Ok(())
    }

    pub(super) fn sink_job_ended(&mut self, now: Instant, id: Id, index: usize, end: JobEnd) {
        let peer = self.accepts.slab.get(id).and_then(|a| a.peer);
        let inbound = peer.and_then(|p| self.inbound(p).ok());
        let Some(a) = self.accepts.slab.get_mut(id) else { return };
        let Some(op) = a.ops.get_mut(index).and_then(Option::take) else { return };
        a.quarantined |= !end.quiescent;
        let plan = inbound.as_ref().and_then(|i| i.plans.iter().find(|p| p.source() == op.rank));
        let producer = a.producers.entry(op.rank).or_default();
        producer.open = producer.open.saturating_sub(1);
        let mut result = end.result;
        if result.is_ok() {
            a.bytes += end.bytes;
            if let Some(plan) = plan {
                producer.coverage.add(plan.layers().into_iter().map(|(l, _)| l), &op.range);
            }
            if op.last && !op.aux.is_empty() {
                a.aux = op.aux;
            }
        }
        if let (Ok(()), Some(e)) = (&result, &a.failure) {
            result = Err(e.clone());
        }
        self.write_done(op.conn, op.op, &result, end.bytes);
        if let Err(e) = result {
            self.fail_accept(now, id, e);
        }
        self.check_accept(now, id);
    }

    pub(super) fn on_write_cancel(&mut self, now: Instant, conn: ConnId, op: u64) -> Result<()> {
        self.accepts.parked.retain(|p| !(p.conn == conn && p.write.op == op));
        let found = self.accepts.slab.iter().find_map(|(id, a)| {
            let o = a.ops.iter().flatten().find(|o| o.conn == conn && o.op == op)?;
            Some((id, o.job))
        });
        match found {
            Some((id, _)) => {
                let error = Error::new(Status::Cancelled, "the source cancelled its write");
                self.fail_accept(now, id, error);
            }
            None => self.write_done(conn, op, &Err(Error::new(Status::Cancelled, "cancelled")), 0),
        }
        Ok(())
    }

    pub(super) fn accept_timeout(&mut self, now: Instant, id: Id) {
        let Some(a) = self.accepts.slab.get(id) else { return };
        if a.deadline <= now {
            let text = self.progress_text(a);
            self.fail_accept(now, id, Error::new(Status::Deadline, format!("the accept's deadline passed: {text}")));
        }
    }

    fn progress_text(&self, a: &Accept) -> String {
        let wrote: Vec<u32> = a.producers.keys().copied().collect();
        format!("{} bytes from source ranks {wrote:?} have arrived", a.bytes)
    }

    /// Stops what runs; the event comes when nothing writes any more.
    pub(super) fn fail_accept(&mut self, now: Instant, id: Id, error: Error) -> Option<()> {
        let a = self.accepts.slab.get_mut(id)?;
        if a.failure.is_none() {
            a.failure = Some(error.clone());
            let jobs: Vec<JobId> = a.ops.iter().flatten().filter_map(|o| o.job).collect();
            for job in jobs {
                self.cancel_job(job, error.status());
            }
        }
        self.check_accept(now, id);
        Some(())
    }

    /// A session is gone: requests that it was writing cannot complete.
    pub(super) fn drop_sink_session(&mut self, now: Instant, conn: ConnId, peer: Id, rank: u32, error: &Error) {
        self.accepts.parked.retain(|p| p.conn != conn);
        let hit: Vec<Id> = self
            .accepts
            .slab
            .iter()
            .filter(|(_, a)| a.peer == Some(peer) && !a.producers.get(&rank).is_some_and(|p| p.last && p.open == 0))
            .map(|(id, _)| id)
            .collect();
        for id in hit {
            self.fail_accept(now, id, error.clone());
        }
    }

    fn check_accept(&mut self, _now: Instant, id: Id) {
        let Some(a) = self.accepts.slab.get(id) else { return };
        let running = a.ops.iter().flatten().any(|o| o.job.is_some());
        if running || (a.failure.is_none() && !self.accept_finished(id)) {
            return;
        }
        let Some(mut a) = self.accepts.slab.remove(id) else { return };
        self.accepts.by_request.remove(&a.args.request);
        let mut event = Event {
            id: id.0,
            peer: a.peer.map_or(0, |p| p.0),
            user_data: a.args.user_data,
            bytes: a.bytes,
            payload: std::mem::take(&mut a.aux),
            ..Event::new(EventKind::Received, Status::Ok)
        };
        if let Some(e) = a.failure.or_else(|| self.gap(a.peer, &a.producers, &a.args)) {
            let status = if a.quarantined { Status::Quarantined } else { e.status() };
            (event.status, event.text, event.payload) = (status, e.message().to_string(), Vec::new());
        }
        self.emit(event);
    }

    /// Every source rank of the plan has done its last write, and nothing is under way.
    fn accept_finished(&mut self, id: Id) -> bool {
        let Some(peer) = self.accepts.slab.get(id).and_then(|a| a.peer) else { return false };
        let Ok(inbound) = self.inbound(peer) else { return false };
        let Some(a) = self.accepts.slab.get(id) else { return false };
        inbound.plans.iter().all(|p| a.producers.get(&p.source()).is_some_and(|x| x.last && x.open == 0))
    }

    /// What is missing although every source rank said that it was done.
    fn gap(&mut self, peer: Option<Id>, producers: &BTreeMap<u32, Producer>, args: &AcceptArgs) -> Option<Error> {
        let inbound = self.inbound(peer?).ok()?;
        let want = Range {
            token_begin: args.token_begin,
            token_end: args.tokens,
            token_total: args.tokens,
            layer_begin: 0,
            layer_end: u32::MAX,
        };
        let missing = |p: &Plan| producers.get(&p.source())?.coverage.missing(p, &want).map(|m| (p.source(), m));
        let (rank, text) = inbound.plans.iter().find_map(missing)?;
        Some(Error::new(Status::Incomplete, format!("source rank {rank} said last, but {text}")))
    }
}
