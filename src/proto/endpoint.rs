//! The endpoint: state, dispatch and timers. Its parts live beside it, one file per conversation.

use super::config::Config;
use super::directory::Directory;
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::join::Forming;
use super::lease::Leases;
use super::output::{ConnId, JobEnd, JobId, Output};
use super::peer::Peer;
use super::serve::Served;
use super::session::Session;
use super::sink::Accepts;
use crate::error::{Error, Result, Status};
use crate::layout::{Layout, Scratch};
use crate::wire::{Entry, Message};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::read::ReadTransfer;
use super::write::WriteTransfer;

/// Who this endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the instance.
    pub instance: String,
    /// This process: random, never 0.
    pub incarnation: u64,
    /// Rank within the instance.
    pub rank: u32,
    /// Ranks of the instance.
    pub ranks: u32,
    /// Address of the instance's first rank; unused on the first rank itself.
    pub leader: String,
}

/// Something that is due at a time; looked up again when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Session(Id),
    Handshake(Id),
    Transfer(Id),
    Lease(Id),
    Accept(Id),
    Parked,
    Join,
    Forming,
}

/// What `after` is from now on; as good as never if the clock does not reach that far.
pub(super) fn later(now: Instant, after: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now.checked_add(after).unwrap_or_else(|| now + NEVER)
}

/// Why the other side says that something failed. That it succeeded is not a reason.
pub(super) fn told(code: i32, otherwise: Status) -> Status {
    Status::from_code(code).filter(|s| *s != Status::Ok).unwrap_or(otherwise)
}

/// Who waits for a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum JobOwner {
    Read { transfer: Id, part: usize },
    Write { transfer: Id, part: usize },
    Serve { conn: ConnId, op: u64 },
    Sink { accept: Id, op: usize },
}

/// Block ids by group.
type FailedBlocks = Vec<(u32, Vec<u32>)>;

pub(super) enum Transfer {
    Read(ReadTransfer),
    Write(WriteTransfer),
}

/// One agent's protocol. See the module's documentation.
pub struct Endpoint {
    pub(super) config: Config,
    pub(super) me: Identity,
    pub(super) layout: Arc<Layout>,
    pub(super) entry: Option<Entry>,
    pub(super) directory: Option<Arc<Directory>>,
    pub(super) forming: Forming,
    pub(super) sessions: Slab<Session>,
    pub(super) peers: Slab<Peer>,
    pub(super) transfers: Slab<Transfer>,
    pub(super) leases: Leases,
    pub(super) accepts: Accepts,
    pub(super) served: HashMap<(ConnId, u64), Served>,
    pub(super) jobs: HashMap<JobId, JobOwner>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) timers: BTreeSet<(Instant, Timer)>,
    /// Parts of transfers, by the number that peers know them by.
    pub(super) ops: HashMap<u64, (Id, usize)>,
    pub(super) failed: VecDeque<(Id, FailedBlocks)>,
    pub(super) next: u64,
    pub(super) scratch: Scratch,
}

impl Endpoint {
    /// An endpoint that knows its layout but has not been bound to an address yet.
    pub fn new(config: Config, me: Identity, layout: Arc<Layout>) -> Endpoint {
        let seed = me.incarnation;
        Endpoint {
            config,
            layout,
            entry: None,
            directory: None,
            forming: Forming::default(),
            sessions: Slab::new(Kind::Session, seed),
            peers: Slab::new(Kind::Peer, seed),
            transfers: Slab::new(Kind::Transfer, seed),
            leases: Leases::new(seed),
            accepts: Accepts::new(seed),
            served: HashMap::new(),
            jobs: HashMap::new(),
            outputs: VecDeque::new(),
            timers: BTreeSet::new(),
            ops: HashMap::new(),
            failed: VecDeque::new(),
            next: 0,
            scratch: Scratch::default(),
            me,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Something waits to be done.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Ends everything that uses registered memory; each ends with its event.
    pub fn close(&mut self, now: Instant, error: Error) {
        for id in self.transfers.ids() {
            self.fail_transfer(now, id, error.clone());
        }
        for id in self.leases.ids() {
            self.withdraw(id);
        }
        for id in self.accepts.ids() {
            self.fail_accept(id, error.clone());
        }
    }

    /// When [`Endpoint::handle_timeout`] should be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Session(id) => self.session_timeout(now, id),
                Timer::Handshake(id) => self.handshake_timeout(now, id),
                Timer::Transfer(id) => self.transfer_timeout(now, id),
                Timer::Lease(id) => self.lease_timeout(now, id),
                Timer::Accept(id) => self.accept_timeout(now, id),
                Timer::Parked => self.parked_timeout(now),
                Timer::Join => self.join_again(now),
                Timer::Forming => self.forming_timeout(now),
            }
        }
    }

    /// A message arrived.
    pub fn handle_message(&mut self, now: Instant, conn: ConnId, message: Message) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.heard(now);
        if let Err(e) = self.dispatch(now, conn, message) {
            self.refuse(now, conn, e);
        }
    }

    fn dispatch(&mut self, now: Instant, conn: ConnId, message: Message) -> Result<()> {
        match message {
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Refuse { .. }
            | Message::Join(_)
            | Message::Directory(_)
            | Message::Link { .. } => self.on_session_message(now, conn, message),
            other => {
                let Some(s) = self.sessions.get_mut(conn) else { return Ok(()) };
                match other {
                    Message::Ping if s.is_live() => self.send(conn, Message::Pong),
                    Message::Pong if s.is_live() => {}
                    other if s.is_linked() => return self.on_request_message(now, conn, other),
                    other => return s.defer(other),
                }
                Ok(())
            }
        }
    }

    pub(super) fn on_request_message(&mut self, now: Instant, conn: ConnId, message: Message) -> Result<()> {
        match message {
            Message::Read(r) => self.on_read(conn, r),
            Message::ReadFailed { op, status, text } => self.on_read_failed(conn, op, status, text),
            Message::ReadCancel { op } => self.on_read_cancel(conn, op),
            Message::Done { op, request, round, consumers } => {
                self.on_done(now, conn, op, (&request, round), consumers)
            }
            Message::Ack { op, status } => self.on_ack(conn, op, status),
            Message::Write(w) => self.on_write(now, conn, w),
            Message::WriteGo { op, range, blocks } => self.on_write_go(now, conn, op, range, blocks),
            Message::WriteDone { op, status, text, bytes } => self.on_write_done(now, conn, op, status, text, bytes),
            Message::WriteCancel { op } => self.on_write_cancel(conn, op),
            Message::WriteAck { op, status } => self.on_write_ack(conn, op, status),
            Message::Notify(payload) => {
                let (peer, rank) = self.peer_of(conn);
                self.emit(Event { payload, peer, rank, ..Event::new(EventKind::Notification, Status::Ok) });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A job ended.
    pub fn handle_job(&mut self, now: Instant, job: JobId, end: JobEnd) {
        let Some(owner) = self.jobs.remove(&job) else { return };
        match owner {
            JobOwner::Read { transfer, part } => self.read_job_ended(transfer, part, end),
            JobOwner::Write { transfer, part } => self.write_job_ended(now, transfer, part, end),
            JobOwner::Serve { conn, op } => self.served_job_ended(conn, op, end),
            JobOwner::Sink { accept, op } => self.sink_job_ended(accept, op, end),
        }
    }

    /// Ends a transfer, an offer or an accept early. Its event still comes, with the status of what really happened.
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn cancel(&mut self, now: Instant, id: Id) -> Result<()> {
        let stale = || Error::new(Status::BadHandle, format!("id {:#x} names nothing that can be cancelled", id.0));
        match id.kind() {
            Some(Kind::Transfer) if self.transfers.get(id).is_some() => {
                self.fail_transfer(now, id, Error::new(Status::Cancelled, "cancelled by the caller"));
                Ok(())
            }
            Some(Kind::Offer) => self.withdraw(id).ok_or_else(stale),
            Some(Kind::Accept) => {
                let error = Error::new(Status::Cancelled, "cancelled by the caller");
                self.fail_accept(id, error).ok_or_else(stale)
            }
            _ => Err(stale()),
        }
    }

    /// Sends a message of the engine to one rank of a peer, or to all linked ranks (`None`). With `after`, it leaves when
    /// that transfer has completed, to the ranks the transfer dealt with; if the transfer fails, it is not sent.
    ///
    /// # Errors
    /// [`Status::Limit`], [`Status::BadHandle`], [`Status::PeerDead`].
    pub fn notify(&mut self, peer: Id, rank: Option<u32>, payload: &[u8], after: Option<Id>) -> Result<()> {
        if payload.len() > crate::wire::limit::PAYLOAD {
            let (have, max) = (payload.len(), crate::wire::limit::PAYLOAD);
            return Err(Error::new(Status::Limit, format!("a notification of {have} bytes, at most {max}")));
        }
        if let Some(transfer) = after {
            let found = self.transfers.get_mut(transfer);
            let stale = || Error::new(Status::BadHandle, format!("transfer id {:#x} is not in flight", transfer.0));
            let (with, waiting) = match found.ok_or_else(stale)? {
                Transfer::Read(r) => (r.peer, &mut r.notify),
                Transfer::Write(w) => (w.peer, &mut w.notify),
            };
            if with != peer {
                let text = format!("transfer {:#x} is with peer {:#x}, not {:#x}", transfer.0, with.0, peer.0);
                return Err(Error::new(Status::BadHandle, text));
            }
            waiting.push(payload.to_vec());
            return Ok(());
        }
        for conn in self.linked(peer, rank)? {
            self.send(conn, Message::Notify(payload.to_vec()));
        }
        Ok(())
    }

    pub(super) fn fail_transfer(&mut self, now: Instant, id: Id, error: Error) {
        match self.transfers.get(id) {
            Some(Transfer::Read(_)) => self.fail_read(id, error),
            Some(Transfer::Write(_)) => self.fail_write(now, id, error),
            None => {}
        }
    }

    fn transfer_timeout(&mut self, now: Instant, id: Id) {
        let due = match self.transfers.get(id) {
            Some(Transfer::Read(r)) => r.deadline,
            Some(Transfer::Write(w)) => w.deadline,
            None => return,
        };
        if due <= now {
            self.fail_transfer(now, id, Error::new(Status::Deadline, "the transfer's deadline passed"));
        }
    }

    /// Blocks, by group of the destination's layout, that a failed read left without valid data.
    pub fn failed_blocks(&self, transfer: Id) -> Option<&[(u32, Vec<u32>)]> {
        self.failed.iter().find(|(id, _)| *id == transfer).map(|(_, b)| b.as_slice())
    }

    // ---- for the parts ----

    pub(super) fn emit(&mut self, event: Event) {
        if let Some(p) = self.peers.get_mut(Id(event.peer)) {
            p.told = true;
        }
        self.outputs.push_back(Output::Event(event));
    }

    pub(super) fn send(&mut self, conn: ConnId, message: Message) {
        if self.sessions.get(conn).is_some() {
            self.outputs.push_back(Output::Send { conn, message });
        }
    }

    pub(super) fn timer(&mut self, at: Instant, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(super) fn untimer(&mut self, at: Instant, timer: Timer) {
        self.timers.remove(&(at, timer));
    }

    /// A number that is unique in this process.
    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn new_job(&mut self, owner: JobOwner) -> JobId {
        let job = JobId(self.fresh());
        self.jobs.insert(job, owner);
        job
    }

    pub(super) fn cancel_job(&mut self, job: JobId, reason: Status) {
        self.outputs.push_back(Output::CancelJob { job, reason });
    }

    /// The part of a transfer that the peer at the other end of this session calls `op`.
    pub(super) fn find_op(&self, conn: ConnId, op: u64) -> Option<(Id, usize)> {
        let (id, part) = *self.ops.get(&op)?;
        let there = match self.transfers.get(id)? {
            Transfer::Read(r) => r.conn(part),
            Transfer::Write(w) => w.conn(part),
        };
        (there == Some(conn)).then_some((id, part))
    }

    pub(super) fn limit(&self, what: &str, have: usize, max: usize) -> Result<()> {
        if have < max {
            return Ok(());
        }
        Err(Error::new(Status::Limit, format!("{have} {what}, at most {max} are allowed")))
    }
}
