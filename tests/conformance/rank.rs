//! Ranks in this process: an agent, its memory, its events.

use crate::transport::Transport;
use kvlink::agent::{Agent, AgentConfig};
use kvlink::error::Status;
use kvlink::layout::Layout;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, Event, EventKind, Id};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Rank {
    pub agent: Agent,
    pub memory: Vec<Arc<SharedMemory>>,
    pub transport: Transport,
    stash: Mutex<VecDeque<Event>>,
}

/// A configuration for this transport.
pub fn config(t: Transport, name: &str, rank: u32, ranks: u32) -> AgentConfig {
    let mut c = AgentConfig::new(name, rank, ranks);
    t.choose(&mut c);
    c.endpoint.transfer_timeout = 2 * PATIENCE;
    c.endpoint.lease = 2 * PATIENCE;
    c
}

impl Rank {
    pub fn start(t: Transport, config: AgentConfig, layout: Arc<Layout>) -> Rank {
        let agent = Agent::new(config, layout.clone()).unwrap();
        let memory: Vec<Arc<SharedMemory>> = layout
            .regions()
            .iter()
            .map(|r| Arc::new(SharedMemory::allocate((r.len as usize).max(4096)).unwrap()))
            .collect();
        let rank = Rank { agent, memory, transport: t, stash: Mutex::default() };
        for (i, m) in rank.memory.iter().enumerate() {
            let m = if t.shareable { Memory::shared(m.clone()) } else { Memory::new(m.addr(), m.len()).unwrap() };
            rank.agent.register(i as u32, m).unwrap();
        }
        rank
    }

    /// A rank alone in its instance.
    pub fn alone(t: Transport, name: &str, layout: Arc<Layout>) -> Rank {
        Rank::start(t, config(t, name, 0, 1), layout)
    }

    pub fn address(&self) -> &str {
        self.agent.address()
    }

    /// The first event that fits; others are kept for later.
    pub fn wait(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        self.wait_until(Instant::now() + PATIENCE, what, fits)
    }

    pub fn wait_until(&self, deadline: Instant, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let mut stash = self.stash.lock().unwrap();
        if let Some(at) = stash.iter().position(&fits) {
            return stash.remove(at).unwrap();
        }
        loop {
            let Some(e) = self.poll(deadline) else {
                panic!("waited in vain for {what}; had {:?}", stash.iter().map(brief).collect::<Vec<_>>());
            };
            assert_ne!(e.kind, EventKind::AgentFailed, "{}", e.text);
            if fits(&e) {
                return e;
            }
            stash.push_back(e);
        }
    }

    fn poll(&self, deadline: Instant) -> Option<Event> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if self.transport.spins { Duration::ZERO } else { left };
            let found = self.agent.poll(1, Some(wait)).pop();
            if found.is_some() || left.is_zero() {
                return found;
            }
        }
    }

    pub fn next(&self, kind: EventKind) -> Event {
        self.wait(&format!("{kind:?}"), |e| e.kind == kind)
    }

    /// The next event of this kind, which must be a success.
    pub fn good(&self, kind: EventKind) -> Event {
        let e = self.next(kind);
        assert_eq!(e.status, Status::Ok, "{kind:?}: {}", e.text);
        e
    }

    /// So many events of a kind, before the deadline.
    pub fn several(&self, kind: EventKind, n: usize, deadline: Instant) -> Vec<Event> {
        (0..n).map(|_| self.wait_until(deadline, &format!("{n} x {kind:?}"), |e| e.kind == kind)).collect()
    }

    /// All that came and was not asked for.
    pub fn rest(&self) -> Vec<Event> {
        let mut out: Vec<Event> = self.stash.lock().unwrap().drain(..).collect();
        out.extend(self.agent.events().poll(usize::MAX, Some(Duration::ZERO)));
        out
    }

    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        self.memory.iter().map(|m| bytes(m, 0, m.len())).collect()
    }

    pub fn store(&self, region: usize, offset: usize, bytes: &[u8]) {
        let m = &self.memory[region];
        assert!(offset + bytes.len() <= m.len());
        unsafe { std::ptr::copy(bytes.as_ptr(), (m.addr() + offset) as *mut u8, bytes.len()) };
    }

    pub fn handshake(&self, to: &Rank, direction: Direction) -> Id {
        let peer = self.agent.handshake(to.address(), direction, 77).unwrap();
        let e = self.wait("the handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
        assert_eq!((e.status, e.user_data), (Status::Ok, 77), "{}", e.text);
        peer
    }
}

fn brief(e: &Event) -> String {
    format!("{:?} {:?} {}", e.kind, e.status, e.text)
}

/// Memory that another thread may be writing.
pub fn bytes(m: &SharedMemory, offset: usize, len: usize) -> Vec<u8> {
    assert!(offset + len <= m.len());
    let mut out = vec![0u8; len];
    unsafe { std::ptr::copy((m.addr() + offset) as *const u8, out.as_mut_ptr(), len) };
    out
}

pub fn word(m: &SharedMemory, offset: usize) -> u64 {
    assert!(offset.is_multiple_of(8) && offset + 8 <= m.len());
    unsafe { std::ptr::read_volatile((m.addr() + offset) as *const u64) }
}

/// All ranks of an instance.
pub fn instance(t: Transport, name: &str, layouts: &[Arc<Layout>]) -> Vec<Rank> {
    let mut ranks: Vec<Rank> = Vec::new();
    for (i, layout) in layouts.iter().enumerate() {
        let mut config = config(t, name, i as u32, layouts.len() as u32);
        if let Some(first) = ranks.first() {
            config.leader = first.address().to_string();
        }
        ranks.push(Rank::start(t, config, layout.clone()));
    }
    ranks
}

/// Every rank of one instance shakes hands with the other instance.
pub fn connect(from: &[Rank], to: &[Rank], direction: Direction) -> Vec<Id> {
    let begin = |r: &Rank| r.agent.handshake(to[0].address(), direction, 3).unwrap();
    let peers: Vec<Id> = from.iter().map(begin).collect();
    for (r, peer) in from.iter().zip(&peers) {
        let e = r.good(EventKind::Handshake);
        assert_eq!((e.peer, e.user_data), (peer.0, 3));
        let report = r.agent.effective_transports(*peer).unwrap();
        assert!(report.lines().all(|l| l.contains(r.transport.name)), "{report}");
    }
    peers
}

/// Repeats until it is true; never for ever.
pub fn within(what: &str, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !f() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}
