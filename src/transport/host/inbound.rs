//! The receiving half of a data socket: payload goes straight to where it belongs, or to nowhere.

use super::chunk::{Chunk, HEADER, Lane, Opening};
use super::conn::Context;
use super::local::{Cursor, Regions, Resolver};
use super::outbound::UNACCEPTED;
use super::scratch::{Ask, PACKED_BYTES, cost_of_call};
use super::stream::{Ending, Half};
use super::sys::{self, PIECES, Source, Target};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// A lane that was announced on this socket.
#[derive(Debug)]
enum Incoming {
    /// No job yet.
    Pending(Opening),
    Active(Place),
    /// Its stream ended here; the sender has not heard of it yet. So many bytes may still come.
    Draining {
        left: u64,
    },
}

/// Where the next byte of a lane goes.
#[derive(Debug)]
struct Place {
    lane: Lane,
    /// Its offset in the stream.
    at: u64,
    cursor: Cursor,
}

impl Place {
    fn left(&self) -> u64 {
        self.lane.end() - self.at
    }

    fn unpack(&mut self, spans: &[Span], own: &Regions, bytes: &[u8]) -> Result<()> {
        let mut resolver = Resolver::new(own);
        let mut rest = bytes;
        let mut within = self.cursor.within;
        for s in spans.get(self.cursor.span..).unwrap_or(&[]) {
            let len = (s.len - within).min(rest.len() as u64);
            let (now, later) = rest.split_at(len as usize);
            sys::copy(resolver.piece(s, within, len)?, Source::of(now));
            rest = later;
            within = 0;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }
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
    /// By tag: a stream has at most one lane on a socket.
    lanes: BTreeMap<u64, Incoming>,
    pending: usize,
    /// The stream whose payload is being read, and how much of the chunk is left.
    body: Option<(u64, u64)>,
    /// Bytes to ask for at a time.
    ask: Ask,
}

impl Inbound {
    pub fn new() -> Inbound {
        Inbound { header: [0; HEADER], have: 0, lanes: BTreeMap::new(), pending: 0, body: None, ask: Ask::default() }
    }

    /// The lane of this stream that was announced and waits for its job.
    pub fn pending(&self, tag: u64) -> Option<Opening> {
        match self.lanes.get(&tag) {
            Some(Incoming::Pending(opening)) => Some(*opening),
            _ => None,
        }
    }

    /// Gives a pending lane its job.
    pub fn start(&mut self, tag: u64, lane: Lane, cursor: Cursor) {
        self.pending -= 1;
        self.lanes.insert(tag, Incoming::Active(Place { lane, at: lane.begin, cursor }));
    }

    /// A pending lane gets no job: the sender has to end it.
    pub fn refuse(&mut self, tag: u64) {
        self.pending -= 1;
        self.lanes.insert(tag, Incoming::Draining { left: 0 });
    }

    /// Ends the lane of a stream: from here on its memory is not written.
    pub fn end(&mut self, tag: u64) {
        if let Some(Incoming::Active(place)) = self.lanes.get(&tag) {
            // The chunk that is being read is already counted.
            let reading = self.body.filter(|(t, _)| *t == tag).map_or(0, |(_, left)| left);
            let left = place.left() - reading;
            self.lanes.insert(tag, Incoming::Draining { left });
        }
    }

    /// One read: payload, and the header after it.
    pub fn work(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>) -> Result<Step> {
        let list = &mut cx.io.targets;
        list.clear();
        let mut wanted = 0;
        let mut packed = false;
        if let Some((tag, left)) = self.body {
            let ask = left.min(self.ask.bytes());
            let active = match self.lanes.get(&tag) {
                Some(Incoming::Active(place)) => cx.streams.receives.get(&tag).map(|r| (place, &r.stream)),
                _ => None,
            };
            wanted = match active {
                Some((place, s)) if !s.staged => place.cursor.gather(&s.spans, cx.own, ask, PIECES - 1, list)?,
                other => {
                    packed = other.is_some();
                    let n = left.min(PACKED_BYTES as u64);
                    list.extend(Target::of(cx.io.buffer.bytes(PACKED_BYTES)).first(n as usize));
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
        self.took(body, packed, cx)?;
        self.have += (n - body) as usize;
        let mut step = Step { cost: cost_of_call(n, pieces, packed), drained: n < wanted + room as u64, chunk: None };
        if self.have == HEADER {
            self.have = 0;
            let chunk = Chunk::decode(&self.header)?;
            step.chunk = self.chunk(chunk, cx)?;
        }
        Ok(step)
    }

    /// So many bytes of payload have come: where they belong, or into the buffer.
    fn took(&mut self, bytes: u64, packed: bool, cx: &mut Context<'_>) -> Result<()> {
        let Some((tag, left)) = &mut self.body else { return Ok(()) };
        *left -= bytes;
        if let Some(Incoming::Active(place)) = self.lanes.get_mut(tag)
            && let Some(receive) = cx.streams.receives.get_mut(tag)
        {
            let stream = &mut receive.stream;
            stream.moved += bytes;
            if packed {
                let buffer = cx.io.buffer.bytes(PACKED_BYTES);
                place.unpack(&stream.spans, cx.own, buffer.get(..bytes as usize).unwrap_or(&[]))?;
            }
            place.at += bytes;
            place.cursor.advance(&stream.spans, bytes);
        }
        if *left == 0 {
            self.body = None;
        }
        Ok(())
    }

    /// Acts on a header, or hands it on.
    fn chunk(&mut self, chunk: Chunk, cx: &mut Context<'_>) -> Result<Option<Chunk>> {
        let wrong = |what: String| Err(Error::new(Status::Protocol, what));
        match chunk {
            Chunk::Open { tag, opening } => {
                if self.lanes.contains_key(&tag) {
                    return wrong(format!("stream {tag} was opened twice"));
                }
                // The sender counts a lane until it hears our Accept, so it can never have more of them.
                if self.pending >= UNACCEPTED {
                    return wrong(format!("stream {tag}: {} wait already, {UNACCEPTED} may", self.pending));
                }
                self.pending += 1;
                self.lanes.insert(tag, Incoming::Pending(opening));
                Ok(Some(chunk))
            }
            Chunk::Data { tag, offset, length } => {
                match self.lanes.get_mut(&tag) {
                    Some(Incoming::Active(place)) => {
                        if offset != place.at {
                            return wrong(format!(
                                "stream {tag}: a chunk at offset {offset} where {} is next",
                                place.at
                            ));
                        }
                        let left = place.left();
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
                    Some(Incoming::Pending(_)) => {
                        return wrong(format!("stream {tag}: {length} bytes before it was accepted"));
                    }
                    None => return wrong(format!("stream {tag}: {length} bytes of a stream that was never opened")),
                }
                self.body = Some((tag, length));
                Ok(None)
            }
            Chunk::End { tag, status } => match self.lanes.get(&tag) {
                Some(Incoming::Active(place)) if status == Status::Ok && place.left() > 0 => {
                    let (had, length) = (place.at - place.lane.begin, place.lane.length);
                    wrong(format!("stream {tag} ended after {had} of {length} bytes"))
                }
                Some(Incoming::Active(place)) => {
                    let length = place.lane.length;
                    self.lanes.remove(&tag);
                    match status {
                        Status::Ok => cx.streams.received(tag, length, cx.ended),
                        why => {
                            let had = cx.streams.receives.get(&tag).map_or(0, |r| r.stream.moved);
                            let error = Error::new(why, format!("the sender ended stream {tag} after {had} bytes"));
                            cx.endings.push(Ending { half: Half::Receive, tag, error, told: true });
                        }
                    }
                    Ok(None)
                }
                Some(Incoming::Pending(_)) if status == Status::Ok => {
                    wrong(format!("stream {tag} ended before it was accepted"))
                }
                Some(Incoming::Pending(_)) => {
                    self.pending -= 1;
                    self.lanes.remove(&tag);
                    Ok(None)
                }
                Some(Incoming::Draining { .. }) => {
                    self.lanes.remove(&tag);
                    Ok(None)
                }
                None => wrong(format!("end of stream {tag}, which was never opened")),
            },
            Chunk::Accept { .. } | Chunk::Cancel { .. } => Ok(Some(chunk)),
        }
    }
}
