//! The transport trait: moves spans between this process and linked peers.
//!
//! A transport is driven by one thread. It never blocks, never calls back, and knows nothing of requests, leases or
//! layouts: it gets regions, links and jobs, and reports the end of each job exactly once. When it is dropped, it has ended
//! all use of registered memory.
//!
//! Bytes move in one of two ways; a link says which of them it offers:
//!
//! - *pull*: the destination copies out of the source's memory; the source's CPU takes no part;
//! - *stream*: the source sends, the destination receives; either side only ever touches its own memory, and both must
//!   have expanded the same request of the same plan, which a digest checks.

pub mod host;
pub mod mori;
pub mod nixl;
mod poller;
mod sys;
mod vendor;

pub use poller::{Interest, Poller, Ready};
pub use sys::start_thread;

use crate::error::{Result, Status};
use crate::layout::Span;
use crate::memory::Memory;
use crate::wire::LeaseMark;
use std::net::TcpStream;

/// A connection to one rank of a peer, numbered by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// A job, numbered by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copies from the peer's regions into ours.
    Pull,
    /// Sends the source side of the spans, in order, under this tag.
    Send {
        /// Names the stream on both sides; unique per link and direction.
        tag: u64,
    },
    /// Receives the stream of this tag into the destination side of the spans, in order.
    Receive {
        /// Names the stream on both sides.
        tag: u64,
    },
}

/// A list of spans to move.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Over which link.
    pub link: LinkId,
    /// What to do.
    pub action: Action,
    /// The spans; given back in [`Done`] for reuse.
    pub spans: Vec<Span>,
    /// Whether the spans are so short that packing may pay (see [`crate::layout::Form`]). The two sides of a stream need
    /// not agree.
    pub staged: bool,
    /// For a pull: look at the source's board after the last byte; see [`Done::held`].
    pub mark: Option<LeaseMark>,
}

/// The end of a job.
#[derive(Debug)]
pub struct Done {
    /// Which job.
    pub id: JobId,
    /// How it ended, with a sentence when it failed. No further byte of its local memory changes or is read, unless that
    /// cannot be proven: [`Status::Quarantined`].
    pub result: Result<()>,
    /// Bytes moved.
    pub bytes: u64,
    /// The word of the job's mark was read from the source's board ([`crate::wire::BOARD_REGION`]), whole, after the last byte
    /// was. `false` says nothing.
    pub held: bool,
    /// The job's spans, for reuse.
    pub spans: Vec<Span>,
}

/// What a link can do, as seen from this side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Transport and way by which we fetch from this peer, as reported to the user: "host/shm", "host/cma", "host/tcp".
    pub name: String,
    /// We can pull from the peer.
    pub pull: bool,
    /// Sockets that [`Transport::attach`] takes for its streams, the same number on both sides; none: no streams. One is
    /// enough, and more carry a stream together.
    pub streams: usize,
    /// Why better ways were not chosen, one sentence each.
    pub rejected: Vec<String>,
}

/// How much one call of [`Transport::progress`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// About so many bytes.
    pub bytes: u64,
    /// The caller comes again at once, in a loop: no thread of the transport's has to wake for what it can do itself.
    pub loops: bool,
}

impl Slice {
    /// One of so many bytes, for a caller that may come again late.
    pub fn of(bytes: u64) -> Slice {
        Slice { bytes, loops: false }
    }
}

/// Moves spans. See the module's documentation for the rules.
pub trait Transport: Send {
    /// Its name in configuration and reports.
    fn name(&self) -> &'static str;

    /// Makes a region usable by jobs and by linked peers.
    fn register(&mut self, region: u32, memory: &Memory) -> Result<()>;

    /// Ends all use of a region: jobs that touch it fail first. Afterwards no byte of it is read or written by us, and no
    /// peer's job writes to it. Jobs of other regions may end as well: an agent moves nothing after a deregistration.
    fn deregister(&mut self, region: u32) -> Result<()>;

    /// What a peer needs to link to us: opaque bytes that travel in the handshake.
    fn metadata(&self) -> Vec<u8>;

    /// Makes a link from the peer's metadata; probes what works.
    fn connect(&mut self, link: LinkId, remote: &[u8]) -> Result<Link>;

    /// Gives a link one more connected socket for its streams. When a socket of a link ends or misbehaves, the link is
    /// broken: its jobs fail, and later ones are refused for the same reason.
    fn attach(&mut self, link: LinkId, socket: TcpStream) -> Result<()>;

    /// Ends a link; its jobs fail with [`Status::PeerDead`], as if they were cancelled.
    fn disconnect(&mut self, link: LinkId);

    /// Accepts a job. An error means that nothing was started and the job is gone.
    fn post(&mut self, job: Job) -> Result<()>;

    /// Ends a job early: as soon as nothing touches its local memory any more, [`progress`](Transport::progress) reports it
    /// as done with `reason`, unless it had ended by itself already. Unknown jobs have ended.
    fn cancel(&mut self, job: JobId, reason: Status);

    /// Works on ready sockets and running jobs for a slice; appends ended jobs. Returns whether it would go
    /// on at once if called again. Must be called after `post`, `cancel` and `deregister` without waiting for readiness.
    fn progress(&mut self, ready: &[Ready], slice: Slice, done: &mut Vec<Done>) -> bool;
}
