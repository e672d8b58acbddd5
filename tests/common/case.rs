//! Block lists for a pair of instances.

use super::oracle::{Case, List, Lists};
use super::rng::Rng;
use kvlink::layout::model::{Model, Pages, Placement};
use kvlink::layout::{Group, GroupKind, Layout, NO_BLOCK};
use std::ops::Range;
use std::sync::Arc;

/// What a request wants; block ids follow from the seed.
#[derive(Clone, Debug)]
pub struct Ask {
    pub tokens: Range<u64>,
    pub end: u64,
    pub layers: Range<u32>,
    pub slots: bool,
    /// State slots of the request.
    pub states: usize,
    /// Holes and lists that begin late.
    pub holes: bool,
    pub seed: u64,
}

impl Ask {
    pub fn whole(end: u64) -> Ask {
        Ask { tokens: 0..end, end, layers: 0..u32::MAX, slots: true, states: 1, holes: false, seed: end }
    }
}

/// Local tokens before global token `t`.
pub fn local_tokens(group: &Group, t: u64) -> u64 {
    let c = group.context;
    let (size, interleave, rank) = (u64::from(c.size), u64::from(c.interleave), u64::from(c.rank));
    let cycle = size * interleave;
    let rest = (t % cycle).saturating_sub(rank * interleave).min(interleave);
    t / cycle * interleave + rest
}

/// First token of a group that the request needs.
fn low(group: &Group, ask: &Ask) -> u64 {
    ask.tokens.start.max(group.reach.first(ask.end))
}

fn positions(group: &Group, ask: &Ask) -> u64 {
    let block = u64::from(group.block_tokens);
    match group.kind {
        GroupKind::Slots => ask.states as u64,
        GroupKind::Paged => local_tokens(group, ask.end).div_ceil(block),
        GroupKind::Ring => (ask.end - low(group, ask).min(ask.end)).div_ceil(block).max(1),
    }
}

fn lists(layout: &Layout, ask: &Ask, shared: bool, destination: bool, rng: &mut Rng) -> Lists {
    let pool = |group: &Group, rng: &mut Rng| {
        let mut ids: Vec<u32> = (0..group.num_blocks).collect();
        rng.shuffle(&mut ids);
        ids
    };
    let mut common = layout.groups().first().map(|g| pool(g, rng)).unwrap_or_default();
    let mut out = Vec::new();
    for group in layout.groups() {
        let mut own = if shared { std::mem::take(&mut common) } else { pool(group, rng) };
        let n = positions(group, ask) as usize;
        let mut ids: Vec<u32> = own.split_off(own.len().checked_sub(n).expect("enough blocks"));
        if shared {
            common = own;
        }
        let mut first = 0;
        if group.kind == GroupKind::Paged && ask.holes {
            // Blocks before the range hold nothing that is wanted.
            let needed = local_tokens(group, low(group, ask)) / u64::from(group.block_tokens);
            let mut begin = rng.below(needed + 1).min(ids.len() as u64);
            if destination && rng.chance(25) {
                begin = rng.below(ids.len() as u64 + 1);
            }
            for (at, id) in ids.iter_mut().enumerate() {
                if ((at as u64) < needed && rng.chance(50)) || (destination && rng.chance(10)) {
                    *id = NO_BLOCK;
                }
            }
            first = begin;
            ids.drain(..begin as usize);
        }
        out.push(List { first, ids });
    }
    Lists(out)
}

/// A case with random distinct blocks; `shared` where all groups of a side take their ids from one pool.
pub fn case(src: Vec<Arc<Layout>>, dst: Vec<Arc<Layout>>, shared: (bool, bool), ask: &Ask) -> Case {
    let mut rng = Rng::new(ask.seed);
    let src_lists = src.iter().map(|l| lists(l, ask, shared.0, false, &mut rng)).collect();
    let dst_lists = dst.iter().map(|l| lists(l, ask, shared.1, true, &mut rng)).collect();
    let (tokens, layers) = (ask.tokens.clone(), ask.layers.clone());
    Case { src, dst, src_lists, dst_lists, tokens, end: ask.end, layers, slots: ask.slots }
}

/// The layouts of all ranks of an instance.
pub fn instance(model: &Model, placement: &Placement) -> Vec<Arc<Layout>> {
    (0..placement.ranks())
        .map(|r| {
            let desc = model.describe(&placement.at(r)).unwrap_or_else(|e| panic!("{e}"));
            Arc::new(Layout::new(desc).unwrap_or_else(|e| panic!("rank {r}: {e}\n{model:?}\n{placement:?}")))
        })
        .collect()
}

/// A case of one model in two placements.
pub fn pair(model: &Model, src: &Placement, dst: &Placement, ask: &Ask) -> Case {
    let shared = (src.pages == Pages::Shared, dst.pages == Pages::Shared);
    case(instance(model, src), instance(model, dst), shared, ask)
}
