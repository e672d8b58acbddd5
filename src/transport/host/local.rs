//! Our side of the spans: registered regions, bounds, the digest, and a position that walks through a list of spans.

use super::sys::{self, Own, Source, Target};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::memory::Memory;
use std::collections::BTreeMap;

/// One side of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    #[inline]
    pub fn of(self, s: &Span) -> (u32, u64) {
        match self {
            Side::Source => (s.src_region, s.src_offset),
            Side::Destination => (s.dst_region, s.dst_offset),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Destination => "destination",
        }
    }
}

/// The regions that we registered.
#[derive(Debug, Default)]
pub(super) struct Regions {
    list: BTreeMap<u32, Own>,
}

impl Regions {
    pub fn insert(&mut self, region: u32, memory: &Memory) -> Result<()> {
        if self.list.contains_key(&region) {
            return Err(Error::new(Status::Duplicate, format!("region {region} is registered already")));
        }
        self.list.insert(region, Own::new(memory.clone()));
        Ok(())
    }

    pub fn remove(&mut self, region: u32) -> Result<()> {
        match self.list.remove(&region) {
            Some(_) => Ok(()),
            None => Err(Error::new(Status::BadHandle, format!("region {region} is not registered"))),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Memory)> {
        self.list.iter().map(|(i, own)| (*i, own.memory()))
    }

    pub fn contains(&self, region: u32) -> bool {
        self.list.contains_key(&region)
    }

    fn find(&self, region: u32) -> Option<&Own> {
        self.list.get(&region)
    }

    /// Checks one side of every span against our regions; returns the regions touched.
    pub fn check(&self, spans: &[Span], side: Side) -> Result<Vec<u32>> {
        check(spans, side, "our", |region| self.find(region).map(|own| own.memory().len() as u64))
    }
}

/// Checks one side of every span against region lengths; returns the regions touched, sorted.
pub(super) fn check(spans: &[Span], side: Side, whose: &str, length: impl Fn(u32) -> Option<u64>) -> Result<Vec<u32>> {
    let mut touched = Vec::new();
    let mut last: Option<(u32, u64)> = None;
    for s in spans {
        let (region, offset) = side.of(s);
        let len = match last {
            Some((r, len)) if r == region => len,
            _ => {
                let len = length(region).ok_or_else(|| {
                    let what = format!("{} region {region}, offset {offset}, length {}", side.name(), s.len);
                    Error::new(Status::BadHandle, format!("{what}: {whose} side has no such region"))
                })?;
                last = Some((region, len));
                if !touched.contains(&region) {
                    touched.push(region);
                }
                len
            }
        };
        if offset.checked_add(s.len).is_none_or(|end| end > len) {
            let what = format!("{} region {region}, offset {offset}, length {}", side.name(), s.len);
            return Err(Error::new(Status::InvalidArgument, format!("{what}: {whose} region has {len} bytes")));
        }
    }
    touched.sort_unstable();
    Ok(touched)
}

/// Bytes of all spans.
pub(super) fn total(spans: &[Span]) -> Result<u64> {
    spans
        .iter()
        .try_fold(0u64, |sum, s| sum.checked_add(s.len))
        .ok_or_else(|| Error::new(Status::InvalidArgument, format!("{} spans of more than 2^64 bytes", spans.len())))
}

/// Whether a staged stream is to be packed: only runs so short cost the kernel more than a second copy. Measured by
/// `benches/staging.rs`: packing wins by a quarter at 256 bytes and loses at 512.
pub(super) fn packing_pays(spans: &[Span], total: u64) -> bool {
    const SHORT: u64 = 384;
    total / SHORT < spans.len() as u64
}

/// A 64-bit order-sensitive hash of a span list: two sides that expanded different lists notice.
pub(super) fn digest(spans: &[Span]) -> u64 {
    let fold = |a: u64, b: u64| {
        let p = u128::from(a) * u128::from(b);
        p as u64 ^ (p >> 64) as u64
    };
    let mut h = 0x9E37_79B9_7F4A_7C15 ^ spans.len() as u64;
    for s in spans {
        // Neither product depends on the one before, so only the last step waits for it.
        let a = fold(s.src_offset ^ 0xA076_1D64_78BD_642F, s.dst_offset ^ 0xE703_7ED1_A0B4_28DB);
        let regions = u64::from(s.src_region) << 32 | u64::from(s.dst_region);
        let b = fold(s.len ^ 0x8EBC_6AF0_9C88_C6E3, regions ^ 0x5899_65CC_7537_4CC3);
        h = fold(h ^ a, b.rotate_left(17) ^ 0x1D8E_4E27_C47D_124F).wrapping_add(a ^ b.rotate_left(32)).rotate_left(11);
    }
    h
}

/// A piece of local memory on the side of the spans that it stands for.
pub(super) trait Piece: sys::Join {
    const SIDE: Side;
    fn at(own: &Own, offset: u64, len: u64) -> Option<Self>;
}

impl Piece for Source {
    const SIDE: Side = Side::Source;
    #[inline]
    fn at(own: &Own, offset: u64, len: u64) -> Option<Source> {
        own.source(offset, len)
    }
}

impl Piece for Target {
    const SIDE: Side = Side::Destination;
    #[inline]
    fn at(own: &Own, offset: u64, len: u64) -> Option<Target> {
        own.target(offset, len)
    }
}

/// Resolves spans to pieces; remembers the last region.
pub(super) struct Resolver<'a> {
    regions: &'a Regions,
    last: Option<(u32, &'a Own)>,
}

impl<'a> Resolver<'a> {
    pub fn new(regions: &'a Regions) -> Resolver<'a> {
        Resolver { regions, last: None }
    }

    /// Bytes `within..within + len` of a span. Spans were checked when their job was posted, and deregistration ends the
    /// jobs of a region: a failure here is a defect.
    #[inline]
    pub fn piece<P: Piece>(&mut self, span: &Span, within: u64, len: u64) -> Result<P> {
        let (region, offset) = P::SIDE.of(span);
        let own = match self.last {
            Some((r, own)) if r == region => Some(own),
            _ => self.regions.find(region),
        };
        let piece = own.and_then(|own| {
            self.last = Some((region, own));
            P::at(own, offset + within, len)
        });
        piece.ok_or_else(|| Error::new(Status::Internal, format!("a running job uses region {region}, which is gone")))
    }
}

/// A position in a list of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Index of the span.
    pub span: usize,
    /// Bytes of it that are behind us.
    pub within: u64,
}

impl Cursor {
    /// Moves on by so many bytes.
    pub fn advance(&mut self, spans: &[Span], mut bytes: u64) {
        while let Some(s) = spans.get(self.span) {
            let left = s.len - self.within;
            if bytes < left {
                self.within += bytes;
                return;
            }
            bytes -= left;
            self.span += 1;
            self.within = 0;
        }
    }

    /// Appends the pieces of the next `bytes` bytes, at most until the list has `most` pieces; returns their bytes.
    pub fn gather<P: Piece>(
        &self,
        spans: &[Span],
        regions: &Regions,
        bytes: u64,
        most: usize,
        list: &mut Vec<P>,
    ) -> Result<u64> {
        let mut resolver = Resolver::new(regions);
        let (mut left, mut within) = (bytes, self.within);
        for s in spans.get(self.span..).unwrap_or(&[]) {
            let len = (s.len - within).min(left);
            if len > 0 {
                if list.len() >= most {
                    break;
                }
                sys::push(list, resolver.piece(s, within, len)?);
                left -= len;
                if left == 0 {
                    break;
                }
            }
            within = 0;
        }
        Ok(bytes - left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(src: u64, dst: u64, len: u64) -> Span {
        Span { src_offset: src, dst_offset: dst, len, src_region: 1, dst_region: 2 }
    }

    #[test]
    fn a_span_outside_its_region_is_named_with_both_values() {
        let length = |r| (r == 1).then_some(100);
        assert_eq!(check(&[span(0, 0, 100)], Side::Source, "our", length).unwrap(), [1]);
        let e = check(&[span(90, 0, 11)], Side::Source, "the peer's", length).unwrap_err();
        assert_eq!(e.message(), "source region 1, offset 90, length 11: the peer's region has 100 bytes");
        assert!(check(&[span(u64::MAX, 0, 2)], Side::Source, "our", length).is_err());
        let e = check(&[span(0, 5, 1)], Side::Destination, "our", length).unwrap_err();
        assert_eq!(e.status(), Status::BadHandle);
        assert!(e.message().contains("region 2, offset 5, length 1"), "{e}");
    }

    #[test]
    fn the_digest_sees_order_and_every_field() {
        let a = [span(0, 0, 8), span(8, 16, 8), span(64, 32, 8)];
        let d = digest(&a);
        assert_eq!(d, digest(&a));
        let mut swapped = a;
        swapped.swap(0, 1);
        assert_ne!(d, digest(&swapped));
        for edit in [
            (|s: &mut Span| s.src_offset += 1) as fn(&mut Span),
            |s| s.dst_offset += 1,
            |s| s.len += 1,
            |s| s.src_region += 1,
            |s| s.dst_region += 1,
            |s| std::mem::swap(&mut s.src_offset, &mut s.dst_offset),
        ] {
            let mut other = a;
            edit(&mut other[1]);
            assert_ne!(d, digest(&other));
        }
        assert_ne!(digest(&[]), digest(&[span(0, 0, 0)]));
    }

    #[test]
    fn a_cursor_walks_over_empty_spans_and_merges_neighbours() {
        let mut bytes = vec![0u8; 64];
        let mut regions = Regions::default();
        regions.insert(1, &Memory::new(bytes.as_mut_ptr() as usize, bytes.len()).unwrap()).unwrap();
        let spans = [span(0, 0, 4), span(4, 0, 0), span(4, 0, 4), span(20, 0, 4)];
        let mut c = Cursor::default();
        let mut list: Vec<Source> = Vec::new();
        assert_eq!(c.gather(&spans, &regions, 100, 10, &mut list).unwrap(), 12);
        assert_eq!(list.len(), 2);
        c.advance(&spans, 6);
        assert_eq!(c, Cursor { span: 2, within: 2 });
        list.clear();
        assert_eq!(c.gather(&spans, &regions, 3, 10, &mut list).unwrap(), 3);
        c.advance(&spans, 6);
        assert_eq!(c, Cursor { span: 4, within: 0 });
    }
}
