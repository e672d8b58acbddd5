//! Orders from callers to the reactor.

use crate::error::Result;
use crate::memory::Memory;
use crate::proto::{ConnId, Id};
use std::net::TcpStream;

/// What connecting threads bring back.
pub(crate) enum Connected {
    /// A control connection.
    Control(ConnId, Result<TcpStream>),
    /// All data connections of a link, their preambles sent.
    Data(ConnId, Result<Vec<TcpStream>>),
    /// A registration's connection.
    Router(Id, Result<TcpStream>),
}

/// What only the reactor can do, because it owns the transports.
pub(crate) enum Order {
    /// Registers memory; all regions are there when `publish` is set.
    Register { region: u32, memory: Memory, publish: bool },
    /// Ends all use of a region.
    Deregister { region: u32 },
    /// Panics, for tests.
    #[cfg(feature = "test-hooks")]
    Panic,
}

/// Work that waits for the reactor.
#[derive(Default)]
pub(crate) struct Inbox {
    pub connected: Vec<Connected>,
    pub orders: Vec<(u64, Order)>,
    pub answers: Vec<(u64, Result<()>)>,
    pub next: u64,
}
