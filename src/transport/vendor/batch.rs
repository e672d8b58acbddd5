//! Cutting a job into reads of a sensible size.

use super::{Piece, Range};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use std::collections::BTreeMap;

/// Bytes of one read, which links take turns with and a cancelled read may still move: into memory of our own, and straight
/// into the blocks. Each further read costs 10 to 20 µs (`benches/nixl`).
pub const STAGED_BYTES: u64 = 1 << 20;
const DIRECT_BYTES: u64 = 4 << 20;
/// Descriptors of one read.
const BATCH_PIECES: usize = 512;
/// Gaps between short runs up to which one read covers both.
const GAP_BYTES: u64 = 1024;
/// Bytes that are copied once more in the time that one piece of a read takes beside its bytes (`benches/nixl`, adjacent).
const PIECE_BYTES: u64 = 8 << 10;

/// A place in a list of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub span: usize,
    pub within: u64,
}

/// Where bytes of a batch go once they are in staging memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset in the staging memory.
    pub at: u64,
    pub target: Range,
}

/// One read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub pieces: Vec<Piece>,
    /// Empty where data lands in the blocks themselves.
    pub places: Vec<Place>,
    /// Bytes of the job.
    pub bytes: u64,
    /// The first byte behind it.
    pub end: Cursor,
}

/// The memory of both ends of a link.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub own: &'a BTreeMap<u32, Range>,
    /// Address and length of the peer's regions.
    pub peer: &'a BTreeMap<u32, (u64, u64)>,
}

impl Ends<'_> {
    /// Every span lies inside both regions.
    pub fn check(&self, spans: &[Span]) -> Result<()> {
        for s in spans {
            self.target(s, Cursor::default(), s.len)?;
            self.source(s.src_region, s.src_offset, s.len)?;
        }
        Ok(())
    }

    fn target(&self, s: &Span, at: Cursor, len: u64) -> Result<Range> {
        let own = self.own.get(&s.dst_region);
        own.and_then(|r| r.part(s.dst_offset.checked_add(at.within)?, len))
            .ok_or_else(|| outside("our", s.dst_region, s.dst_offset, s.len, own.map(|r| r.len() as u64)))
    }

    /// Where bytes of the peer's are, if they lie inside a region of its.
    pub fn source(&self, region: u32, offset: u64, len: u64) -> Result<usize> {
        let peer = self.peer.get(&region).copied();
        let inside = |(addr, all): (u64, u64)| (offset.checked_add(len)? <= all).then_some((addr + offset) as usize);
        peer.and_then(inside).ok_or_else(|| outside("the peer's", region, offset, len, peer.map(|p| p.1)))
    }
}

fn outside(whose: &str, region: u32, offset: u64, len: u64, have: Option<u64>) -> Error {
    match have {
        Some(have) => {
            let text = format!("{len} bytes at {offset} of {whose} region {region}, which has {have}");
            Error::new(Status::InvalidArgument, text)
        }
        None => Error::new(Status::BadHandle, format!("{whose} region {region} is not registered")),
    }
}

/// Whether gathering spans that are neighbours at the peer, so that one piece reads several, makes up for copying them to
/// their places. If so, they are brought in that order: pools hand blocks out backwards too.
pub(super) fn gather(spans: &mut [Span]) -> bool {
    let before =
        |a: &Span, b: &Span| a.src_region == b.src_region && a.src_offset.checked_add(a.len) == Some(b.src_offset);
    let (mut forwards, mut backwards) = (0u64, 0u64);
    for (a, b) in spans.iter().zip(spans.iter().skip(1)) {
        forwards += u64::from(before(a, b));
        backwards += u64::from(before(b, a));
    }
    let bytes = spans.iter().fold(0u64, |sum, s| sum.saturating_add(s.len));
    let pays = (forwards + backwards).saturating_mul(PIECE_BYTES) > bytes;
    if pays && backwards > 0 {
        spans.sort_by_key(|s| (s.src_region, s.src_offset));
    }
    pays
}

/// A read from `from` on, up to `to`, straight into the blocks.
pub(super) fn direct(spans: &[Span], from: Cursor, to: Cursor, ends: Ends<'_>) -> Result<Batch> {
    let mut b = Batch { pieces: Vec::new(), places: Vec::new(), bytes: 0, end: from };
    while let Some((s, len)) = next(spans, &mut b.end, to, DIRECT_BYTES - b.bytes) {
        if b.pieces.len() >= BATCH_PIECES {
            break;
        }
        let local = ends.target(s, b.end, len)?.addr();
        let remote = ends.source(s.src_region, s.src_offset + b.end.within, len)?;
        b.pieces.push(Piece { local, remote, len: len as usize });
        b.bytes += len;
        b.end.within += len;
    }
    Ok(b)
}

/// A read from `from` on, up to `to`, into staging memory. What is adjacent at the peer becomes one piece, wherever it goes;
/// with `bridge`, gaps between short runs are read along.
pub(super) fn staged(
    spans: &[Span],
    from: Cursor,
    to: Cursor,
    ends: Ends<'_>,
    slot: Range,
    bridge: bool,
) -> Result<Batch> {
    let room = slot.len() as u64;
    let most = if bridge { GAP_BYTES } else { 0 };
    let mut b = Batch { pieces: Vec::new(), places: Vec::new(), bytes: 0, end: from };
    let mut filled = 0;
    // Region and offset behind the last piece.
    let mut last: Option<(u32, u64)> = None;
    while let Some((s, len)) = next(spans, &mut b.end, to, room - filled) {
        let offset = s.src_offset + b.end.within;
        let gap = last.filter(|l| l.0 == s.src_region).and_then(|l| offset.checked_sub(l.1)).filter(|g| *g <= most);
        if gap.is_some_and(|g| filled + g + len > room) || (gap.is_none() && b.pieces.len() >= BATCH_PIECES) {
            break;
        }
        let target = ends.target(s, b.end, len)?;
        let remote = ends.source(s.src_region, offset, len)?;
        match (gap, b.pieces.last_mut()) {
            (Some(gap), Some(piece)) => {
                piece.len += (gap + len) as usize;
                filled += gap;
            }
            _ => b.pieces.push(Piece { local: slot.addr() + filled as usize, remote, len: len as usize }),
        }
        b.places.push(Place { at: filled, target });
        filled += len;
        b.bytes += len;
        b.end.within += len;
        last = Some((s.src_region, offset + len));
    }
    Ok(b)
}

/// The span at the cursor and how many of its bytes fit; skips what is done.
fn next<'a>(spans: &'a [Span], at: &mut Cursor, to: Cursor, room: u64) -> Option<(&'a Span, u64)> {
    loop {
        let s = spans.get(at.span)?;
        let end = if at.span == to.span { to.within.min(s.len) } else { s.len };
        if at.span > to.span || (at.span == to.span && at.within >= end) {
            return None;
        }
        if at.within < end {
            let len = (end - at.within).min(room);
            return (len > 0).then_some((s, len));
        }
        *at = Cursor { span: at.span + 1, within: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(src: u64, dst: u64, len: u64) -> Span {
        Span { src_offset: src, dst_offset: dst, len, src_region: 0, dst_region: 0 }
    }

    const SLOT: Range = Range::new(1 << 20, STAGED_BYTES as usize);

    /// Cuts until nothing is left; checks that every byte of every span is read once, to its place.
    fn all(spans: &[Span], lands: impl Fn(Cursor, Ends<'_>) -> Batch) -> Vec<Batch> {
        let own = BTreeMap::from([(0, Range::new(1 << 40, 1 << 30))]);
        let peer = BTreeMap::from([(0, (1 << 41, 1 << 30))]);
        let (mut at, mut out) = (Cursor::default(), Vec::new());
        let mut copied: Vec<(u64, u64, u64)> = Vec::new();
        loop {
            let b = lands(at, Ends { own: &own, peer: &peer });
            if b.bytes == 0 {
                break;
            }
            let read = |p: &Piece| (p.remote as u64 - (1 << 41), p.local as u64, p.len as u64);
            if b.places.is_empty() {
                copied.extend(b.pieces.iter().map(read).map(|(src, to, len)| (src, to - (1 << 40), len)));
            }
            for p in &b.places {
                let (at, len) = (SLOT.addr() as u64 + p.at, p.target.len() as u64);
                let holds = |(_, to, n): &(u64, u64, u64)| *to <= at && at + len <= to + n;
                let (src, to, _) = b.pieces.iter().map(read).find(holds).unwrap();
                copied.push((src + at - to, p.target.addr() as u64 - (1 << 40), len));
            }
            at = b.end;
            out.push(b);
        }
        let bytes = |list: &[(u64, u64, u64)]| {
            let mut all: Vec<(u64, u64)> =
                list.iter().flat_map(|(s, d, n)| (0..*n).step_by(64).map(move |i| (s + i, d + i))).collect();
            all.sort_unstable();
            all
        };
        let wanted: Vec<_> = spans.iter().map(|s| (s.src_offset, s.dst_offset, s.len)).collect();
        assert_eq!(bytes(&copied), bytes(&wanted));
        out
    }

    fn end(spans: &[Span]) -> Cursor {
        Cursor { span: spans.len(), within: 0 }
    }

    #[test]
    fn long_spans_are_cut_and_short_ones_gathered() {
        let spans = [span(0, 4096, 9 << 20), span(10 << 20, 0, 4096), span(0, 0, 0), span(11 << 20, 16 << 20, 64)];
        let cut = all(&spans, |at, ends| direct(&spans, at, end(&spans), ends).unwrap());
        assert_eq!(cut.iter().map(|b| b.bytes).collect::<Vec<_>>(), [4 << 20, 4 << 20, (1 << 20) + 4096 + 64]);
        let cut = all(&spans, |at, ends| staged(&spans, at, end(&spans), ends, SLOT, false).unwrap());
        assert_eq!(cut.iter().map(|b| b.pieces.len()).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
    }

    #[test]
    fn neighbours_at_the_peer_are_one_piece() {
        // Every second one swapped at our side.
        let spans: Vec<Span> = (0..64).map(|i| span(i * 4096, (i ^ 1) * 4096, 4096)).collect();
        let cut = all(&spans, |at, ends| staged(&spans, at, end(&spans), ends, SLOT, false).unwrap());
        assert_eq!((cut.len(), cut[0].pieces.len(), cut[0].places.len()), (1, 1, 64));
        let cut = all(&spans, |at, ends| direct(&spans, at, end(&spans), ends).unwrap());
        assert_eq!((cut.len(), cut[0].pieces.len()), (1, 64));
    }

    #[test]
    fn short_neighbours_are_gathered_in_their_order() {
        let spans = |len: u64, apart: u64| (0..64).map(|i| span(i * apart, (63 - i) * len, len)).collect::<Vec<_>>();
        let forwards = spans(4096, 4096);
        let backwards: Vec<Span> = forwards.iter().rev().copied().collect();
        for mut s in [forwards.clone(), backwards] {
            assert!(gather(&mut s));
            assert_eq!(s, forwards);
        }
        assert!(!gather(&mut spans(4096, 8192)), "nothing is adjacent");
        assert!(!gather(&mut spans(64 << 10, 64 << 10)), "the copy takes longer");
        assert!(!gather(&mut []) && !gather(&mut [span(u64::MAX, 0, 1), span(0, 0, 1)]));
        assert!(!gather(&mut [span(0, 0, 64), Span { src_region: 1, ..span(64, 64, 64) }]));
    }

    #[test]
    fn gaps_are_bridged_only_when_asked_and_never_beyond_the_room() {
        let spans: Vec<Span> = (0..4000).map(|i| span(i * 1024, i * 128, 128)).collect();
        let cut = all(&spans, |at, ends| staged(&spans, at, end(&spans), ends, SLOT, true).unwrap());
        assert!(cut.iter().all(|b| b.pieces.len() == 1));
        let longest = cut.iter().map(|b| b.pieces[0].len).max().unwrap();
        assert!(longest <= SLOT.len() && longest > SLOT.len() - 2048, "{longest}");
        let cut = all(&spans, |at, ends| staged(&spans, at, end(&spans), ends, SLOT, false).unwrap());
        assert!(cut.iter().all(|b| b.pieces.len() <= BATCH_PIECES));
    }

    #[test]
    fn a_part_of_a_list_ends_where_it_should() {
        let spans = [span(0, 0, 1000), span(5000, 5000, 1000)];
        let own = BTreeMap::from([(0, Range::new(1 << 40, 1 << 30))]);
        let peer = BTreeMap::from([(0, (1 << 41, 1 << 30))]);
        let ends = Ends { own: &own, peer: &peer };
        let (from, to) = (Cursor { span: 0, within: 900 }, Cursor { span: 1, within: 10 });
        let b = direct(&spans, from, to, ends).unwrap();
        assert_eq!((b.bytes, b.pieces.len(), b.end), (110, 2, to));
    }

    #[test]
    fn spans_outside_of_either_region_are_refused() {
        let own = BTreeMap::from([(0, Range::new(1 << 40, 100))]);
        let peer = BTreeMap::from([(0, (1 << 41, 50))]);
        let ends = Ends { own: &own, peer: &peer };
        for (s, part) in [
            (span(0, 51, 50), "50 bytes at 51 of our region 0, which has 100"),
            (span(1, 0, 50), "50 bytes at 1 of the peer's region 0, which has 50"),
            (span(u64::MAX, 0, 2), "peer's region 0"),
            (Span { src_region: 3, ..span(0, 0, 1) }, "the peer's region 3 is not registered"),
        ] {
            let e = ends.check(&[s]).unwrap_err();
            assert!(e.message().contains(part), "{e}");
        }
        ends.check(&[span(0, 0, 50)]).unwrap();
    }
}
