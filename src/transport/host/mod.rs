//! The embedded transport, three ways under one name.
//!
//! - *host/shm*: the peer's shareable memory is mapped read-only and copied from;
//! - *host/cma*: the peer's memory is read across processes (`process_vm_readv`);
//! - *host/tcp*: streams over one or more sockets, scattered and gathered straight from and into registered memory.
//!
//! Whichever way, only the destination's thread writes the destination's memory, and only within a call of this
//! transport: that is why every [`cancel`](Transport::cancel) ends its job at once.

mod chunk;
mod conn;
mod identity;
mod inbound;
mod lanes;
mod local;
mod metadata;
mod options;
mod outbound;
mod peer;
mod pull;
mod remote;
mod scratch;
mod stream;
mod sys;

pub use options::HostOptions;
pub use pull::STAGE_GAP_BYTES;

use super::{Action, Done, Job, JobId, Link, LinkId, Poller, Ready, Slice, Transport};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use conn::{Conn, Context};
use local::Regions;
use metadata::{File, Metadata, Region};
use peer::Peer;
use pull::Pull;
use scratch::Scratch;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes for which a job or a socket works before the next one has its turn.
const TURN: u64 = 256 << 10;

/// A call of `progress` begins no turn after so long, whatever its budget: cold pages and a busy host make bytes slow,
/// and heartbeats must not wait for them.
const LONGEST: Duration = Duration::from_millis(1);

/// The embedded transport. See the module's documentation.
pub struct Host {
    options: HostOptions,
    poller: Arc<Poller>,
    keys: Range<u64>,
    own: peer::Own,
    regions: Regions,
    links: BTreeMap<LinkId, Peer>,
    /// Sockets; their index plus the first key is their key.
    sockets: Vec<Option<Conn>>,
    /// Sockets that may go on at once.
    active: VecDeque<usize>,
    pulls: VecDeque<Pull>,
    /// Jobs that were accepted and not yet reported.
    jobs: HashSet<JobId>,
    ended: Vec<Done>,
    io: Scratch,
}

impl Host {
    /// A transport whose sockets use `keys` of the poller, one each.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for options that cannot be; [`Status::System`] where `/proc` cannot be read.
    pub fn new(poller: Arc<Poller>, keys: Range<u64>, options: HostOptions) -> Result<Host> {
        options.check()?;
        if options.ptracer_any {
            match rustix::process::set_ptracer(rustix::process::PTracer::Any) {
                // A kernel without Yama knows no such restriction.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(Error::new(Status::System, format!("prctl(PR_SET_PTRACER): {e}"))),
            }
        }
        Ok(Host {
            options,
            poller,
            keys,
            own: peer::Own::new()?,
            regions: Regions::default(),
            links: BTreeMap::new(),
            sockets: Vec::new(),
            active: VecDeque::new(),
            pulls: VecDeque::new(),
            jobs: HashSet::new(),
            ended: Vec::new(),
            io: Scratch::new(),
        })
    }

    fn link(&mut self, link: LinkId) -> Result<&mut Peer> {
        self.links.get_mut(&link).ok_or_else(|| no_link(link))
    }

    /// Notes that a socket may have something to do.
    fn activate(&mut self, slot: usize) {
        if let Some(Some(conn)) = self.sockets.get_mut(slot)
            && !conn.queued
        {
            conn.queued = true;
            self.active.push_back(slot);
        }
    }

    /// Ends every job of a link and closes its sockets; further jobs are refused with the same error.
    fn break_link(&mut self, link: LinkId, error: Error) {
        let Some(peer) = self.links.get_mut(&link) else { return };
        for slot in std::mem::take(&mut peer.sockets) {
            if let Some(conn) = self.sockets.get_mut(slot).and_then(Option::take) {
                conn.close(&self.poller);
            }
        }
        peer.streams.end_all(&error, &mut self.ended);
        peer.broken = Some(error.clone());
        self.end_pulls(|p| p.link == link, &error);
    }

    fn end_pulls(&mut self, which: impl Fn(&Pull) -> bool, error: &Error) -> bool {
        let (gone, kept): (VecDeque<Pull>, _) = std::mem::take(&mut self.pulls).into_iter().partition(which);
        self.pulls = kept;
        let any = !gone.is_empty();
        self.ended.extend(gone.into_iter().map(|p| p.fail(error.clone())));
        any
    }

    /// Gives the next socket its turn; returns what it cost.
    fn turn_socket(&mut self, budget: u64) -> u64 {
        let Some(slot) = self.active.pop_front() else { return 0 };
        let Some(Some(conn)) = self.sockets.get_mut(slot) else { return 0 };
        conn.queued = false;
        let link = conn.link;
        let Some(peer) = self.links.get_mut(&link) else { return 0 };
        let mut endings = Vec::new();
        let mut cx = Context {
            own: &self.regions,
            io: &mut self.io,
            streams: &mut peer.streams,
            endings: &mut endings,
            ended: &mut self.ended,
        };
        let result = conn.work(&mut cx, budget.min(TURN)).and_then(|n| conn.update(&self.poller).map(|()| n));
        self.end_streams(link, endings);
        match result {
            Ok(n) => {
                if self.conn(slot).is_some_and(|c| c.active()) {
                    self.activate(slot);
                }
                n
            }
            Err(e) => {
                self.break_link(link, e);
                0
            }
        }
    }

    /// Gives the next pull its turn; returns what it cost.
    fn turn_pull(&mut self, budget: u64) -> u64 {
        let Some(mut pull) = self.pulls.pop_front() else { return 0 };
        let Some(peer) = self.links.get(&pull.link) else {
            let e = no_link(pull.link);
            self.ended.push(pull.fail(e));
            return 0;
        };
        match pull.slice(&self.regions, &peer.remote, &mut self.io, budget.min(TURN)) {
            Ok((cost, true)) => {
                self.ended.push(pull.complete(&peer.remote));
                cost
            }
            Ok((cost, false)) => {
                self.pulls.push_back(pull);
                cost
            }
            Err(e) => {
                self.ended.push(pull.fail(e));
                0
            }
        }
    }
}

impl Drop for Host {
    /// A socket that was duplicated elsewhere would stay in the poller.
    fn drop(&mut self) {
        self.sockets.drain(..).flatten().for_each(|conn| conn.close(&self.poller));
    }
}

impl Transport for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn register(&mut self, region: u32, memory: &Memory) -> Result<()> {
        self.regions.insert(region, memory)
    }

    fn deregister(&mut self, region: u32) -> Result<()> {
        if !self.regions.contains(region) {
            return Err(Error::new(Status::BadHandle, format!("region {region} is not registered")));
        }
        let error = Error::new(Status::BadHandle, format!("region {region} was deregistered"));
        self.end_pulls(|p| p.regions.contains(&region), &error);
        self.end_chosen(|s| s.regions.contains(&region), &error);
        self.regions.remove(region)
    }

    fn metadata(&self) -> Vec<u8> {
        let region = |(index, m): (u32, &Memory)| Region {
            index,
            addr: m.addr() as u64,
            len: m.len() as u64,
            file: if self.options.shm { file(m) } else { None },
        };
        let (nonce, nonce_addr) = self.own.nonce();
        let regions = self.regions.iter().map(region).collect();
        let (ways, streams, identity) = (self.options.ways(), self.options.streams as u32, self.own.identity);
        Metadata { ways, streams, identity, nonce, nonce_addr, regions }.encode()
    }

    fn connect(&mut self, link: LinkId, remote: &[u8]) -> Result<Link> {
        if self.links.contains_key(&link) {
            return Err(Error::new(Status::Duplicate, format!("link {} exists", link.0)));
        }
        let meta = Metadata::decode(remote)?;
        let peer = Peer::new(&meta, &self.own.identity, &self.options)?;
        let report = peer.link.clone();
        self.links.insert(link, peer);
        Ok(report)
    }

    fn attach(&mut self, link: LinkId, socket: TcpStream) -> Result<()> {
        let peer = self.link(link)?;
        peer.alive()?;
        let most = peer.link.streams;
        if most == 0 {
            let why = format!("link {}: {}", link.0, peer.link.rejected.join("; "));
            return Err(Error::new(Status::TransportUnavailable, why));
        }
        if peer.sockets.len() >= most {
            return Err(Error::new(Status::Limit, format!("link {}: {most} sockets are attached already", link.0)));
        }
        prepare(&socket, &self.options).map_err(|e| Error::new(Status::System, format!("data socket: {e}")))?;
        let free = self.sockets.iter().position(Option::is_none).unwrap_or(self.sockets.len());
        let key = self.keys.start.checked_add(free as u64).filter(|k| self.keys.contains(k));
        let key = key.ok_or_else(|| {
            let most = self.keys.end.saturating_sub(self.keys.start);
            Error::new(Status::Limit, format!("link {}: all {most} data sockets of this agent are in use", link.0))
        })?;
        let conn = Conn::new(link, socket, key, u64::from(self.options.chunk_bytes), &self.poller)?;
        match self.sockets.get_mut(free) {
            Some(slot) => *slot = Some(conn),
            None => self.sockets.push(Some(conn)),
        }
        self.link(link)?.sockets.push(free);
        Ok(())
    }

    fn disconnect(&mut self, link: LinkId) {
        self.break_link(link, Error::new(Status::PeerDead, format!("link {} was disconnected", link.0)));
        self.links.remove(&link);
    }

    fn post(&mut self, job: Job) -> Result<()> {
        let id = job.id;
        if self.jobs.contains(&id) {
            return Err(Error::new(Status::Duplicate, format!("job {} is running", id.0)));
        }
        let peer = self.links.get(&job.link).ok_or_else(|| no_link(job.link))?;
        peer.alive()?;
        match job.action {
            Action::Pull if !peer.link.pull => {
                let why = format!("link {} cannot pull: {}", job.link.0, peer.link.rejected.join("; "));
                return Err(Error::new(Status::TransportUnavailable, why));
            }
            Action::Pull => {
                let pull = Pull::new(job, &self.regions, &peer.remote)?;
                self.pulls.push_back(pull);
            }
            Action::Send { tag } => self.post_send(tag, job)?,
            Action::Receive { tag } => self.post_receive(tag, job)?,
        }
        self.jobs.insert(id);
        Ok(())
    }

    fn cancel(&mut self, job: JobId, reason: Status) {
        let error = Error::new(reason, format!("job {} was ended", job.0));
        let _ = self.end_pulls(|p| p.id == job, &error) || self.end_chosen(|s| s.id == job, &error);
    }

    fn progress(&mut self, ready: &[Ready], slice: Slice, done: &mut Vec<Done>) -> bool {
        for r in ready {
            let Some(slot) = r.key.checked_sub(self.keys.start).filter(|_| self.keys.contains(&r.key)) else {
                continue;
            };
            let slot = slot as usize;
            if let Some(Some(conn)) = self.sockets.get_mut(slot) {
                conn.ready(r.read, r.write);
                self.activate(slot);
            }
        }
        let mut left = slice.bytes.max(1);
        let begin = Instant::now();
        while left > 0 && (!self.active.is_empty() || !self.pulls.is_empty()) {
            let cost = self.turn_socket(left) + self.turn_pull(left);
            // A turn that moved nothing costs a little too, so that this loop always ends.
            left = left.saturating_sub(cost.max(64));
            if begin.elapsed() > LONGEST {
                break;
            }
        }
        for d in &self.ended {
            self.jobs.remove(&d.id);
        }
        done.append(&mut self.ended);
        !self.active.is_empty() || !self.pulls.is_empty()
    }
}

fn prepare(socket: &TcpStream, options: &HostOptions) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    if let Some(n) = options.send_buffer {
        rustix::net::sockopt::set_socket_send_buffer_size(socket, n)?;
    }
    if let Some(n) = options.receive_buffer {
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, n)?;
    }
    Ok(())
}

/// How a peer can open the file behind our memory.
fn file(memory: &Memory) -> Option<File> {
    use std::os::fd::AsRawFd;
    let fd = memory.backing()?.fd();
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(File { fd: fd.as_raw_fd(), device: stat.st_dev, inode: stat.st_ino })
}

fn no_link(link: LinkId) -> Error {
    Error::new(Status::BadHandle, format!("there is no link {}", link.0))
}
