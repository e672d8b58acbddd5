//! What is under test.

use kvlink::agent::{AgentConfig, Require};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::mori::{Mori, MoriOptions};
use kvlink::transport::nixl::{Nixl, NixlOptions};
use kvlink::transport::{Poller, Transport as Real};
use std::sync::Arc;

/// One way of moving bytes, and how to get it.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Among the ways that are tested.
    pub label: &'static str,
    /// As it is reported.
    pub name: &'static str,
    /// Registered memory must be shareable.
    pub shareable: bool,
    /// The sink copies without the source's help.
    pub pulls: bool,
    /// Name of threads that poll without a pause, or "-".
    pub polls: &'static str,
    /// Engines poll for their events in a loop, and so take the reactor's turns.
    pub spins: bool,
    enable: fn(&mut AgentConfig, bool),
}

impl Transport {
    /// Nothing but this transport.
    pub fn choose(self, config: &mut AgentConfig) {
        let tcp = !self.name.starts_with("host");
        config.host = HostOptions { shm: false, cma: false, tcp, ptracer_any: true, ..HostOptions::default() };
        (self.enable)(config, true);
        config.require = Require::Named(self.name.into());
    }

    /// Everything but this transport.
    pub fn exclude(self, config: &mut AgentConfig) {
        config.host = HostOptions { ptracer_any: true, ..HostOptions::default() };
        (self.enable)(config, false);
        config.require = Require::Any;
    }

    pub fn labelled(label: &str) -> Transport {
        *ALL.iter().find(|t| t.label == label).unwrap()
    }

    /// It can be had on this machine.
    pub fn available(self) -> bool {
        match self.name.split('/').next() {
            Some("nixl") => crate::nixl::packages().is_some(),
            Some("mori") => crate::mori::library().is_some(),
            _ => true,
        }
    }

    /// The transport itself, without an agent.
    pub fn alone(self) -> Box<dyn Real> {
        let mut config = AgentConfig::new("alone", 0, 1);
        self.choose(&mut config);
        // It has one data connection only, and says so.
        config.host.streams = 1;
        let poller = Arc::new(Poller::new().unwrap());
        match (config.nixl, config.mori) {
            (Some(options), _) => Box::new(Nixl::new(poller, 0, options.on_loopback()).unwrap()),
            (_, Some(options)) => Box::new(Mori::new(poller, 0, options).unwrap()),
            (None, None) => Box::new(Host::new(poller, 0..8, config.host).unwrap()),
        }
    }
}

pub const SHM: Transport = Transport {
    label: "shm",
    name: "host/shm",
    shareable: true,
    pulls: true,
    polls: "-",
    spins: false,
    enable: |c, on| c.host.shm = on,
};
pub const CMA: Transport = Transport {
    label: "cma",
    name: "host/cma",
    shareable: false,
    pulls: true,
    polls: "-",
    spins: false,
    enable: |c, on| c.host.cma = on,
};
pub const TCP: Transport = Transport {
    label: "tcp",
    name: "host/tcp",
    shareable: false,
    pulls: false,
    polls: "-",
    spins: false,
    enable: |c, on| c.host.tcp = on,
};
/// What UCX chooses on one host: copies across processes, and TCP beside them.
pub const NIXL_UCX: Transport = Transport {
    label: "nixl-ucx",
    name: "nixl/ucx",
    shareable: false,
    pulls: true,
    polls: "-",
    spins: false,
    enable: |c, on| c.nixl = on.then(|| ucx("")),
};
/// What UCX does between hosts without special cards.
pub const NIXL_UCX_TCP: Transport = Transport {
    label: "nixl-ucx-tcp",
    name: "nixl/ucx",
    shareable: false,
    pulls: true,
    polls: "-",
    spins: false,
    enable: |c, on| c.nixl = on.then(|| ucx("TLS=tcp")),
};

/// MoRI's own binary over a stand-in for libibverbs.
pub const MORI_RDMA: Transport = Transport {
    label: "mori-rdma",
    name: "mori/rdma",
    shareable: false,
    pulls: true,
    polls: "mori",
    spins: false,
    enable: |c, on| c.mori = on.then(|| mori(1)),
};
pub const MORI_RDMA_4: Transport = Transport {
    label: "mori-rdma-4",
    name: "mori/rdma",
    shareable: false,
    pulls: true,
    polls: "mori",
    spins: false,
    enable: |c, on| c.mori = on.then(|| mori(4)),
};

pub const CMA_SPINNING: Transport = Transport { label: "cma-spinning", spins: true, ..CMA };
pub const TCP_SPINNING: Transport = Transport { label: "tcp-spinning", spins: true, ..TCP };
pub const NIXL_UCX_SPINNING: Transport = Transport { label: "nixl-ucx-spinning", spins: true, ..NIXL_UCX };
pub const NIXL_UCX_TCP_SPINNING: Transport = Transport { label: "nixl-ucx-tcp-spinning", spins: true, ..NIXL_UCX_TCP };

const ALL: &[Transport] = &[
    SHM,
    CMA,
    TCP,
    NIXL_UCX,
    NIXL_UCX_TCP,
    MORI_RDMA,
    MORI_RDMA_4,
    CMA_SPINNING,
    TCP_SPINNING,
    NIXL_UCX_SPINNING,
    NIXL_UCX_TCP_SPINNING,
];

/// Transfers are spread over so many queue pairs.
fn mori(qp_per_transfer: u32) -> MoriOptions {
    MoriOptions { library: crate::mori::library(), qp_per_transfer, ..MoriOptions::default() }
}

fn ucx(engine: &str) -> NixlOptions {
    let parameters = match engine {
        "" => Vec::new(),
        engine => vec![("engine_config".to_string(), engine.to_string())],
    };
    NixlOptions { library: crate::nixl::packages(), parameters, ..NixlOptions::default() }
}
