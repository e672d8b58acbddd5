//! Reads: the sink fetches an offered request from every source rank that its plans name.
//!
//! Each part (one source rank) fetches its spans, by pulling or as a stream, and then asks the source whether the lease
//! still held. Only that answer makes the data valid: it was read completely before the source could have reused it.

use super::endpoint::{Endpoint, JobOwner, Timer, Transfer, later, told};
use super::event::{Event, EventKind};
use super::id::Id;
use super::invalid::touched;
use super::output::{Action, ConnId, JobEnd, JobId, Output, read_tag};
use super::peer::bad_peer;
use super::work::Work;
use crate::error::{Error, Result, Status};
use crate::wire::{Blocks, LeaseMark, Message, Range, ReadRequest, Ticket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failed reads whose invalid blocks are remembered.
const REMEMBERED: usize = 1024;

/// What a sink wants.
#[derive(Clone, Debug)]
pub struct ReadArgs<'a> {
    /// The source.
    pub peer: Id,
    /// The source's ticket.
    pub ticket: &'a [u8],
    /// Where the data goes, by group.
    pub blocks: Vec<Blocks>,
    /// First token to fetch: what lies before is here already.
    pub token_begin: u64,
    /// One past the last token to fetch; `None`: all that is offered.
    pub token_end: Option<u64>,
    /// Layers to fetch.
    pub layers: (u32, u32),
    /// Time allowed; `None`: the configured default.
    pub timeout: Option<Duration>,
    /// Returned in the event.
    pub user_data: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A job is running.
    Fetching,
    /// Asked whether the lease still held.
    Validating,
    /// Valid.
    Valid,
    /// Ended without success.
    Failed,
}

/// A part that is about to begin.
struct Ready {
    conn: ConnId,
    consumers: u32,
    work: Work,
    groups: Vec<u32>,
}

struct Part {
    conn: ConnId,
    op: u64,
    consumers: u32,
    step: Step,
    job: Option<JobId>,
    streamed: bool,
    groups: Vec<u32>,
    gone: bool,
}

pub(super) struct ReadTransfer {
    pub peer: Id,
    request: String,
    round: u32,
    range: Range,
    blocks: Arc<Vec<Blocks>>,
    parts: Vec<Part>,
    /// Source ranks that only want to hear that we are done.
    courtesy: Vec<(ConnId, u32)>,
    /// Sources that have not heard yet that their part is here.
    untold: Vec<(ConnId, Message)>,
    pub deadline: Instant,
    user_data: u64,
    bytes: u64,
    spans: u64,
    failure: Option<Error>,
    quarantined: bool,
    pub notify: Vec<Vec<u8>>,
}

impl ReadTransfer {
    pub fn conn(&self, part: usize) -> Option<ConnId> {
        self.parts.get(part).map(|p| p.conn)
    }

    /// What a source rank is told when its part is here.
    fn done(&self, op: u64, consumers: u32) -> Message {
        Message::Done { op, request: self.request.clone(), round: self.round, consumers }
    }

    pub fn uses(&self, conn: ConnId) -> bool {
        self.parts.iter().any(|p| p.conn == conn && p.step != Step::Valid)
    }

    pub fn session_lost(&mut self, conn: ConnId) {
        for p in self.parts.iter_mut().filter(|p| p.conn == conn && p.step != Step::Valid) {
            p.gone = true;
            if p.step == Step::Validating {
                p.step = Step::Failed;
            }
        }
    }
}

impl Endpoint {
    /// Starts a read. Ends with one [`EventKind::Transfer`] event; an error means that nothing was started.
    ///
    /// # Errors
    /// [`Status::InvalidTicket`], [`Status::Incarnation`], [`Status::InvalidBlocks`], [`Status::BadHandle`],
    /// [`Status::PeerDead`], [`Status::WrongState`], [`Status::Incompatible`], [`Status::Limit`].
    pub fn read(&mut self, now: Instant, args: ReadArgs<'_>) -> Result<Id> {
        self.limit("transfers", self.transfers.len(), self.config.max_transfers)?;
        let ticket = Ticket::decode(args.ticket)?;
        self.check_ticket(args.peer, &ticket)?;
        self.check_blocks(&args.blocks)?;
        let range = Range {
            token_begin: args.token_begin,
            token_end: args.token_end.unwrap_or(ticket.tokens),
            token_total: ticket.tokens,
            layer_begin: args.layers.0,
            layer_end: args.layers.1,
        };
        let inbound = self.inbound(args.peer)?;
        let mut courtesy = Vec::new();
        for (rank, consumers) in &inbound.acknowledges {
            courtesy.push((self.session_with(args.peer, *rank)?, *consumers, *rank));
        }
        let mut ready: Vec<Ready> = Vec::new();
        let (src, blocks) = (Arc::new(ticket.blocks), Arc::new(args.blocks));
        for plan in &inbound.plans {
            let conn = self.session_with(args.peer, plan.source())?;
            let work = self.work(plan, &src, &blocks, &range)?;
            let consumers = courtesy.iter().find(|(_, _, r)| *r == plan.source()).map_or(1, |(_, n, _)| *n);
            courtesy.retain(|(_, _, r)| *r != plan.source());
            ready.push(Ready { conn, consumers, work, groups: plan.destination_groups() });
        }
        let deadline = later(now, args.timeout.unwrap_or(self.config.transfer_timeout));
        let id = self.transfers.insert(Transfer::Read(ReadTransfer {
            peer: args.peer,
            request: ticket.request,
            round: ticket.round,
            range,
            blocks,
            parts: Vec::new(),
            courtesy: courtesy.into_iter().map(|(conn, n, _)| (conn, n)).collect(),
            untold: Vec::new(),
            deadline,
            user_data: args.user_data,
            bytes: 0,
            spans: 0,
            failure: None,
            quarantined: false,
            notify: Vec::new(),
        }));
        self.timer(deadline, Timer::Transfer(id));
        for part in ready {
            self.start_part(id, part);
        }
        self.check_read(id);
        Ok(id)
    }

    fn check_ticket(&self, peer: Id, ticket: &Ticket) -> Result<()> {
        let p = self.peers.get(peer).ok_or_else(|| bad_peer(peer))?;
        if let Some(e) = &p.dead {
            return Err(Error::new(Status::PeerDead, format!("the peer is dead: {}", e.message())));
        }
        let Some(directory) = &p.directory else {
            return Err(Error::new(Status::WrongState, "the handshake has not finished"));
        };
        if ticket.instance != p.instance {
            let text = format!("the ticket is of instance {:?}, the peer is {:?}", ticket.instance, p.instance);
            return Err(Error::new(Status::InvalidTicket, text));
        }
        let known = directory.entry(ticket.rank).map(|e| e.incarnation);
        if known != Some(ticket.incarnation) {
            let text = format!(
                "the ticket was issued by process {:#x} of rank {}, the peer's is {known:x?}",
                ticket.incarnation, ticket.rank
            );
            return Err(Error::new(Status::Incarnation, text));
        }
        Ok(())
    }

    fn start_part(&mut self, id: Id, part: Ready) {
        let Ready { conn, consumers, work, groups } = part;
        let op = self.fresh();
        let pull = self.sessions.get(conn).is_some_and(|s| s.we_pull());
        let Some(Transfer::Read(r)) = self.transfers.get_mut(id) else { return };
        let index = r.parts.len();
        let fetch = !work.is_empty();
        let step = if fetch { Step::Fetching } else { Step::Validating };
        let streamed = fetch && !pull;
        r.parts.push(Part { conn, op, consumers, step, job: None, streamed, groups, gone: false });
        let done = r.done(op, consumers);
        let source = self.sessions.get(conn).and_then(|s| s.remote.as_ref()).map(|r| r.incarnation);
        let mark = source.filter(|_| pull).map(|source| LeaseMark::new(source, &r.request, r.round));
        let ask = streamed.then(|| {
            let (request, blocks) = (r.request.clone(), r.blocks.to_vec());
            Message::Read(ReadRequest { op, request, round: r.round, range: r.range, blocks })
        });
        self.ops.insert(op, (id, index));
        if !fetch {
            return self.send(conn, done);
        }
        let job = self.new_job(JobOwner::Read { transfer: id, part: index });
        if let Some(Transfer::Read(r)) = self.transfers.get_mut(id)
            && let Some(p) = r.parts.get_mut(index)
        {
            p.job = Some(job);
        }
        let action = if pull { Action::Pull } else { Action::Receive { tag: read_tag(op) } };
        self.outputs.push_back(Output::Post { job, conn, action, work, mark });
        if let Some(ask) = ask {
            self.send(conn, ask);
        }
    }

    pub(super) fn read_job_ended(&mut self, id: Id, part: usize, end: JobEnd) {
        let Some(Transfer::Read(r)) = self.transfers.get_mut(id) else { return };
        r.quarantined |= !end.quiescent;
        let Some(p) = r.parts.get_mut(part) else { return };
        p.job = None;
        match end.result {
            Ok(()) if !p.gone && r.failure.is_none() => {
                // Seen on the source's board: its acknowledgement can tell nothing new.
                p.step = if end.held { Step::Valid } else { Step::Validating };
                r.bytes += end.bytes;
                r.spans += end.spans;
                let (conn, op, consumers) = (p.conn, p.op, p.consumers);
                let done = r.done(op, consumers);
                r.untold.push((conn, done));
            }
            Ok(()) => p.step = Step::Failed,
            Err(e) => {
                p.step = Step::Failed;
                self.fail_read(id, e);
            }
        }
        self.check_read(id);
    }

    pub(super) fn on_ack(&mut self, conn: ConnId, op: u64, status: i32) -> Result<()> {
        let Some((id, part)) = self.find_op(conn, op) else { return Ok(()) };
        let Some(Transfer::Read(r)) = self.transfers.get_mut(id) else { return Ok(()) };
        let request = r.request.clone();
        let Some(p) = r.parts.get_mut(part) else { return Ok(()) };
        if matches!(p.step, Step::Failed | Step::Valid) {
            // Another part failed while this answer was under way, or the source's board had answered before.
            return Ok(());
        }
        if p.step != Step::Validating {
            return Err(Error::new(Status::Protocol, format!("acknowledgement of read {op}, which is {:?}", p.step)));
        }
        if status == 0 {
            p.step = Step::Valid;
        } else {
            p.step = Step::Failed;
            let status = told(status, Status::Protocol);
            let text = format!("the source's lease of request {request:?} did not hold until the data was here");
            self.fail_read(id, Error::new(status, text));
        }
        self.check_read(id);
        Ok(())
    }

    pub(super) fn on_read_failed(&mut self, conn: ConnId, op: u64, status: i32, text: String) -> Result<()> {
        let Some((id, part)) = self.find_op(conn, op) else { return Ok(()) };
        if let Some(Transfer::Read(r)) = self.transfers.get(id) {
            if r.parts.get(part).is_some_and(|p| p.step == Step::Valid) {
                // The lease ended with our own acknowledgement, before the source's job was reported to it.
                return Ok(());
            }
            let status = told(status, Status::Refused);
            self.fail_read(id, Error::new(status, format!("the source refused: {text}")));
            self.check_read(id);
        }
        Ok(())
    }

    /// Stops what runs; the event comes when nothing touches the destination any more.
    pub(super) fn fail_read(&mut self, id: Id, error: Error) {
        let Some(Transfer::Read(r)) = self.transfers.get_mut(id) else { return };
        if r.failure.is_some() {
            return;
        }
        r.failure = Some(error.clone());
        let mut stop = Vec::new();
        for p in &mut r.parts {
            match p.step {
                Step::Fetching => stop.extend(p.job.map(|job| (job, p.conn, p.op, p.streamed && !p.gone))),
                Step::Validating => p.step = Step::Failed,
                Step::Valid | Step::Failed => {}
            }
        }
        for (job, conn, op, streamed) in stop {
            self.cancel_job(job, error.status());
            if streamed {
                self.send(conn, Message::ReadCancel { op });
            }
        }
        self.check_read(id);
    }

    /// Ends the transfer when all its parts have ended.
    fn check_read(&mut self, id: Id) {
        let Some(Transfer::Read(r)) = self.transfers.get(id) else { return };
        let running = |p: &Part| p.job.is_some() || (p.step == Step::Validating && r.failure.is_none());
        if r.parts.iter().any(running) {
            return self.tell_sources(id);
        }
        let Some(Transfer::Read(mut r)) = self.transfers.remove(id) else { return };
        self.untimer(r.deadline, Timer::Transfer(id));
        for p in &r.parts {
            self.ops.remove(&p.op);
        }
        let mut event = Event {
            id: id.0,
            peer: r.peer.0,
            user_data: r.user_data,
            bytes: r.bytes,
            spans: r.spans,
            ..Event::new(EventKind::Transfer, Status::Ok)
        };
        let failed = r.failure.take();
        if let Some(e) = &failed {
            let status = if r.quarantined { Status::Quarantined } else { e.status() };
            (event.status, event.text) = (status, e.message().to_string());
            self.remember_failed(id, &r);
        }
        // The engine first: it waits, the sources do not.
        self.emit(event);
        for (conn, done) in std::mem::take(&mut r.untold) {
            self.send(conn, done);
        }
        if failed.is_some() {
            return;
        }
        let mut everybody: Vec<ConnId> = r.parts.iter().map(|p| p.conn).collect();
        for (conn, consumers) in &r.courtesy {
            let op = self.fresh();
            self.send(*conn, r.done(op, *consumers));
            everybody.push(*conn);
        }
        for payload in r.notify {
            for conn in &everybody {
                self.send(*conn, Message::Notify(payload.clone()));
            }
        }
    }

    fn tell_sources(&mut self, id: Id) {
        let Some(Transfer::Read(r)) = self.transfers.get_mut(id) else { return };
        for (conn, done) in std::mem::take(&mut r.untold) {
            self.send(conn, done);
        }
    }

    fn remember_failed(&mut self, id: Id, r: &ReadTransfer) {
        let mut groups: Vec<u32> =
            r.parts.iter().filter(|p| p.step != Step::Valid).flat_map(|p| p.groups.iter().copied()).collect();
        groups.sort_unstable();
        groups.dedup();
        let one = |g: u32| Some((g, touched(&self.layout, g, r.blocks.get(g as usize)?, &r.range)));
        let lost = groups.into_iter().filter_map(one).filter(|(_, ids)| !ids.is_empty()).collect();
        if self.failed.len() >= REMEMBERED {
            self.failed.pop_front();
        }
        self.failed.push_back((id, lost));
    }
}
