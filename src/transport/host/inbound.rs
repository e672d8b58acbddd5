//! The receiving half of a data socket: payload goes straight to where it belongs, or to nowhere.

use super::chunk::{Chunk, HEADER};
use super::local::{self, Cursor, Regions, Resolver, Side};
use super::outbound::UNACCEPTED;
use super::scratch::{Ask, PACKED_BYTES, Scratch, cost_of_call};
use super::sys::{self, PIECES, Source, Target};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::transport::{Done, Job, JobId};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// A stream that we receive.
#[derive(Debug)]
pub(super) struct Receive {
    pub id: JobId,
    /// Our regions that it writes.
    pub regions: Vec<u32>,
    spans: Vec<Span>,
    staged: bool,
    total: u64,
    digest: u64,
    cursor: Cursor,
    got: u64,
}

impl Receive {
    pub fn new(job: Job, own: &Regions) -> Result<Receive> {
        let regions = own.check(&job.spans, Side::Destination)?;
        let (total, digest) = (local::total(&job.spans)?, local::digest(&job.spans));
        let Job { id, spans, staged, .. } = job;
        let staged = staged && local::packing_pays(&spans, total);
        Ok(Receive { id, regions, spans, staged, total, digest, cursor: Cursor::default(), got: 0 })
    }

    pub fn done(self, result: Result<()>) -> Done {
        Done { id: self.id, result, bytes: self.got, spans: self.spans }
    }

    fn unpack(&mut self, own: &Regions, bytes: &[u8]) -> Result<()> {
        let mut resolver = Resolver::new(own);
        let mut rest = bytes;
        while let (Some(s), false) = (self.spans.get(self.cursor.span), rest.is_empty()) {
            let len = (s.len - self.cursor.within).min(rest.len() as u64);
            let (now, later) = rest.split_at(len as usize);
            sys::copy(resolver.piece(s, self.cursor.within, len)?, Source::of(now));
            rest = later;
            self.cursor.within += len;
            if self.cursor.within == s.len {
                self.cursor = Cursor { span: self.cursor.span + 1, within: 0 };
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Incoming {
    /// Announced, but no job yet.
    Pending {
        total: u64,
        digest: u64,
    },
    Active(Receive),
    /// Ended here; the sender has not heard of it yet. So many bytes may still come.
    Draining {
        left: u64,
    },
}

/// What a step of reading came to.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// In bytes of a budget.
    pub cost: u64,
    /// Nothing more to read for now.
    pub drained: bool,
    /// A chunk that the socket's owner must act on.
    pub chunk: Option<Chunk>,
}

/// All that is received on one socket.
#[derive(Debug)]
pub(super) struct Inbound {
    header: [u8; HEADER],
    have: usize,
    streams: BTreeMap<u64, Incoming>,
    pending: usize,
    /// The stream whose payload is being read, and how much of the chunk is left.
    body: Option<(u64, u64)>,
    /// Bytes to ask for at a time.
    ask: Ask,
}

impl Inbound {
    pub fn new() -> Inbound {
        Inbound { header: [0; HEADER], have: 0, streams: BTreeMap::new(), pending: 0, body: None, ask: Ask::default() }
    }

    /// Whether this stream was announced and waits for its job.
    pub fn is_pending(&self, tag: u64) -> bool {
        matches!(self.streams.get(&tag), Some(Incoming::Pending { .. }))
    }

    /// Whether this stream has a job here.
    pub fn is_active(&self, tag: u64) -> bool {
        matches!(self.streams.get(&tag), Some(Incoming::Active(_)))
    }

    /// Gives an announced stream its job; returns what to answer, and the job if it cannot be done.
    pub fn bind(&mut self, tag: u64, job: Receive) -> (Chunk, Option<Done>) {
        let Some(Incoming::Pending { total, digest }) = self.streams.get(&tag) else {
            let e = Error::new(Status::Internal, format!("stream {tag} was never announced"));
            return (Chunk::Cancel { tag, status: e.status() }, Some(job.done(Err(e))));
        };
        self.pending -= 1;
        let wrong = if *total != job.total {
            Some(format!("stream {tag}: the sender has {total} bytes, the receiver {}", job.total))
        } else if *digest != job.digest {
            let what = format!("digest {digest:#018x} at the sender, {:#018x} at the receiver", job.digest);
            Some(format!("stream {tag}: the two sides expanded different spans: {what}"))
        } else {
            None
        };
        match wrong {
            Some(what) => {
                self.streams.insert(tag, Incoming::Draining { left: 0 });
                let e = Error::new(Status::Protocol, what);
                (Chunk::Cancel { tag, status: e.status() }, Some(job.done(Err(e))))
            }
            None => {
                self.streams.insert(tag, Incoming::Active(job));
                (Chunk::Accept { tag }, None)
            }
        }
    }

    /// Finds a stream by its job.
    pub fn find(&self, id: JobId) -> Option<u64> {
        self.active().find(|(_, r)| r.id == id).map(|(tag, _)| tag)
    }

    /// Streams that write this region.
    pub fn touching(&self, region: u32) -> Vec<u64> {
        self.active().filter(|(_, r)| r.regions.contains(&region)).map(|(tag, _)| tag).collect()
    }

    fn active(&self) -> impl Iterator<Item = (u64, &Receive)> {
        self.streams.iter().filter_map(|(tag, s)| match s {
            Incoming::Active(r) => Some((*tag, r)),
            _ => None,
        })
    }

    /// Ends a stream: from here on its memory is not written. Returns what to tell the sender.
    pub fn end(&mut self, tag: u64, error: Error) -> Option<(Chunk, Done)> {
        if !self.is_active(tag) {
            return None;
        }
        let Some(Incoming::Active(job)) = self.streams.remove(&tag) else { return None };
        // The chunk that is being read is already counted.
        let reading = self.body.filter(|(t, _)| *t == tag).map_or(0, |(_, left)| left);
        self.streams.insert(tag, Incoming::Draining { left: job.total - job.got - reading });
        Some((Chunk::Cancel { tag, status: error.status() }, job.done(Err(error))))
    }

    /// Ends all streams without a word: the socket is gone.
    pub fn drain(&mut self, error: &Error, ended: &mut Vec<Done>) {
        for s in std::mem::take(&mut self.streams).into_values() {
            if let Incoming::Active(job) = s {
                ended.push(job.done(Err(error.clone())));
            }
        }
        self.body = None;
    }

    /// One read: payload, and the header after it.
    pub fn work(
        &mut self,
        socket: BorrowedFd<'_>,
        own: &Regions,
        io: &mut Scratch,
        ended: &mut Vec<Done>,
    ) -> Result<Step> {
        let list = &mut io.targets;
        list.clear();
        let mut wanted = 0;
        let mut packed = false;
        if let Some((tag, left)) = self.body {
            let ask = left.min(self.ask.bytes());
            wanted = match self.streams.get(&tag) {
                Some(Incoming::Active(r)) if !r.staged => r.cursor.gather(&r.spans, own, ask, PIECES - 1, list)?,
                other => {
                    packed = matches!(other, Some(Incoming::Active(_)));
                    let n = left.min(PACKED_BYTES as u64);
                    list.extend(Target::of(io.buffer.bytes(PACKED_BYTES)).first(n as usize));
                    n
                }
            };
        }
        let with_header = self.body.is_none_or(|(_, left)| left == wanted);
        let room = if with_header { HEADER - self.have } else { 0 };
        if with_header {
            list.push(Target::of(&mut self.header[self.have..]));
        }
        let pieces = list.len();
        let n = match sys::receive(socket, list) {
            Ok(0) => return Err(Error::new(Status::PeerDead, "data socket: closed by the peer")),
            Ok(n) => n as u64,
            Err(Errno::AGAIN) => return Ok(Step { drained: true, ..Step::default() }),
            Err(Errno::INTR) => return Ok(Step::default()),
            Err(e) => return Err(Error::new(Status::PeerDead, format!("data socket: receiving: {e}"))),
        };
        self.ask.took(n, wanted + room as u64);
        let body = n.min(wanted);
        if let Some((tag, left)) = &mut self.body {
            *left -= body;
            if let Some(Incoming::Active(r)) = self.streams.get_mut(tag) {
                r.got += body;
                if packed {
                    let buffer = io.buffer.bytes(PACKED_BYTES);
                    r.unpack(own, buffer.get(..body as usize).unwrap_or(&[]))?;
                } else {
                    r.cursor.advance(&r.spans, body);
                }
            }
            if *left == 0 {
                self.body = None;
            }
        }
        self.have += (n - body) as usize;
        let mut step = Step { cost: cost_of_call(n, pieces, packed), drained: n < wanted + room as u64, chunk: None };
        if self.have == HEADER {
            self.have = 0;
            let chunk = Chunk::decode(&self.header)?;
            step.chunk = self.chunk(chunk, ended)?;
        }
        Ok(step)
    }

    /// Acts on a header, or hands it on.
    fn chunk(&mut self, chunk: Chunk, ended: &mut Vec<Done>) -> Result<Option<Chunk>> {
        let wrong = |what: String| Err(Error::new(Status::Protocol, what));
        match chunk {
            Chunk::Open { tag, total, digest } => {
                if self.streams.contains_key(&tag) {
                    return wrong(format!("stream {tag} was opened twice"));
                }
                // The sender counts a stream until it hears our Accept, so it can never have more of them.
                if self.pending >= UNACCEPTED {
                    return wrong(format!("stream {tag}: {} wait already, {UNACCEPTED} may", self.pending));
                }
                self.pending += 1;
                self.streams.insert(tag, Incoming::Pending { total, digest });
                Ok(Some(chunk))
            }
            Chunk::Data { tag, offset, length } => {
                let length = u64::from(length);
                match self.streams.get_mut(&tag) {
                    Some(Incoming::Active(r)) => {
                        if offset != r.got {
                            return wrong(format!("stream {tag}: a chunk at offset {offset} where {} is next", r.got));
                        }
                        let left = r.total - r.got;
                        if length > left {
                            return wrong(format!("stream {tag}: a chunk of {length} bytes where {left} are left"));
                        }
                    }
                    Some(Incoming::Draining { left }) => match left.checked_sub(length) {
                        Some(after) => *left = after,
                        None => {
                            return wrong(format!("stream {tag}: a chunk of {length} bytes, {left} were announced"));
                        }
                    },
                    Some(Incoming::Pending { .. }) => {
                        return wrong(format!("stream {tag}: {length} bytes before it was accepted"));
                    }
                    None => return wrong(format!("stream {tag}: {length} bytes of a stream that was never opened")),
                }
                self.body = Some((tag, length));
                Ok(None)
            }
            Chunk::End { tag, status } => match self.streams.remove(&tag) {
                Some(Incoming::Active(r)) => {
                    let result = match status {
                        Status::Ok if r.got == r.total => Ok(()),
                        Status::Ok => {
                            let what = format!("stream {tag} ended after {} of {} bytes", r.got, r.total);
                            self.streams.insert(tag, Incoming::Active(r));
                            return wrong(what);
                        }
                        s => Err(Error::new(
                            s,
                            format!("the sender ended stream {tag} after {} of {} bytes", r.got, r.total),
                        )),
                    };
                    ended.push(r.done(result));
                    Ok(None)
                }
                Some(Incoming::Pending { .. }) if status == Status::Ok => {
                    wrong(format!("stream {tag} ended before it was accepted"))
                }
                Some(Incoming::Pending { .. }) => {
                    self.pending -= 1;
                    Ok(None)
                }
                Some(Incoming::Draining { .. }) => Ok(None),
                None => wrong(format!("end of stream {tag}, which was never opened")),
            },
            Chunk::Accept { .. } | Chunk::Cancel { .. } => Ok(Some(chunk)),
        }
    }
}
