//! Configuration of an agent.

use crate::error::{Error, Result, Status};
use crate::proto;
use crate::transport::host::HostOptions;
use crate::transport::mori::MoriOptions;
use crate::transport::nixl::NixlOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Which transport must be in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Require {
    /// The best that works.
    #[default]
    Any,
    /// One whose report begins with this text ("host/shm", "host", "nixl/ucx", "mori/rdma"): a handshake that would get another one fails.
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
    /// Options of the MoRI transport; `None`: MoRI is only loaded, with the defaults, if it is required. If it is asked for and
    /// cannot be used, there is no agent.
    pub mori: Option<MoriOptions>,
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
            mori: None,
            endpoint: proto::Config::default(),
            max_events: 1 << 16,
        }
    }

    /// How NIXL is wanted, if it is. Left alone, UCX listens on every network card.
    pub(super) fn nixl_options(&self) -> Option<NixlOptions> {
        let options = self.nixl.clone().or_else(|| self.requires("nixl").then(NixlOptions::default))?;
        Some(if self.allow_remote { options } else { options.on_loopback() })
    }

    /// How MoRI is wanted, if it is, for regions of so many bytes. Its control port is where others reach the agent.
    pub(super) fn mori_options(&self, published: &str, bytes: u64) -> Result<Option<MoriOptions>> {
        let Some(mut options) = self.mori.clone().or_else(|| self.requires("mori").then(MoriOptions::default)) else {
            return Ok(None);
        };
        options.expected = bytes;
        let host = options.host.or_else(|| match published.parse::<SocketAddr>().ok()?.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let host = if self.allow_remote { host } else { Some(options.host.unwrap_or(Ipv4Addr::LOCALHOST)) };
        match host {
            Some(h) if h.is_loopback() || self.allow_remote => options.host = Some(h),
            Some(h) => {
                let text = format!("mori_host {h} is not a loopback address: set allow_remote to listen there");
                return Err(Error::new(Status::Address, text));
            }
            None => {
                let text =
                    format!("MoRI needs an IPv4 address of this machine, and {published} is none: set mori_host");
                return Err(Error::new(Status::Address, text));
            }
        }
        Ok(Some(options))
    }

    fn requires(&self, transport: &str) -> bool {
        matches!(&self.require, Require::Named(n) if n.split('/').next() == Some(transport))
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
