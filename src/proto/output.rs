//! What an endpoint wants done.

use super::event::Event;
use super::id::Id;
use super::work::Work;
use crate::error::{Error, Status};
use crate::wire::{LeaseMark, Message};

/// A session; also names its link towards the transport.
pub type ConnId = Id;

/// A job, numbered by the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// What a job does; see the transport's actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copy from the peer's regions into ours.
    Pull,
    /// Send the source side of the spans under this tag.
    Send {
        /// Names the stream.
        tag: u64,
    },
    /// Receive the stream of this tag into the destination side of the spans.
    Receive {
        /// Names the stream.
        tag: u64,
    },
}

/// Tag of the stream of a read that its sink calls `op`: even, whereas a write's is odd. Both sides number their
/// operations from one, and a reader's stream and a writer's stream may run in the same direction of one link.
pub(super) fn read_tag(op: u64) -> u64 {
    op << 1
}

/// Tag of the stream of a write that its source calls `op`.
pub(super) fn write_tag(op: u64) -> u64 {
    op << 1 | 1
}

/// Refuses numbers whose tags would not be unique.
pub(super) fn check_op(op: u64) -> Result<(), Error> {
    match op >> 63 {
        0 => Ok(()),
        _ => Err(Error::new(Status::Protocol, format!("operation number {op:#x} is not below 2^63"))),
    }
}

/// What a link to a rank can do, in this endpoint's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    /// Transport that was chosen, by its name in the directory.
    pub transport: String,
    /// How it is reported ("host/shm").
    pub report: String,
    /// We can pull from the peer.
    pub pull: bool,
    /// Why better ways were not chosen.
    pub rejected: Vec<String>,
}

/// How a job ended.
#[derive(Debug)]
pub struct JobEnd {
    /// Success, or the reason.
    pub result: Result<(), Error>,
    /// Bytes moved.
    pub bytes: u64,
    /// Spans that it had.
    pub spans: u64,
    /// The end of all access is proven.
    pub quiescent: bool,
    /// After the last byte, the source's board still showed the lease.
    pub held: bool,
}

/// One thing to do. Outputs are carried out in order.
#[derive(Debug)]
pub enum Output {
    /// Connect; answered by `handle_connected` or `handle_closed`.
    Connect {
        /// The session.
        conn: ConnId,
        /// "host:port".
        address: String,
    },
    /// Send a message.
    Send {
        /// The session.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// Close, after everything sent so far has left.
    Close {
        /// The session.
        conn: ConnId,
    },
    /// Link a transport to the session's rank; answered by `handle_linked`.
    Link {
        /// The session.
        conn: ConnId,
        /// What the rank offers, best first: name and metadata.
        offers: Vec<(String, Vec<u8>)>,
    },
    /// Open the link's data connections, as many as both transports want; answered once by `handle_stream`.
    OpenStream {
        /// The session.
        conn: ConnId,
        /// "host:port".
        address: String,
        /// For the preamble.
        token: u64,
    },
    /// Data connections with this token belong to the session's link.
    ExpectStream {
        /// The session.
        conn: ConnId,
        /// The token.
        token: u64,
    },
    /// End the link; its jobs end with it.
    Unlink {
        /// The session.
        conn: ConnId,
    },
    /// Start a job; answered by `handle_job`.
    Post {
        /// Its number.
        job: JobId,
        /// Over which link.
        conn: ConnId,
        /// What to do.
        action: Action,
        /// Of what.
        work: Work,
        /// Look at the source's board after the last byte; see [`JobEnd::held`].
        mark: Option<LeaseMark>,
    },
    /// Show a word on our board.
    Board {
        /// Byte offset.
        offset: u64,
        /// The word; 0: nothing.
        word: u64,
    },
    /// End a job early; answered by `handle_job` all the same.
    CancelJob {
        /// Which.
        job: JobId,
        /// Why.
        reason: Status,
    },
    /// Tell the engine.
    Event(Event),
}
