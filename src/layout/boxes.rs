//! Boxes of the logical space, and which ranks hold each.

use super::assign::Held;
use super::ranks::RankSet;
use super::segment::TokenMap;
use super::shape::{Extent, Part};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// A box of the logical space: begin and length along every axis.
pub(crate) type Cell = Vec<(u64, u64)>;

pub(crate) fn cell(extents: &[Extent]) -> Cell {
    extents.iter().map(|e| (e.begin, e.len)).collect()
}

pub(crate) fn meet(a: &[(u64, u64)], b: &[(u64, u64)]) -> bool {
    a.iter().zip(b).all(|((x, n), (y, m))| *x < y.saturating_add(*m) && *y < x.saturating_add(*n))
}

/// The axis along which most cells begin at different places.
pub(crate) fn widest<'a>(cells: impl Iterator<Item = &'a Cell> + Clone) -> usize {
    let axes = cells.clone().map(Vec::len).max().unwrap_or(0);
    let begins = |axis: usize| cells.clone().map(|c| interval(c, axis).0).collect::<BTreeSet<u64>>().len();
    (0..axes).max_by_key(|axis| begins(*axis)).unwrap_or(0)
}

/// Begin and end along an axis; everything where a cell has no such axis.
pub(crate) fn interval(cell: &Cell, axis: usize) -> (u64, u64) {
    cell.get(axis).map_or((0, u64::MAX), |(b, n)| (*b, b.saturating_add(*n)))
}

/// Distinct boxes with the ranks that hold them, as an interval tree over the widest axis.
pub(crate) struct Boxes {
    axis: usize,
    /// By begin; a slice's root is its middle, its subtrees lie on either side.
    list: Vec<(Cell, RankSet)>,
    /// Largest end in the subtree of each.
    reach: Vec<u64>,
    /// All ranks.
    pub ranks: RankSet,
}

impl Boxes {
    fn new(boxes: HashMap<Cell, RankSet>) -> Boxes {
        let axis = widest(boxes.keys());
        let mut list: Vec<(Cell, RankSet)> = boxes.into_iter().collect();
        list.sort_by(|(a, _), (b, _)| (interval(a, axis).0, a).cmp(&(interval(b, axis).0, b)));
        let mut reach: Vec<u64> = list.iter().map(|(c, _)| interval(c, axis).1).collect();
        raise(&mut reach);
        let ranks = list.iter().fold(RankSet::default(), |all, (_, ranks)| all.union(ranks));
        Boxes { axis, list, reach, ranks }
    }

    /// The boxes that share an element with `cell`.
    pub fn meeting(&self, cell: &Cell) -> Vec<&(Cell, RankSet)> {
        let mut out = Vec::new();
        visit(&self.list, &self.reach, self.axis, cell, &mut out);
        out
    }

    /// The ranks that hold the first element of `cell`.
    pub fn at(&self, cell: &Cell) -> RankSet {
        let corner: Cell = cell.iter().map(|(b, _)| (*b, 1)).collect();
        self.meeting(&corner).iter().fold(RankSet::default(), |all, (_, ranks)| all.union(ranks))
    }
}

/// Turns ends into largest ends of subtrees; returns the largest.
fn raise(ends: &mut [u64]) -> u64 {
    let (low, rest) = ends.split_at_mut(ends.len() / 2);
    let Some((root, high)) = rest.split_first_mut() else { return 0 };
    *root = raise(low).max(raise(high)).max(*root);
    *root
}

fn visit<'a>(list: &'a [(Cell, RankSet)], reach: &[u64], axis: usize, cell: &Cell, out: &mut Vec<&'a (Cell, RankSet)>) {
    let (low, rest) = list.split_at(list.len() / 2);
    let (low_reach, rest_reach) = reach.split_at(reach.len() / 2);
    let (Some((root, high)), Some((end, high_reach))) = (rest.split_first(), rest_reach.split_first()) else { return };
    let (from, to) = interval(cell, axis);
    if *end <= from {
        return;
    }
    visit(low, low_reach, axis, cell, out);
    if interval(&root.0, axis).0 < to {
        if meet(&root.0, cell) {
            out.push(root);
        }
        visit(high, high_reach, axis, cell, out);
    }
}

/// The boxes of all ranks' parts, sorted by a property of the part.
pub(crate) fn index<K: Hash + Eq>(side: &[Option<Held<'_>>], key: impl Fn(TokenMap) -> K) -> HashMap<K, Boxes> {
    let mut out: HashMap<K, HashMap<Cell, RankSet>> = HashMap::new();
    for (rank, held, part) in parts(side) {
        let boxes = out.entry(key(TokenMap::of(held.group, part))).or_default();
        boxes.entry(cell(&part.extents)).or_default().insert(rank);
    }
    out.into_iter().map(|(k, boxes)| (k, Boxes::new(boxes))).collect()
}

/// All parts of all ranks.
pub(crate) fn parts<'a, 'b>(side: &'b [Option<Held<'a>>]) -> impl Iterator<Item = (u32, Held<'a>, &'a Part)> + 'b {
    let held = side.iter().enumerate().filter_map(|(rank, h)| h.map(|h| (rank as u32, h)));
    held.flat_map(|(rank, h)| h.tensor.parts.iter().map(move |p| (rank, h, p)))
}
