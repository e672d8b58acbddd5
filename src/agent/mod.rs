//! The safe Rust API: one [`Agent`] per rank.
//!
//! An agent owns an [`Endpoint`](crate::proto::Endpoint) (what is said), transports (how bytes move), one reactor thread
//! that drives both, and one event queue. Calls lock the endpoint, never the transports: they return at once, whatever is
//! being copied.

mod address;
mod calls;
mod config;
mod driver;
mod listener;
mod moriio;
mod net;
mod parked;
mod queue;
mod reactor;
mod router;
mod sockets;
mod stream;
mod transports;
mod waker;

pub use config::{AgentConfig, Require};
pub use moriio::MoriioConfig;
pub use queue::EventQueue;

use crate::error::{Error, Result, Status};
use crate::layout::Layout;
use crate::memory::Memory;
use crate::proto::{Endpoint, Event, Identity};
use crate::transport::{self, Poller};
use driver::Driver;
use net::Inbox;
use parking_lot::{Condvar, Mutex};
use reactor::Reactor;
use router::Routers;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use waker::Waker;

/// What callers and the reactor share.
pub(crate) struct Shared {
    pub endpoint: Mutex<Endpoint>,
    pub queue: EventQueue,
    pub inbox: Mutex<Inbox>,
    /// Woken when the reactor has carried out an order of the inbox.
    pub answered: Condvar,
    pub stop: AtomicBool,
    pub poisoned: AtomicBool,
    pub stats: Stats,
    routers: Mutex<Routers>,
    waker: Waker,
}

/// Counters since the agent's start.
#[derive(Default)]
pub(crate) struct Stats {
    pub bytes: AtomicU64,
    pub spans: AtomicU64,
    pub transfers: AtomicU64,
    pub failures: AtomicU64,
}

/// A copy of an agent's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes moved by completed transfers and accepts.
    pub bytes: u64,
    /// Spans moved by completed transfers.
    pub spans: u64,
    /// Transfers that completed.
    pub transfers: u64,
    /// Transfers, accepts and handshakes that failed.
    pub failures: u64,
}

impl Shared {
    /// Makes the reactor look at the endpoint and the inbox.
    pub fn wake(&self) {
        self.waker.wake();
    }

    fn alive(&self) -> Result<()> {
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::new(Status::BadHandle, "the agent was destroyed"));
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::new(Status::Poisoned, "a defect stopped this agent; destroy it"));
        }
        Ok(())
    }
}

/// One rank's endpoint. Every method may be called from any thread; dropping it stops the reactor, after which nothing
/// touches registered memory.
pub struct Agent {
    shared: Arc<Shared>,
    layout: Arc<Layout>,
    regions: Mutex<Regions>,
    address: String,
    process: u32,
    poller: Arc<Poller>,
    reactor: Arc<Mutex<Reactor>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The worker opposite vLLM's, if it is open.
    moriio: Mutex<Option<moriio::Worker>>,
    /// It may listen on other than loopback addresses.
    remote: bool,
    max_events: usize,
}

struct Regions {
    memory: Vec<Option<Memory>>,
    /// All regions are registered and published.
    bound: bool,
    /// A region was taken away: nothing can be moved any more.
    closed: bool,
}

impl Agent {
    /// Starts an agent for a rank with this layout.
    ///
    /// # Errors
    /// [`Status::Address`] if it cannot listen, [`Status::TransportUnavailable`] if a required transport is not there,
    /// [`Status::InvalidArgument`] for impossible configuration.
    pub fn new(config: AgentConfig, layout: Arc<Layout>) -> Result<Agent> {
        config.check()?;
        let listener = address::listen(&config)?;
        let address = address::published(&listener, &config)?;
        let life = incarnation()?;
        let me = Identity {
            instance: config.instance.clone(),
            incarnation: life,
            rank: config.rank,
            ranks: config.ranks,
            leader: config.leader.clone(),
        };
        let poller = Arc::new(Poller::new()?);
        let bytes = layout.regions().iter().map(|r| r.len).sum();
        let transports = transports::Transports::new(&config, &poller, &address, bytes)?;
        let shared = Arc::new(Shared {
            endpoint: Mutex::new(Endpoint::new(config.endpoint.clone(), me, layout.clone())),
            queue: EventQueue::new()?,
            inbox: Mutex::new(Inbox::default()),
            answered: Condvar::new(),
            stop: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            stats: Stats::default(),
            routers: Mutex::new(Routers::new(life)),
            waker: Waker::new()?,
        });
        let reactor = Reactor::new(shared.clone(), poller.clone(), listener, transports, &config)?;
        let reactor = Arc::new(Mutex::new(reactor));
        let (s, p, r) = (shared.clone(), poller.clone(), reactor.clone());
        let work = move || Driver { shared: &s, poller: &p, reactor: &r }.run();
        let thread = transport::start_thread(format!("kvlink-{}", config.rank), work)?;
        let memory = vec![None; layout.regions().len()];
        Ok(Agent {
            shared,
            layout,
            regions: Mutex::new(Regions { memory, bound: false, closed: false }),
            address,
            process: std::process::id(),
            poller,
            reactor,
            thread: Mutex::new(Some(thread)),
            moriio: Mutex::new(None),
            remote: config.allow_remote,
            max_events: config.max_events,
        })
    }

    /// Address that others reach this agent at, "host:port".
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The layout it was made with.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Takes up to `max` events, oldest first; waits for the first at most `timeout` (`None`: until the agent stops). A
    /// caller that looks in a loop lends the reactor a hand first.
    pub fn poll(&self, max: usize, timeout: Option<Duration>) -> Vec<Event> {
        let Shared { queue, waker, .. } = &*self.shared;
        let loops = waker.engine_looks(Instant::now(), timeout != Some(Duration::ZERO));
        let turns = loops && queue.is_empty() && self.check().is_ok();
        if turns {
            Driver { shared: &self.shared, poller: &self.poller, reactor: &self.reactor }.lend_a_hand();
        }
        let events = queue.poll(max, timeout);
        waker.engine_looked(Instant::now(), !events.is_empty(), turns);
        events
    }

    /// The queue of events.
    pub fn events(&self) -> &EventQueue {
        &self.shared.queue
    }

    /// Counters since the start.
    pub fn statistics(&self) -> Statistics {
        let s = &self.shared.stats;
        Statistics {
            bytes: s.bytes.load(Ordering::Relaxed),
            spans: s.spans.load(Ordering::Relaxed),
            transfers: s.transfers.load(Ordering::Relaxed),
            failures: s.failures.load(Ordering::Relaxed),
        }
    }

    /// Stops the agent: when this returns, nothing touches registered memory, and every call that waits has returned or is
    /// about to. Calls that come later are refused with [`Status::BadHandle`].
    pub fn shut_down(&self) {
        // A fork has no reactor thread to wait for, and must not touch what belongs to its parent.
        if self.check_process().is_err() {
            return;
        }
        if let Some(worker) = self.moriio.lock().take() {
            worker.close();
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(handle) = self.thread.lock().take() {
            let _ = handle.join();
        }
        self.shared.queue.close();
        let inbox = self.shared.inbox.lock();
        self.shared.answered.notify_all();
        drop(inbox);
    }

    /// The agent's state is usable: not poisoned, not stopped, and this is the process that made it.
    pub fn check(&self) -> Result<()> {
        self.check_process()?;
        self.shared.alive()
    }

    /// It was not stopped.
    pub fn check_running(&self) -> Result<()> {
        if self.shared.stop.load(Ordering::Acquire) {
            return Err(Error::new(Status::BadHandle, "the agent was destroyed"));
        }
        Ok(())
    }

    /// This is the process that made it: an agent does not survive a fork.
    pub fn check_process(&self) -> Result<()> {
        if std::process::id() != self.process {
            let (made, here) = (self.process, std::process::id());
            let text = format!("the agent was made by process {made}, this is its fork {here}");
            return Err(Error::new(Status::WrongState, text));
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A random number that tells this agent's life from every other.
fn incarnation() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}
