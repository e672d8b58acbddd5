//! The transports of an agent: chosen per link, best first.

use super::config::{AgentConfig, Require};
use super::parked::Parked;
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use crate::proto::{ConnId, LinkInfo};
use crate::transport::host::Host;
use crate::transport::mori::Mori;
use crate::transport::nixl::Nixl;
use crate::transport::{Done, Job, JobId, Link, LinkId, Poller, Ready, Slice, Transport};
use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;

/// Keys of descriptors below this belong to transports: 2^32 for each.
pub(super) const KEYS_PER_TRANSPORT: u64 = 1 << 32;

pub(super) struct Transports {
    list: Vec<Box<dyn Transport>>,
    links: HashMap<LinkId, usize>,
    jobs: HashMap<JobId, usize>,
    require: Require,
    parked: Parked,
}

impl Transports {
    /// For an agent at this address, with regions of so many bytes.
    pub fn new(config: &AgentConfig, poller: &Arc<Poller>, published: &str, bytes: u64) -> Result<Transports> {
        let host = Host::new(poller.clone(), 0..KEYS_PER_TRANSPORT, config.host.clone())?;
        let mut list: Vec<Box<dyn Transport>> = vec![Box::new(host)];
        if let Some(options) = config.nixl_options() {
            let key = list.len() as u64 * KEYS_PER_TRANSPORT;
            list.push(Box::new(Nixl::new(poller.clone(), key, options)?));
        }
        if let Some(options) = config.mori_options(published, bytes)? {
            let key = list.len() as u64 * KEYS_PER_TRANSPORT;
            list.push(Box::new(Mori::new(poller.clone(), key, options)?));
        }
        if let Require::Named(name) = &config.require {
            let base = name.split('/').next().unwrap_or(name);
            if !list.iter().any(|t| t.name() == base) {
                let have: Vec<&str> = list.iter().map(|t| t.name()).collect();
                let text = format!("transport {name:?} is required, this build has {have:?}");
                return Err(Error::new(Status::TransportUnavailable, text));
            }
        }
        Ok(Transports {
            list,
            links: HashMap::new(),
            jobs: HashMap::new(),
            require: config.require.clone(),
            parked: Parked::default(),
        })
    }

    /// First key that belongs to no transport.
    pub fn keys(&self) -> u64 {
        self.list.len() as u64 * KEYS_PER_TRANSPORT
    }

    pub fn register(&mut self, region: u32, memory: &Memory) -> Result<()> {
        self.list.iter_mut().try_for_each(|t| t.register(region, memory))
    }

    pub fn deregister(&mut self, region: u32) -> Result<()> {
        self.list.iter_mut().try_for_each(|t| t.deregister(region))
    }

    pub fn metadata(&self) -> Vec<(String, Vec<u8>)> {
        self.list.iter().map(|t| (t.name().to_string(), t.metadata())).collect()
    }

    /// Links to a rank by the first of its transports by which we can pull, or else the first that works here: a stream
    /// needs both sides' processors.
    pub fn connect(&mut self, conn: ConnId, offers: &[(String, Vec<u8>)]) -> Result<LinkInfo> {
        let link = LinkId(conn.0);
        let mut rejected = Vec::new();
        let mut found: Option<(usize, Link)> = None;
        for (name, metadata) in offers {
            let Some(at) = self.list.iter().position(|t| t.name() == name) else {
                rejected.push(format!("{name}: not in this agent"));
                continue;
            };
            let made = match self.list[at].connect(link, metadata) {
                Ok(made) => made,
                Err(e) => {
                    rejected.push(format!("{name}: {}", e.message()));
                    continue;
                }
            };
            let refused = match &self.require {
                Require::Named(required) if !made.name.starts_with(required.as_str()) => {
                    Some(format!("{} instead of the required {required}: {}", made.name, made.rejected.join("; ")))
                }
                _ if found.is_some() && !made.pull => Some(format!("{}: works, but is not needed", made.name)),
                _ => None,
            };
            if let Some(why) = refused {
                self.list[at].disconnect(link);
                rejected.push(why);
                continue;
            }
            let pull = made.pull;
            if let Some((worse, made)) = found.replace((at, made)) {
                self.list[worse].disconnect(link);
                rejected.push(format!("{}: works, but the source has to send", made.name));
                rejected.extend(made.rejected);
            }
            if pull {
                break;
            }
        }
        let Some((at, made)) = found else {
            let text = format!("no transport works with this rank: {}", rejected.join("; "));
            return Err(Error::new(Status::TransportUnavailable, text));
        };
        self.links.insert(link, at);
        // One at least: where it is needed and cannot be, attaching it says why.
        self.parked.linked(link, made.streams.max(1));
        rejected.extend(made.rejected);
        let transport = self.list[at].name().to_string();
        Ok(LinkInfo { transport, report: made.name, pull: made.pull, rejected })
    }

    pub fn attach(&mut self, conn: ConnId, socket: TcpStream) -> Result<()> {
        let link = LinkId(conn.0);
        match self.links.get(&link).and_then(|at| self.list.get_mut(*at)) {
            Some(t) => t.attach(link, socket)?,
            None => return Err(Error::new(Status::Protocol, "a data connection for a link that does not exist")),
        }
        for job in self.parked.attached(link) {
            self.start(job);
        }
        Ok(())
    }

    /// Data connections that a link needs.
    pub fn streams(&self, conn: ConnId) -> usize {
        self.parked.missing(LinkId(conn.0))
    }

    pub fn has_link(&self, conn: ConnId) -> bool {
        self.links.contains_key(&LinkId(conn.0))
    }

    pub fn disconnect(&mut self, conn: ConnId) {
        let link = LinkId(conn.0);
        self.parked.disconnect(link);
        if let Some(t) = self.links.remove(&link).and_then(|at| self.list.get_mut(at)) {
            t.disconnect(link);
        }
    }

    /// Ends all transports: afterwards nothing touches registered memory.
    pub fn close(&mut self) {
        self.links.clear();
        self.jobs.clear();
        self.list.clear();
    }

    pub fn post(&mut self, job: Job) -> Result<()> {
        let (id, link) = (job.id, job.link);
        let Some(at) = self.links.get(&link).copied() else {
            return Err(Error::new(Status::PeerDead, "the link is gone"));
        };
        if self.parked.must_wait(&job) {
            self.parked.wait(job);
            return Ok(());
        }
        self.list[at].post(job)?;
        self.jobs.insert(id, at);
        Ok(())
    }

    /// Posts a job that was accepted earlier: its failure is its end.
    fn start(&mut self, job: Job) {
        let id = job.id;
        if let Err(e) = self.post(job) {
            self.parked.fail(id, Vec::new(), e);
        }
    }

    pub fn cancel(&mut self, job: JobId, reason: Status) {
        if !self.parked.cancel(job, reason)
            && let Some(at) = self.jobs.get(&job)
        {
            self.list[*at].cancel(job, reason);
        }
    }

    /// Something is under way.
    pub fn busy(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Drives all transports; returns whether one would go on at once.
    pub fn progress(&mut self, ready: &[Ready], slice: Slice, done: &mut Vec<Done>) -> bool {
        let before = done.len();
        let mut more = false;
        for (at, t) in self.list.iter_mut().enumerate() {
            let keys = at as u64 * KEYS_PER_TRANSPORT..(at as u64 + 1) * KEYS_PER_TRANSPORT;
            let mine: Vec<Ready> = ready.iter().copied().filter(|r| keys.contains(&r.key)).collect();
            more |= t.progress(&mine, slice, done);
        }
        done.extend(self.parked.take_ended());
        for d in done.iter().skip(before) {
            self.jobs.remove(&d.id);
        }
        more
    }
}
