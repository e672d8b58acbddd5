//! Turns the choice of sources into templates: one per source part, each cut proven as it is made.

use super::assign::{Choice, Gap, Held, Scene};
use super::boxes::Cell;
use super::fold::{Loops, Step};
use super::plan::{Cut, Shape, Template};
use super::segment::{Segment, Segments, TokenMap};
use super::shape::Part;
use super::{limit, proof};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

type Chosen<'a> = Vec<(Vec<&'a Segment>, Vec<Choice>)>;

/// The templates of one destination part, with the source rank and part of each.
pub(crate) fn build(
    scene: &Scene<'_>,
    me: Held<'_>,
    part: &Part,
    segments: &Segments,
    forms: &[TokenMap],
    chosen: Chosen<'_>,
) -> Result<Vec<(u32, u32, Template)>, Gap> {
    let overflow = || ("size".to_string(), "offsets overflow 64 bits".to_string(), String::new());
    let mut out: Vec<(u32, u32, Template)> = Vec::new();
    let mut places: HashMap<(u32, u32), usize> = HashMap::new();
    let (mut owned, mut cuts) = (0u64, 0usize);
    let map = TokenMap::of(me.group, part);
    for (list, choices) in chosen {
        owned = list.iter().fold(owned, |n, s| n.saturating_add(s.tokens));
        for choice in choices {
            let held = scene.source(choice.rank).ok_or_else(overflow)?;
            let source = held.tensor.parts.get(choice.part as usize).ok_or_else(overflow)?;
            let form = TokenMap::of(held.group, source).form();
            let form_index = forms.iter().position(|f| *f == form).ok_or_else(overflow)?;
            let at = match places.entry((choice.rank, choice.part)) {
                Entry::Occupied(at) => *at.get(),
                Entry::Vacant(place) => {
                    let template = Template {
                        slots: map.slots,
                        period: segments.period,
                        src_blocks: form.blocks(segments.period).ok_or_else(overflow)?,
                        dst_blocks: map.blocks(segments.period).ok_or_else(overflow)?,
                        cuts: Vec::new(),
                        shapes: Vec::new(),
                        loops: Vec::new(),
                    };
                    out.push((choice.rank, choice.part, template));
                    *place.insert(out.len() - 1)
                }
            };
            let Some((_, _, template)) = out.get_mut(at) else { return Err(overflow()) };
            let shape = shape(&choice.cell, source, part, u64::from(me.tensor.element.bytes));
            let shape_index = intern(&mut template.shapes, shape.clone());
            for s in &list {
                let src = s.src.get(form_index).ok_or_else(overflow)?;
                let loops: Loops = shape.fold(s.tokens, 1, (0, 0));
                let cut = Cut {
                    token: s.token,
                    tokens: s.tokens,
                    src_block: src.block,
                    dst_block: s.dst.block,
                    src_offset: offset(source, src.token, &choice.cell).ok_or_else(overflow)?,
                    dst_offset: offset(part, s.dst.token, &choice.cell).ok_or_else(overflow)?,
                    shape: shape_index,
                    loops: intern(&mut template.loops, loops),
                };
                proof::cut(&cut, &shape, &choice.cell, (source, form), (part, map))
                    .map_err(|e| ("proof".to_string(), e, String::new()))?;
                template.cuts.push(cut);
            }
            cuts = cuts.saturating_add(list.len());
            if cuts > limit::SEGMENTS {
                return Err(("cuts per period".to_string(), limit::SEGMENTS.to_string(), cuts.to_string()));
            }
        }
    }
    proof::tokens(owned, segments, map).map_err(|e| ("proof".to_string(), e, String::new()))?;
    for (_, _, template) in &mut out {
        template.cuts.sort_by_key(|c| (c.token, c.dst_offset));
    }
    Ok(out)
}

fn intern<T: PartialEq>(list: &mut Vec<T>, item: T) -> u32 {
    match list.iter().position(|x| *x == item) {
        Some(i) => i as u32,
        None => {
            list.push(item);
            (list.len() - 1) as u32
        }
    }
}

fn shape(cell: &Cell, src: &Part, dst: &Part, unit: u64) -> Shape {
    let axes = cell.iter().zip(src.extents.iter().zip(&dst.extents));
    Shape {
        unit,
        axes: axes.map(|((_, len), (s, d))| Step { count: *len, src: s.stride, dst: d.stride }).collect(),
        token: (src.token_stride, dst.token_stride),
    }
}

/// Bytes from the start of a block of the part to (local token, first index of the cell).
fn offset(part: &Part, token: u64, cell: &Cell) -> Option<u64> {
    let mut at = match part.tile {
        Some(tile) => {
            let per = u64::from(tile.tokens);
            let whole = token.checked_div(per)?.checked_mul(tile.stride)?;
            whole.checked_add(token.checked_rem(per)?.checked_mul(part.token_stride)?)?
        }
        None => token.checked_mul(part.token_stride)?,
    };
    for ((begin, _), e) in cell.iter().zip(&part.extents) {
        at = at.checked_add(begin.checked_sub(e.begin)?.checked_mul(e.stride)?)?;
    }
    Some(at)
}
