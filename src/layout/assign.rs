//! Chooses, for every byte of one destination tensor, the one source rank that it comes from.
//!
//! The destination's part is cut along every axis at the boundaries of the source parts that meet it. Each cell lies in a
//! known set of source ranks (its replicas) and is wanted by a known set of destination ranks; the `w`-th of `W` wanting
//! ranks takes it from the `w * H / W`-th of `H` holding ranks. That is a pure function of the two instances, so both
//! sides compute the same, and replicas share the load.

use super::fold::{Loops, Step};
use super::plan::{Cut, Shape, Template};
use super::segment::{Segment, Segments, TokenMap, segments};
use super::shape::{Extent, Group, Matching, Part, Tensor};
use super::{limit, proof};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tensor as some rank holds it.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    pub tensor: &'a Tensor,
    pub group: &'a Group,
}

/// The copy between one source part and one destination part.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub src_rank: u32,
    pub src_part: u32,
    pub dst_part: u32,
    pub template: Arc<Template>,
}

/// Why no assignment exists: (field, destination's value, source's value).
pub(crate) type Gap = (String, String, String);

/// A box of the logical space: one interval per axis.
pub(crate) type Cell = Vec<(u64, u64)>;

/// A cell, the candidate it comes from and the segments it covers.
pub(crate) struct Choice {
    pub cell: Cell,
    pub rank: u32,
    pub part: u32,
}

struct Candidate<'a> {
    rank: u32,
    index: u32,
    part: &'a Part,
    form: usize,
    context_rank: u32,
}

/// Everything the choice for one destination part needs.
struct Scene<'a> {
    tensor: &'a Tensor,
    bounds: Cell,
    candidates: Vec<Candidate<'a>>,
    wanting: Vec<(u32, &'a Tensor)>,
    own: u32,
}

pub(crate) fn assign(own: usize, srcs: &[Option<Held<'_>>], dsts: &[Option<Held<'_>>]) -> Result<Vec<Piece>, Vec<Gap>> {
    let Some(me) = dsts.get(own).copied().flatten() else { return Ok(Vec::new()) };
    let mut pieces = Vec::new();
    let mut gaps = Vec::new();
    for (index, part) in me.tensor.parts.iter().enumerate() {
        match assign_part(own, me, part, srcs, dsts) {
            Ok(found) => pieces.extend(found.into_iter().map(|(src_rank, src_part, template)| Piece {
                src_rank,
                src_part,
                dst_part: index as u32,
                template: Arc::new(template),
            })),
            Err(gap) => gaps.push(gap),
        }
    }
    if gaps.is_empty() { Ok(pieces) } else { Err(gaps) }
}

/// The source ranks that destination rank `own` reads, without building its templates.
pub(crate) fn sources(own: usize, srcs: &[Option<Held<'_>>], dsts: &[Option<Held<'_>>]) -> Vec<u32> {
    let Some(me) = dsts.get(own).copied().flatten() else { return Vec::new() };
    let mut ranks = Vec::new();
    for part in &me.tensor.parts {
        let Ok(Some((scene, forms))) = scene(own, me, part, srcs, dsts) else { continue };
        let Some(segments) = segments(TokenMap::of(me.group, part), &forms) else { continue };
        for owners in by_owner(&segments).keys() {
            ranks.extend(scene.choose(owners).into_iter().flatten().map(|c| c.rank));
        }
    }
    ranks
}

/// Segments by the context-parallel ranks that own them on the source's side, one per form.
fn by_owner(segments: &Segments) -> BTreeMap<Vec<u32>, Vec<&Segment>> {
    let mut out: BTreeMap<Vec<u32>, Vec<&Segment>> = BTreeMap::new();
    for s in &segments.list {
        out.entry(s.src.iter().map(|p| p.owner).collect()).or_default().push(s);
    }
    out
}

/// What the choice needs, and the forms of the sources' token maps; `None` if there is nothing to copy.
fn scene<'a>(
    own: usize,
    me: Held<'a>,
    part: &Part,
    srcs: &[Option<Held<'a>>],
    dsts: &[Option<Held<'a>>],
) -> Result<Option<(Scene<'a>, Vec<TokenMap>)>, Gap> {
    let bounds = common_bounds(me.tensor, part, srcs);
    if bounds.iter().any(|(_, len)| *len == 0) {
        return Ok(None);
    }
    let mut forms = Vec::new();
    let mut candidates = Vec::new();
    for (rank, held) in srcs.iter().enumerate() {
        let Some(held) = held else { continue };
        for (index, p) in held.tensor.parts.iter().enumerate() {
            if !bounds.iter().zip(&p.extents).all(|((b, n), e)| e.begin < b + n && *b < e.end()) {
                continue;
            }
            let map = TokenMap::of(held.group, p);
            let form = forms.iter().position(|f| *f == map.form()).unwrap_or_else(|| {
                forms.push(map.form());
                forms.len() - 1
            });
            let (rank, index) = (rank as u32, index as u32);
            candidates.push(Candidate { rank, index, part: p, form, context_rank: map.context.rank });
        }
    }
    if candidates.is_empty() {
        return Err(gap(me.tensor, &bounds, "held by no source rank"));
    }
    let wanting = dsts
        .iter()
        .enumerate()
        .filter_map(|(i, h)| h.filter(|h| h.group.context == me.group.context).map(|h| (i as u32, h.tensor)))
        .collect();
    Ok(Some((Scene { tensor: me.tensor, bounds, candidates, wanting, own: own as u32 }, forms)))
}

fn assign_part(
    own: usize,
    me: Held<'_>,
    part: &Part,
    srcs: &[Option<Held<'_>>],
    dsts: &[Option<Held<'_>>],
) -> Result<Vec<(u32, u32, Template)>, Gap> {
    let Some((scene, forms)) = scene(own, me, part, srcs, dsts)? else { return Ok(Vec::new()) };
    let map = TokenMap::of(me.group, part);
    let Some(segments) = segments(map, &forms) else {
        let sizes = forms.iter().map(|f| f.block.to_string()).collect::<Vec<_>>().join(", ");
        let why = format!("block sizes whose common period falls into at most {} pieces", limit::SEGMENTS);
        return Err((why, map.block.to_string(), sizes));
    };
    let mut chosen = Vec::new();
    for (owners, list) in by_owner(&segments) {
        let choices = scene.choose(&owners)?;
        proof::partition(&scene.bounds, &choices).map_err(|e| ("proof".to_string(), e, String::new()))?;
        chosen.push((list, choices));
    }
    build(&scene, me, part, &segments, &forms, chosen)
}

/// The destination's box, cut to what both sides have along axes that need not agree.
fn common_bounds(tensor: &Tensor, part: &Part, srcs: &[Option<Held<'_>>]) -> Cell {
    let mut bounds = Vec::with_capacity(part.extents.len());
    for (i, (axis, e)) in tensor.axes.iter().zip(&part.extents).enumerate() {
        let mut end = e.end();
        if axis.matching == Matching::Common {
            let theirs = srcs.iter().flatten().filter_map(|h| h.tensor.axes.get(i)).map(|a| a.extent).min();
            end = end.min(theirs.unwrap_or(end));
        }
        bounds.push((e.begin, end.saturating_sub(e.begin)));
    }
    bounds
}

fn gap(tensor: &Tensor, cell: &Cell, why: &str) -> Gap {
    let text = tensor
        .axes
        .iter()
        .zip(cell)
        .map(|(a, (b, n))| format!("{} [{b}, {})", a.name, b + n))
        .collect::<Vec<_>>()
        .join(" x ");
    ("coverage".to_string(), if text.is_empty() { "all of it".to_string() } else { text }, why.to_string())
}

impl Scene<'_> {
    /// A partition of the bounds into cells with one source each, for the segments with these owners.
    fn choose(&self, owners: &[u32]) -> Result<Vec<Choice>, Gap> {
        let holders: Vec<&Candidate<'_>> =
            self.candidates.iter().filter(|c| owners.get(c.form) == Some(&c.context_rank)).collect();
        let mut choices: Vec<Choice> = Vec::new();
        let Some(cells) = grid(&self.bounds, &holders) else {
            let bound = format!("at most {} cells", limit::CELLS);
            return Err(("cells".to_string(), bound, format!("{} parts cut finer", holders.len())));
        };
        for cell in cells {
            let inside = |extents: &[Extent]| {
                cell.iter().zip(extents).all(|((b, n), e)| e.begin <= *b && b.saturating_add(*n) <= e.end())
            };
            let have: Vec<&&Candidate<'_>> = holders.iter().filter(|c| inside(&c.part.extents)).collect();
            let begins = |e: &[Extent]| cell.iter().zip(e).all(|((b, _), e)| e.begin <= *b && *b < e.end());
            let want = self.wanting.iter().filter(|(_, t)| t.parts.iter().any(|p| begins(&p.extents)));
            let (mut position, mut wanted) = (0usize, 0usize);
            for (rank, _) in want {
                if *rank < self.own {
                    position += 1;
                }
                wanted += 1;
            }
            let pick = (position * have.len()).checked_div(wanted.max(1)).and_then(|i| have.get(i));
            match pick {
                Some(c) => choices.push(Choice { cell, rank: c.rank, part: c.index }),
                None => return Err(gap(self.tensor, &cell, "held by no source rank")),
            }
        }
        merge(&mut choices, self.bounds.len());
        Ok(choices)
    }
}

/// All cells of the bounds, cut at the boundaries of the holders; `None` beyond [`limit::CELLS`].
fn grid(bounds: &Cell, holders: &[&Candidate<'_>]) -> Option<Vec<Cell>> {
    let mut cells: Vec<Cell> = vec![Vec::new()];
    for (axis, (begin, len)) in bounds.iter().enumerate() {
        let end = begin.saturating_add(*len);
        let mut cuts: Vec<u64> = holders
            .iter()
            .filter_map(|c| c.part.extents.get(axis))
            .flat_map(|e| [e.begin, e.end()])
            .filter(|c| c > begin && *c < end)
            .chain([*begin, end])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let intervals: Vec<(u64, u64)> =
            cuts.iter().zip(cuts.iter().skip(1)).map(|(a, b)| (*a, b.saturating_sub(*a))).collect();
        if cells.len().saturating_mul(intervals.len()) > limit::CELLS {
            return None;
        }
        cells = cells
            .iter()
            .flat_map(|cell| intervals.iter().map(move |i| cell.iter().copied().chain([*i]).collect()))
            .collect();
    }
    Some(cells)
}

/// Joins neighbouring cells with the same source.
fn merge(choices: &mut Vec<Choice>, axes: usize) {
    for axis in (0..axes).rev() {
        let rest = |c: &Choice| {
            let others: Cell = c.cell.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, x)| *x).collect();
            (c.rank, c.part, others, c.cell.get(axis).map(|x| x.0))
        };
        choices.sort_by_cached_key(rest);
        let mut out: Vec<Choice> = Vec::with_capacity(choices.len());
        for c in choices.drain(..) {
            if let Some(last) = out.last_mut() {
                let (same, joins) = {
                    let (a, b) = (rest(last), rest(&c));
                    let edge = last.cell.get(axis).map(|(b, n)| b.saturating_add(*n));
                    ((a.0, a.1, a.2) == (b.0, b.1, b.2), edge == b.3)
                };
                if let (true, true, Some(l), Some(x)) = (same, joins, last.cell.get_mut(axis), c.cell.get(axis)) {
                    l.1 = l.1.saturating_add(x.1);
                    continue;
                }
            }
            out.push(c);
        }
        *choices = out;
    }
}

type Chosen<'a> = Vec<(Vec<&'a Segment>, Vec<Choice>)>;

/// Turns cells and segments into one template per source part, each cut proven as it is made.
fn build(
    scene: &Scene<'_>,
    me: Held<'_>,
    part: &Part,
    segments: &Segments,
    forms: &[TokenMap],
    chosen: Chosen<'_>,
) -> Result<Vec<(u32, u32, Template)>, Gap> {
    let overflow = || ("size".to_string(), "offsets overflow 64 bits".to_string(), String::new());
    let mut out: Vec<(u32, u32, Template)> = Vec::new();
    let (mut owned, mut cuts) = (0u64, 0usize);
    let map = TokenMap::of(me.group, part);
    for (list, choices) in chosen {
        owned = list.iter().fold(owned, |n, s| n.saturating_add(s.tokens));
        for choice in choices {
            let candidate = scene.candidates.iter().find(|c| (c.rank, c.index) == (choice.rank, choice.part));
            let Some(c) = candidate else { return Err(overflow()) };
            let form = forms.get(c.form).copied().ok_or_else(overflow)?;
            let at = match out.iter().position(|(r, p, _)| (*r, *p) == (choice.rank, choice.part)) {
                Some(at) => at,
                None => {
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
                    out.len() - 1
                }
            };
            let Some((_, _, template)) = out.get_mut(at) else { return Err(overflow()) };
            let shape = shape(&choice.cell, c.part, part, u64::from(me.tensor.element.bytes));
            let shape_index = intern(&mut template.shapes, shape.clone());
            for s in &list {
                let src = s.src.get(c.form).ok_or_else(overflow)?;
                let loops: Loops = shape.fold(s.tokens, 1, (0, 0));
                let cut = Cut {
                    token: s.token,
                    tokens: s.tokens,
                    src_block: src.block,
                    dst_block: s.dst.block,
                    src_offset: offset(c.part, src.token, &choice.cell).ok_or_else(overflow)?,
                    dst_offset: offset(part, s.dst.token, &choice.cell).ok_or_else(overflow)?,
                    shape: shape_index,
                    loops: intern(&mut template.loops, loops),
                };
                proof::cut(&cut, &shape, &choice.cell, (c.part, form), (part, map))
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
