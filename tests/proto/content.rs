//! What the caches contain: every byte is a function of its logical coordinate and its request.

use crate::rng::mix;
use kvlink::layout::{GroupKind, Layout, NO_BLOCK};
use kvlink::wire::Blocks;
use std::ops::Range;

/// One element of a request in one rank's memory.
pub struct Cell {
    pub key: u64,
    pub region: usize,
    pub offset: usize,
    pub len: usize,
}

/// Which part of a request.
#[derive(Clone, Debug)]
pub struct What {
    pub tokens: Range<u64>,
    pub layers: Range<u32>,
    pub state: bool,
}

impl What {
    pub fn all(tokens: u64) -> What {
        What { tokens: 0..tokens, layers: 0..u32::MAX, state: true }
    }
}

/// Calls `f` for every element that this rank holds of a request.
pub fn cells(layout: &Layout, blocks: &[Blocks], what: &What, f: &mut dyn FnMut(Cell)) {
    for t in layout.tensors().iter().filter(|t| what.layers.contains(&t.layer)) {
        let group = &layout.groups()[t.group as usize];
        let list = &blocks[t.group as usize];
        let name = t.role.bytes().fold(u64::from(t.layer) << 32, |h, b| mix(h ^ u64::from(b)));
        let mut places: Vec<(u64, u64, u64)> = Vec::new();
        if group.kind == GroupKind::Slots {
            let slots = if what.state { list.ids.len() } else { 0 };
            places.extend((0..slots).map(|j| (j as u64, u64::from(list.ids[j]), 0)));
        } else {
            let (c, bt) = (group.context, u64::from(group.block_tokens));
            for token in what.tokens.clone() {
                let chunk = token / u64::from(c.interleave);
                if chunk % u64::from(c.size) != u64::from(c.rank) {
                    continue;
                }
                let local = chunk / u64::from(c.size) * u64::from(c.interleave) + token % u64::from(c.interleave);
                let Some(at) = (local / bt).checked_sub(list.first) else { continue };
                match list.ids.get(at as usize) {
                    Some(id) if *id != NO_BLOCK => places.push((token, u64::from(*id), local % bt)),
                    _ => {}
                }
            }
        }
        for p in &t.parts {
            let extents: Vec<_> = p.extents.iter().map(|e| (e.begin, e.len, e.stride)).collect();
            for (token, id, within) in &places {
                let tile = p.tile.map_or((u64::MAX, 0), |t| (u64::from(t.tokens), t.stride));
                let base = p.offset + id * p.block_stride + within / tile.0 * tile.1 + within % tile.0 * p.token_stride;
                let mut stack = vec![(0usize, base, mix(name ^ mix(*token)))];
                while let Some((axis, at, key)) = stack.pop() {
                    let Some((begin, len, stride)) = extents.get(axis) else {
                        f(Cell { key, region: p.region as usize, offset: at as usize, len: t.element.bytes as usize });
                        continue;
                    };
                    for i in 0..*len {
                        stack.push((axis + 1, at + i * stride, mix(key ^ mix(begin + i + 1))));
                    }
                }
            }
        }
    }
}

fn byte(seed: u64, key: u64, i: usize) -> u8 {
    mix(seed ^ key ^ ((i as u64) << 56)) as u8
}

/// Writes the content of request `seed`.
pub fn fill(memory: &mut [Vec<u8>], layout: &Layout, blocks: &[Blocks], what: &What, seed: u64) {
    cells(layout, blocks, what, &mut |c| {
        for i in 0..c.len {
            memory[c.region][c.offset + i] = byte(seed, c.key, i);
        }
    });
}

/// How many elements do not have the content of request `seed`.
pub fn wrong(memory: &[Vec<u8>], layout: &Layout, blocks: &[Blocks], what: &What, seed: u64) -> usize {
    let mut wrong = 0;
    cells(layout, blocks, what, &mut |c| {
        wrong += usize::from((0..c.len).any(|i| memory[c.region][c.offset + i] != byte(seed, c.key, i)));
    });
    wrong
}

/// All bytes of a request, in a fixed order.
pub fn copy_of(memory: &[Vec<u8>], layout: &Layout, blocks: &[Blocks], what: &What) -> Vec<u8> {
    let mut out = Vec::new();
    cells(layout, blocks, what, &mut |c| out.extend_from_slice(&memory[c.region][c.offset..c.offset + c.len]));
    out
}
