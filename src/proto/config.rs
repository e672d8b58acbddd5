//! Limits and times of an endpoint.

use std::time::Duration;

/// Limits and times. Every field has a default that suits a serving engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Silence after which a session asks the other side for a sign of life.
    pub heartbeat: Duration,
    /// Heartbeats without any sign of life after which a peer is dead.
    pub heartbeat_misses: u32,
    /// Time for the own instance to become complete, from this rank's last registration on.
    pub join_timeout: Duration,
    /// Time for a whole handshake, the peer's start-up included.
    pub handshake_timeout: Duration,
    /// Deadline of a transfer that names none.
    pub transfer_timeout: Duration,
    /// Lease of an offer that names none.
    pub lease: Duration,
    /// Sessions, own and accepted.
    pub max_sessions: usize,
    /// Peers, own and passive.
    pub max_peers: usize,
    /// Transfers in flight.
    pub max_transfers: usize,
    /// Offers held.
    pub max_offers: usize,
    /// Accepts held.
    pub max_accepts: usize,
    /// Writes that arrived before their accept.
    pub max_parked: usize,
    /// Bytes that their block lists and side payloads may hold.
    pub max_parked_bytes: usize,
    /// Spans of one transfer with one rank.
    pub max_spans: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(1000),
            heartbeat_misses: 3,
            join_timeout: Duration::from_secs(600),
            handshake_timeout: Duration::from_secs(30),
            transfer_timeout: Duration::from_secs(30),
            lease: Duration::from_secs(30),
            max_sessions: 4096,
            max_peers: 1024,
            max_transfers: 4096,
            max_offers: 65_536,
            max_accepts: 65_536,
            max_parked: 4096,
            max_parked_bytes: 256 << 20,
            max_spans: 16 << 20,
        }
    }
}
