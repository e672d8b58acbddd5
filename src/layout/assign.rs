//! Chooses, for every byte of one destination tensor, the one source rank that it comes from.
//!
//! The destination's part is cut along every axis at the boundaries of the source parts that meet it. Each cell lies in a
//! known set of source ranks (its replicas) and is wanted by a known set of destination ranks; the `w`-th of `W` wanting
//! ranks takes it from the `w * H / W`-th of `H` holding ranks. That is a pure function of the two instances, so both
//! sides compute the same, and replicas share the load.
//!
//! Ranks of equal shards are one box with a set of ranks, so that neither a choice nor the count of a source's readers
//! looks at every rank of an instance.

use super::boxes::{Boxes, Cell, cell, index, meet, parts};
use super::plan::Template;
use super::ranks::RankSet;
use super::segment::{Segment, Segments, TokenMap, owners, segments};
use super::shape::{ContextParallel, Group, Matching, Part, Tensor};
use super::template::build;
use super::{limit, proof};
use std::collections::{BTreeMap, HashMap};
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

/// A cell and the source part that it comes from.
pub(crate) struct Choice {
    pub cell: Cell,
    pub rank: u32,
    pub part: u32,
}

/// One tensor on all ranks of both sides.
pub(crate) struct Scene<'a> {
    srcs: Vec<Option<Held<'a>>>,
    dsts: Vec<Option<Held<'a>>>,
    /// Indices along every axis that all sources know.
    common: Vec<u64>,
    /// The sources' boxes by the form of their token map, and by the map itself.
    forms: HashMap<TokenMap, Boxes>,
    holding: HashMap<TokenMap, Boxes>,
    /// The destinations' boxes by their share of the token axis.
    wanting: HashMap<ContextParallel, Boxes>,
}

impl<'a> Scene<'a> {
    /// Both sides by rank.
    pub fn new(srcs: Vec<Option<Held<'a>>>, dsts: Vec<Option<Held<'a>>>) -> Scene<'a> {
        let mut common: Vec<u64> = Vec::new();
        for held in srcs.iter().flatten() {
            for (i, axis) in held.tensor.axes.iter().enumerate() {
                match common.get_mut(i) {
                    Some(n) => *n = axis.extent.min(*n),
                    None => common.push(axis.extent),
                }
            }
        }
        let (forms, holding) = (index(&srcs, TokenMap::form), index(&srcs, |map| map));
        let wanting = index(&dsts, |map| map.context);
        Scene { srcs, dsts, common, forms, holding, wanting }
    }

    pub fn source(&self, rank: u32) -> Option<Held<'a>> {
        self.srcs.get(rank as usize).copied().flatten()
    }

    /// What destination rank `own` takes from where.
    pub fn assign(&self, own: u32) -> Result<Vec<Piece>, Vec<Gap>> {
        let Some(me) = self.dsts.get(own as usize).copied().flatten() else { return Ok(Vec::new()) };
        let mut pieces = Vec::new();
        let mut gaps = Vec::new();
        for (index, part) in me.tensor.parts.iter().enumerate() {
            match self.assign_part(own, me, part) {
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

    fn assign_part(&self, own: u32, me: Held<'_>, part: &Part) -> Result<Vec<(u32, u32, Template)>, Gap> {
        let Some(bounds) = self.bounds(me.tensor, part) else { return Ok(Vec::new()) };
        let forms = self.forms(&bounds);
        if forms.is_empty() {
            return Err(gap(me.tensor, &bounds, "held by no source rank"));
        }
        let map = TokenMap::of(me.group, part);
        let Some(segments) = segments(map, &forms) else {
            let sizes = forms.iter().map(|f| f.block.to_string()).collect::<Vec<_>>().join(", ");
            let why = format!("block sizes whose common period falls into at most {} pieces", limit::SEGMENTS);
            return Err((why, map.block.to_string(), sizes));
        };
        let mut chosen = Vec::new();
        for (owners, list) in by_owner(&segments) {
            let choices = self.choose(own, me, &bounds, &holders(&forms, &owners))?;
            proof::partition(&bounds, &choices).map_err(|e| ("proof".to_string(), e, String::new()))?;
            chosen.push((list, choices));
        }
        build(self, me, part, &segments, &forms, chosen)
    }

    /// A partition of the bounds into cells with one source each, for the segments that these token maps own.
    fn choose(&self, own: u32, me: Held<'_>, bounds: &Cell, maps: &[TokenMap]) -> Result<Vec<Choice>, Gap> {
        let mut choices: Vec<Choice> = Vec::new();
        let members = RankSet::from_iter([own]);
        for (cell, have, want) in self.cells(bounds, maps, me.group.context)? {
            let found = takers(&have, &want, members).first().and_then(|(rank, _)| {
                let inside = |p: &Part| meet(&super::boxes::cell(&p.extents), &cell);
                let part = self.source(*rank)?.tensor.parts.iter().position(inside)?;
                Some((*rank, part as u32))
            });
            match found {
                Some((rank, part)) => choices.push(Choice { cell, rank, part }),
                None => return Err(gap(me.tensor, &cell, "held by no source rank")),
            }
        }
        merge(&mut choices, bounds.len());
        Ok(choices)
    }

    /// Adds to each source rank the destination ranks that read it.
    pub fn readers(&self, out: &mut [RankSet]) {
        // Parts that are cut alike, whatever their share of the token axis.
        let mut alike: HashMap<(TokenMap, Cell), RankSet> = HashMap::new();
        for (rank, held, part) in parts(&self.dsts) {
            if let Some(bounds) = self.bounds(held.tensor, part) {
                alike.entry((TokenMap::of(held.group, part).form(), bounds)).or_default().insert(rank);
            }
        }
        let mut walks = HashMap::new();
        for ((form, bounds), ranks) in &alike {
            let forms = self.forms(bounds);
            let walk = walks.entry((*form, forms.clone())).or_insert_with(|| owners(*form, &forms).unwrap_or_default());
            for (rank, owners) in walk.iter() {
                let context = ContextParallel { rank: *rank, ..form.context };
                let Some(wanting) = self.wanting.get(&context) else { continue };
                let members = ranks.intersection(&wanting.ranks);
                if members.is_empty() {
                    continue;
                }
                let Ok(cells) = self.cells(bounds, &holders(&forms, owners), context) else { continue };
                // What cannot be assigned is not read.
                if cells.iter().any(|(_, have, _)| have.is_empty()) {
                    continue;
                }
                for (_, have, want) in &cells {
                    for (source, takers) in takers(have, want, members) {
                        if let Some(set) = out.get_mut(source as usize) {
                            *set = set.union(&takers);
                        }
                    }
                }
            }
        }
    }

    /// The destination's box, cut to what both sides have along axes that need not agree; `None` if nothing is left.
    fn bounds(&self, tensor: &Tensor, part: &Part) -> Option<Cell> {
        let mut bounds = Vec::with_capacity(part.extents.len());
        for (i, (axis, e)) in tensor.axes.iter().zip(&part.extents).enumerate() {
            let theirs = self.common.get(i).filter(|_| axis.matching == Matching::Common);
            let end = theirs.map_or(e.end(), |n| e.end().min(*n));
            bounds.push((e.begin, end.checked_sub(e.begin).filter(|len| *len > 0)?));
        }
        Some(bounds)
    }

    /// The forms of the token maps of the source parts that meet the bounds, by first rank and part.
    fn forms(&self, bounds: &Cell) -> Vec<TokenMap> {
        let first = |form: &TokenMap, boxes: &Boxes| {
            let rank = boxes.meeting(bounds).iter().filter_map(|(_, ranks)| ranks.first()).min()?;
            let held = self.source(rank)?;
            let meets = |p: &Part| TokenMap::of(held.group, p).form() == *form && meet(&cell(&p.extents), bounds);
            Some((rank, held.tensor.parts.iter().position(meets)?))
        };
        let mut found: Vec<_> = self.forms.iter().filter_map(|(f, boxes)| Some((first(f, boxes)?, *f))).collect();
        found.sort_unstable_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, form)| form).collect()
    }

    /// The cells of the bounds, each with the source ranks that hold it with one of these token maps, and the
    /// destination ranks with this share of the token axis that want its first element.
    fn cells(
        &self,
        bounds: &Cell,
        maps: &[TokenMap],
        context: ContextParallel,
    ) -> Result<Vec<(Cell, RankSet, RankSet)>, Gap> {
        let holding: Vec<&Boxes> = maps.iter().filter_map(|m| self.holding.get(m)).collect();
        let wanting = self.wanting.get(&context);
        let near: Vec<&(Cell, RankSet)> = holding.iter().flat_map(|h| h.meeting(bounds)).collect();
        let Some(cells) = grid(bounds, &near) else {
            let parts: usize = near.iter().map(|(_, ranks)| ranks.len()).sum();
            return Err((
                "cells".to_string(),
                format!("at most {} cells", limit::CELLS),
                format!("{parts} parts cut finer"),
            ));
        };
        let ranks = |cell: Cell| {
            // No boundary of a holder lies inside a cell: who holds its first element holds all of it.
            let have = holding.iter().fold(RankSet::default(), |all, boxes| all.union(&boxes.at(&cell)));
            let want = wanting.map(|boxes| boxes.at(&cell)).unwrap_or_default();
            (cell, have, want)
        };
        Ok(cells.into_iter().map(ranks).collect())
    }
}

/// The rule of choice: which holders the `members` of the wanting ranks take a cell from, and which members each.
fn takers(have: &RankSet, want: &RankSet, members: RankSet) -> Vec<(u32, RankSet)> {
    let (holding, wanting) = (have.len(), want.len());
    let mut out = Vec::new();
    let mut left = members;
    while let Some(rank) = left.first() {
        let Some(pick) = (want.below(rank).len() * holding).checked_div(wanting) else { break };
        let Some(source) = have.nth(pick) else { break };
        // The first position that takes from the next holder.
        let end = want.nth(((pick + 1) * wanting).div_ceil(holding));
        let takers = end.map_or(left, |end| left.below(end));
        out.push((source, takers));
        left = left.without(&takers);
    }
    out
}

/// The token maps of the context-parallel ranks that own a segment, one per form.
fn holders(forms: &[TokenMap], owners: &[u32]) -> Vec<TokenMap> {
    let map = |(form, rank): (&TokenMap, &u32)| TokenMap {
        context: ContextParallel { rank: *rank, ..form.context },
        ..*form
    };
    forms.iter().zip(owners).map(map).collect()
}

/// Segments by the context-parallel ranks that own them on the source's side, one per form.
fn by_owner(segments: &Segments) -> BTreeMap<Vec<u32>, Vec<&Segment>> {
    let mut out: BTreeMap<Vec<u32>, Vec<&Segment>> = BTreeMap::new();
    for s in &segments.list {
        out.entry(s.src.iter().map(|p| p.owner).collect()).or_default().push(s);
    }
    out
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

/// All cells of the bounds, cut at the boundaries of the holders; `None` beyond [`limit::CELLS`].
fn grid(bounds: &Cell, holders: &[&(Cell, RankSet)]) -> Option<Vec<Cell>> {
    let mut cells: Vec<Cell> = vec![Vec::new()];
    for (axis, (begin, len)) in bounds.iter().enumerate() {
        let end = begin.saturating_add(*len);
        let mut cuts: Vec<u64> = holders
            .iter()
            .filter_map(|(cell, _)| cell.get(axis))
            .flat_map(|(b, n)| [*b, b.saturating_add(*n)])
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
