//! Configuration of an agent.

use crate::error::{Error, Result, Status};
use crate::proto;
use crate::transport::host::HostOptions;
use crate::transport::nixl::NixlOptions;

/// Which transport must be in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Require {
    /// The best that works.
    #[default]
    Any,
    /// One whose report begins with this text ("host/shm", "host", "nixl/ucx"): a handshake that would get another one fails.
    Named(String),
}

/// Configuration of an agent. Everything that changes behaviour is here; no environment variable is read.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the instance.
    pub instance: String,
    /// This rank.
    pub rank: u32,
    /// Ranks of the instance.
    pub ranks: u32,
    /// Where to listen, "host:port"; port 0: any.
    pub listen: String,
    /// Address that others shall use; empty: the one that is listened on.
    pub advertise: String,
    /// Address of the first rank; needed on every other rank.
    pub leader: String,
    /// Listen on other than loopback addresses without authentication.
    pub allow_remote: bool,
    /// Which transport must be in effect.
    pub require: Require,
    /// Options of the embedded transport.
    pub host: HostOptions,
    /// Options of the NIXL transport; `None`: NIXL is only loaded, with the defaults, if it is required. If it is asked for
    /// and cannot be loaded, there is no agent.
    pub nixl: Option<NixlOptions>,
    /// Times and limits of the protocol.
    pub endpoint: proto::Config,
    /// Events that may wait; beyond it, peers that send notifications are cut off.
    pub max_events: usize,
}

impl AgentConfig {
    /// A configuration with defaults for a rank of an instance.
    pub fn new(instance: impl Into<String>, rank: u32, ranks: u32) -> AgentConfig {
        AgentConfig {
            instance: instance.into(),
            rank,
            ranks,
            listen: "127.0.0.1:0".into(),
            advertise: String::new(),
            leader: String::new(),
            allow_remote: false,
            require: Require::Any,
            host: HostOptions::default(),
            nixl: None,
            endpoint: proto::Config::default(),
            max_events: 1 << 16,
        }
    }

    /// How NIXL is wanted, if it is. Left alone, UCX listens on every network card.
    pub(super) fn nixl_options(&self) -> Option<NixlOptions> {
        let required = matches!(&self.require, Require::Named(n) if n == "nixl" || n.starts_with("nixl/"));
        let options = self.nixl.clone().or_else(|| required.then(NixlOptions::default))?;
        Some(if self.allow_remote { options } else { options.on_loopback() })
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |text: String| Err(Error::new(Status::InvalidArgument, text));
        if self.instance.is_empty() || self.instance.len() > crate::wire::limit::NAME {
            return bad(format!(
                "instance name of {} bytes, must have 1..={}",
                self.instance.len(),
                crate::wire::limit::NAME
            ));
        }
        if self.ranks == 0 || self.rank >= self.ranks || self.ranks as usize > crate::wire::limit::RANKS {
            return bad(format!("rank {} of {} ranks (at most {})", self.rank, self.ranks, crate::wire::limit::RANKS));
        }
        if self.rank > 0 && self.leader.is_empty() {
            return bad(format!("rank {} needs the address of rank 0", self.rank));
        }
        let c = &self.endpoint;
        if c.heartbeat.is_zero() || c.heartbeat_misses == 0 {
            return bad(format!("heartbeat of {:?} with {} misses", c.heartbeat, c.heartbeat_misses));
        }
        Ok(())
    }
}
