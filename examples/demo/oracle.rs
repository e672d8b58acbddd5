//! What every byte must be: filled in and checked from each element's logical coordinate, without the planner.
//!
//! Written from the address formula of `Part` and the definitions of `Group`, and from nothing else of the crate.

use crate::rng::mix;
use kvlink::layout::{Extent, GroupKind, Layout, Part, Tensor};
use std::ops::Range;

/// The block ids of a request, by group; the same on all ranks of an instance.
pub type Lists = Vec<Vec<u32>>;

/// Block (or slot) id of a token of this rank, and the token's position within it.
fn locate(layout: &Layout, tensor: &Tensor, ids: &[u32], token: u64) -> Option<(u64, u64)> {
    let group = &layout.groups()[tensor.group as usize];
    if group.kind == GroupKind::Slots {
        return ids.get(token as usize).map(|id| (u64::from(*id), 0));
    }
    let (size, interleave) = (u64::from(group.context.size), u64::from(group.context.interleave));
    let chunk = token / interleave;
    if chunk % size != u64::from(group.context.rank) {
        return None;
    }
    let local = chunk / size * interleave + token % interleave;
    let block = u64::from(group.block_tokens);
    ids.get((local / block) as usize).map(|id| (u64::from(*id), local % block))
}

fn address(part: &Part, id: u64, t: u64) -> u64 {
    let at = part.offset + id * part.block_stride;
    match part.tile {
        Some(tile) => {
            let per = u64::from(tile.tokens);
            at + t / per * tile.stride + t % per * part.token_stride
        }
        None => at + t * part.token_stride,
    }
}

/// Calls `f` with the address and the coordinate's hash of every row: the elements along the innermost axis.
fn rows(extents: &[Extent], at: u64, hash: u64, f: &mut dyn FnMut(u64, u64, Extent)) {
    match extents {
        [] => f(at, hash, Extent { begin: 0, len: 1, stride: 0 }),
        [inner] => f(at, hash, *inner),
        [outer, rest @ ..] => {
            for i in 0..outer.len {
                rows(rest, at + i * outer.stride, mix(hash ^ mix(outer.begin + i)), f);
            }
        }
    }
}

/// The bytes of the element with this index in a row.
fn element(hash: u64, index: u64, out: &mut [u8]) {
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        let x = (hash ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(i as u64);
        let word = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).swap_bytes().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn tensor_hash(t: &Tensor) -> u64 {
    t.role.bytes().fold(mix(u64::from(t.layer) + 77), |h, b| mix(h ^ u64::from(b)))
}

/// Writes what this row must hold to `buffer`, element after element.
fn row_bytes(hash: u64, row: Extent, unit: usize, buffer: &mut Vec<u8>) {
    buffer.resize(row.len as usize * unit, 0);
    for (i, out) in buffer.chunks_exact_mut(unit).enumerate() {
        element(hash, row.begin + i as u64, out);
    }
}

/// Calls `f` for every piece of consecutive bytes that these tokens of a tensor occupy, with what they must be.
fn pieces(layout: &Layout, t: &Tensor, ids: &[u32], tokens: Range<u64>, f: &mut dyn FnMut(usize, usize, &[u8])) {
    let (hash, unit) = (tensor_hash(t), t.element.bytes as usize);
    let mut buffer = Vec::new();
    for token in tokens {
        let Some((id, within)) = locate(layout, t, ids, token) else { continue };
        for part in &t.parts {
            let region = part.region as usize;
            rows(&part.extents, address(part, id, within), mix(hash ^ mix(token)), &mut |at, hash, row| {
                row_bytes(hash, row, unit, &mut buffer);
                if row.stride == unit as u64 || row.len == 1 {
                    return f(region, at as usize, &buffer);
                }
                for (i, element) in buffer.chunks_exact(unit).enumerate() {
                    f(region, at as usize + i * row.stride as usize, element);
                }
            });
        }
    }
}

/// The word of poison at `8 * index`.
fn poison(seed: u64, index: usize) -> [u8; 8] {
    let x = (seed ^ index as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()
}

/// Fills regions with bytes that nobody asked for.
pub fn fill_poison(regions: &mut [&mut [u8]], seed: u64) {
    for region in regions {
        for (i, chunk) in region.chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&poison(seed, i)[..chunk.len()]);
        }
    }
}

/// Fills the request's blocks of a source rank.
pub fn fill_request(layout: &Layout, lists: &Lists, tokens: u64, regions: &mut [&mut [u8]]) {
    for t in layout.tensors() {
        let ids = &lists[t.group as usize];
        let held = match layout.groups()[t.group as usize].kind {
            GroupKind::Slots => 0..ids.len() as u64,
            _ => 0..tokens,
        };
        pieces(layout, t, ids, held, &mut |region, at, bytes| {
            regions[region][at..at + bytes.len()].copy_from_slice(bytes);
        });
    }
}

/// One bit per byte: written by the request.
struct Marks(Vec<u64>);

impl Marks {
    /// Marks a range; returns whether a byte of it was marked before.
    fn set(&mut self, mut at: usize, end: usize) -> bool {
        let mut twice = false;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(end - at);
            let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << bit };
            twice |= self.0[word] & mask != 0;
            self.0[word] |= mask;
            at += n;
        }
        twice
    }

    /// The marks of the eight bytes from `8 * index`.
    fn eight(&self, index: usize) -> u8 {
        (self.0[index / 8] >> (index % 8 * 8)) as u8
    }
}

/// A byte of region 0 that is the request's, and one that is not.
pub fn examples(layout: &Layout, lists: &Lists, tokens: u64) -> (Option<usize>, Option<usize>) {
    let len = layout.regions().first().map_or(0, |r| r.len as usize);
    let mut marks = Marks(vec![0; len.div_ceil(64)]);
    let mut mine = None;
    for t in layout.tensors() {
        let (ids, group) = (&lists[t.group as usize], &layout.groups()[t.group as usize]);
        let range = match group.kind {
            GroupKind::Slots => 0..ids.len() as u64,
            _ => group.reach.first(tokens)..tokens,
        };
        pieces(layout, t, ids, range, &mut |region, at, bytes| {
            if region == 0 {
                mine = Some(at);
                marks.set(at, at + bytes.len());
            }
        });
    }
    let beside = (0..len).rev().find(|at| marks.0[at / 64] >> (at % 64) & 1 == 0);
    (mine, beside)
}

/// Compares every byte of a destination rank's regions; returns how many were compared, and how many are the request's.
pub fn verify(layout: &Layout, lists: &Lists, tokens: u64, seed: u64, have: &[&[u8]]) -> Result<(u64, u64), String> {
    let mut marks: Vec<Marks> = have.iter().map(|r| Marks(vec![0; r.len().div_ceil(64)])).collect();
    let (mut wrong, mut first, mut wanted) = (0u64, None, 0u64);
    for t in layout.tensors() {
        let (ids, group) = (&lists[t.group as usize], &layout.groups()[t.group as usize]);
        let range = match group.kind {
            GroupKind::Slots => 0..ids.len() as u64,
            _ => group.reach.first(tokens)..tokens,
        };
        pieces(layout, t, ids, range, &mut |region, at, bytes| {
            wanted += bytes.len() as u64;
            let end = at + bytes.len();
            if marks[region].set(at, end) {
                first.get_or_insert_with(|| format!("layer {} {}: byte {at} belongs to two elements", t.layer, t.role));
                wrong += 1;
            }
            if have[region][at..end] != *bytes {
                let bad = have[region][at..end].iter().zip(bytes).filter(|(a, b)| a != b).count();
                wrong += bad as u64;
                first.get_or_insert_with(|| format!("layer {} {}: region {region} byte {at}", t.layer, t.role));
            }
        });
    }
    for (region, (bytes, marks)) in have.iter().zip(&marks).enumerate() {
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let (mine, clean) = (marks.eight(i), poison(seed, i));
            if mine == u8::MAX || (mine == 0 && chunk == &clean[..chunk.len()]) {
                continue;
            }
            for (k, (byte, clean)) in chunk.iter().zip(clean).enumerate() {
                if mine >> k & 1 == 0 && *byte != clean {
                    wrong += 1;
                    let at = 8 * i + k;
                    first.get_or_insert_with(|| {
                        format!("region {region} byte {at}, which is not the request's, changed")
                    });
                }
            }
        }
    }
    match first {
        Some(text) => Err(format!("{wrong} bytes are wrong, the first at {text}")),
        None => Ok((have.iter().map(|r| r.len() as u64).sum(), wanted)),
    }
}
