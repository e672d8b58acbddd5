//! Options of the host transport.

use super::metadata::way;
use crate::error::{Error, Result, Status};

/// Sockets that a link can have at most.
pub(super) const MOST_STREAMS: usize = 64;

/// What a [`Host`](super::Host) may do and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// Memory of peers on this host may be mapped, and they may map ours.
    pub shm: bool,
    /// Memory of peers on this host may be read across processes, and they may read ours.
    pub cma: bool,
    /// Declares with `prctl(PR_SET_PTRACER)` that any process of our user may read this one's memory. Cross-process reads
    /// need it where `kernel.yama.ptrace_scope` is 1; it also lets debuggers of that user attach. Off unless asked for.
    pub ptracer_any: bool,
    /// Streams over sockets.
    pub tcp: bool,
    /// Payload of one chunk: streams that share a socket take turns after so many bytes. 4 KiB to 64 MiB.
    pub chunk_bytes: u32,
    /// Sockets of one link, if the peer allows as many: 1 to 64. Large streams use all of them at once.
    pub streams: usize,
    /// `SO_SNDBUF`; `None` lets the kernel choose and adapt.
    pub send_buffer: Option<usize>,
    /// `SO_RCVBUF`; `None` lets the kernel choose and adapt.
    pub receive_buffer: Option<usize>,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions {
            shm: true,
            cma: true,
            ptracer_any: false,
            tcp: true,
            chunk_bytes: 1 << 20,
            streams: 4,
            send_buffer: None,
            receive_buffer: None,
        }
    }
}

impl HostOptions {
    pub(super) fn ways(&self) -> u16 {
        let bit = |on: bool, bit: u16| if on { bit } else { 0 };
        bit(self.shm, way::SHM) | bit(self.cma, way::CMA) | bit(self.tcp, way::TCP)
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Status::InvalidArgument, format!("host options: {what}")));
        if self.ways() == 0 {
            return refuse("shm, cma and tcp are all switched off".into());
        }
        if !(4 << 10..=64 << 20).contains(&self.chunk_bytes) {
            return refuse(format!("chunk_bytes is {}, 4096 to 67108864 are allowed", self.chunk_bytes));
        }
        if !(1..=MOST_STREAMS).contains(&self.streams) {
            return refuse(format!("streams is {}, 1 to {MOST_STREAMS} are allowed", self.streams));
        }
        Ok(())
    }
}
