//! The proof that a plan is right, checked on intervals before a plan exists.
//!
//! - *coverage* and *uniqueness*: along the token axis the segments partition the tokens that the destination owns; along
//!   the other axes the cells partition the destination's box ([`tokens`], [`partition`]).
//! - *identity*: a cut is an affine map from logical coordinates to bytes on either side. It is evaluated at its origin and
//!   one step along each dimension with the layouts' own address formula ([`address`]); two affine maps that agree there
//!   agree everywhere ([`cut`]).
//! - *containment*: every coordinate of a cut lies inside both parts, and a valid layout keeps its parts inside their
//!   regions ([`cut`]).

use super::assign::Choice;
use super::boxes::{Cell, interval, meet, widest};
use super::plan::{Cut, Shape};
use super::segment::{Segments, TokenMap};
use super::shape::Part;

/// The segments, all owned by the destination, are disjoint, in order, and as many as it owns in one period.
pub(crate) fn tokens(assigned: u64, segments: &Segments, map: TokenMap) -> Result<(), String> {
    let mut end = 0;
    let mut total = 0u64;
    for s in &segments.list {
        if s.token < end {
            return Err(format!("token {} is written twice", s.token));
        }
        if map.place(s.token).map(|p| p.owner) != Some(map.context.rank) {
            return Err(format!("token {} does not belong to the destination", s.token));
        }
        end = s.token.saturating_add(s.tokens);
        total = total.saturating_add(s.tokens);
    }
    let owned = segments.period.checked_div(u64::from(map.context.size)).unwrap_or(0);
    if total != owned || assigned != owned || end > segments.period {
        return Err(format!("{assigned} of {owned} tokens of one period are covered"));
    }
    Ok(())
}

/// The cells are pairwise disjoint, inside the bounds, and fill them.
pub(crate) fn partition(bounds: &Cell, choices: &[Choice]) -> Result<(), String> {
    let volume = |c: &Cell| c.iter().fold(1u128, |v, (_, n)| v.saturating_mul(u128::from(*n)));
    let axis = widest(choices.iter().map(|c| &c.cell));
    let mut cells: Vec<&Cell> = choices.iter().map(|c| &c.cell).collect();
    cells.sort_by_key(|c| interval(c, axis));
    let mut total = 0u128;
    for (i, a) in cells.iter().enumerate() {
        let inside =
            a.len() == bounds.len() && a.iter().zip(bounds).all(|((b, n), (bb, bn))| bb <= b && b + n <= bb + bn);
        if !inside {
            return Err(format!("cell {a:?} leaves {bounds:?}"));
        }
        let (_, end) = interval(a, axis);
        let later = cells.get(i + 1..).unwrap_or(&[]).iter().take_while(|b| interval(b, axis).0 < end);
        for b in later {
            if meet(a, b) {
                return Err(format!("cells {b:?} and {a:?} overlap"));
            }
        }
        total = total.saturating_add(volume(a));
    }
    if total != volume(bounds) {
        return Err(format!("{total} of {} elements of {bounds:?} are covered", volume(bounds)));
    }
    Ok(())
}

/// Identity and containment of one cut.
pub(crate) fn cut(
    cut: &Cut,
    shape: &Shape,
    cell: &Cell,
    src: (&Part, TokenMap),
    dst: (&Part, TokenMap),
) -> Result<(), String> {
    let first: Vec<u64> = cell.iter().map(|(b, _)| *b).collect();
    let last: Vec<u64> = cell.iter().map(|(b, n)| b.saturating_add(n.saturating_sub(1))).collect();
    let last_token = cut.token.saturating_add(cut.tokens.saturating_sub(1));
    for (side, (part, map), block, offset, token_step) in [
        ("source", src, cut.src_block, cut.src_offset, shape.token.0),
        ("destination", dst, cut.dst_block, cut.dst_offset, shape.token.1),
    ] {
        let at = |t: u64, coordinates: &[u64]| -> Result<(u64, u64), String> {
            address(part, map, t, coordinates)
                .ok_or_else(|| format!("{side}: token {t}, indices {coordinates:?} lie outside the part"))
        };
        let expect = |got: (u64, u64), want: Option<u64>, what: &str| {
            if Some(got) == want.map(|w| (block, w)) {
                return Ok(());
            }
            Err(format!(
                "{side}: {what} is at block {}, byte {}, the plan says block {block}, byte {want:?}",
                got.0, got.1
            ))
        };
        expect(at(cut.token, &first)?, Some(offset), "the first element")?;
        at(last_token, &last)?;
        if cut.tokens > 1 {
            expect(at(cut.token + 1, &first)?, offset.checked_add(token_step), "the second token")?;
            let span = token_step.checked_mul(cut.tokens - 1).and_then(|s| offset.checked_add(s));
            expect(at(last_token, &first)?, span, "the last token")?;
        }
        for (i, ((_, n), step)) in cell.iter().zip(&shape.axes).enumerate() {
            if *n < 2 {
                continue;
            }
            let mut next = first.clone();
            if let Some(x) = next.get_mut(i) {
                *x = x.saturating_add(1);
            }
            let stride = if side == "source" { step.src } else { step.dst };
            expect(at(cut.token, &next)?, offset.checked_add(stride), "the neighbour along an axis")?;
        }
    }
    Ok(())
}

/// Where the layout itself says that an element is: (local block position, byte within the block). `None` outside the
/// part. Written from the definition of [`Part`], independent of how plans are built.
fn address(part: &Part, map: TokenMap, token: u64, indices: &[u64]) -> Option<(u64, u64)> {
    let place = map.place(token)?;
    let (tile, in_tile) = (place.token.checked_div(map.tile)?, place.token.checked_rem(map.tile)?);
    let mut byte = tile.checked_mul(part.tile.map_or(0, |t| t.stride))?;
    byte = byte.checked_add(in_tile.checked_mul(part.token_stride)?)?;
    for (i, e) in indices.iter().zip(&part.extents) {
        if *i < e.begin || *i >= e.end() {
            return None;
        }
        byte = byte.checked_add((i - e.begin).checked_mul(e.stride)?)?;
    }
    Some((place.block, byte))
}
