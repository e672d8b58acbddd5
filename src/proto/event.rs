//! What the engine is told.

use crate::error::Status;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// All ranks of the own instance are known: peers can shake hands. `status` tells if that failed.
    Ready = 1,
    /// A handshake ended.
    Handshake = 2,
    /// A read or write ended.
    Transfer = 3,
    /// The blocks of an offer may be reused.
    Released = 4,
    /// All bytes of an accepted request have arrived, or never will.
    Received = 5,
    /// A peer's engine sent a message.
    Notification = 6,
    /// A peer is gone.
    PeerDown = 7,
    /// A defect of kvlink stopped the agent.
    AgentFailed = 8,
    /// The connection to a router was made or lost.
    Router = 9,
    /// A worker of vLLM's MoRIIOConnector said something, or an exchange with one ended.
    Moriio = 10,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// How it ended.
    pub status: Status,
    /// Why it failed; for a handshake that succeeded, the transports in effect.
    pub text: String,
    /// The caller's value from the call that began it.
    pub user_data: u64,
    /// Id of the transfer, offer or accept; 0 if there is none.
    pub id: u64,
    /// Id of the peer; 0 if there is none.
    pub peer: u64,
    /// Rank of the peer that it is about; `u32::MAX`: all.
    pub rank: u32,
    /// Bytes moved.
    pub bytes: u64,
    /// Spans moved.
    pub spans: u64,
    /// Notification or side payload.
    pub payload: Vec<u8>,
}

impl Event {
    /// An event with nothing but its kind and status.
    pub fn new(kind: EventKind, status: Status) -> Event {
        Event {
            kind,
            status,
            text: String::new(),
            user_data: 0,
            id: 0,
            peer: 0,
            rank: u32::MAX,
            bytes: 0,
            spans: 0,
            payload: Vec::new(),
        }
    }
}
