//! How much an endpoint holds.

use super::endpoint::Endpoint;

/// Sizes of an endpoint's tables: statistics, and the proof that nothing is left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Control connections.
    pub sessions: usize,
    /// Other instances.
    pub peers: usize,
    /// Reads and writes in flight.
    pub transfers: usize,
    /// Offers held.
    pub offers: usize,
    /// Accepts held.
    pub accepts: usize,
    /// Writes that wait for their accept.
    pub parked: usize,
    /// Streams that are sent to readers.
    pub served: usize,
    /// Jobs of the transports.
    pub jobs: usize,
    /// Operations that peers refer to by number.
    pub operations: usize,
    /// Times at which something is due.
    pub timers: usize,
}

impl Endpoint {
    /// The sizes of its tables.
    pub fn counts(&self) -> Counts {
        let (accepts, parked, announced) = self.accepts.counts();
        Counts {
            sessions: self.sessions.len(),
            peers: self.peers.len(),
            transfers: self.transfers.len(),
            offers: self.leases.len(),
            accepts,
            parked,
            served: self.served.len(),
            jobs: self.jobs.len(),
            operations: self.ops.len() + announced,
            timers: self.timers.len(),
        }
    }
}
