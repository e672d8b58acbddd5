//! The sending half of a data socket: lanes of streams take turns, a chunk each.

use super::chunk::{Chunk, HEADER, Lane};
use super::conn::Context;
use super::local::{Cursor, Regions, Resolver};
use super::scratch::{Ask, PACKED_BYTES, cost_of_call};
use super::stream::{Stream, Streams};
use super::sys::{self, PIECES, Source, Target};
use crate::error::{Error, Result, Status};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

/// Lanes of one socket that wait for the receiver's Accept at a time. More wait here, unannounced.
pub(super) const UNACCEPTED: usize = 1024;

/// Announcements and answers that travel in one write.
const BATCH: usize = 64;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not announced yet.
    Queued,
    /// Announced.
    Opened,
    /// Accepted.
    Sending,
}

/// A lane that travels on this socket.
#[derive(Debug)]
struct Outgoing {
    lane: Lane,
    /// Offset in the stream of its next byte.
    at: u64,
    cursor: Cursor,
    phase: Phase,
}

impl Outgoing {
    fn left(&self) -> u64 {
        self.lane.end() - self.at
    }
}

/// Where a chunk's payload comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payload {
    /// The spans of its stream.
    Spans,
    /// Our packing buffer.
    Packed,
    /// The stream was ended; its chunk is filled up, for its length was announced.
    Zeros,
}

/// What is being written: headers, a chunk's payload, and perhaps the End of its stream.
#[derive(Debug)]
struct Frame {
    head: Vec<u8>,
    sent: usize,
    tag: Option<u64>,
    payload: Payload,
    length: u64,
    left: u64,
    tail: Vec<u8>,
    tail_sent: usize,
}

impl Frame {
    fn written(&self) -> bool {
        self.sent == self.head.len() && self.left == 0 && self.tail_sent == self.tail.len()
    }
}

/// What a piece of work came to.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// In bytes of a budget.
    pub cost: u64,
    /// The socket would block.
    pub blocked: bool,
}

/// All that is to be sent on one socket.
#[derive(Debug)]
pub(super) struct Outbound {
    chunk: u64,
    control: VecDeque<Chunk>,
    /// By tag: a stream has at most one lane on a socket.
    lanes: BTreeMap<u64, Outgoing>,
    queued: VecDeque<u64>,
    opened: usize,
    turns: VecDeque<u64>,
    /// Bytes not yet sent.
    backlog: u64,
    frame: Frame,
    packed: Vec<u8>,
    /// Bytes to offer at a time.
    ask: Ask,
}

impl Outbound {
    pub fn new(chunk: u64) -> Outbound {
        let frame = Frame {
            head: Vec::new(),
            sent: 0,
            tag: None,
            payload: Payload::Spans,
            length: 0,
            left: 0,
            tail: Vec::new(),
            tail_sent: 0,
        };
        Outbound {
            chunk,
            control: VecDeque::new(),
            lanes: BTreeMap::new(),
            queued: VecDeque::new(),
            opened: 0,
            turns: VecDeque::new(),
            backlog: 0,
            frame,
            packed: Vec::new(),
            ask: Ask::default(),
        }
    }

    /// Bytes not yet sent.
    pub fn backlog(&self) -> u64 {
        self.backlog
    }

    /// Something can be written at once, if the socket lets us.
    pub fn pending(&self) -> bool {
        !self.frame.written()
            || !self.control.is_empty()
            || !self.turns.is_empty()
            || (!self.queued.is_empty() && self.opened < UNACCEPTED)
    }

    /// Queues a lane of a stream, whose first byte is at the cursor.
    pub fn post(&mut self, tag: u64, lane: Lane, cursor: Cursor) {
        self.queued.push_back(tag);
        self.backlog = self.backlog.saturating_add(lane.length);
        self.lanes.insert(tag, Outgoing { lane, at: lane.begin, cursor, phase: Phase::Queued });
    }

    /// Queues an answer to the sender on the other side.
    pub fn answer(&mut self, chunk: Chunk) {
        self.control.push_back(chunk);
    }

    /// The receiver wants this lane. Unknown tags were ended in the meantime.
    pub fn accepted(&mut self, tag: u64) -> Result<()> {
        let Some(s) = self.lanes.get_mut(&tag) else { return Ok(()) };
        if s.phase != Phase::Opened {
            return Err(Error::new(Status::Protocol, format!("stream {tag} was accepted in phase {:?}", s.phase)));
        }
        s.phase = Phase::Sending;
        self.opened -= 1;
        self.turns.push_back(tag);
        Ok(())
    }

    /// Ends the lane of a stream: from here on its memory is not read. The receiver is told.
    pub fn end(&mut self, tag: u64, status: Status) {
        let Some(gone) = self.lanes.remove(&tag) else { return };
        self.backlog = self.backlog.saturating_sub(gone.left());
        let end = Chunk::End { tag, status };
        self.turns.retain(|t| *t != tag);
        match gone.phase {
            Phase::Queued => self.queued.retain(|t| *t != tag),
            Phase::Opened => self.opened -= 1,
            Phase::Sending => {}
        }
        if self.frame.tag == Some(tag) && !self.frame.written() {
            if self.frame.payload == Payload::Spans {
                self.frame.payload = Payload::Zeros;
            }
            if self.frame.tail_sent == 0 {
                self.frame.tail.clear();
                self.frame.tail.extend(end.encode());
            }
            self.frame.tag = None;
        } else if gone.phase != Phase::Queued {
            self.control.push_back(end);
        }
    }

    /// Writes for about `budget` bytes.
    pub fn work(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>, budget: u64) -> Result<Step> {
        let mut step = Step::default();
        while step.cost < budget && self.pending() {
            if self.frame.written() {
                self.next_frame(cx.own, cx.streams)?;
            }
            let wanted = self.gather(cx.own, cx.streams, &mut cx.io.sources, self.ask.bytes())?;
            let more = wanted < self.unwritten();
            match sys::send(socket, &cx.io.sources, more) {
                Ok(n) => {
                    step.cost += cost_of_call(n as u64, cx.io.sources.len(), self.frame.payload == Payload::Packed);
                    self.ask.took(n as u64, wanted);
                    self.wrote(n, cx);
                    if (n as u64) < wanted {
                        step.blocked = true;
                        break;
                    }
                }
                Err(Errno::AGAIN) => {
                    step.blocked = true;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::new(Status::PeerDead, format!("data socket: sending: {e}"))),
            }
        }
        Ok(step)
    }

    fn unwritten(&self) -> u64 {
        let f = &self.frame;
        (f.head.len() - f.sent + f.tail.len() - f.tail_sent) as u64 + f.left
    }

    /// Composes what is written next: answers, announcements, and a chunk of the stream whose turn it is.
    fn next_frame(&mut self, own: &Regions, streams: &Streams) -> Result<()> {
        let f = &mut self.frame;
        f.head.clear();
        f.tail.clear();
        (f.sent, f.tail_sent, f.tag, f.left, f.length, f.payload) = (0, 0, None, 0, 0, Payload::Spans);
        for _ in 0..BATCH {
            let Some(chunk) = self.control.pop_front() else { break };
            f.head.extend(chunk.encode());
        }
        while self.opened < UNACCEPTED && f.head.len() < BATCH * HEADER {
            let Some(tag) = self.queued.pop_front() else { break };
            let (Some(out), Some(send)) = (self.lanes.get_mut(&tag), streams.sends.get(&tag)) else { continue };
            out.phase = Phase::Opened;
            self.opened += 1;
            f.head.extend(send.open(tag, out.lane).encode());
        }
        let Some(tag) = self.turns.pop_front() else { return Ok(()) };
        let (Some(out), Some(send)) = (self.lanes.get(&tag), streams.sends.get(&tag)) else { return Ok(()) };
        let staged = send.stream.staged;
        let most = if staged { self.chunk.min(PACKED_BYTES as u64) } else { self.chunk };
        let length = out.left().min(most);
        (f.tag, f.length, f.left) = (Some(tag), length, length);
        if length > 0 {
            f.head.extend(Chunk::Data { tag, offset: out.at, length }.encode());
        }
        if length == out.left() {
            f.tail.extend(Chunk::End { tag, status: Status::Ok }.encode());
        }
        if staged && length > 0 {
            pack(&send.stream, out.cursor, own, length, &mut self.packed)?;
            f.payload = Payload::Packed;
        }
        Ok(())
    }

    /// Lists what is left of the frame; returns how many bytes that is.
    fn gather(&self, own: &Regions, streams: &Streams, list: &mut Vec<Source>, most: u64) -> Result<u64> {
        let f = &self.frame;
        list.clear();
        let head = f.head.get(f.sent..).unwrap_or(&[]);
        if !head.is_empty() {
            list.push(Source::of(head));
        }
        let mut bytes = head.len() as u64;
        let want = f.left.min(most);
        let got = match f.payload {
            Payload::Spans if want > 0 => {
                let found = f.tag.and_then(|tag| Some((self.lanes.get(&tag)?, streams.sends.get(&tag)?)));
                let (out, send) = found.ok_or_else(|| Error::new(Status::Internal, "a chunk without its stream"))?;
                out.cursor.gather(&send.stream.spans, own, want, PIECES - 1, list)?
            }
            Payload::Spans => 0,
            Payload::Packed => {
                let from = (f.length - f.left) as usize;
                let slice = self.packed.get(from..from + want as usize).unwrap_or(&[]);
                list.push(Source::of(slice));
                slice.len() as u64
            }
            Payload::Zeros => {
                let slice = ZEROS.get(..want as usize).unwrap_or(&ZEROS);
                list.push(Source::of(slice));
                slice.len() as u64
            }
        };
        bytes += got;
        if got == f.left {
            let tail = f.tail.get(f.tail_sent..).unwrap_or(&[]);
            if !tail.is_empty() {
                list.push(Source::of(tail));
            }
            bytes += tail.len() as u64;
        }
        Ok(bytes)
    }

    fn wrote(&mut self, n: usize, cx: &mut Context<'_>) {
        let f = &mut self.frame;
        let head = n.min(f.head.len() - f.sent);
        f.sent += head;
        let body = (n - head).min(f.left as usize);
        f.left -= body as u64;
        f.tail_sent += n - head - body;
        let Some(tag) = f.tag else { return };
        let (Some(out), Some(send)) = (self.lanes.get_mut(&tag), cx.streams.sends.get_mut(&tag)) else { return };
        let bytes = body as u64;
        send.stream.moved += bytes;
        self.backlog -= bytes;
        out.at += bytes;
        out.cursor.advance(&send.stream.spans, bytes);
        if !f.written() {
            return;
        }
        if f.tail.is_empty() {
            self.turns.push_back(tag);
        } else {
            self.lanes.remove(&tag);
            cx.streams.sent(tag, cx.ended);
        }
        self.frame.tag = None;
    }
}

fn pack(s: &Stream, from: Cursor, own: &Regions, length: u64, packed: &mut Vec<u8>) -> Result<()> {
    if packed.len() < length as usize {
        packed.resize(length as usize, 0);
    }
    let mut resolver = Resolver::new(own);
    let (mut at, mut within) = (0u64, from.within);
    for span in s.spans.get(from.span..).unwrap_or(&[]) {
        let len = (span.len - within).min(length - at);
        let room = packed.get_mut(at as usize..(at + len) as usize).unwrap_or(&mut []);
        sys::copy(Target::of(room), resolver.piece(span, within, len)?);
        at += len;
        within = 0;
        if at == length {
            break;
        }
    }
    Ok(())
}
