//! A transport over a vendor's library that reads from peers' memory.
//!
//! The destination pulls; nothing writes into a peer's memory, and what else such libraries have (notifications, listeners,
//! metadata servers) is not used. Calls into the library are made by a thread of the transport's own, since some of them wait
//! before they return; but for reads that are copied while they are posted, which the reactor posts (`desk.rs`).
//!
//! Such libraries cannot cancel. Data lands in the blocks, or in memory of the transport's own from which it is copied, so
//! that a cancel ends a job at once, whatever still arrives. A job whose blocks are being read into is only reported as ended
//! when the library has ended the read, or what runs it ([`Agents`]) is gone.

mod agents;
pub(super) mod batch;
mod desk;
mod metadata;
pub(super) mod sys;
mod worker;

pub(super) use agents::unique_name;
pub use agents::{Agents, Landing, Peer, State, Unread, VendorOptions};
pub use sys::{Piece, Range};

use super::{Action, Done, Interest, Job, JobId, Link, LinkId, Poller, Ready, Slice, Transport, start_thread};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use desk::Desk;
use metadata::{Metadata, Region};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use worker::{Command, Report, Worker};

/// For memory to be registered: all of it may have to be locked first.
const REGISTERING: Duration = Duration::from_secs(600);

/// See the module's documentation.
pub struct Vendor<A: Agents> {
    options: A::Options,
    poller: Arc<Poller>,
    shared: Arc<Shared>,
    desk: Arc<Desk<A, Arc<Shared>>>,
    /// Ends with the thread.
    thread: Receiver<()>,
    agent: CString,
    /// Keeps shareable memory mapped while the library uses it.
    regions: BTreeMap<u32, Memory>,
    /// The library's own metadata of our server.
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

    fn call(&self) {
        self.ring();
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

fn stopped<A: Agents>() -> Error {
    Error::new(Status::Internal, format!("the thread that calls {} has ended", A::NAME))
}

impl<A: Agents> Vendor<A> {
    /// Loads the library and starts what reads and is read from, which takes a moment; `key` of the poller says when jobs have
    /// ended.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for options that cannot be; [`Status::TransportUnavailable`] where the library or its
    /// backend cannot be used, with the reason.
    pub fn new(poller: Arc<Poller>, key: u64, options: A::Options) -> Result<Vendor<A>> {
        options.check()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::new(Status::System, format!("eventfd: {e}")))?;
        poller.add(&wake, key, Interest { read: true, write: false })?;
        let shared = Arc::new(Shared { ended: Mutex::new(Vec::new()), gone: AtomicBool::new(false), wake });
        let desk = Arc::new(Desk::new(shared.clone()));
        let (answer, started) = channel();
        let (out, chosen, here) = (shared.clone(), options.clone(), desk.clone());
        let (alive, thread) = channel();
        let farewell = Farewell(shared.clone(), alive);
        let work = move || {
            let _farewell = farewell;
            match A::new(chosen.clone()) {
                Ok(agents) => {
                    let _ = answer.send(Ok(agents.name()));
                    here.serve(Worker::new(agents, &chosen, out));
                }
                Err(e) => drop(answer.send(Err(e))),
            }
        };
        start_thread(format!("kvlink-{}", A::NAME), work)?;
        let mut made = Vendor {
            options,
            poller,
            shared,
            desk,
            thread,
            agent: CString::default(),
            regions: BTreeMap::new(),
            blob: Vec::new(),
            links: HashSet::new(),
            jobs: HashMap::new(),
            closed: None,
        };
        made.agent = started.recv().unwrap_or_else(|_| Err(stopped::<A>()))?;
        Ok(made)
    }

    fn alive(&self) -> Result<()> {
        if self.shared.gone.load(Ordering::SeqCst) { Err(stopped::<A>()) } else { Ok(()) }
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.alive()?;
        self.desk.leave(command);
        Ok(())
    }

    /// Tells the worker something and waits for its answer.
    fn ask<T>(&self, longest: Duration, command: impl FnOnce(Sender<Result<T>>) -> Command) -> Result<T> {
        let (answer, answered) = channel();
        self.tell(command(answer))?;
        match answered.recv_timeout(longest) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(stopped::<A>()),
            Err(RecvTimeoutError::Timeout) => Err(stuck::<A>(longest)),
        }
    }

    /// What takes longer will never end: reads are waited for, what reads is replaced.
    fn longest(&self) -> Duration {
        2 * self.options.patience() + A::REPLACING
    }

    fn open(&self) -> Result<()> {
        self.closed.clone().map_or(Ok(()), Err)
    }
}

fn stuck<A: Agents>(longest: Duration) -> Error {
    let text = format!("{}: a call into the library has not returned for {longest:?}", A::NAME);
    Error::new(Status::Quarantined, text)
}

impl<A: Agents> Drop for Vendor<A> {
    /// Returns when nothing of the library touches any region any more.
    fn drop(&mut self) {
        self.poller.remove(&self.shared.wake);
        self.desk.close();
        if self.thread.recv_timeout(self.longest()) == Err(RecvTimeoutError::Timeout) {
            log::error!("kvlink: {}; its memory stays mapped", stuck::<A>(self.longest()).message());
            std::mem::forget(std::mem::take(&mut self.regions));
        }
    }
}

impl<A: Agents> Transport for Vendor<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn register(&mut self, region: u32, memory: &Memory) -> Result<()> {
        self.open()?;
        if self.regions.contains_key(&region) {
            return Err(Error::new(Status::Duplicate, format!("region {region} is registered already")));
        }
        let range = Range::new(memory.addr(), memory.len());
        self.blob = self.ask(REGISTERING, |answer| Command::Register { region, memory: range, answer })?;
        self.regions.insert(region, memory.clone());
        Ok(())
    }

    /// Ends what is read from: a backend that emulates reads serves them from this process, and nothing else stops that. What
    /// reads ends when its reads have; only those into blocks are waited for.
    fn deregister(&mut self, region: u32) -> Result<()> {
        if !self.regions.contains_key(&region) {
            return Err(Error::new(Status::BadHandle, format!("region {region} is not registered")));
        }
        let reason = Error::new(Status::BadHandle, format!("region {region} was deregistered"));
        if self.closed.is_none() {
            self.closed = Some(reason.clone());
            self.ask(self.longest(), |answer| Command::End { reason, answer })?;
        }
        self.regions.remove(&region);
        Ok(())
    }

    fn metadata(&self) -> Vec<u8> {
        let region = |(index, m): (&u32, &Memory)| Region { index: *index, addr: m.addr() as u64, len: m.len() as u64 };
        let regions = self.regions.iter().map(region).collect();
        let (backend, agent, blob) = (self.options.backend().to_string(), self.agent.clone(), self.blob.clone());
        Metadata { backend, agent, blob, regions }.encode(A::MAGIC)
    }

    fn connect(&mut self, link: LinkId, remote: &[u8]) -> Result<Link> {
        self.open()?;
        if self.links.contains(&link) {
            return Err(Error::new(Status::Duplicate, format!("link {} exists", link.0)));
        }
        let Metadata { backend, agent, blob, regions } = Metadata::decode(A::NAME, A::MAGIC, remote)?;
        let ours = self.options.backend();
        if backend != ours {
            let text = format!("our backend is {ours}, the peer's {backend}");
            return Err(Error::new(Status::TransportUnavailable, text));
        }
        let regions: BTreeMap<u32, (u64, u64)> = regions.iter().map(|r| (r.index, (r.addr, r.len))).collect();
        if !regions.is_empty() {
            let peer = Peer { agent, metadata: blob, regions };
            match A::vet(&peer) {
                Some(vetted) => vetted.and_then(|()| self.tell(Command::Connect { link, peer, answer: None }))?,
                None => self.ask(self.longest(), |a| Command::Connect { link, peer, answer: Some(a) })?,
            }
        }
        self.links.insert(link);
        Ok(Link { name: self.options.report(), pull: true, streams: 0, rejected: Vec::new() })
    }

    fn attach(&mut self, link: LinkId, _socket: std::net::TcpStream) -> Result<()> {
        let text = format!("link {} is {}'s, which has no data connections", link.0, A::NAME);
        Err(Error::new(Status::TransportUnavailable, text))
    }

    fn disconnect(&mut self, link: LinkId) {
        if self.links.remove(&link) {
            let _ = self.tell(Command::Disconnect { link });
        }
    }

    fn post(&mut self, job: Job) -> Result<()> {
        self.open()?;
        let Job { id, link, action, .. } = job;
        if self.jobs.contains_key(&id) {
            return Err(Error::new(Status::Duplicate, format!("job {} is running", id.0)));
        }
        if !self.links.contains(&link) {
            return Err(Error::new(Status::PeerDead, format!("link {} does not exist", link.0)));
        }
        if action != Action::Pull {
            let text = format!("the destination pulls with {}, nothing else", A::NAME);
            return Err(Error::new(Status::TransportUnavailable, text));
        }
        self.alive()?;
        self.jobs.insert(id, None);
        self.desk.start(job);
        Ok(())
    }

    fn cancel(&mut self, job: JobId, reason: Status) {
        if let Some(cancelled) = self.jobs.get_mut(&job) {
            cancelled.get_or_insert_with(Instant::now);
            let reason = Error::new(reason, format!("job {} was ended", job.0));
            let _ = self.tell(Command::Cancel { job, reason });
        }
    }

    fn progress(&mut self, ready: &[Ready], slice: Slice, done: &mut Vec<Done>) -> bool {
        if !ready.is_empty() {
            let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
        }
        let (mut ended, more) = self.desk.lend_a_hand(slice.loops);
        ended.append(&mut self.shared.ended.lock());
        // A job that was given up is not reported twice.
        done.extend(ended.into_iter().filter(|d| self.jobs.remove(&d.id).is_some()));
        let gone = self.shared.gone.load(Ordering::SeqCst);
        let longest = self.longest();
        let lost = |since: &Option<Instant>| gone || since.is_some_and(|t| t.elapsed() > longest);
        let ids: Vec<JobId> = self.jobs.iter().filter(|(_, since)| lost(since)).map(|(id, _)| *id).collect();
        for id in ids {
            self.jobs.remove(&id);
            let error =
                if gone { Error::new(Status::Quarantined, stopped::<A>().message()) } else { stuck::<A>(longest) };
            done.push(Done { id, result: Err(error), bytes: 0, held: false, spans: Vec::new() });
        }
        more
    }
}
