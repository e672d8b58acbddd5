//! The transports of an agent: chosen per link, best first.

use super::config::{AgentConfig, Require};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use crate::proto::{ConnId, LinkInfo};
use crate::transport::host::Host;
use crate::transport::{Action, Done, Fence, Job, JobId, LinkId, Poller, Ready, Transport};
use crate::wire::{BOARD_REGION, LeaseMark};
use std::collections::{HashMap, HashSet};
use std::net::TcpStream;
use std::sync::Arc;

/// Keys of descriptors below this belong to transports: 2^32 for each.
pub(super) const KEYS_PER_TRANSPORT: u64 = 1 << 32;

pub(super) struct Transports {
    list: Vec<Box<dyn Transport>>,
    links: HashMap<LinkId, usize>,
    jobs: HashMap<JobId, (usize, LinkId, Option<LeaseMark>)>,
    require: Require,
    /// Jobs of the last progress whose lease the source's board showed after their last byte.
    held: Vec<JobId>,
    /// Links that have a socket for streams.
    streams: HashSet<LinkId>,
    /// Streams posted before their link had one: requests and the data connection come by different ways, in any order.
    early: Vec<(Job, Option<LeaseMark>)>,
    /// Of these, those that ended before they began.
    ended: Vec<Done>,
}

impl Transports {
    pub fn new(config: &AgentConfig, poller: &Arc<Poller>) -> Result<Transports> {
        let host = Host::new(poller.clone(), 0..KEYS_PER_TRANSPORT, config.host.clone())?;
        let list: Vec<Box<dyn Transport>> = vec![Box::new(host)];
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
            held: Vec::new(),
            streams: HashSet::new(),
            early: Vec::new(),
            ended: Vec::new(),
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

    /// Links to a rank by the first of its transports that works here.
    pub fn connect(&mut self, conn: ConnId, offers: &[(String, Vec<u8>)]) -> Result<LinkInfo> {
        let link = LinkId(conn.0);
        let mut rejected = Vec::new();
        for (name, metadata) in offers {
            let Some(at) = self.list.iter().position(|t| t.name() == name) else {
                rejected.push(format!("{name}: not in this build"));
                continue;
            };
            let transport = &mut self.list[at];
            match transport.connect(link, metadata) {
                Ok(made) => {
                    if let Require::Named(required) = &self.require {
                        if !made.name.starts_with(required.as_str()) {
                            transport.disconnect(link);
                            let why = made.rejected.join("; ");
                            rejected.push(format!("{} instead of the required {required}: {why}", made.name));
                            continue;
                        }
                    }
                    self.links.insert(link, at);
                    rejected.extend(made.rejected);
                    let (pull, report) = (made.pull, made.name);
                    return Ok(LinkInfo { transport: name.clone(), report, pull, rejected });
                }
                Err(e) => rejected.push(format!("{name}: {}", e.message())),
            }
        }
        let text = format!("no transport works with this rank: {}", rejected.join("; "));
        Err(Error::new(Status::TransportUnavailable, text))
    }

    pub fn attach(&mut self, conn: ConnId, socket: TcpStream) -> Result<()> {
        let link = LinkId(conn.0);
        match self.links.get(&link).and_then(|at| self.list.get_mut(*at)) {
            Some(t) => t.attach(link, socket)?,
            None => return Err(Error::new(Status::Protocol, "a data connection for a link that does not exist")),
        }
        self.streams.insert(link);
        let (mine, others) = std::mem::take(&mut self.early).into_iter().partition(|(job, _)| job.link == link);
        self.early = others;
        let mine: Vec<(Job, Option<LeaseMark>)> = mine;
        for (job, mark) in mine {
            let id = job.id;
            if let Err(e) = self.post(job, mark) {
                self.ended.push(Done { id, result: Err(e), bytes: 0, spans: Vec::new() });
            }
        }
        Ok(())
    }

    /// Ends streams that never began.
    fn end_early(&mut self, which: impl Fn(&Job) -> bool, error: &Error) -> bool {
        let (mine, others) = std::mem::take(&mut self.early).into_iter().partition(|(job, _)| which(job));
        self.early = others;
        let mine: Vec<(Job, Option<LeaseMark>)> = mine;
        let any = !mine.is_empty();
        let done = |(job, _): (Job, _)| Done { id: job.id, result: Err(error.clone()), bytes: 0, spans: job.spans };
        self.ended.extend(mine.into_iter().map(done));
        any
    }

    pub fn has_link(&self, conn: ConnId) -> bool {
        self.links.contains_key(&LinkId(conn.0))
    }

    pub fn disconnect(&mut self, conn: ConnId) {
        let link = LinkId(conn.0);
        self.streams.remove(&link);
        self.end_early(|job| job.link == link, &Error::new(Status::PeerDead, "the link is gone"));
        if let Some(t) = self.links.remove(&link).and_then(|at| self.list.get_mut(at)) {
            t.disconnect(link);
        }
    }

    pub fn disconnect_all(&mut self) {
        for (link, at) in std::mem::take(&mut self.links) {
            if let Some(t) = self.list.get_mut(at) {
                t.disconnect(link);
            }
        }
    }

    pub fn post(&mut self, job: Job, mark: Option<LeaseMark>) -> Result<()> {
        let (id, link) = (job.id, job.link);
        let Some(at) = self.links.get(&link).copied() else {
            return Err(Error::new(Status::PeerDead, "the link is gone"));
        };
        if matches!(job.action, Action::Send { .. } | Action::Receive { .. }) && !self.streams.contains(&link) {
            self.early.push((job, mark));
            return Ok(());
        }
        self.list[at].post(job)?;
        self.jobs.insert(id, (at, link, mark));
        Ok(())
    }

    pub fn cancel(&mut self, job: JobId, reason: Status) -> Option<Fence> {
        let error = Error::new(reason, format!("job {} was ended", job.0));
        if self.end_early(|j| j.id == job, &error) {
            return Some(Fence::Quiescent);
        }
        let (at, _, _) = *self.jobs.get(&job)?;
        Some(self.list[at].cancel(job, reason))
    }

    /// Whether the source's board showed the job's lease after its last byte.
    pub fn held(&self, job: JobId) -> bool {
        self.held.contains(&job)
    }

    /// Drives all transports; returns whether one would go on at once.
    pub fn progress(&mut self, ready: &[Ready], budget: u64, done: &mut Vec<Done>) -> bool {
        done.append(&mut self.ended);
        let before = done.len();
        let mut more = false;
        self.held.clear();
        for (at, t) in self.list.iter_mut().enumerate() {
            let keys = at as u64 * KEYS_PER_TRANSPORT..(at as u64 + 1) * KEYS_PER_TRANSPORT;
            let mine: Vec<Ready> = ready.iter().copied().filter(|r| keys.contains(&r.key)).collect();
            more |= t.progress(&mine, budget, done);
        }
        for d in done.iter().skip(before) {
            let Some((at, link, mark)) = self.jobs.remove(&d.id) else { continue };
            let Some(mark) = mark.filter(|_| d.result.is_ok()) else { continue };
            if self.list[at].peek(link, BOARD_REGION, mark.offset) == Some(mark.word) {
                self.held.push(d.id);
            }
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Span;
    use std::net::TcpListener;
    use std::time::Duration;

    const LINK: ConnId = crate::proto::Id(5);

    /// Both ends of a link that can only stream, not attached yet, over their memory.
    fn pair(memory: &mut [Vec<u8>; 2]) -> [(Transports, Arc<Poller>); 2] {
        let mut ends = memory.each_mut().map(|bytes| {
            let mut config = AgentConfig::new("i", 0, 1);
            (config.host.shm, config.host.cma) = (false, false);
            let poller = Arc::new(Poller::new().unwrap());
            let mut t = Transports::new(&config, &poller).unwrap();
            t.register(0, &Memory::new(bytes.as_mut_ptr().addr(), bytes.len()).unwrap()).unwrap();
            (t, poller)
        });
        let meta = [ends[0].0.metadata(), ends[1].0.metadata()];
        ends[0].0.connect(LINK, &meta[1]).unwrap();
        ends[1].0.connect(LINK, &meta[0]).unwrap();
        ends
    }

    fn attach(ends: &mut [(Transports, Arc<Poller>); 2]) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ends[0].0.attach(LINK, near).unwrap();
        ends[1].0.attach(LINK, listener.accept().unwrap().0).unwrap();
    }

    fn job(id: u64, action: Action, len: u64) -> Job {
        let spans = vec![Span { src_offset: 0, dst_offset: 0, len, src_region: 0, dst_region: 0 }];
        Job { id: JobId(id), link: LinkId(LINK.0), action, spans, staged: false }
    }

    fn drive(end: &mut (Transports, Arc<Poller>), done: &mut Vec<Done>) {
        let mut ready = Vec::new();
        end.1.wait(Some(Duration::from_millis(1)), &mut ready).unwrap();
        end.0.progress(&ready, 1 << 20, done);
    }

    #[test]
    fn a_stream_that_is_posted_before_its_connection_waits_for_it() {
        let mut memory = [vec![7u8; 4096], vec![0u8; 4096]];
        let mut ends = pair(&mut memory);
        let mut done = [Vec::new(), Vec::new()];
        ends[0].0.post(job(1, Action::Send { tag: 9 }, 4096), None).unwrap();
        drive(&mut ends[0], &mut done[0]);
        assert!(done[0].is_empty());
        attach(&mut ends);
        ends[1].0.post(job(2, Action::Receive { tag: 9 }, 4096), None).unwrap();
        for _ in 0..5000 {
            drive(&mut ends[0], &mut done[0]);
            drive(&mut ends[1], &mut done[1]);
            if done.iter().all(|d| !d.is_empty()) {
                break;
            }
        }
        assert!(done.iter().flatten().all(|d| d.result == Ok(()) && d.bytes == 4096), "{done:?}");
        drop(ends);
        assert_eq!(memory[0], memory[1]);
    }

    #[test]
    fn a_stream_without_connection_ends_when_it_is_cancelled_or_its_link_goes() {
        let mut memory = [vec![7u8; 16], vec![0u8; 16]];
        let mut ends = pair(&mut memory);
        let mut done = Vec::new();
        ends[0].0.post(job(1, Action::Send { tag: 1 }, 16), None).unwrap();
        ends[0].0.post(job(2, Action::Send { tag: 2 }, 16), None).unwrap();
        assert_eq!(ends[0].0.cancel(JobId(1), Status::Deadline), Some(Fence::Quiescent));
        drive(&mut ends[0], &mut done);
        ends[0].0.disconnect(LINK);
        drive(&mut ends[0], &mut done);
        let ends: Vec<_> = done.iter().map(|d| (d.id.0, d.result.as_ref().map_err(Error::status))).collect();
        assert_eq!(ends, [(1, Err(Status::Deadline)), (2, Err(Status::PeerDead))]);
    }
}
