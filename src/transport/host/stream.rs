//! Streams as their link knows them: what was posted, how many of its lanes are open, and how it ended.

use super::chunk::{Chunk, Lane, Opening};
use super::local::{self, Cursor, Regions, Side};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::transport::{Done, Job, JobId};
use std::collections::BTreeMap;

/// A lane has at least so many bytes. Measured by `benches/streams.rs`: where a flow is capped, lanes of this length bring
/// almost as many times one flow's speed as there are; where none is, they cost up to a quarter of a transfer of 1 MiB, and
/// longer ones nothing that could be told from noise.
const LANE_BYTES: u64 = 256 << 10;

/// A stream's spans and what was found out about them when the job was posted.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: JobId,
    /// Our regions that it touches.
    pub regions: Vec<u32>,
    pub spans: Vec<Span>,
    /// Its payload is packed, or unpacked.
    pub staged: bool,
    pub total: u64,
    digest: u64,
    /// Bytes moved, over all lanes.
    pub moved: u64,
}

impl Stream {
    fn new(job: Job, own: &Regions, side: Side) -> Result<Stream> {
        let regions = own.check(&job.spans, side)?;
        let (total, digest) = (local::total(&job.spans)?, local::digest(&job.spans));
        let Job { id, spans, staged, .. } = job;
        let staged = staged && local::packing_pays(&spans, total);
        Ok(Stream { id, regions, spans, staged, total, digest, moved: 0 })
    }

    /// Ends it.
    fn done(self, result: Result<()>) -> Done {
        Done { id: self.id, result, bytes: self.moved, held: false, spans: self.spans }
    }
}

/// A stream that we send.
#[derive(Debug)]
pub(super) struct Send {
    pub stream: Stream,
    /// Lanes that are not written to their end.
    open: usize,
}

impl Send {
    pub fn new(job: Job, own: &Regions) -> Result<Send> {
        Ok(Send { stream: Stream::new(job, own, Side::Source)?, open: 0 })
    }

    /// Cuts it into lanes for at most so many sockets.
    pub fn split(&mut self, sockets: usize) -> Vec<Lane> {
        let total = self.stream.total;
        let lanes = (total / LANE_BYTES).clamp(1, sockets.max(1) as u64);
        let (each, longer) = (total / lanes, total % lanes);
        let lane = |i: u64| Lane { begin: i * each + i.min(longer), length: each + u64::from(i < longer) };
        self.open = lanes as usize;
        (0..lanes).map(lane).collect()
    }

    pub fn open(&self, tag: u64, lane: Lane) -> Chunk {
        Chunk::Open { tag, opening: Opening { lane, total: self.stream.total, digest: self.stream.digest } }
    }
}

/// A stream that we receive.
#[derive(Debug)]
pub(super) struct Receive {
    pub stream: Stream,
    /// The sender knows of it.
    pub announced: bool,
    /// Begin and end of the lanes that it takes.
    lanes: BTreeMap<u64, u64>,
    /// Bytes of lanes that have not ended.
    left: u64,
}

impl Receive {
    pub fn new(job: Job, own: &Regions) -> Result<Receive> {
        let stream = Stream::new(job, own, Side::Destination)?;
        let left = stream.total;
        Ok(Receive { stream, announced: false, lanes: BTreeMap::new(), left })
    }

    /// Whether the sender, who has announced a lane, means the same stream.
    pub fn check(&mut self, tag: u64, opening: &Opening) -> Result<()> {
        self.announced = true;
        let (theirs, ours) = (opening.total, self.stream.total);
        let what = if theirs != ours {
            format!("stream {tag}: the sender has {theirs} bytes, the receiver {ours}")
        } else if opening.digest != self.stream.digest {
            let digests =
                format!("{:#018x} at the sender, {:#018x} at the receiver", opening.digest, self.stream.digest);
            format!("stream {tag}: the two sides expanded different spans: digest {digests}")
        } else {
            return Ok(());
        };
        Err(Error::new(Status::Protocol, what))
    }

    /// Takes a lane of it; returns where its first byte goes.
    pub fn take(&mut self, tag: u64, lane: Lane) -> Result<Cursor> {
        // Lanes do not overlap: of those that begin no later than this one ends, only the last can reach into it.
        let before = self.lanes.range(..lane.end().max(lane.begin + 1)).next_back();
        if let Some((begin, end)) = before.filter(|(begin, end)| **begin == lane.begin || **end > lane.begin) {
            let (new, old) = (format!("{}..{}", lane.begin, lane.end()), format!("{begin}..{end}"));
            let what = format!("stream {tag}: a lane of bytes {new} overlaps the one of bytes {old}");
            return Err(Error::new(Status::Protocol, what));
        }
        self.lanes.insert(lane.begin, lane.end());
        let mut cursor = Cursor::default();
        cursor.advance(&self.stream.spans, lane.begin);
        Ok(cursor)
    }
}

/// Whether we send or receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Send,
    Receive,
}

/// A stream that has to end on all sockets of its link.
#[derive(Debug)]
pub(super) struct Ending {
    pub half: Half,
    pub tag: u64,
    pub error: Error,
    /// The other side said so.
    pub told: bool,
}

/// The streams of a link, by tag.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub sends: BTreeMap<u64, Send>,
    pub receives: BTreeMap<u64, Receive>,
}

impl Streams {
    /// Those that are chosen.
    pub fn find(&self, which: impl Fn(&Stream) -> bool) -> Vec<(Half, u64)> {
        let sends = self.sends.iter().filter(|(_, s)| which(&s.stream)).map(|(tag, _)| (Half::Send, *tag));
        let receives = self.receives.iter().filter(|(_, r)| which(&r.stream)).map(|(tag, _)| (Half::Receive, *tag));
        sends.chain(receives).collect()
    }

    /// A lane was written to its end.
    pub fn sent(&mut self, tag: u64, ended: &mut Vec<Done>) {
        let Some(send) = self.sends.get_mut(&tag) else { return };
        send.open -= 1;
        if send.open == 0 {
            ended.extend(self.sends.remove(&tag).map(|s| s.stream.done(Ok(()))));
        }
    }

    /// A lane of so many bytes was received to its end.
    pub fn received(&mut self, tag: u64, length: u64, ended: &mut Vec<Done>) {
        let Some(receive) = self.receives.get_mut(&tag) else { return };
        receive.left -= length;
        if receive.left == 0 {
            ended.extend(self.receives.remove(&tag).map(|r| r.stream.done(Ok(()))));
        }
    }

    /// Forgets a stream: from here on its memory is not touched.
    pub fn end(&mut self, half: Half, tag: u64, error: Error) -> Option<Done> {
        let stream = match half {
            Half::Send => self.sends.remove(&tag)?.stream,
            Half::Receive => self.receives.remove(&tag)?.stream,
        };
        Some(stream.done(Err(error)))
    }

    /// Forgets all.
    pub fn end_all(&mut self, error: &Error, ended: &mut Vec<Done>) {
        let sends = std::mem::take(&mut self.sends).into_values().map(|s| s.stream);
        let receives = std::mem::take(&mut self.receives).into_values().map(|r| r.stream);
        ended.extend(sends.chain(receives).map(|s| s.done(Err(error.clone()))));
    }
}
