//! Writes: the source announces data to every destination rank that its plans name, layer by layer if it likes.
//!
//! Only a destination ever writes into its own memory: it pulls, or receives the stream it asked for. So a destination can
//! always prove that nothing writes any more. What it pulled counts once the source has confirmed that it still held it:
//! a source that gave up a destination may have reused the blocks.

use super::endpoint::{Endpoint, JobOwner, Timer, Transfer, later, told};
use super::event::{Event, EventKind};
use super::id::Id;
use super::lease::check_request;
use super::output::{Action, ConnId, JobEnd, JobId, Output, write_tag};
use crate::error::{Error, Result, Status};
use crate::wire::{Blocks, Message, Range, WriteRequest, limit};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a source writes.
#[derive(Clone, Debug)]
pub struct WriteArgs {
    /// The destination.
    pub peer: Id,
    /// The request that the destination accepts.
    pub request: String,
    /// Where the data lies, by group; positions are those of the whole request.
    pub blocks: Vec<Blocks>,
    /// What of it. State (slots groups) goes with the writes whose `token_end` is `token_total`.
    pub range: Range,
    /// This source's last write of the request.
    pub last: bool,
    /// Side payload; with the last write only.
    pub aux: Vec<u8>,
    /// Time allowed; `None`: the configured default.
    pub timeout: Option<Duration>,
    /// Returned in the event.
    pub user_data: u64,
}

struct Part {
    conn: ConnId,
    op: u64,
    rank: u32,
    job: Option<JobId>,
    sent: bool,
    done: bool,
    gone: bool,
}

pub(super) struct WriteTransfer {
    pub peer: Id,
    blocks: Arc<Vec<Blocks>>,
    range: Range,
    parts: Vec<Part>,
    pub deadline: Instant,
    user_data: u64,
    bytes: u64,
    spans: u64,
    failure: Option<Error>,
    /// The failure was a job's: a destination that says why is believed instead.
    by_job: bool,
    pub notify: Vec<Vec<u8>>,
}

impl WriteTransfer {
    pub fn conn(&self, part: usize) -> Option<ConnId> {
        self.parts.get(part).map(|p| p.conn)
    }

    pub fn uses(&self, conn: ConnId) -> bool {
        self.parts.iter().any(|p| p.conn == conn && !p.done)
    }

    pub fn session_lost(&mut self, conn: ConnId) {
        for p in self.parts.iter_mut().filter(|p| p.conn == conn) {
            (p.gone, p.done) = (true, true);
        }
    }
}

impl Endpoint {
    /// Starts a write. Ends with one [`EventKind::Transfer`] event; an error means that nothing was started.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`], [`Status::InvalidBlocks`], [`Status::BadHandle`], [`Status::PeerDead`],
    /// [`Status::WrongState`], [`Status::Incompatible`], [`Status::Limit`].
    pub fn write(&mut self, now: Instant, args: WriteArgs) -> Result<Id> {
        self.limit("transfers", self.transfers.len(), self.config.max_transfers)?;
        check_request(&args.request)?;
        self.check_blocks(&args.blocks)?;
        args.range.check(Status::InvalidArgument)?;
        if args.aux.len() > limit::PAYLOAD {
            let text = format!("a side payload of {} bytes, at most {}", args.aux.len(), limit::PAYLOAD);
            return Err(Error::new(Status::Limit, text));
        }
        if !args.aux.is_empty() && !args.last {
            return Err(Error::new(Status::InvalidArgument, "a side payload travels with the last write only"));
        }
        let outbound = self.outbound(args.peer)?;
        let mut parts = Vec::new();
        for plan in outbound.plans.iter() {
            let conn = self.session_with(args.peer, plan.destination())?;
            let op = self.fresh();
            let rank = plan.destination();
            parts.push(Part { conn, op, rank, job: None, sent: false, done: false, gone: false });
        }
        for p in &parts {
            let request = WriteRequest {
                op: p.op,
                request: args.request.clone(),
                range: args.range,
                blocks: args.blocks.clone(),
                last: args.last,
                aux: args.aux.clone(),
            };
            self.send(p.conn, Message::Write(request));
        }
        let deadline = later(now, args.timeout.unwrap_or(self.config.transfer_timeout));
        let ops: Vec<u64> = parts.iter().map(|p| p.op).collect();
        let id = self.transfers.insert(Transfer::Write(WriteTransfer {
            peer: args.peer,
            blocks: Arc::new(args.blocks),
            range: args.range,
            parts,
            deadline,
            user_data: args.user_data,
            bytes: 0,
            spans: 0,
            failure: None,
            by_job: false,
            notify: Vec::new(),
        }));
        self.ops.extend(ops.into_iter().enumerate().map(|(i, op)| (op, (id, i))));
        self.timer(deadline, Timer::Transfer(id));
        self.check_write(id);
        Ok(id)
    }

    pub(super) fn on_write_go(
        &mut self,
        now: Instant,
        conn: ConnId,
        op: u64,
        range: Range,
        blocks: Vec<Blocks>,
    ) -> Result<()> {
        let Some((id, index)) = self.find_op(conn, op) else { return Ok(()) };
        let Some(Transfer::Write(w)) = self.transfers.get(id) else { return Ok(()) };
        let Some(p) = w.parts.get(index) else { return Ok(()) };
        if p.job.is_some() || p.sent || p.done {
            return Err(Error::new(Status::Protocol, format!("write {op} is being sent already")));
        }
        if w.failure.is_some() {
            return Ok(());
        }
        let (rank, src) = (p.rank, w.blocks.clone());
        let within = |r: &Range| {
            (r.token_total, r.token_end, r.layer_begin, r.layer_end)
                == (w.range.token_total, w.range.token_end, w.range.layer_begin, w.range.layer_end)
                && r.token_begin >= w.range.token_begin
        };
        if !within(&range) {
            return Err(Error::new(
                Status::Protocol,
                format!("write {op}: the sink asks for {range:?} of {:?}", w.range),
            ));
        }
        let outbound = self.outbound(w.peer)?;
        let Some(plan) = outbound.plans.iter().find(|x| x.destination() == rank) else { return Ok(()) };
        let work = match self.work(plan, &src, &Arc::new(blocks), &range) {
            Ok(x) => x,
            Err(e) => {
                self.fail_write(now, id, e);
                return Ok(());
            }
        };
        let job = self.new_job(JobOwner::Write { transfer: id, part: index });
        if let Some(Transfer::Write(w)) = self.transfers.get_mut(id)
            && let Some(p) = w.parts.get_mut(index)
        {
            (p.job, p.sent) = (Some(job), true);
        }
        let action = Action::Send { tag: write_tag(op) };
        self.outputs.push_back(Output::Post { job, conn, action, work, mark: None });
        Ok(())
    }

    pub(super) fn write_job_ended(&mut self, now: Instant, id: Id, part: usize, end: JobEnd) {
        let Some(Transfer::Write(w)) = self.transfers.get_mut(id) else { return };
        w.spans += end.spans;
        if let Some(p) = w.parts.get_mut(part) {
            p.job = None;
        }
        if let Err(e) = end.result {
            w.by_job = w.failure.is_none();
            self.fail_write(now, id, e);
        }
        self.check_write(id);
    }

    pub(super) fn on_write_done(
        &mut self,
        now: Instant,
        conn: ConnId,
        op: u64,
        status: i32,
        text: String,
        bytes: u64,
    ) -> Result<()> {
        let Some((id, index)) = self.find_op(conn, op) else {
            if status == 0 {
                // Given up here: the blocks may have been reused before they were pulled.
                self.send(conn, Message::WriteAck { op, status: Status::Cancelled.code() });
            }
            return Ok(());
        };
        let Some(Transfer::Write(w)) = self.transfers.get_mut(id) else { return Ok(()) };
        let Some(p) = w.parts.get_mut(index).filter(|p| !p.done) else { return Ok(()) };
        p.done = true;
        let (running, pulled) = (p.job, !p.sent);
        w.bytes = w.bytes.saturating_add(bytes);
        if status == 0 {
            let held = w.failure.as_ref().map_or(0, |e| e.status().code());
            if pulled {
                self.send(conn, Message::WriteAck { op, status: held });
            }
        } else {
            let error = Error::new(told(status, Status::Refused), format!("the destination says: {text}"));
            if std::mem::take(&mut w.by_job) {
                w.failure = Some(error.clone());
            }
            if let Some(job) = running {
                self.cancel_job(job, error.status());
            }
            self.fail_write(now, id, error);
        }
        self.check_write(id);
        Ok(())
    }

    /// Tells every destination to stop; the event comes when all have, or are dead.
    pub(super) fn fail_write(&mut self, now: Instant, id: Id, error: Error) {
        let again = later(now, self.patience());
        let Some(Transfer::Write(w)) = self.transfers.get_mut(id) else { return };
        if w.failure.is_some() {
            // The destinations were told and did not answer in time: their sessions are as good as dead for this transfer.
            if w.deadline <= now {
                w.parts.iter_mut().for_each(|p| p.done = true);
                self.check_write(id);
            }
            return;
        }
        w.failure = Some(error.clone());
        let due = std::mem::replace(&mut w.deadline, again);
        let stop: Vec<(ConnId, u64, Option<JobId>)> =
            w.parts.iter().filter(|p| !p.done || p.job.is_some()).map(|p| (p.conn, p.op, p.job)).collect();
        self.untimer(due, Timer::Transfer(id));
        self.timer(again, Timer::Transfer(id));
        for (conn, op, job) in stop {
            if let Some(job) = job {
                self.cancel_job(job, error.status());
            }
            self.send(conn, Message::WriteCancel { op });
        }
        self.check_write(id);
    }

    fn check_write(&mut self, id: Id) {
        let Some(Transfer::Write(w)) = self.transfers.get(id) else { return };
        if w.parts.iter().any(|p| !p.done || p.job.is_some()) {
            return;
        }
        let Some(Transfer::Write(w)) = self.transfers.remove(id) else { return };
        self.untimer(w.deadline, Timer::Transfer(id));
        for p in &w.parts {
            self.ops.remove(&p.op);
        }
        let mut event = Event {
            id: id.0,
            peer: w.peer.0,
            user_data: w.user_data,
            bytes: w.bytes,
            spans: w.spans,
            ..Event::new(EventKind::Transfer, Status::Ok)
        };
        match w.failure {
            None => {
                for payload in w.notify {
                    for p in &w.parts {
                        self.send(p.conn, Message::Notify(payload.clone()));
                    }
                }
            }
            Some(e) => (event.status, event.text) = (e.status(), e.message().to_string()),
        }
        self.emit(event);
    }
}
