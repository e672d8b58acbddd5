//! A transport with some memory.

use crate::nixl::packages;
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::nixl::{Nixl, NixlOptions};
use kvlink::transport::{Action, Done, Job, JobId, LinkId, Poller, Ready, Slice, Transport};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const LEN: usize = 64 << 20;
pub const TCP: &str = "TLS=tcp,NET_DEVICES=lo";
pub const AUTO: &str = "NET_DEVICES=lo";

pub fn options(engine: &str) -> Option<NixlOptions> {
    let parameters = vec![("engine_config".to_string(), engine.to_string())];
    Some(NixlOptions { library: Some(packages()?), parameters, ..NixlOptions::default() })
}

pub struct Node {
    pub nixl: Nixl,
    poller: Arc<Poller>,
    pub memory: Arc<SharedMemory>,
    done: Vec<Done>,
}

impl Node {
    /// A transport with one region that is full of a byte.
    pub fn new(options: NixlOptions, byte: u8) -> Node {
        let poller = Arc::new(Poller::new().unwrap());
        let mut nixl = Nixl::new(poller.clone(), 0, options).unwrap();
        let memory = Arc::new(SharedMemory::allocate(LEN).unwrap());
        unsafe { std::ptr::write_bytes(memory.addr() as *mut u8, byte, LEN) };
        nixl.register(0, &Memory::shared(memory.clone())).unwrap();
        Node { nixl, poller, memory, done: Vec::new() }
    }

    pub fn post(&mut self, id: u64, link: u64, spans: Vec<Span>) {
        let job = Job { id: JobId(id), link: LinkId(link), action: Action::Pull, spans, staged: false, mark: None };
        self.nixl.post(job).unwrap();
    }

    /// The end of a job, if it comes in time.
    pub fn end(&mut self, id: u64, within: Duration) -> Option<Done> {
        let deadline = Instant::now() + within;
        let mut ready: Vec<Ready> = Vec::new();
        loop {
            let more = self.nixl.progress(&ready, Slice::of(0), &mut self.done);
            if let Some(at) = self.done.iter().position(|d| d.id == JobId(id)) {
                return Some(self.done.remove(at));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.poller.wait(Some(if more { Duration::ZERO } else { left }), &mut ready).unwrap();
        }
    }

    pub fn good(&mut self, id: u64) -> u64 {
        let done = self.end(id, PATIENCE).expect("the job's end");
        done.result.unwrap();
        done.bytes
    }

    pub fn changed(&self, byte: u8) -> usize {
        changed(&self.memory, byte)
    }
}

/// How many bytes are not the one that it was filled with, of every 512th.
pub fn changed(memory: &SharedMemory, byte: u8) -> usize {
    let at = |i: usize| unsafe { std::ptr::read_volatile((memory.addr() + i) as *const u8) };
    (0..LEN).step_by(512).filter(|i| at(*i) != byte).count()
}

/// All of it, in pieces of 16 KiB, the last first.
pub fn everything() -> Vec<Span> {
    let n = 16 << 10;
    let one =
        |i: u64| Span { src_offset: i * n, dst_offset: LEN as u64 - (i + 1) * n, len: n, src_region: 0, dst_region: 0 };
    (0..LEN as u64 / n).map(one).collect()
}

/// All of it, in pieces of 4 KiB, the source's last first.
pub fn backwards() -> Vec<Span> {
    let n = 4 << 10;
    let one =
        |i: u64| Span { src_offset: LEN as u64 - (i + 1) * n, dst_offset: i * n, len: n, src_region: 0, dst_region: 0 };
    (0..LEN as u64 / n).map(one).collect()
}
