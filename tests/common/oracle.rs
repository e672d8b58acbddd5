//! Brute force: every element of the source holds its own logical coordinate; after the copy every byte of every
//! destination region is compared.
//!
//! Written from the address formula of `Part` and the definitions of `Group`, and from nothing else of the crate.

use super::rng::mix;
use kvlink::layout::{BlockList, Extent, GroupKind, Layout, NO_BLOCK, Request, Scratch, Span, Tensor, compile};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The block lists of one rank, by group.
#[derive(Clone, Debug, Default)]
pub struct Lists(pub Vec<List>);

#[derive(Clone, Debug, Default)]
pub struct List {
    pub first: u64,
    pub ids: Vec<u32>,
}

impl Lists {
    pub fn borrow(&self) -> Vec<BlockList<'_>> {
        self.0.iter().map(|l| BlockList { ids: &l.ids, first: l.first }).collect()
    }
}

/// Two instances and a request.
#[derive(Clone, Debug)]
pub struct Case {
    pub src: Vec<Arc<Layout>>,
    pub dst: Vec<Arc<Layout>>,
    pub src_lists: Vec<Lists>,
    pub dst_lists: Vec<Lists>,
    pub tokens: Range<u64>,
    pub end: u64,
    pub layers: Range<u32>,
    pub slots: bool,
}

/// What a run moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub bytes: u64,
    pub spans: u64,
    pub plans: u64,
}

/// The bytes of one rank's regions.
pub type Memory = Vec<Vec<u8>>;

/// One element: where it is and what it is.
struct Element<'a> {
    region: usize,
    byte: usize,
    token: u64,
    indices: &'a [u64],
}

/// Where a token of a tensor lives on this rank: (block id, token within the block).
fn locate(layout: &Layout, tensor: &Tensor, list: &List, token: u64) -> Option<(u64, u64)> {
    let group = &layout.groups()[tensor.group as usize];
    if group.kind == GroupKind::Slots {
        return list.ids.get(token as usize).map(|id| (u64::from(*id), 0));
    }
    let (size, interleave) = (u64::from(group.context.size), u64::from(group.context.interleave));
    let chunk = token / interleave;
    if chunk % size != u64::from(group.context.rank) {
        return None;
    }
    let local = chunk / size * interleave + token % interleave;
    let position = local / u64::from(group.block_tokens);
    let at = match group.kind {
        GroupKind::Ring => position % list.ids.len() as u64,
        _ => position.checked_sub(list.first)?,
    };
    let id = *list.ids.get(at as usize)?;
    (id != NO_BLOCK).then_some((u64::from(id), local % u64::from(group.block_tokens)))
}

/// Calls `f` for every element of a token that this rank holds.
fn elements(layout: &Layout, tensor: &Tensor, list: &List, token: u64, f: &mut dyn FnMut(Element<'_>)) {
    let Some((id, t)) = locate(layout, tensor, list, token) else { return };
    for part in &tensor.parts {
        let mut at = part.offset + id * part.block_stride;
        at += match part.tile {
            Some(tile) => {
                let per = u64::from(tile.tokens);
                t / per * tile.stride + t % per * part.token_stride
            }
            None => t * part.token_stride,
        };
        let mut indices = Vec::with_capacity(part.extents.len());
        walk(&part.extents, at, &mut indices, &mut |byte, indices| {
            f(Element { region: part.region as usize, byte: byte as usize, token, indices });
        });
    }
}

fn walk(extents: &[Extent], at: u64, indices: &mut Vec<u64>, f: &mut dyn FnMut(u64, &[u64])) {
    let Some(e) = extents.get(indices.len()).copied() else { return f(at, indices) };
    for i in 0..e.len {
        indices.push(e.begin + i);
        walk(extents, at + i * e.stride, indices, f);
        indices.pop();
    }
}

/// The bytes of an element follow from its coordinate alone.
fn fill(tensor_hash: u64, token: u64, indices: &[u64], out: &mut [u8]) {
    let mut h = mix(tensor_hash ^ token.wrapping_mul(0x1_0000_0001));
    for i in indices {
        h = mix(h ^ i);
    }
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        let word = mix(h ^ (i as u64).wrapping_mul(0x5bd1_e995)).to_le_bytes();
        let n = chunk.len();
        chunk.copy_from_slice(&word[..n]);
    }
}

fn tensor_hash(t: &Tensor) -> u64 {
    t.role.bytes().fold(mix(u64::from(t.layer) + 77), |h, b| mix(h ^ u64::from(b)))
}

pub fn poison(layout: &Layout, seed: u64) -> Memory {
    let mut at = mix(seed);
    let mut region = |len: u64| {
        let mut bytes = vec![0u8; len as usize];
        for chunk in bytes.chunks_mut(8) {
            at = mix(at);
            let n = chunk.len();
            chunk.copy_from_slice(&at.to_le_bytes()[..n]);
        }
        bytes
    };
    layout.regions().iter().map(|r| region(r.len)).collect()
}

/// Tokens of a group that the source can still hold.
fn held(layout: &Layout, tensor: &Tensor, list: &List, end: u64) -> Range<u64> {
    let group = &layout.groups()[tensor.group as usize];
    match group.kind {
        GroupKind::Slots => 0..list.ids.len() as u64,
        GroupKind::Paged => 0..end,
        GroupKind::Ring => end.saturating_sub(list.ids.len() as u64 * u64::from(group.block_tokens))..end,
    }
}

pub fn source_memory(layout: &Layout, lists: &Lists, end: u64, seed: u64) -> Memory {
    let mut memory = poison(layout, seed);
    for t in layout.tensors() {
        let (list, hash, n) = (&lists.0[t.group as usize], tensor_hash(t), t.element.bytes as usize);
        for token in held(layout, t, list, end) {
            elements(layout, t, list, token, &mut |e| {
                fill(hash, e.token, e.indices, &mut memory[e.region][e.byte..e.byte + n]);
            });
        }
    }
    memory
}

/// Number of indices along each axis that some source has.
fn common(case: &Case, t: &Tensor) -> Vec<u64> {
    let mut out: Vec<u64> = t.axes.iter().map(|a| a.extent).collect();
    for s in case.src.iter().filter_map(|s| s.find(t.layer, &t.role)) {
        for (n, a) in out.iter_mut().zip(&s.axes) {
            *n = (*n).min(a.extent);
        }
    }
    out
}

/// What the destination must hold afterwards, and how many bytes of it are written.
pub fn expected(case: &Case, rank: usize, before: &Memory) -> Result<(Memory, u64), String> {
    let (layout, lists) = (&case.dst[rank], &case.dst_lists[rank]);
    let mut memory = before.clone();
    let mut written: Vec<Vec<bool>> = memory.iter().map(|r| vec![false; r.len()]).collect();
    let (mut bytes, mut twice) = (0, None);
    for t in layout.tensors().iter().filter(|t| case.layers.contains(&t.layer)) {
        let (list, hash, n) = (&lists.0[t.group as usize], tensor_hash(t), t.element.bytes as usize);
        let group = &layout.groups()[t.group as usize];
        let slots = group.kind == GroupKind::Slots;
        let tokens = match (slots, case.slots) {
            (true, true) => 0..list.ids.len() as u64,
            (true, false) => 0..0,
            (false, _) => case.tokens.start.max(group.reach.first(case.end))..case.tokens.end,
        };
        let limits = common(case, t);
        for token in tokens {
            elements(layout, t, list, token, &mut |e| {
                if e.indices.iter().zip(&limits).all(|(i, n)| i < n) {
                    fill(hash, e.token, e.indices, &mut memory[e.region][e.byte..e.byte + n]);
                    bytes += n as u64;
                    for b in &mut written[e.region][e.byte..e.byte + n] {
                        if std::mem::replace(b, true) {
                            twice = Some((t.layer, t.role.clone(), e.token, e.byte));
                        }
                    }
                }
            });
        }
    }
    match twice {
        Some(t) => Err(format!("the case itself writes twice: {t:?}")),
        None => Ok((memory, bytes)),
    }
}

/// Runs every plan of every destination rank and compares everything.
pub fn run(case: &Case) -> Result<Moved, String> {
    let sources: Vec<Memory> = case
        .src
        .iter()
        .zip(&case.src_lists)
        .enumerate()
        .map(|(i, (l, b))| source_memory(l, b, case.end, i as u64))
        .collect();
    let mut scratch = Scratch::default();
    let mut spans = Vec::new();
    let mut moved = Moved::default();
    let mut acknowledged: HashMap<u32, Vec<u32>> = HashMap::new();
    for rank in 0..case.dst.len() {
        let inbound = compile(&case.src, &case.dst, rank).map_err(|v| format!("verdict: {v}"))?;
        for (s, n) in inbound.acknowledges {
            acknowledged.entry(s).or_default().push(n);
        }
        let mut memory = poison(&case.dst[rank], 1000 + rank as u64);
        let (want, bytes) = expected(case, rank, &memory)?;
        let mut total = 0;
        for plan in &inbound.plans {
            let s = plan.source() as usize;
            let (src, dst) = (case.src_lists[s].borrow(), case.dst_lists[rank].borrow());
            let request = Request {
                src: &src,
                dst: &dst,
                tokens: case.tokens.clone(),
                end: case.end,
                layers: case.layers.clone(),
                slots: case.slots,
            };
            spans.clear();
            let summary = plan.expand(&request, &mut scratch, &mut spans).map_err(|e| format!("expand: {e}"))?;
            let sum: u64 = spans.iter().map(|s| s.len).sum();
            if (summary.spans, summary.bytes) != (spans.len() as u64, sum) || summary.runs < summary.spans {
                return Err(format!("summary {summary:?} of {} spans, {sum} bytes", spans.len()));
            }
            let checked = plan.check(&request, &mut scratch).map_err(|e| format!("check: {e}"))?;
            let merged_less = checked.spans >= summary.spans && checked.spans <= checked.runs;
            if !merged_less || (checked.bytes, checked.runs) != (summary.bytes, summary.runs) {
                return Err(format!("checked {checked:?}, expanded {summary:?}"));
            }
            total += sum;
            moved.spans += summary.spans;
            copy(&sources[s], &mut memory, &spans)?;
        }
        moved.plans += inbound.plans.len() as u64;
        moved.bytes += total;
        compare(case, rank, &memory, &want)?;
        if total != bytes {
            return Err(format!("rank {rank}: {total} bytes moved for {bytes} wanted"));
        }
    }
    for s in 0..case.src.len() as u32 {
        let told = acknowledged.remove(&s).unwrap_or_default();
        if told.is_empty() || told.iter().any(|n| *n as usize != told.len()) {
            return Err(format!("source {s} is acknowledged {} times, promised {told:?}", told.len()));
        }
    }
    Ok(moved)
}

/// Plain copies; a span outside of its regions is an error.
pub fn copy(src: &Memory, dst: &mut Memory, spans: &[Span]) -> Result<(), String> {
    for s in spans {
        let range = |at: u64| at as usize..(at + s.len) as usize;
        let from = src[s.src_region as usize].get(range(s.src_offset));
        let to = dst[s.dst_region as usize].get_mut(range(s.dst_offset));
        match (from, to) {
            (Some(from), Some(to)) if s.len > 0 => to.copy_from_slice(from),
            _ => return Err(format!("span outside of its regions: {s:?}")),
        }
    }
    Ok(())
}

pub fn compare(case: &Case, rank: usize, have: &Memory, want: &Memory) -> Result<(), String> {
    for (r, (h, w)) in have.iter().zip(want).enumerate() {
        if let Some(at) = h.iter().zip(w).position(|(a, b)| a != b) {
            let wrong = h.iter().zip(w).filter(|(a, b)| a != b).count();
            return Err(format!(
                "rank {rank} region {r}: {wrong} wrong bytes, the first at {at}: {}",
                explain(case, rank, r, at)
            ));
        }
    }
    Ok(())
}

/// Whose byte this is.
fn explain(case: &Case, rank: usize, region: usize, byte: usize) -> String {
    let layout = &case.dst[rank];
    let mut out = "nobody's".to_string();
    for t in layout.tensors() {
        let list = &case.dst_lists[rank].0[t.group as usize];
        for token in 0..case.end.max(list.ids.len() as u64) {
            elements(layout, t, list, token, &mut |e| {
                if e.region == region && (e.byte..e.byte + t.element.bytes as usize).contains(&byte) {
                    out = format!("layer {} {} token {token} {:?}", t.layer, t.role, e.indices);
                }
            });
        }
    }
    out
}
