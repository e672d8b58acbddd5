//! Accepts: the destination's side of writes.

use super::coverage::Coverage;
use super::endpoint::{Endpoint, JobOwner, Timer, later, told};
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::lease::check_request;
use super::output::{Action, ConnId, JobEnd, JobId, Output, check_op, write_tag};
use crate::error::{Error, Result, Status};
use crate::layout::{Inbound, Plan};
use crate::wire::{Blocks, Message, Range, WriteRequest};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
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
    /// Pulled: counts once the source has confirmed that it still held it.
    pulled: bool,
    bytes: u64,
    spans: u64,
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
    spans: u64,
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
    /// Announced writes, by session and the source's number.
    by_op: HashMap<(ConnId, u64), (Id, usize)>,
    parked: Vec<Parked>,
}

impl Accepts {
    pub fn new(seed: u64) -> Accepts {
        Accepts {
            slab: Slab::new(Kind::Accept, seed),
            by_request: HashMap::new(),
            by_op: HashMap::new(),
            parked: Vec::new(),
        }
    }

    pub fn ids(&self) -> Vec<Id> {
        self.slab.ids()
    }

    /// Accepts, parked writes, announced writes.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.slab.len(), self.parked.len(), self.by_op.len())
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
        let deadline = later(now, args.timeout.unwrap_or(self.config.transfer_timeout));
        let request = args.request.clone();
        let id = self.accepts.slab.insert(Accept {
            args,
            deadline,
            peer: None,
            ops: Vec::new(),
            producers: BTreeMap::new(),
            aux: Vec::new(),
            bytes: 0,
            spans: 0,
            failure: None,
            quarantined: false,
        });
        self.accepts.by_request.insert(request.clone(), id);
        self.timer(deadline, Timer::Accept(id));
        for p in self.unpark(|p| p.write.request == request) {
            self.take_write(p.conn, p.write);
        }
        self.check_accept(id);
        Ok(id)
    }

    pub(super) fn on_write(&mut self, now: Instant, conn: ConnId, w: WriteRequest) -> Result<()> {
        check_op(w.op)?;
        let parked = |p: &Parked| p.conn == conn && p.write.op == w.op;
        if self.accepts.by_op.contains_key(&(conn, w.op)) || self.accepts.parked.iter().any(parked) {
            return Err(Error::new(Status::Protocol, format!("write {} was announced already", w.op)));
        }
        if self.accepts.by_request.contains_key(&w.request) {
            self.take_write(conn, w);
        } else if let Err(e) = self.check_parked(&w) {
            self.write_done(conn, w.op, &Err(e), 0);
        } else {
            let until = later(now, self.config.transfer_timeout);
            self.timer(until, Timer::Parked);
            self.accepts.parked.push(Parked { conn, write: w, until });
        }
        Ok(())
    }

    /// Whether one more write may wait for its accept.
    fn check_parked(&self, w: &WriteRequest) -> Result<()> {
        let parked = &self.accepts.parked;
        self.limit("writes that wait for their accept", parked.len(), self.config.max_parked)?;
        let bytes = parked.iter().fold(w.bytes(), |sum, p| sum.saturating_add(p.write.bytes()));
        let max = self.config.max_parked_bytes;
        if bytes > max {
            let text = format!("{bytes} bytes of writes that wait for their accept, at most {max} are allowed");
            return Err(Error::new(Status::Limit, text));
        }
        Ok(())
    }

    /// Takes some of the parked writes out, with the timers that only they need.
    fn unpark(&mut self, which: impl Fn(&Parked) -> bool) -> Vec<Parked> {
        let (out, rest): (Vec<Parked>, Vec<Parked>) =
            std::mem::take(&mut self.accepts.parked).into_iter().partition(which);
        self.accepts.parked = rest;
        for p in &out {
            if !self.accepts.parked.iter().any(|o| o.until == p.until) {
                self.untimer(p.until, Timer::Parked);
            }
        }
        out
    }

    pub(super) fn parked_timeout(&mut self, now: Instant) {
        for p in self.unpark(|p| p.until <= now) {
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
    fn take_write(&mut self, conn: ConnId, w: WriteRequest) {
        let op = w.op;
        let Some(id) = self.accepts.by_request.get(&w.request).copied() else { return };
        let (inbound, rank) = match self.admit(conn, id) {
            Ok(x) => x,
            // Not the accept's fault: it goes on waiting for whom it waits for.
            Err(e) => return self.write_done(conn, op, &Err(e), 0),
        };
        if let Err(e) = self.begin_write(conn, id, w, &inbound, rank) {
            self.write_done(conn, op, &Err(e.clone()), 0);
            self.fail_accept(id, e);
        }
    }

    /// Whether the rank at the other end may write to an accept; the first that may decides for its instance.
    fn admit(&mut self, conn: ConnId, id: Id) -> Result<(Arc<Inbound>, u32)> {
        let Some((peer, _, rank)) = self.peer_for(conn) else {
            return Err(Error::new(Status::Protocol, "write before the directory"));
        };
        let inbound = self.inbound(peer)?;
        if !inbound.plans.iter().any(|p| p.source() == rank) {
            return Err(Error::new(Status::Protocol, format!("rank {rank} has nothing to write here")));
        }
        let stale = || Error::new(Status::UnknownRequest, "the accept has ended");
        let a = self.accepts.slab.get_mut(id).ok_or_else(stale)?;
        let request = &a.args.request;
        if let Some(e) = &a.failure {
            return Err(e.clone());
        }
        if a.peer.is_some_and(|p| p != peer) {
            let text = format!("request {request:?} is being written by another instance");
            return Err(Error::new(Status::Refused, text));
        }
        if a.producers.get(&rank).is_some_and(|p| p.last) {
            let text = format!("rank {rank} writes to request {request:?} after its last write");
            return Err(Error::new(Status::Protocol, text));
        }
        a.peer = Some(peer);
        Ok((inbound, rank))
    }

    fn begin_write(&mut self, conn: ConnId, id: Id, w: WriteRequest, inbound: &Inbound, rank: u32) -> Result<()> {
        let Some(plan) = inbound.plans.iter().find(|p| p.source() == rank) else { return Ok(()) };
        let Some(a) = self.accepts.slab.get(id) else { return Ok(()) };
        let wanted = a.args.clone();
        if w.range.token_total != wanted.tokens {
            let text =
                format!("request {:?}: {} tokens accepted, {} written", w.request, wanted.tokens, w.range.token_total);
            return Err(Error::new(Status::InvalidBlocks, text));
        }
        w.range.check(Status::Protocol)?;
        let mut range = w.range;
        range.token_begin = range.token_begin.max(wanted.token_begin).min(range.token_end);
        let blocks = Arc::new(wanted.blocks);
        let work = self.work(plan, &Arc::new(w.blocks), &blocks, &range)?;
        let pull = self.sessions.get(conn).is_some_and(|s| s.we_pull());
        let Some(a) = self.accepts.slab.get_mut(id) else { return Ok(()) };
        let producer = a.producers.entry(rank).or_default();
        producer.open += 1;
        producer.last |= w.last;
        let index = a.ops.len();
        let pulled = pull && !work.is_empty();
        let (last, aux) = (w.last, w.aux);
        a.ops.push(Some(Op { conn, op: w.op, rank, job: None, pulled, bytes: 0, spans: 0, range, last, aux }));
        self.accepts.by_op.insert((conn, w.op), (id, index));
        if pull && work.is_empty() {
            let end = JobEnd { result: Ok(()), bytes: 0, spans: 0, quiescent: true, held: false };
            self.sink_job_ended(id, index, end);
            return Ok(());
        }
        let job = self.new_job(JobOwner::Sink { accept: id, op: index });
        if let Some(Some(o)) = self.accepts.slab.get_mut(id).and_then(|a| a.ops.get_mut(index)) {
            o.job = Some(job);
        }
        let action = if pull { Action::Pull } else { Action::Receive { tag: write_tag(w.op) } };
        self.outputs.push_back(Output::Post { job, conn, action, work, mark: None });
        if !pull {
            // The source expands exactly what we expect: the same range, our blocks.
            self.send(conn, Message::WriteGo { op: w.op, range, blocks: blocks.to_vec() });
        }
        Ok(())
    }

    pub(super) fn sink_job_ended(&mut self, id: Id, index: usize, end: JobEnd) {
        let Some(a) = self.accepts.slab.get_mut(id) else { return };
        a.quarantined |= !end.quiescent;
        let failure = a.failure.clone();
        let Some(op) = a.ops.get_mut(index).and_then(Option::as_mut) else { return };
        (op.job, op.bytes, op.spans) = (None, end.bytes, end.spans);
        let (conn, number, pulled) = (op.conn, op.op, op.pulled);
        let result = end.result.and(failure.map_or(Ok(()), Err));
        self.write_done(conn, number, &result, end.bytes);
        if result.is_err() || !pulled {
            self.end_op(id, index, result);
        }
    }

    /// The source says whether it still held what we pulled.
    pub(super) fn on_write_ack(&mut self, conn: ConnId, op: u64, status: i32) -> Result<()> {
        let Some((id, index)) = self.accepts.by_op.get(&(conn, op)).copied() else { return Ok(()) };
        let Some(a) = self.accepts.slab.get(id) else { return Ok(()) };
        if a.ops.get(index).and_then(Option::as_ref).is_none_or(|o| o.job.is_some()) {
            return Err(Error::new(Status::Protocol, format!("write {op} is confirmed before it has ended")));
        }
        let result = match status {
            0 => Ok(()),
            _ => Err(Error::new(told(status, Status::Cancelled), "the source gave up its write before it was here")),
        };
        self.end_op(id, index, result);
        Ok(())
    }

    /// A write has ended, and whether its bytes count is known.
    fn end_op(&mut self, id: Id, index: usize, result: Result<()>) {
        let peer = self.accepts.slab.get(id).and_then(|a| a.peer);
        let inbound = peer.and_then(|p| self.inbound(p).ok());
        let Some(a) = self.accepts.slab.get_mut(id) else { return };
        let Some(op) = a.ops.get_mut(index).and_then(Option::take) else { return };
        self.accepts.by_op.remove(&(op.conn, op.op));
        let plan = inbound.as_ref().and_then(|i| i.plans.iter().find(|p| p.source() == op.rank));
        let producer = a.producers.entry(op.rank).or_default();
        producer.open = producer.open.saturating_sub(1);
        match result {
            Ok(()) => {
                a.bytes = a.bytes.saturating_add(op.bytes);
                a.spans = a.spans.saturating_add(op.spans);
                if let Some(plan) = plan {
                    producer.coverage.add(plan.layers().into_iter().map(|(l, _)| l), &op.range);
                }
                if op.last && !op.aux.is_empty() {
                    a.aux = op.aux;
                }
            }
            Err(e) => drop(self.fail_accept(id, e)),
        }
        self.check_accept(id);
    }

    pub(super) fn on_write_cancel(&mut self, conn: ConnId, op: u64) -> Result<()> {
        let cancelled = Error::new(Status::Cancelled, "the source cancelled its write");
        if let Some((id, index)) = self.accepts.by_op.get(&(conn, op)).copied() {
            let job = self.accepts.slab.get(id).and_then(|a| a.ops.get(index)?.as_ref()?.job);
            self.fail_accept(id, cancelled);
            if job.is_some() {
                // Answered when the job has ended.
                return Ok(());
            }
        } else {
            self.unpark(|p| p.conn == conn && p.write.op == op);
        }
        self.write_done(conn, op, &Err(Error::new(Status::Cancelled, "cancelled")), 0);
        Ok(())
    }

    pub(super) fn accept_timeout(&mut self, now: Instant, id: Id) {
        let Some(a) = self.accepts.slab.get(id) else { return };
        if a.deadline <= now {
            let text = self.progress_text(a);
            self.fail_accept(id, Error::new(Status::Deadline, format!("the accept's deadline passed: {text}")));
        }
    }

    fn progress_text(&self, a: &Accept) -> String {
        let wrote: Vec<u32> = a.producers.keys().copied().collect();
        format!("{} bytes from source ranks {wrote:?} have arrived", a.bytes)
    }

    /// Stops what runs; the event comes when nothing writes any more.
    pub(super) fn fail_accept(&mut self, id: Id, error: Error) -> Option<()> {
        let a = self.accepts.slab.get_mut(id)?;
        if a.failure.is_none() {
            a.failure = Some(error.clone());
            let jobs: Vec<JobId> = a.ops.iter().flatten().filter_map(|o| o.job).collect();
            for job in jobs {
                self.cancel_job(job, error.status());
            }
        }
        self.check_accept(id);
        Some(())
    }

    /// A session is gone: requests that it was writing cannot complete.
    pub(super) fn drop_sink_session(&mut self, conn: ConnId, peer: Id, rank: u32, error: &Error) {
        self.unpark(|p| p.conn == conn);
        let needed = self.inbound(peer).is_ok_and(|i| i.plans.iter().any(|p| p.source() == rank));
        let other = self
            .sessions
            .iter()
            .any(|(_, s)| s.peer == Some(peer) && s.is_linked() && s.remote.as_ref().is_some_and(|r| r.rank == rank));
        let uses = |a: &Accept| a.ops.iter().flatten().any(|o| o.conn == conn);
        let waits = |a: &Accept| needed && !other && !a.producers.get(&rank).is_some_and(|p| p.last && p.open == 0);
        let hit: Vec<Id> = self
            .accepts
            .slab
            .iter()
            .filter(|(_, a)| a.peer == Some(peer) && (uses(a) || waits(a)))
            .map(|(id, _)| id)
            .collect();
        for id in hit {
            self.fail_accept(id, error.clone());
        }
    }

    fn check_accept(&mut self, id: Id) {
        let Some(a) = self.accepts.slab.get(id) else { return };
        let running = a.ops.iter().flatten().any(|o| o.job.is_some());
        if running || (a.failure.is_none() && !self.accept_finished(id)) {
            return;
        }
        let Some(mut a) = self.accepts.slab.remove(id) else { return };
        self.accepts.by_request.remove(&a.args.request);
        self.untimer(a.deadline, Timer::Accept(id));
        for o in a.ops.iter().flatten() {
            self.accepts.by_op.remove(&(o.conn, o.op));
        }
        let mut event = Event {
            id: id.0,
            peer: a.peer.map_or(0, |p| p.0),
            user_data: a.args.user_data,
            bytes: a.bytes,
            spans: a.spans,
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
        let Some(peer) = self.accepts.slab.get(id).and_then(|a| a.peer) else {
            // A rank without any cache has nothing to wait for.
            return self.layout.tensors().is_empty();
        };
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
        let missing = |p: &Arc<Plan>| producers.get(&p.source())?.coverage.missing(p, &want).map(|m| (p.source(), m));
        let (rank, text) = inbound.plans.iter().find_map(missing)?;
        Some(Error::new(Status::Incomplete, format!("source rank {rank} said last, but {text}")))
    }
}
