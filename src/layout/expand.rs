//! The hot path: a plan and block lists in, spans out.

use super::lists::{self, invalid};
use super::plan::{CopySet, Cut, Plan, Span, Template};
use super::request::{BlockList, NO_BLOCK, Request};
use super::shape::{Group, GroupKind, Layout};
use crate::error::{Error, Result, Status};
use std::ops::Range;

/// What an expansion produced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Spans written.
    pub spans: u64,
    /// Bytes they move.
    pub bytes: u64,
    /// Runs before neighbours were merged.
    pub runs: u64,
}

/// Spans for which a [`Scratch`] keeps room.
const KEPT: usize = 1 << 16;

/// Buffers reused from request to request, so that the steady state allocates nothing.
#[derive(Default)]
pub struct Scratch {
    lists: lists::Buffers,
    /// Of one set.
    spans: Vec<Span>,
    /// By kind of set.
    known: Vec<Option<Summary>>,
}

impl Plan {
    /// Appends the spans of a request to `out`, merged where neighbours touch on both sides.
    ///
    /// The order of the bytes is a function of the plan and the request alone: a source and a destination that expand the
    /// same request agree on it.
    ///
    /// # Errors
    /// [`Status::InvalidBlocks`] names the group, the position and both values; `out` is then as it was.
    pub fn expand(&self, request: &Request<'_>, scratch: &mut Scratch, out: &mut Vec<Span>) -> Result<Summary> {
        self.check_lists(request, &mut scratch.lists)?;
        self.expand_checked(request, out)
    }

    /// What [`Plan::expand`] says of a request, without its spans: the same errors, and as many bytes and runs. Spans of
    /// different layers are not merged. The layers of a kind cost as much as one of them.
    ///
    /// # Errors
    /// Those of [`Plan::expand`].
    pub fn check(&self, request: &Request<'_>, scratch: &mut Scratch) -> Result<Summary> {
        self.check_lists(request, &mut scratch.lists)?;
        let Scratch { spans, known, .. } = scratch;
        known.clear();
        known.resize(self.sets.len(), None);
        let mut total = Summary::default();
        for (set, kind) in self.sets.iter().zip(&self.kinds) {
            let whole = request.layers.start <= set.layer && set.layer.saturating_add(set.layers) <= request.layers.end;
            let mut found = None;
            let known = if whole { known.get_mut(*kind as usize).unwrap_or(&mut found) } else { &mut found };
            let one = match *known {
                Some(one) => one,
                None => {
                    spans.clear();
                    let mut sink = Sink::new(spans);
                    self.expand_set(set, request, &mut sink)?;
                    *known.insert(sink.finish())
                }
            };
            total.spans = total.spans.saturating_add(one.spans);
            total.bytes = total.bytes.saturating_add(one.bytes);
            total.runs = total.runs.saturating_add(one.runs);
        }
        // A long request must not cost memory for good.
        spans.clear();
        spans.shrink_to(KEPT);
        Ok(total)
    }

    /// [`Plan::expand`] for a request that [`Plan::check`] has found good.
    ///
    /// # Errors
    /// [`Status::InvalidBlocks`] for another; `out` is then as it was.
    pub fn expand_checked(&self, request: &Request<'_>, out: &mut Vec<Span>) -> Result<Summary> {
        let before = out.len();
        let mut sink = Sink::new(out);
        for set in &self.sets {
            if let Err(e) = self.expand_set(set, request, &mut sink) {
                out.truncate(before);
                return Err(e);
            }
        }
        Ok(sink.finish())
    }

    fn expand_set(&self, set: &CopySet, request: &Request<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let first = request.layers.start.max(set.layer);
        let last = request.layers.end.min(set.layer.saturating_add(set.layers));
        if first >= last || (set.template.slots && !request.slots) {
            return Ok(());
        }
        let src = Ids::new("source", &self.src, request.src, set.src_group);
        let dst = Ids::new("destination", &self.dst, request.dst, set.dst_group);
        let (Some(src), Some(dst)) = (src, dst) else {
            return Err(Error::new(Status::Internal, "a plan names a group that its layout lacks"));
        };
        let (low, high) = range(set, request, &src, &dst)?;
        let walk = Walk { set, src, dst, low, high, layers: (first - set.layer, last - first) };
        walk.run(sink)
    }
}

/// The tokens (or slots) that a set moves.
fn range(set: &CopySet, request: &Request<'_>, src: &Ids<'_>, dst: &Ids<'_>) -> Result<(u64, u64)> {
    if set.template.slots {
        if src.list.len() != dst.list.len() {
            return Err(invalid(format!(
                "group {}: {} destination slots, but group {} has {} source slots",
                dst.index,
                dst.list.len(),
                src.index,
                src.list.len()
            )));
        }
        return Ok((0, dst.list.len() as u64));
    }
    let low = request.tokens.start.max(dst.group.reach.first(request.end));
    for ids in [src, dst] {
        let held = (ids.list.len() as u64).saturating_mul(u64::from(ids.group.block_tokens));
        if ids.group.kind == GroupKind::Ring && low < request.tokens.end && request.end - low > held {
            return Err(invalid(format!(
                "group {}: a {} ring of {held} tokens cannot hold the {} tokens that are needed",
                ids.index,
                ids.which,
                request.end - low
            )));
        }
    }
    Ok((low, request.tokens.end))
}

/// One side's block list of one group.
struct Ids<'a> {
    which: &'static str,
    index: u32,
    list: &'a [u32],
    first: u64,
    group: &'a Group,
}

impl<'a> Ids<'a> {
    fn new(which: &'static str, layout: &'a Layout, lists: &[BlockList<'a>], index: u32) -> Option<Ids<'a>> {
        let group = layout.groups().get(index as usize)?;
        let list = lists.get(index as usize)?;
        Some(Ids { which, index, list: list.ids, first: list.first, group })
    }

    /// The entry at a local block position, [`NO_BLOCK`] for a hole; `None` outside of the list.
    #[inline(always)]
    fn entry(&self, position: u64) -> Option<u32> {
        let at = match self.group.kind {
            GroupKind::Paged => position.wrapping_sub(self.first),
            GroupKind::Slots => position,
            GroupKind::Ring => position.checked_rem(self.list.len() as u64).unwrap_or(0),
        };
        self.list.get(at as usize).copied()
    }

    /// What it means that a position is outside of the list: left out on purpose before its beginning, missing after its
    /// end.
    #[cold]
    fn outside(&self, position: u64) -> Result<u32> {
        match self.group.kind {
            GroupKind::Paged if position < self.first => Ok(NO_BLOCK),
            _ => Err(self.too_short(position)),
        }
    }

    #[cold]
    fn too_short(&self, position: u64) -> Error {
        invalid(format!(
            "group {}: {} {} blocks from position {}, but the token range needs position {position}",
            self.index,
            self.list.len(),
            self.which,
            self.first
        ))
    }

    #[cold]
    fn missing(&self, position: u64) -> Error {
        invalid(format!(
            "group {}: the {} list has no block at position {position}, which the other side wants",
            self.index, self.which
        ))
    }
}

struct Walk<'a> {
    set: &'a CopySet,
    src: Ids<'a>,
    dst: Ids<'a>,
    low: u64,
    high: u64,
    /// First layer of the set, and how many.
    layers: (u32, u32),
}

impl Walk<'_> {
    fn run(&self, sink: &mut Sink<'_>) -> Result<()> {
        let t: &Template = &self.set.template;
        sink.enter(self.set.src_region, self.set.dst_region);
        let (period, dst_blocks) = (t.period.max(1), t.dst_blocks.max(1));
        // A list that begins late leaves out the periods before it.
        let late = if self.dst.group.kind == GroupKind::Paged { self.dst.first / dst_blocks } else { 0 };
        let (first, last) = (late.max(self.low / period), self.high.div_ceil(period));
        let paged = self.src.group.kind == GroupKind::Paged && self.dst.group.kind == GroupKind::Paged;
        let loops = |cut: &Cut| t.loops.get(cut.loops as usize).filter(|l| l.steps().is_empty());
        match t.cuts.as_slice() {
            [cut] if paged && self.layers.1 == self.set.layers && loops(cut).is_some() => {
                let begin = self.low.div_ceil(period).clamp(first, last.max(first));
                let end = (self.high / period).max(begin);
                self.periods(first..begin, sink)?;
                self.plain(cut, loops(cut).map_or(0, |l| l.run), begin..end, sink)?;
                self.periods(end.max(first)..last, sink)
            }
            _ => self.periods(first..last, sink),
        }
    }

    /// Whole periods of one run each: blocks of equal size whose bytes are contiguous on both sides.
    fn plain(&self, cut: &Cut, run: u64, periods: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        let (t, set) = (&self.set.template, self.set);
        let src_base = set.src_offset.wrapping_add(cut.src_offset);
        let dst_base = set.dst_offset.wrapping_add(cut.dst_offset);
        let mut src_at = periods.start.wrapping_mul(t.src_blocks).wrapping_add(cut.src_block);
        let mut dst_at = periods.start.wrapping_mul(t.dst_blocks).wrapping_add(cut.dst_block);
        // Single numbers, not a `Span`: stored in parts and loaded whole, it would stall every iteration.
        let Span { mut src_offset, mut dst_offset, mut len, src_region, dst_region } = sink.current;
        let mut runs = 0u64;
        for _ in periods {
            let d = match self.dst.list.get(dst_at.wrapping_sub(self.dst.first) as usize) {
                Some(id) => *id,
                None => self.dst.outside(dst_at)?,
            };
            if d != NO_BLOCK {
                let s = match self.src.list.get(src_at.wrapping_sub(self.src.first) as usize) {
                    Some(id) => *id,
                    None => self.src.outside(src_at)?,
                };
                if s == NO_BLOCK {
                    return Err(self.src.missing(src_at));
                }
                let s = u64::from(s).wrapping_mul(set.src_block_stride).wrapping_add(src_base);
                let d = u64::from(d).wrapping_mul(set.dst_block_stride).wrapping_add(dst_base);
                runs += 1;
                if src_offset.wrapping_add(len) == s && dst_offset.wrapping_add(len) == d {
                    len = len.wrapping_add(run);
                } else {
                    if len > 0 {
                        sink.out.push(Span { src_offset, dst_offset, len, src_region, dst_region });
                    }
                    (src_offset, dst_offset, len) = (s, d, run);
                }
            }
            (src_at, dst_at) = (src_at.wrapping_add(t.src_blocks), dst_at.wrapping_add(t.dst_blocks));
        }
        sink.current = Span { src_offset, dst_offset, len, src_region, dst_region };
        sink.runs = sink.runs.wrapping_add(runs);
        sink.bytes = sink.bytes.wrapping_add(runs.wrapping_mul(run));
        Ok(())
    }

    fn periods(&self, periods: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        let t: &Template = &self.set.template;
        let all_layers = self.layers.1 == self.set.layers;
        for p in periods {
            let base = p.saturating_mul(t.period);
            let (src_base, dst_base) = (p.saturating_mul(t.src_blocks), p.saturating_mul(t.dst_blocks));
            for cut in &t.cuts {
                let begin = base.saturating_add(cut.token);
                let end = begin.saturating_add(cut.tokens);
                if end <= self.low {
                    continue;
                }
                if begin >= self.high {
                    break;
                }
                let position = dst_base.saturating_add(cut.dst_block);
                let d = match self.dst.entry(position) {
                    Some(id) => id,
                    None => self.dst.outside(position)?,
                };
                if d == NO_BLOCK {
                    continue;
                }
                let position = src_base.saturating_add(cut.src_block);
                let s = match self.src.entry(position) {
                    Some(id) => id,
                    None => self.src.outside(position)?,
                };
                if s == NO_BLOCK {
                    return Err(self.src.missing(position));
                }
                // Inside the regions by the proof and by `id < num_blocks`, hence without overflow.
                let s = u64::from(s).wrapping_mul(self.set.src_block_stride).wrapping_add(self.set.src_offset);
                let d = u64::from(d).wrapping_mul(self.set.dst_block_stride).wrapping_add(self.set.dst_offset);
                let (s, d) = (s.wrapping_add(cut.src_offset), d.wrapping_add(cut.dst_offset));
                if begin >= self.low && end <= self.high && all_layers {
                    if let Some(loops) = t.loops.get(cut.loops as usize) {
                        sink.loops(s, d, loops.run, loops.steps());
                    }
                } else {
                    self.clipped(cut, s, d, begin, end, sink);
                }
            }
        }
        Ok(())
    }

    /// A cut of which only some tokens or layers are wanted.
    #[cold]
    fn clipped(&self, cut: &Cut, s: u64, d: u64, begin: u64, end: u64, sink: &mut Sink<'_>) {
        let Some(shape) = self.set.template.shapes.get(cut.shape as usize) else { return };
        let skip = self.low.saturating_sub(begin);
        let tokens = end.min(self.high).saturating_sub(begin).saturating_sub(skip);
        let (layer, layers) = (u64::from(self.layers.0), u64::from(self.layers.1));
        let delta = self.set.layer_delta;
        let loops = shape.fold(tokens, layers, delta);
        let at = |base: u64, token: u64, layer_delta: u64| {
            base.wrapping_add(skip.wrapping_mul(token)).wrapping_add(layer.wrapping_mul(layer_delta))
        };
        sink.loops(at(s, shape.token.0, delta.0), at(d, shape.token.1, delta.1), loops.run, loops.steps());
    }
}

/// Collects spans; the one being grown is kept apart.
struct Sink<'a> {
    out: &'a mut Vec<Span>,
    before: usize,
    current: Span,
    bytes: u64,
    runs: u64,
}

impl Sink<'_> {
    fn new(out: &mut Vec<Span>) -> Sink<'_> {
        Sink { before: out.len(), out, current: Span::default(), bytes: 0, runs: 0 }
    }

    fn finish(mut self) -> Summary {
        self.flush();
        let spans = self.out.len().saturating_sub(self.before) as u64;
        Summary { spans, bytes: self.bytes, runs: self.runs }
    }

    fn enter(&mut self, src_region: u32, dst_region: u32) {
        if (self.current.src_region, self.current.dst_region) != (src_region, dst_region) {
            self.flush();
            self.current = Span { src_region, dst_region, ..Span::default() };
        }
    }

    fn flush(&mut self) {
        if self.current.len > 0 {
            self.out.push(self.current);
            self.current.len = 0;
        }
    }

    #[inline(always)]
    fn run(&mut self, src: u64, dst: u64, len: u64) {
        self.runs = self.runs.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(len);
        let c = &mut self.current;
        if c.len > 0 && c.src_offset.wrapping_add(c.len) == src && c.dst_offset.wrapping_add(c.len) == dst {
            c.len = c.len.saturating_add(len);
            return;
        }
        if c.len > 0 {
            self.out.push(*c);
        }
        (c.src_offset, c.dst_offset, c.len) = (src, dst, len);
    }

    #[inline(always)]
    fn loops(&mut self, src: u64, dst: u64, run: u64, steps: &[super::fold::Step]) {
        match steps {
            [] => self.run(src, dst, run),
            [outer, inner @ ..] => {
                let (mut s, mut d) = (src, dst);
                for _ in 0..outer.count {
                    if inner.is_empty() {
                        self.run(s, d, run);
                    } else {
                        self.nested(s, d, run, inner);
                    }
                    (s, d) = (s.wrapping_add(outer.src), d.wrapping_add(outer.dst));
                }
            }
        }
    }

    fn nested(&mut self, src: u64, dst: u64, run: u64, steps: &[super::fold::Step]) {
        self.loops(src, dst, run, steps);
    }
}
