//! Configuration of an agent.

use super::decode::{Sized32, flag, optional_string, string, unknown};
use super::types::sized;
use crate::agent::{AgentConfig, Require};
use crate::error::{Error, Result, Status};
use crate::transport::mori::{Backend, MoriOptions, PollMode};
use crate::transport::nixl::{Landing, NixlOptions};
use std::ffi::c_char;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Configuration of an agent; zero means default everywhere. No environment variable is read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_agent_config_t {
    /// sizeof(kvlink_agent_config_t).
    pub struct_size: u32,
    /// This rank.
    pub rank: u32,
    /// Ranks of the instance; 0: 1.
    pub ranks: u32,
    /// 1: may listen on other than loopback addresses without authentication.
    pub allow_remote: u32,
    /// Name of the instance; required.
    pub instance: *const c_char,
    /// Where to listen, "host:port"; NULL: a free port of 127.0.0.1.
    pub listen: *const c_char,
    /// Address that others shall use, "host" or "host:port"; NULL: the one that is listened on.
    pub advertise: *const c_char,
    /// Address of rank 0 (kvlink_agent_address there); required on every other rank.
    pub leader: *const c_char,
    /// Transport that must be in effect ("host", "host/shm", "host/cma", "host/tcp", "nixl", "nixl/ucx", "mori",
    /// "mori/rdma"): a handshake that would get another one fails. NULL: the best that works.
    pub require_transport: *const c_char,
    /// Ways of the host transport that must not be used: bit 0 shared memory, bit 1 cross-process copies, bit 2 TCP.
    pub host_disable: u32,
    /// Silence in milliseconds after which a peer is asked for a sign of life; 0: 1000.
    pub heartbeat_ms: u32,
    /// Heartbeats without one after which it is dead; 0: 3.
    pub heartbeat_misses: u32,
    /// Milliseconds for a handshake; 0: 30000.
    pub handshake_timeout_ms: u32,
    /// Milliseconds for a transfer that names none; 0: 30000.
    pub transfer_timeout_ms: u32,
    /// Milliseconds of a lease that names none; 0: 30000.
    pub lease_ms: u32,
    /// Transfers in flight; 0: 4096.
    pub max_transfers: u32,
    /// Offers held; 0: 65536.
    pub max_offers: u32,
    /// Accepts held; 0: 65536.
    pub max_accepts: u32,
    /// Peers; 0: 1024.
    pub max_peers: u32,
    /// Events that may wait before peers that notify are cut off; 0: 65536.
    pub max_events: u32,
    /// Milliseconds until the instance must be complete, from the last registration on; 0: 600000.
    pub join_timeout_ms: u32,
    /// Backend of NIXL ("UCX"). NIXL is loaded where this or another nixl field is set, or require_transport begins with
    /// "nixl"; if it cannot be loaded then, there is no agent. NULL: "UCX".
    pub nixl_backend: *const c_char,
    /// Parameters of the backend, "key=value", one a line; NULL: none.
    pub nixl_params: *const c_char,
    /// libnixl_capi.so, or the directory that Python packages are installed in; NULL: looked for.
    pub nixl_library: *const c_char,
    /// Milliseconds that a NIXL read which is no longer wanted may go on, 0: 3000. Then the NIXL agent that runs it is
    /// replaced.
    pub nixl_patience_ms: u32,
    /// Where NIXL's reads land: 0 in the blocks where they complete while they are posted, else in memory of kvlink's own, 1
    /// always in the blocks, 2 never.
    pub nixl_landing: u32,
    /// Backend of MoRI-IO ("rdma", "xgmi"). MoRI is loaded where this or another mori field is set, or require_transport begins
    /// with "mori"; if it cannot be used then, there is no agent. NULL: "rdma".
    pub mori_backend: *const c_char,
    /// libkvlink_mori.so, or the directory that it is in; NULL: looked for beside libkvlink.so.
    pub mori_library: *const c_char,
    /// IPv4 address of this machine for MoRI's control port, which peers have to reach; NULL: the one that others reach the
    /// agent at.
    pub mori_host: *const c_char,
    /// Names of RDMA devices, separated by commas, or "^" and those to leave out; NULL: all.
    pub mori_devices: *const c_char,
    /// MoRI's control port; 0: any.
    pub mori_port: u32,
    /// Queue pairs that a transfer of MoRI's is spread over; 0: 1.
    pub mori_qp_per_transfer: u32,
    /// Work requests that MoRI posts at once; 0: its choice.
    pub mori_post_batch_size: u32,
    /// Threads of MoRI's that post; 0: 1.
    pub mori_num_workers: u32,
    /// How MoRI notices completions: 0 by polling, 1 by events.
    pub mori_poll_mode: u32,
    /// Milliseconds that a read of MoRI's which is no longer wanted may go on, 0: 3000. Then the MoRI engine that runs it is
    /// replaced.
    pub mori_patience_ms: u32,
}

sized!(kvlink_agent_config_t);

impl kvlink_agent_config_t {
    /// # Safety
    /// Strings as the header says.
    pub(super) unsafe fn decode(&self) -> Result<AgentConfig> {
        let allow_remote = flag("allow_remote", self.allow_remote)?;
        if self.host_disable > 7 {
            return Err(unknown("host_disable", self.host_disable, "0..=7"));
        }
        // SAFETY: the caller's contract.
        let (instance, listen, advertise, leader, require) = unsafe {
            (
                string(self.instance, "instance")?,
                optional_string(self.listen, "listen")?,
                optional_string(self.advertise, "advertise")?,
                optional_string(self.leader, "leader")?,
                optional_string(self.require_transport, "require_transport")?,
            )
        };
        let mut c = AgentConfig::new(instance, self.rank, self.ranks.max(1));
        c.allow_remote = allow_remote;
        if !listen.is_empty() {
            c.listen = listen.to_string();
        }
        c.advertise = advertise.to_string();
        c.leader = leader.to_string();
        if !require.is_empty() {
            c.require = Require::Named(require.to_string());
        }
        // SAFETY: the caller's contract.
        c.nixl = unsafe { self.nixl() }?;
        // SAFETY: the caller's contract.
        c.mori = unsafe { self.mori() }?;
        c.host.shm = self.host_disable & 1 == 0;
        c.host.cma = self.host_disable & 2 == 0;
        c.host.tcp = self.host_disable & 4 == 0;
        let time = |slot: &mut Duration, ms: u32| {
            if ms != 0 {
                *slot = Duration::from_millis(u64::from(ms));
            }
        };
        let e = &mut c.endpoint;
        time(&mut e.heartbeat, self.heartbeat_ms);
        time(&mut e.join_timeout, self.join_timeout_ms);
        time(&mut e.handshake_timeout, self.handshake_timeout_ms);
        time(&mut e.transfer_timeout, self.transfer_timeout_ms);
        time(&mut e.lease, self.lease_ms);
        let number = |slot: &mut usize, n: u32| {
            if n != 0 {
                *slot = n as usize;
            }
        };
        if self.heartbeat_misses != 0 {
            e.heartbeat_misses = self.heartbeat_misses;
        }
        number(&mut e.max_transfers, self.max_transfers);
        number(&mut e.max_offers, self.max_offers);
        number(&mut e.max_accepts, self.max_accepts);
        number(&mut e.max_peers, self.max_peers);
        number(&mut c.max_events, self.max_events);
        Ok(c)
    }

    /// # Safety
    /// Strings as the header says.
    unsafe fn nixl(&self) -> Result<Option<NixlOptions>> {
        // SAFETY: the caller's contract.
        let (backend, params, library) = unsafe {
            (
                optional_string(self.nixl_backend, "nixl_backend")?,
                optional_string(self.nixl_params, "nixl_params")?,
                optional_string(self.nixl_library, "nixl_library")?,
            )
        };
        let landing = match self.nixl_landing {
            0 => Landing::Auto,
            1 => Landing::Direct,
            2 => Landing::Staged,
            n => return Err(unknown("nixl_landing", n, "0..=2")),
        };
        let mut o = NixlOptions { landing, ..NixlOptions::default() };
        if !backend.is_empty() {
            o.backend = backend.to_string();
        }
        for line in params.lines().filter(|l| !l.is_empty()) {
            let Some((key, value)) = line.split_once('=') else {
                let text = format!("nixl_params: {line:?} is not key=value");
                return Err(Error::new(Status::InvalidArgument, text));
            };
            o.parameters.push((key.to_string(), value.to_string()));
        }
        if !library.is_empty() {
            o.library = Some(library.into());
        }
        if self.nixl_patience_ms != 0 {
            o.patience = Duration::from_millis(u64::from(self.nixl_patience_ms));
        }
        Ok((o != NixlOptions::default()
            || !self.nixl_backend.is_null()
            || !self.nixl_params.is_null()
            || !self.nixl_library.is_null())
        .then_some(o))
    }

    /// # Safety
    /// Strings as the header says.
    unsafe fn mori(&self) -> Result<Option<MoriOptions>> {
        // SAFETY: the caller's contract.
        let (backend, library, host, devices) = unsafe {
            (
                optional_string(self.mori_backend, "mori_backend")?,
                optional_string(self.mori_library, "mori_library")?,
                optional_string(self.mori_host, "mori_host")?,
                optional_string(self.mori_devices, "mori_devices")?,
            )
        };
        let bad = |text: String| Err(Error::new(Status::InvalidArgument, text));
        let mut o = MoriOptions { devices: devices.to_string(), ..MoriOptions::default() };
        o.backend = match backend {
            "" | "rdma" => Backend::Rdma,
            "xgmi" => Backend::Xgmi,
            other => return bad(format!("mori_backend: {other:?} is neither \"rdma\" nor \"xgmi\"")),
        };
        o.poll_mode = match self.mori_poll_mode {
            0 => PollMode::Polling,
            1 => PollMode::Event,
            n => return Err(unknown("mori_poll_mode", n, "0..=1")),
        };
        if !library.is_empty() {
            o.library = Some(library.into());
        }
        if !host.is_empty() {
            match host.parse::<Ipv4Addr>() {
                Ok(ip) => o.host = Some(ip),
                Err(_) => return bad(format!("mori_host: {host:?} is not an IPv4 address, and MoRI knows no others")),
            }
        }
        match u16::try_from(self.mori_port) {
            Ok(port) => o.port = port,
            Err(_) => return bad(format!("mori_port is {}, at most 65535 is allowed", self.mori_port)),
        }
        let number = |slot: &mut u32, n: u32| *slot = if n == 0 { *slot } else { n };
        number(&mut o.qp_per_transfer, self.mori_qp_per_transfer);
        number(&mut o.num_workers, self.mori_num_workers);
        o.post_batch_size = (self.mori_post_batch_size != 0).then_some(self.mori_post_batch_size);
        if self.mori_patience_ms != 0 {
            o.patience = Duration::from_millis(u64::from(self.mori_patience_ms));
        }
        Ok((o != MoriOptions::default() || !self.mori_backend.is_null()).then_some(o))
    }
}
