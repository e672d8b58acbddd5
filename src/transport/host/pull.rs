//! Pull jobs: copies out of a peer's memory, in slices.

use super::local::{self, Cursor, Regions, Resolver, Side};
use super::remote::{Reach, Remote};
use super::scratch::{COVER_BYTES, Scratch};
use super::sys::{self, Join, PIECES, Target};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::transport::{Done, Job, JobId, LinkId};
use crate::wire::{BOARD_REGION, LeaseMark};

/// What a span costs in a budget of bytes besides its length: when it is copied here, when the kernel copies it.
const SPAN_COST: u64 = 256;
const FOREIGN_COST: u64 = 1024;

/// Staged reads bridge gaps up to this: copying so many bytes for nothing costs less than another remote piece. Measured
/// by `benches/staging.rs`: at 1 KiB covering wins for all runs below 2 KiB, at 2 KiB it is no better than span by span.
pub const STAGE_GAP_BYTES: u64 = 1024;

/// Spans from this length on are never staged, whatever their job says. From the same measurement.
const LONG: u64 = 2048;

/// Where the source is contiguous, the kernel sees one remote piece anyway, and unpacking pays below this length only.
/// From the same measurement.
const LONG_ADJACENT: u64 = 512;

/// A running pull.
#[derive(Debug)]
pub(super) struct Pull {
    pub id: JobId,
    pub link: LinkId,
    /// Our regions that it writes.
    pub regions: Vec<u32>,
    spans: Vec<Span>,
    cursor: Cursor,
    moved: u64,
    staged: bool,
    mark: Option<LeaseMark>,
}

impl Pull {
    pub fn new(job: Job, own: &Regions, remote: &Remote) -> Result<Pull> {
        let regions = own.check(&job.spans, Side::Destination)?;
        local::check(&job.spans, Side::Source, "the peer's", |r| remote.len(r))?;
        local::total(&job.spans)?;
        let Job { id, link, spans, staged, mark, .. } = job;
        let staged = staged && covering_pays(&spans);
        Ok(Pull { id, link, regions, spans, cursor: Cursor::default(), moved: 0, staged, mark })
    }

    /// Ends it early.
    pub fn fail(self, error: Error) -> Done {
        Done { id: self.id, result: Err(error), bytes: self.moved, held: false, spans: self.spans }
    }

    /// Everything is here.
    pub fn complete(self, remote: &Remote) -> Done {
        let held = self.mark.is_some_and(|m| remote.peek(BOARD_REGION, m.offset) == Some(m.word));
        Done { id: self.id, result: Ok(()), bytes: self.moved, held, spans: self.spans }
    }

    /// Copies for about `budget` bytes; returns what it cost, and whether that was the end.
    pub fn slice(&mut self, own: &Regions, remote: &Remote, io: &mut Scratch, budget: u64) -> Result<(u64, bool)> {
        let mut cost = self.skip_empty();
        while cost < budget && self.cursor.span < self.spans.len() {
            let (bytes, spent) = self.step(own, remote, io, budget - cost)?;
            self.moved += bytes;
            cost += spent + self.skip_empty();
        }
        Ok((cost, self.cursor.span >= self.spans.len()))
    }

    /// One system call, or copies out of a mapping; returns the bytes moved and their cost.
    fn step(&mut self, own: &Regions, remote: &Remote, io: &mut Scratch, budget: u64) -> Result<(u64, u64)> {
        let Some(s) = self.spans.get(self.cursor.span) else { return Ok((0, 0)) };
        match remote.reach(s.src_region, s.src_offset, s.len)? {
            Reach::Mapped(_) => self.mapped(own, remote, budget),
            Reach::Foreign(_) if self.staged && self.cursor.within == 0 && s.len < LONG => {
                self.covered(own, remote, io, budget)
            }
            Reach::Foreign(_) => self.direct(own, remote, io, budget),
        }
    }

    fn skip_empty(&mut self) -> u64 {
        let from = self.cursor.span;
        while self.spans.get(self.cursor.span).is_some_and(|s| s.len == 0) {
            self.cursor.span += 1;
        }
        (self.cursor.span - from) as u64
    }

    fn mapped(&mut self, own: &Regions, remote: &Remote, budget: u64) -> Result<(u64, u64)> {
        let mut resolver = Resolver::new(own);
        let (mut bytes, mut cost) = (0, 0);
        while let Some(s) = self.spans.get(self.cursor.span) {
            if cost >= budget {
                break;
            }
            let within = self.cursor.within;
            let len = (s.len - within).min(budget - cost);
            match remote.reach(s.src_region, s.src_offset + within, len)? {
                Reach::Mapped(source) => sys::copy(resolver.piece(s, within, len)?, source),
                Reach::Foreign(_) => break,
            }
            bytes += len;
            cost += len + SPAN_COST;
            if within + len == s.len {
                self.cursor = Cursor { span: self.cursor.span + 1, within: 0 };
            } else {
                self.cursor.within += len;
            }
        }
        Ok((bytes, cost))
    }

    fn direct(&mut self, own: &Regions, remote: &Remote, io: &mut Scratch, budget: u64) -> Result<(u64, u64)> {
        let mut resolver = Resolver::new(own);
        let Scratch { targets, foreign, nonce, .. } = io;
        targets.clear();
        foreign.clear();
        let (mut bytes, mut cost, mut within) = (0, 0, self.cursor.within);
        for s in self.spans.get(self.cursor.span..).unwrap_or(&[]) {
            if cost >= budget || targets.len() >= PIECES - 1 || foreign.len() >= PIECES - 1 {
                break;
            }
            // A span is cut only where it is the first: all others are whole, so that large copies stay aligned.
            let len = if cost == 0 { (s.len - within).min(budget) } else { s.len - within };
            if cost > 0 && cost + len > budget {
                break;
            }
            match remote.reach(s.src_region, s.src_offset + within, len)? {
                Reach::Foreign(piece) => sys::push(foreign, piece),
                Reach::Mapped(_) => break,
            }
            sys::push(targets, resolver.piece(s, within, len)?);
            bytes += len;
            cost += len + FOREIGN_COST;
            within = 0;
        }
        debug_assert_eq!(bytes, targets.iter().map(|t| t.len() as u64).sum::<u64>());
        let bytes = remote.read(targets, foreign, nonce)?;
        self.cursor.advance(&self.spans, bytes);
        Ok((bytes, cost))
    }

    /// Reads ranges that cover many short spans into a buffer, then unpacks them.
    fn covered(&mut self, own: &Regions, remote: &Remote, io: &mut Scratch, budget: u64) -> Result<(u64, u64)> {
        let Scratch { targets, foreign, nonce, places, .. } = io;
        targets.clear();
        foreign.clear();
        places.clear();
        let mut cover: Option<Cover> = None;
        let (mut filled, mut cost) = (0u64, 0u64);
        for s in self.spans.get(self.cursor.span..).unwrap_or(&[]) {
            if s.len >= LONG || cost >= budget {
                break;
            }
            let gap = cover.as_ref().and_then(|c| c.gap(s));
            let (begin, grow) = match gap {
                Some(gap) => (s.src_offset - gap, s.len + gap),
                None => (s.src_offset, s.len),
            };
            if filled + grow > COVER_BYTES as u64 || (gap.is_none() && foreign.len() >= PIECES - 1) {
                break;
            }
            match remote.reach(s.src_region, begin, grow)? {
                Reach::Foreign(piece) => sys::push(foreign, piece),
                Reach::Mapped(_) => break,
            }
            filled += grow;
            places.push(filled - s.len);
            cover = Some(Cover { region: s.src_region, end: s.src_offset + s.len });
            cost += grow + SPAN_COST / 2;
        }
        let buffer = io.buffer.bytes(COVER_BYTES);
        let whole = Target::of(buffer).first(filled as usize);
        targets.extend(whole);
        let got = remote.read(targets, foreign, nonce)?;
        if got < filled {
            // The covered ranges lie between spans of one region: a part that cannot be read is the peer's doing.
            let what = format!("{got} of {filled} bytes of the peer's memory can be read");
            return Err(Error::new(Status::Incarnation, what));
        }
        Ok((self.unpack(own, io)?, cost))
    }

    fn unpack(&mut self, own: &Regions, io: &mut Scratch) -> Result<u64> {
        let mut resolver = Resolver::new(own);
        let buffer = io.buffer.bytes(COVER_BYTES);
        let mut bytes = 0;
        for (s, at) in self.spans.get(self.cursor.span..).unwrap_or(&[]).iter().zip(&io.places) {
            let packed = buffer.get(*at as usize..(*at + s.len) as usize);
            let packed = packed.ok_or_else(|| Error::new(Status::Internal, "a packed span outside its buffer"))?;
            sys::copy(resolver.piece(s, 0, s.len)?, sys::Source::of(packed));
            bytes += s.len;
        }
        self.cursor = Cursor { span: self.cursor.span + io.places.len(), within: 0 };
        Ok(bytes)
    }
}

/// Whether most spans of a staged job lie so close in the source that ranges can cover them.
fn covering_pays(spans: &[Span]) -> bool {
    let (mut near, mut adjacent, mut bytes) = (0usize, 0usize, 0u64);
    for pair in spans.windows(2) {
        let [a, b] = pair else { continue };
        let gap = Cover { region: a.src_region, end: a.src_offset + a.len }.gap(b);
        near += usize::from(gap.is_some());
        adjacent += usize::from(gap == Some(0));
        bytes += a.len;
    }
    let mean = bytes / spans.len().max(1) as u64;
    near * 2 > spans.len() && (adjacent * 2 < spans.len() || mean < LONG_ADJACENT)
}

/// The range that is being read for several spans.
struct Cover {
    region: u32,
    end: u64,
}

impl Cover {
    /// How many bytes lie between this range and a span that follows closely.
    fn gap(&self, s: &Span) -> Option<u64> {
        let gap = s.src_offset.checked_sub(self.end)?;
        (s.src_region == self.region && gap <= STAGE_GAP_BYTES).then_some(gap)
    }
}
