//! The token axis of a pair: cut into segments on which both sides are linear.

use super::limit;
use super::shape::{ContextParallel, Group, GroupKind, Part};
use std::collections::BTreeSet;

/// Where a global token lives on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenMap {
    pub slots: bool,
    pub block: u64,
    pub tile: u64,
    pub context: ContextParallel,
}

/// A token's place on the rank that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Context-parallel rank that owns it.
    pub owner: u32,
    /// Local block position.
    pub block: u64,
    /// Token within the block.
    pub token: u64,
}

impl TokenMap {
    pub fn of(group: &Group, part: &Part) -> TokenMap {
        let block = u64::from(group.block_tokens.max(1));
        TokenMap {
            slots: group.kind == GroupKind::Slots,
            block,
            tile: match part.tile {
                // Tiles that follow one another without a gap are no tiles.
                Some(t) if u64::from(t.tokens).checked_mul(part.token_stride) != Some(t.stride) => {
                    u64::from(t.tokens.max(1))
                }
                _ => block,
            },
            context: group.context,
        }
    }

    /// The same map whatever the rank.
    pub fn form(self) -> TokenMap {
        TokenMap { context: ContextParallel { rank: 0, ..self.context }, ..self }
    }

    /// Global tokens after which the map repeats, shifted by [`TokenMap::blocks`] blocks.
    pub fn period(&self) -> Option<u64> {
        let size = u64::from(self.context.size);
        if size == 1 {
            return Some(self.block);
        }
        lcm(u64::from(self.context.interleave), self.block)?.checked_mul(size)
    }

    /// Local blocks in `tokens` global tokens, which is a multiple of the period.
    pub fn blocks(&self, tokens: u64) -> Option<u64> {
        tokens.checked_div(u64::from(self.context.size))?.checked_div(self.block)
    }

    /// Where global token `t` lives.
    pub fn place(&self, t: u64) -> Option<Place> {
        let (size, il) = (u64::from(self.context.size), u64::from(self.context.interleave));
        let chunk = t.checked_div(il)?;
        let owner = chunk.checked_rem(size)?;
        let local = chunk.checked_div(size)?.checked_mul(il)?.checked_add(t.checked_rem(il)?)?;
        Some(Place {
            owner: u32::try_from(owner).ok()?,
            block: local.checked_div(self.block)?,
            token: local.checked_rem(self.block)?,
        })
    }

    /// First token after `t` at which the map stops being linear.
    fn next(&self, t: u64, place: Place) -> Option<u64> {
        let in_tile = self.tile.checked_sub(place.token.checked_rem(self.tile)?)?;
        let linear = t.checked_add(in_tile)?;
        if self.context.size == 1 {
            return Some(linear);
        }
        let il = u64::from(self.context.interleave);
        let chunk_end = t.checked_sub(t.checked_rem(il)?)?.checked_add(il)?;
        Some(linear.min(chunk_end))
    }
}

/// A run of global tokens on which the destination and every source form are linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub token: u64,
    pub tokens: u64,
    pub dst: Place,
    /// One place per source form.
    pub src: Vec<Place>,
}

/// The segments of one period that the destination owns.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    pub period: u64,
    pub list: Vec<Segment>,
}

pub(crate) fn lcm(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x.checked_rem(y)?);
    }
    a.checked_div(x)?.checked_mul(b)
}

/// Cuts one period. `None` if the period overflows or falls into more than [`limit::SEGMENTS`] pieces.
pub(crate) fn segments(dst: TokenMap, forms: &[TokenMap]) -> Option<Segments> {
    let mut period = dst.period()?;
    for f in forms {
        period = lcm(period, f.period()?)?;
    }
    let mut list = Vec::new();
    let mut t = 0;
    let mut steps = 0usize;
    while t < period {
        steps = steps.saturating_add(forms.len().max(1));
        if steps > limit::SEGMENTS {
            return None;
        }
        let here = dst.place(t)?;
        let mut next = dst.next(t, here)?.min(period);
        if here.owner == dst.context.rank {
            let mut src = Vec::with_capacity(forms.len());
            for f in forms {
                let place = f.place(t)?;
                next = next.min(f.next(t, place)?);
                src.push(place);
            }
            list.push(Segment { token: t, tokens: next.checked_sub(t)?, dst: here, src });
        }
        t = next;
    }
    Some(Segments { period, list })
}

/// The context-parallel ranks that own the same tokens: one of the destination's, and one of every source form. `None`
/// only where no rank of the destination has [`segments`].
pub(crate) fn owners(dst: TokenMap, forms: &[TokenMap]) -> Option<BTreeSet<(u32, Vec<u32>)>> {
    let maps = std::iter::once(&dst).chain(forms);
    let spread: Vec<ContextParallel> = maps.map(|m| m.context).filter(|c| c.size > 1).collect();
    let mut period = 1;
    for c in &spread {
        period = lcm(period, u64::from(c.interleave).checked_mul(u64::from(c.size))?)?;
    }
    let mut out = BTreeSet::new();
    let (mut t, mut steps) = (0u64, 0usize);
    while t < period {
        steps = steps.saturating_add(1);
        if steps > limit::SEGMENTS.saturating_mul(dst.context.size as usize) {
            return None;
        }
        let owner = |m: &TokenMap| m.place(t).map(|p| p.owner);
        out.insert((owner(&dst)?, forms.iter().map(owner).collect::<Option<Vec<u32>>>()?));
        let ends = spread.iter().map(|c| {
            let chunk = u64::from(c.interleave);
            t.checked_sub(t.checked_rem(chunk)?)?.checked_add(chunk)
        });
        t = ends.min().unwrap_or(Some(period))?;
    }
    Some(out)
}
