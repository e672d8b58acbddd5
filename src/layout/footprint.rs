//! Exact questions about strided sets of bytes: extent, self-overlap, overlap with another set.

use super::Element;
use super::shape::{Group, GroupKind, Part};

/// `count` copies, `stride` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dim {
    pub count: u64,
    pub stride: u64,
}

/// The bytes `base + sum(i_k * stride_k) + 0..unit`, `i_k < count_k`. Dims are sorted by falling stride, none has
/// count 1, and neighbours that continue one another are merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strided {
    pub base: u64,
    pub dims: Vec<Dim>,
    pub unit: u64,
}

impl Strided {
    /// Normalises; `None` if a size overflows 64 bits.
    pub fn new(base: u64, unit: u64, dims: impl IntoIterator<Item = Dim>) -> Option<Strided> {
        let mut dims: Vec<Dim> = dims.into_iter().filter(|d| d.count != 1).collect();
        dims.sort_by_key(|d| std::cmp::Reverse(d.stride));
        let mut unit = unit;
        while let Some(last) = dims.last().copied() {
            if last.stride != unit || last.count == 0 {
                break;
            }
            unit = unit.checked_mul(last.count)?;
            dims.pop();
        }
        let out = Strided { base, dims, unit };
        out.extent()?;
        Some(out)
    }

    /// The whole part: all blocks, all tokens.
    pub fn of_part(part: &Part, group: &Group, element: Element) -> Option<Strided> {
        let mut dims = vec![Dim { count: u64::from(group.num_blocks), stride: part.block_stride }];
        dims.extend(Strided::block_dims(part, group)?);
        Strided::new(part.offset, u64::from(element.bytes), dims)
    }

    /// One block of the part, at its place for block id 0.
    pub fn of_block(part: &Part, group: &Group, element: Element) -> Option<Strided> {
        Strided::new(part.offset, u64::from(element.bytes), Strided::block_dims(part, group)?)
    }

    fn block_dims(part: &Part, group: &Group) -> Option<Vec<Dim>> {
        let mut dims = Vec::new();
        if group.kind != GroupKind::Slots {
            let tokens = u64::from(group.block_tokens);
            match part.tile {
                Some(tile) => {
                    let per_tile = u64::from(tile.tokens);
                    dims.push(Dim { count: tokens.checked_div(per_tile)?, stride: tile.stride });
                    dims.push(Dim { count: per_tile, stride: part.token_stride });
                }
                None => dims.push(Dim { count: tokens, stride: part.token_stride }),
            }
        }
        dims.extend(part.extents.iter().map(|e| Dim { count: e.len, stride: e.stride }));
        Some(dims)
    }

    /// Bytes from the first to one past the last; `None` on overflow.
    pub fn extent(&self) -> Option<u64> {
        let mut end = self.unit;
        for d in &self.dims {
            end = end.checked_add(d.count.saturating_sub(1).checked_mul(d.stride)?)?;
        }
        self.base.checked_add(end)?;
        Some(end)
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.extent().unwrap_or(u64::MAX))
    }

    /// Whether no byte is named twice: every stride clears everything below it. (Sufficient, and necessary for every
    /// layout whose inner box is dense.)
    pub fn injective(&self) -> bool {
        let mut below = self.unit;
        for d in self.dims.iter().rev() {
            if d.stride < below {
                return false;
            }
            below = below.saturating_add(d.count.saturating_sub(1).saturating_mul(d.stride));
        }
        true
    }

    /// Whether the two sets share a byte; `None` when the answer would take more than the steps that are left.
    pub fn overlaps(&self, other: &Strided, steps: &mut u32) -> Option<bool> {
        let delta = i128::from(self.base) - i128::from(other.base);
        overlap(self, &self.dims, other, &other.dims, delta, steps)
    }
}

/// Whether some stride tells the sets apart: modulo the stride each is one interval, and the intervals lie side by side.
/// Then no two of them share a byte; otherwise they may or may not.
pub(crate) fn apart(sets: &[&Strided]) -> bool {
    sets.first().is_some_and(|first| first.dims.iter().any(|d| apart_modulo(d.stride, sets)))
}

fn apart_modulo(modulus: u64, sets: &[&Strided]) -> bool {
    let interval = |s: &&Strided| {
        let inner = s.dims.iter().filter(|d| !d.stride.is_multiple_of(modulus)).copied().collect();
        let len = Strided { base: 0, dims: inner, unit: s.unit }.extent()?;
        (len <= modulus).then_some((s.base.checked_rem(modulus)?, len))
    };
    let Some(mut intervals) = sets.iter().map(interval).collect::<Option<Vec<(u64, u64)>>>() else { return false };
    intervals.sort_unstable();
    // After the last one comes the first again.
    let round = intervals.first().map(|(begin, _)| begin.saturating_add(modulus));
    let next = intervals.iter().skip(1).map(|(begin, _)| *begin).chain(round);
    intervals.iter().zip(next).all(|((begin, len), next)| begin.saturating_add(*len) <= next)
}

fn tail_extent(unit: u64, dims: &[Dim]) -> i128 {
    dims.iter().fold(i128::from(unit), |e, d| e + i128::from(d.count.saturating_sub(1)) * i128::from(d.stride))
}

/// Branch and bound over the dims of both sets, largest stride first; `delta` is where the first begins relative to the
/// second. Equal strides are one unknown, the index difference.
fn overlap(a: &Strided, da: &[Dim], b: &Strided, db: &[Dim], delta: i128, steps: &mut u32) -> Option<bool> {
    *steps = steps.checked_sub(1)?;
    let (ea, eb) = (tail_extent(a.unit, da), tail_extent(b.unit, db));
    if delta >= eb || delta + ea <= 0 {
        return Some(false);
    }
    let (head_a, head_b) = (da.first(), db.first());
    match (head_a, head_b) {
        (None, None) => Some(true),
        (Some(x), Some(y)) if x.stride == y.stride => {
            let (ra, rb) = (da.get(1..).unwrap_or(&[]), db.get(1..).unwrap_or(&[]));
            let low = 1 - i128::from(y.count);
            let high = i128::from(x.count) - 1;
            search(low, high, x.stride, delta, tail_extent(a.unit, ra), tail_extent(b.unit, rb), |d| {
                overlap(a, ra, b, rb, d, steps)
            })
        }
        (Some(x), y) if y.is_none_or(|y| x.stride > y.stride) => {
            let ra = da.get(1..).unwrap_or(&[]);
            search(0, i128::from(x.count) - 1, x.stride, delta, tail_extent(a.unit, ra), eb, |d| {
                overlap(a, ra, b, db, d, steps)
            })
        }
        (_, Some(y)) => {
            let rb = db.get(1..).unwrap_or(&[]);
            search(1 - i128::from(y.count), 0, y.stride, delta, ea, tail_extent(b.unit, rb), |d| {
                overlap(a, da, b, rb, d, steps)
            })
        }
        (Some(_), None) => None,
    }
}

/// Tries every multiple `k` in `low..=high` for which the remaining intervals can meet.
fn search(
    low: i128,
    high: i128,
    stride: u64,
    delta: i128,
    ea: i128,
    eb: i128,
    mut test: impl FnMut(i128) -> Option<bool>,
) -> Option<bool> {
    let s = i128::from(stride.max(1));
    // delta + k s < eb  and  delta + k s + ea > 0
    let first = low.max((-ea - delta).div_euclid(s) + 1);
    let last = high.min((eb - delta - 1).div_euclid(s));
    let mut k = first;
    while k <= last {
        if test(delta + k * s)? {
            return Some(true);
        }
        k += 1;
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn bytes(s: &Strided) -> Vec<u64> {
        let mut out = vec![s.base];
        for d in &s.dims {
            out = out.iter().flat_map(|b| (0..d.count).map(move |i| b + i * d.stride)).collect();
        }
        out.iter().flat_map(|b| (0..s.unit).map(move |i| b + i)).collect()
    }

    fn strided() -> impl Strategy<Value = Strided> {
        (0u64..40, 1u64..4, proptest::collection::vec((1u64..4, 1u64..20), 0..4)).prop_map(|(b, u, d)| {
            Strided::new(b, u, d.into_iter().map(|(count, stride)| Dim { count, stride })).unwrap()
        })
    }

    proptest! {
        #[test]
        fn overlap_agrees_with_enumeration(a in strided(), b in strided()) {
            let set: HashSet<u64> = bytes(&a).into_iter().collect();
            let expected = bytes(&b).iter().any(|x| set.contains(x));
            prop_assert_eq!(a.overlaps(&b, &mut 10_000), Some(expected));
        }

        #[test]
        fn sets_that_are_apart_share_no_byte(sets in proptest::collection::vec(strided(), 2..4)) {
            let all: Vec<HashSet<u64>> = sets.iter().map(|s| bytes(s).into_iter().collect()).collect();
            let shared = (1..all.len()).any(|i| all[..i].iter().any(|a| !a.is_disjoint(&all[i])));
            prop_assert!(!shared || !apart(&sets.iter().collect::<Vec<_>>()));
        }

        #[test]
        fn injective_sets_name_no_byte_twice(a in strided()) {
            let all = bytes(&a);
            let distinct: HashSet<u64> = all.iter().copied().collect();
            prop_assert!(!a.injective() || distinct.len() == all.len());
            prop_assert_eq!(all.iter().max().unwrap() + 1, a.end());
        }
    }
}
