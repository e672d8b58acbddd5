//! A transport with some memory.

use crate::mori::library;
use kvlink::layout::Span;
use kvlink::memory::Memory;
use kvlink::transport::mori::{Mori, MoriOptions};
use kvlink::transport::{Action, Done, Job, JobId, LinkId, Poller, Ready, Slice, Transport};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const LEN: usize = 16 << 20;

pub fn options() -> Option<MoriOptions> {
    Some(MoriOptions { library: Some(library()?), ..MoriOptions::default() })
}

pub struct Node {
    pub mori: Mori,
    poller: Arc<Poller>,
    bytes: Vec<u8>,
    done: Vec<Done>,
}

impl Node {
    /// A transport with one region that is full of a byte.
    pub fn new(options: MoriOptions, byte: u8) -> Node {
        Node::sized(options, byte, LEN)
    }

    pub fn sized(options: MoriOptions, byte: u8, len: usize) -> Node {
        let poller = Arc::new(Poller::new().unwrap());
        let mut mori = Mori::new(poller.clone(), 0, options).unwrap();
        let bytes = vec![byte; len];
        mori.register(0, &Memory::new(bytes.as_ptr() as usize, len).unwrap()).unwrap();
        Node { mori, poller, bytes, done: Vec::new() }
    }

    pub fn post(&mut self, id: u64, link: u64, spans: Vec<Span>) {
        let job = Job { id: JobId(id), link: LinkId(link), action: Action::Pull, spans, staged: false, mark: None };
        self.mori.post(job).unwrap();
    }

    /// The end of a job, if it comes in time.
    pub fn end(&mut self, id: u64, within: Duration) -> Option<Done> {
        let deadline = Instant::now() + within;
        let mut ready: Vec<Ready> = Vec::new();
        loop {
            self.mori.progress(&ready, Slice::of(0), &mut self.done);
            if let Some(at) = self.done.iter().position(|d| d.id == JobId(id)) {
                return Some(self.done.remove(at));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            // What the transport gives up by itself wakes nobody.
            self.poller.wait(Some(left.min(Duration::from_millis(50))), &mut ready).unwrap();
        }
    }

    pub fn good(&mut self, id: u64) -> u64 {
        let done = self.end(id, PATIENCE).expect("the job's end");
        done.result.unwrap();
        done.bytes
    }

    pub fn byte(&self, at: usize) -> u8 {
        // Others may write to it.
        unsafe { std::ptr::read_volatile(self.bytes.as_ptr().add(at)) }
    }

    /// A different word everywhere.
    pub fn number(&mut self) {
        for (i, word) in self.bytes.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&(i as u32).to_le_bytes());
        }
    }

    /// How many bytes are not the one that it was filled with.
    pub fn changed(&self, byte: u8) -> usize {
        (0..LEN).step_by(512).filter(|i| self.byte(*i) != byte).count()
    }

    /// The spans have copied these bytes of the source.
    pub fn has(&self, source: &Node, spans: &[Span]) -> bool {
        let part = |n: &Node, at: u64, len: u64| (0..len).map(|i| n.byte((at + i) as usize)).collect::<Vec<_>>();
        spans.iter().all(|s| part(self, s.dst_offset, s.len) == part(source, s.src_offset, s.len))
    }
}

/// All of it, in pieces of 16 KiB, the last first.
pub fn everything() -> Vec<Span> {
    let n = 16 << 10;
    let one =
        |i: u64| Span { src_offset: i * n, dst_offset: LEN as u64 - (i + 1) * n, len: n, src_region: 0, dst_region: 0 };
    (0..LEN as u64 / n).map(one).collect()
}
