//! Two host transports and what tests need around them.
#![allow(dead_code)]

use kvlink::error::{Error, Status};
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::{Action, Done, Job, JobId, Link, LinkId, Poller, Ready, Slice, Transport};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const LINK: LinkId = LinkId(7);
pub const REGION: u32 = 3;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut v = Vec::with_capacity(len + 8);
    while v.len() < len {
        v.extend(rng.next().to_le_bytes());
    }
    v.truncate(len);
    v
}

/// A region, shareable or not, filled with a pattern.
pub struct Block {
    pub memory: Memory,
    own: Option<Box<[u8]>>,
}

impl Block {
    pub fn new(shared: bool, seed: u64, len: usize) -> Block {
        let mut b = if shared {
            Block { memory: Memory::shared(Arc::new(SharedMemory::allocate(len).unwrap())), own: None }
        } else {
            let mut v = vec![0u8; len].into_boxed_slice();
            Block { memory: Memory::new(v.as_mut_ptr() as usize, len).unwrap(), own: Some(v) }
        };
        b.bytes_mut().copy_from_slice(&pattern(seed, len));
        b
    }

    pub fn bytes(&self) -> &[u8] {
        unsafe { std::slice::from_raw_parts(self.memory.addr() as *const u8, self.memory.len()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.memory.addr() as *mut u8, self.memory.len()) }
    }
}

/// Disjoint destinations in random order, sources anywhere.
pub fn spans(seed: u64, count: usize, longest: u64, src_len: u64, dst_len: u64) -> Vec<Span> {
    let mut rng = Rng(seed);
    let mut v = Vec::with_capacity(count);
    let mut at = 0;
    for _ in 0..count {
        let len = 1 + rng.below(longest);
        let gap = if rng.below(3) == 0 { 0 } else { rng.below(64) };
        if at + gap + len > dst_len {
            break;
        }
        // Every other source follows the one before, so that there is something to merge and to cover.
        let follows = v.last().map(|s: &Span| s.src_offset + s.len + rng.below(40)).filter(|o| o + len <= src_len);
        let src_offset = match follows {
            Some(o) if rng.below(2) == 0 => o,
            _ => rng.below(src_len - len + 1),
        };
        v.push(Span { src_offset, dst_offset: at + gap, len, src_region: REGION, dst_region: REGION });
        at += gap + len;
    }
    for i in (1..v.len()).rev() {
        if rng.below(4) == 0 {
            v.swap(i, rng.below(i as u64 + 1) as usize);
        }
    }
    v
}

pub fn apply(spans: &[Span], src: &[u8], dst: &mut [u8]) {
    for s in spans {
        let (a, b, n) = (s.src_offset as usize, s.dst_offset as usize, s.len as usize);
        dst[b..b + n].copy_from_slice(&src[a..a + n]);
    }
}

pub fn job(id: u64, action: Action, spans: Vec<Span>, staged: bool) -> Job {
    Job { id: JobId(id), link: LINK, action, spans, staged, mark: None }
}

pub struct Node {
    pub host: Host,
    pub poller: Arc<Poller>,
    pub block: Block,
    pub done: Vec<Done>,
    ready: Vec<Ready>,
}

impl Node {
    pub fn new(options: HostOptions, block: Block) -> Node {
        let poller = Arc::new(Poller::new().unwrap());
        let mut host = Host::new(poller.clone(), 100..200, options).unwrap();
        host.register(REGION, &block.memory).unwrap();
        Node { host, poller, block, done: Vec::new(), ready: Vec::new() }
    }

    /// One round: wait at most so long, then work for `budget` bytes.
    pub fn round(&mut self, wait: Duration, budget: u64) -> bool {
        self.poller.wait(Some(wait), &mut self.ready).unwrap();
        self.host.progress(&self.ready, Slice::of(budget), &mut self.done)
    }

    pub fn take(&mut self, id: u64) -> Option<Done> {
        let at = self.done.iter().position(|d| d.id == JobId(id))?;
        Some(self.done.swap_remove(at))
    }

    /// Works until the job ended.
    pub fn finish(&mut self, id: u64) -> Done {
        let mut result = None;
        let mut wait = Duration::ZERO;
        within("the end of a job", || {
            wait = if self.round(wait, 4 << 20) { Duration::ZERO } else { Duration::from_millis(5) };
            result = self.take(id);
            result.is_some()
        });
        result.unwrap()
    }
}

/// Repeats until it is true; never for ever.
pub fn within(what: &str, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !f() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
    }
}

pub fn sockets() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    (a, l.accept().unwrap().0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Shm,
    Cma,
    Tcp,
}

pub const WAYS: [Way; 3] = [Way::Shm, Way::Cma, Way::Tcp];

impl Way {
    pub fn options(self) -> HostOptions {
        let tcp = self == Way::Tcp;
        HostOptions { shm: self == Way::Shm, cma: self == Way::Cma, tcp, ..HostOptions::default() }
    }

    pub fn name(self) -> &'static str {
        match self {
            Way::Shm => "host/shm",
            Way::Cma => "host/cma",
            Way::Tcp => "host/tcp",
        }
    }
}

/// A source and a sink in this process, linked.
pub struct Pair {
    pub way: Way,
    pub source: Node,
    pub sink: Node,
    pub link: Link,
    next: u64,
}

impl Pair {
    pub fn new(way: Way, len: usize) -> Pair {
        let source = Node::new(way.options(), Block::new(way == Way::Shm, 1, len));
        let sink = Node::new(way.options(), Block::new(false, 2, len));
        Pair::link(way, source, sink, 1)
    }

    pub fn link(way: Way, mut source: Node, mut sink: Node, streams: usize) -> Pair {
        let link = sink.host.connect(LINK, &source.host.metadata()).unwrap();
        match source.host.connect(LINK, &sink.host.metadata()) {
            Ok(_) => {}
            // Our sink has no shareable memory: the way back does not exist.
            Err(e) => assert_eq!((way, e.status()), (Way::Shm, Status::TransportUnavailable), "{e}"),
        }
        if way == Way::Tcp {
            for _ in 0..streams {
                let (a, b) = sockets();
                source.host.attach(LINK, a).unwrap();
                sink.host.attach(LINK, b).unwrap();
            }
        }
        Pair { way, source, sink, link, next: 1 }
    }

    /// Posts whatever this way needs; returns the job's number, the same on both sides.
    pub fn post(&mut self, spans: Vec<Span>, staged: bool) -> Result<u64, Error> {
        let id = self.next;
        self.next += 1;
        if self.way == Way::Tcp {
            self.source.host.post(job(id, Action::Send { tag: id }, spans.clone(), staged))?;
            self.sink.host.post(job(id, Action::Receive { tag: id }, spans, staged))?;
        } else {
            self.sink.host.post(job(id, Action::Pull, spans, staged))?;
        }
        Ok(id)
    }

    pub fn round(&mut self, budget: u64) -> bool {
        let a = self.source.round(Duration::ZERO, budget);
        self.sink.round(Duration::ZERO, budget) | a
    }

    /// Works until the sink's job ended; the source's too if it has one.
    pub fn finish(&mut self, id: u64) -> Done {
        let mut result = None;
        within("the end of a job", || {
            self.round(1 << 20);
            result = result.take().or_else(|| self.sink.take(id));
            result.is_some()
        });
        if self.way == Way::Tcp {
            within("the end of the sender's job", || {
                self.round(1 << 20);
                self.source.take(id).is_some()
            });
        }
        result.unwrap()
    }

    pub fn settle(&mut self) {
        let mut quiet = 0;
        within("quiet", || {
            quiet = if self.round(1 << 20) { 0 } else { quiet + 1 };
            quiet > 50
        });
    }
}
