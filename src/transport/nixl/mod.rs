//! NIXL, the library that most of the field deploys, as a transport.
//!
//! The destination pulls by NIXL's READ; nothing writes into a peer's memory, and NIXL's notifications, listeners and
//! metadata servers are not used. All calls into NIXL are made by one thread of the transport's own (`worker.rs`).
//!
//! NIXL cannot cancel. Where it says that a read has completed as soon as it was posted, data lands in the blocks; elsewhere
//! it lands in memory of the transport's own and is copied, so that a cancel ends a job at once, whatever still arrives. A
//! job whose blocks are being read into is only reported as ended when NIXL has ended the read, or the NIXL agent that
//! runs it (`agents.rs`).

mod abi;
mod agents;
mod batch;
mod elf;
mod library;
mod metadata;
mod options;
mod reasons;
mod sys;
mod worker;

pub use options::{Landing, NixlOptions};

use super::{Action, Done, Interest, Job, JobId, Link, LinkId, Poller, Ready, Transport};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use crate::wire::BOARD_REGION;
use agents::Agents;
use metadata::{Metadata, Region};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use sys::Range;
use worker::{Command, Peer, Report, Worker};

/// More than it takes to end a NIXL agent and to make another.
const REPLACING: Duration = Duration::from_secs(5);

/// The NIXL transport. See the module's documentation.
pub struct Nixl {
    options: NixlOptions,
    poller: Arc<Poller>,
    shared: Arc<Shared>,
    /// `None` once the thread is being ended.
    commands: Option<Sender<Command>>,
    /// Ends with the thread.
    thread: Receiver<()>,
    agent: std::ffi::CString,
    /// Keeps shareable memory mapped while NIXL uses it.
    regions: BTreeMap<u32, Memory>,
    /// NIXL's own metadata of our server.
    blob: Vec<u8>,
    links: HashSet<LinkId>,
    /// Jobs that were accepted and not yet reported, and when they were cancelled.
    jobs: HashMap<JobId, Option<Instant>>,
    closed: Option<Error>,
}

/// What the worker leaves for the reactor.
struct Shared {
    ended: Mutex<Vec<Done>>,
    /// The worker does nothing any more.
    gone: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn ring(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Report for Arc<Shared> {
    fn report(&self, done: Done) {
        let mut ended = self.ended.lock();
        ended.push(done);
        if ended.len() == 1 {
            self.ring();
        }
    }
}

/// Says that the worker has ended, however it did.
struct Farewell(Arc<Shared>, #[allow(dead_code)] Sender<()>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::SeqCst);
        self.0.ring();
    }
}

fn stopped() -> Error {
    Error::new(Status::Internal, "the thread that calls NIXL has ended")
}

impl Nixl {
    /// Loads NIXL and starts its agents, which takes about half a second; `key` of the poller says when jobs have ended.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for options that cannot be; [`Status::TransportUnavailable`] where NIXL or its backend
    /// cannot be used, with the reason.
    pub fn new(poller: Arc<Poller>, key: u64, options: NixlOptions) -> Result<Nixl> {
        options.check()?;
        let system = |what: &str, e: String| Error::new(Status::System, format!("{what}: {e}"));
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| system("eventfd", e.to_string()))?;
        poller.add(&wake, key, Interest { read: true, write: false })?;
        let shared = Arc::new(Shared { ended: Mutex::new(Vec::new()), gone: AtomicBool::new(false), wake });
        let (commands, received) = channel();
        let (answer, started) = channel();
        let (out, chosen) = (shared.clone(), options.clone());
        let (alive, thread) = channel();
        let farewell = Farewell(shared.clone(), alive);
        let work = move || {
            let _farewell = farewell;
            match Agents::new(chosen.clone()) {
                Ok(agents) => {
                    let _ = answer.send(Ok(agents.name()));
                    Worker::new(agents, chosen, out).run(&received);
                }
                Err(e) => drop(answer.send(Err(e))),
            }
        };
        std::thread::Builder::new()
            .name("kvlink-nixl".into())
            .spawn(work)
            .map_err(|e| system("starting the thread that calls NIXL", e.to_string()))?;
        let mut nixl = Nixl {
            options,
            poller,
            shared,
            commands: Some(commands),
            thread,
            agent: Default::default(),
            regions: BTreeMap::new(),
            blob: Vec::new(),
            links: HashSet::new(),
            jobs: HashMap::new(),
            closed: None,
        };
        nixl.agent = started.recv().unwrap_or_else(|_| Err(stopped()))?;
        Ok(nixl)
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.commands.as_ref().and_then(|c| c.send(command).ok()).ok_or_else(stopped)
    }

    /// Tells the worker something and waits for its answer.
    fn ask<T>(&self, command: impl FnOnce(Sender<Result<T>>) -> Command) -> Result<T> {
        let (answer, answered) = channel();
        self.tell(command(answer))?;
        match answered.recv_timeout(self.longest()) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
            Err(RecvTimeoutError::Timeout) => Err(self.stuck()),
        }
    }

    /// What takes longer will never end: reads are waited for, an agent is replaced.
    fn longest(&self) -> Duration {
        2 * self.options.patience + REPLACING
    }

    fn stuck(&self) -> Error {
        let text = format!("nixl: a call into NIXL has not returned for {:?}", self.longest());
        Error::new(Status::Quarantined, text)
    }

    fn open(&self) -> Result<()> {
        self.closed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Nixl {
    /// Returns when nothing of NIXL touches any region any more.
    fn drop(&mut self) {
        self.poller.remove(&self.shared.wake);
        self.commands = None;
        if self.thread.recv_timeout(self.longest()) == Err(RecvTimeoutError::Timeout) {
            log::error!("kvlink: {}; its memory stays mapped", self.stuck().message());
            std::mem::forget(std::mem::take(&mut self.regions));
        }
    }
}

impl Transport for Nixl {
    fn name(&self) -> &'static str {
        "nixl"
    }

    fn register(&mut self, region: u32, memory: &Memory) -> Result<()> {
        self.open()?;
        if region == BOARD_REGION {
            // Looking at a peer's board takes a round trip with NIXL: asking is no slower.
            return Ok(());
        }
        if self.regions.contains_key(&region) {
            return Err(Error::new(Status::Duplicate, format!("region {region} is registered already")));
        }
        let range = Range::new(memory.addr(), memory.len());
        self.blob = self.ask(|answer| Command::Register { region, memory: range, answer })?;
        self.regions.insert(region, memory.clone());
        Ok(())
    }

    /// Ends the NIXL agent that peers read from: a backend that emulates reads serves them from this process, and nothing
    /// else stops that. The other one ends when its reads have; only those into blocks are waited for.
    fn deregister(&mut self, region: u32) -> Result<()> {
        if region == BOARD_REGION {
            return Ok(());
        }
        if !self.regions.contains_key(&region) {
            return Err(Error::new(Status::BadHandle, format!("region {region} is not registered")));
        }
        let reason = Error::new(Status::BadHandle, format!("region {region} was deregistered"));
        if self.closed.is_none() {
            self.closed = Some(reason.clone());
            self.ask(|answer| Command::End { reason, answer })?;
        }
        self.regions.remove(&region);
        Ok(())
    }

    fn metadata(&self) -> Vec<u8> {
        let region = |(index, m): (&u32, &Memory)| Region { index: *index, addr: m.addr() as u64, len: m.len() as u64 };
        let regions = self.regions.iter().map(region).collect();
        let (backend, agent, blob) = (self.options.backend.clone(), self.agent.clone(), self.blob.clone());
        Metadata { backend, agent, blob, regions }.encode()
    }

    fn connect(&mut self, link: LinkId, remote: &[u8]) -> Result<Link> {
        self.open()?;
        if self.links.contains(&link) {
            return Err(Error::new(Status::Duplicate, format!("link {} exists", link.0)));
        }
        let Metadata { backend, agent, blob, regions } = Metadata::decode(remote)?;
        if backend != self.options.backend {
            let text = format!("our backend is {}, the peer's {backend}", self.options.backend);
            return Err(Error::new(Status::TransportUnavailable, text));
        }
        let regions: HashMap<u32, (u64, u64)> = regions.iter().map(|r| (r.index, (r.addr, r.len))).collect();
        if !regions.is_empty() {
            let peer = Peer { agent, metadata: blob, regions };
            self.ask(|answer| Command::Connect { link, peer, answer })?;
        }
        self.links.insert(link);
        Ok(Link { name: self.options.report(), pull: true, streams: 0, rejected: Vec::new() })
    }

    fn attach(&mut self, link: LinkId, _socket: std::net::TcpStream) -> Result<()> {
        let text = format!("link {} is NIXL's, which has no data connections", link.0);
        Err(Error::new(Status::TransportUnavailable, text))
    }

    fn disconnect(&mut self, link: LinkId) {
        if self.links.remove(&link) {
            let _ = self.tell(Command::Disconnect { link });
        }
    }

    fn post(&mut self, job: Job) -> Result<()> {
        self.open()?;
        let Job { id, link, action, spans, staged } = job;
        if self.jobs.contains_key(&id) {
            return Err(Error::new(Status::Duplicate, format!("job {} is running", id.0)));
        }
        if !self.links.contains(&link) {
            return Err(Error::new(Status::PeerDead, format!("link {} does not exist", link.0)));
        }
        if action != Action::Pull {
            return Err(Error::new(Status::TransportUnavailable, "the destination pulls with NIXL, nothing else"));
        }
        self.tell(Command::Start(worker::Job { id, link, spans, short: staged }))?;
        self.jobs.insert(id, None);
        Ok(())
    }

    fn cancel(&mut self, job: JobId, reason: Status) {
        if let Some(cancelled) = self.jobs.get_mut(&job) {
            cancelled.get_or_insert_with(Instant::now);
            let reason = Error::new(reason, format!("job {} was ended", job.0));
            let _ = self.tell(Command::Cancel { job, reason });
        }
    }

    fn progress(&mut self, ready: &[Ready], _budget: u64, done: &mut Vec<Done>) -> bool {
        if !ready.is_empty() {
            let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
        }
        // A job that was given up is not reported twice.
        let ended = std::mem::take(&mut *self.shared.ended.lock());
        done.extend(ended.into_iter().filter(|d| self.jobs.remove(&d.id).is_some()));
        let gone = self.shared.gone.load(Ordering::SeqCst);
        let longest = self.longest();
        let lost = |since: &Option<Instant>| gone || since.is_some_and(|t| t.elapsed() > longest);
        let ids: Vec<JobId> = self.jobs.iter().filter(|(_, since)| lost(since)).map(|(id, _)| *id).collect();
        for id in ids {
            self.jobs.remove(&id);
            let error = if gone { Error::new(Status::Quarantined, stopped().message()) } else { self.stuck() };
            done.push(Done { id, result: Err(error), bytes: 0, spans: Vec::new() });
        }
        false
    }
}
