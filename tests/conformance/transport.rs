//! What is under test.

use kvlink::agent::{AgentConfig, Require};
use kvlink::transport::host::HostOptions;

/// One way of moving bytes, and how to get it.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// As it is reported.
    pub name: &'static str,
    /// Registered memory must be shareable.
    pub shareable: bool,
    /// The sink copies without the source's help.
    pub pulls: bool,
    enable: fn(&mut AgentConfig, bool),
}

impl Transport {
    /// Nothing but this transport.
    pub fn choose(self, config: &mut AgentConfig) {
        config.host = HostOptions { shm: false, cma: false, tcp: false, ptracer_any: true, ..HostOptions::default() };
        (self.enable)(config, true);
        config.require = Require::Named(self.name.into());
    }

    /// Everything but this transport.
    pub fn exclude(self, config: &mut AgentConfig) {
        config.host = HostOptions { ptracer_any: true, ..HostOptions::default() };
        (self.enable)(config, false);
        config.require = Require::Any;
    }

    pub fn named(name: &str) -> Transport {
        *ALL.iter().find(|t| t.name == name).unwrap()
    }
}

pub const SHM: Transport =
    Transport { name: "host/shm", shareable: true, pulls: true, enable: |c, on| c.host.shm = on };
pub const CMA: Transport =
    Transport { name: "host/cma", shareable: false, pulls: true, enable: |c, on| c.host.cma = on };
pub const TCP: Transport =
    Transport { name: "host/tcp", shareable: false, pulls: false, enable: |c, on| c.host.tcp = on };

const ALL: &[Transport] = &[SHM, CMA, TCP];
