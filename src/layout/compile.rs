//! Two instances' layouts in, proven plans out.

use super::assign::{Gap, Held, Piece, Scene};
use super::check::check_tensor;
use super::limit;
use super::plan::{CopySet, Plan, Shape, Template};
use super::ranks::RankSet;
use super::rows::{Row, Rows};
use super::shape::{Layout, Named};
use super::verdict::{Findings, Verdict};
use std::collections::HashMap;
use std::sync::Arc;

/// What one destination rank needs from the source instance.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// One plan per source rank that it takes bytes from, by ascending rank.
    pub plans: Vec<Arc<Plan>>,
    /// Source ranks that it acknowledges, with the number of ranks of its instance that acknowledge that source rank.
    ///
    /// Those are the ranks it has plans for, and its share of the source ranks that nobody reads: every source rank
    /// hears from at least one destination rank, so that it can release its blocks.
    pub acknowledges: Vec<(u32, u32)>,
}

/// What all rows of one structure have in common.
struct Structure {
    /// No rank of the source defines the tensor differently.
    agrees: bool,
    pieces: Result<Vec<Piece>, Vec<Gap>>,
}

/// Compiles the plans of destination rank `rank` from all ranks of the source instance.
///
/// Both slices hold the layouts of all ranks of an instance, by rank.
///
/// # Errors
/// A [`Verdict`] with every incompatibility.
pub fn compile(src: &[Arc<Layout>], dst: &[Arc<Layout>], rank: usize) -> Result<Inbound, Verdict> {
    let own = own(src, dst, rank)?;
    let mut findings = Findings::default();
    check_models(src, own, &mut findings);
    let mut sets: Vec<Vec<CopySet>> = vec![Vec::new(); src.len()];
    let mut readers = vec![RankSet::default(); src.len()];
    let mut structures: HashMap<Vec<u32>, Structure> = HashMap::new();
    for row in Rows::new(src, dst) {
        let structure = structures.entry(row.structure()).or_insert_with(|| {
            let scene = Scene::new(held(src, &row.src), held(dst, &row.dst));
            scene.readers(&mut readers);
            let mut differences = Findings::default();
            check_row(&row, src, own, rank, &mut differences);
            Structure { agrees: differences.into_result().is_ok(), pieces: scene.assign(rank as u32) }
        });
        let subject = || format!("layer {} {}", row.layer, row.role);
        if row.dst.get(rank).copied().flatten().is_none() {
            continue;
        }
        if row.src.iter().all(Option::is_none) {
            findings.add(subject(), "presence", "present", "absent on every rank");
            continue;
        }
        if !structure.agrees {
            check_row(&row, src, own, rank, &mut findings);
        }
        match &structure.pieces {
            Ok(pieces) => {
                for piece in pieces {
                    if let (Some(set), Some(list)) =
                        (place(&row, src, own, rank, piece), sets.get_mut(piece.src_rank as usize))
                    {
                        list.push(set);
                    }
                }
            }
            Err(gaps) => {
                for (field, local, remote) in gaps {
                    findings.add(subject(), field.clone(), local, remote);
                }
            }
        }
    }
    findings.into_result()?;
    let plan = |(s, mut sets): (usize, Vec<CopySet>)| {
        let src = src.get(s)?.clone();
        join_layers(&mut sets);
        (!sets.is_empty()).then(|| Arc::new(Plan::new((s as u32, rank as u32), src, own.clone(), sets)))
    };
    let plans = sets.into_iter().enumerate().filter_map(plan).collect();
    Ok(Inbound { plans, acknowledges: acknowledges(&readers, rank, dst.len()) })
}

/// The layout of destination rank `rank`, if the instances are what can be compiled at all.
fn own<'a>(src: &[Arc<Layout>], dst: &'a [Arc<Layout>], rank: usize) -> Result<&'a Arc<Layout>, Verdict> {
    let mut findings = Findings::default();
    for (side, n) in [("destination", dst.len()), ("source", src.len())] {
        if n > limit::RANKS {
            findings.add(format!("{side} instance"), "ranks", limit::RANKS, n);
        }
    }
    std::mem::take(&mut findings).into_result()?;
    dst.get(rank).ok_or_else(|| {
        findings.add("destination", "rank", rank, format!("{} ranks", dst.len()));
        findings.into_result().err().unwrap_or(Verdict { findings: Vec::new() })
    })
}

fn check_models(src: &[Arc<Layout>], own: &Layout, findings: &mut Findings) {
    for s in src {
        if !own.model().is_empty() && !s.model().is_empty() {
            findings.differ("model", "name", own.model(), s.model());
        }
    }
}

/// Compares the rank's tensor with that of every source rank.
fn check_row(row: &Row<'_>, src: &[Arc<Layout>], own: &Arc<Layout>, rank: usize, findings: &mut Findings) {
    let subject = format!("layer {} {}", row.layer, row.role);
    let Some(me) = row.dst.get(rank).and_then(|i| tensor(own, *i)) else { return };
    for s in held(src, &row.src).into_iter().flatten() {
        check_tensor(&subject, me, s, findings);
    }
}

/// Places a piece at the offsets of this layer's parts.
fn place(row: &Row<'_>, src: &[Arc<Layout>], own: &Layout, rank: usize, piece: &Piece) -> Option<CopySet> {
    let at = piece.src_rank as usize;
    let s = tensor(src.get(at)?, row.src.get(at).copied()?)?.tensor;
    let d = tensor(own, row.dst.get(rank).copied()?)?.tensor;
    let (sp, dp) = (s.parts.get(piece.src_part as usize)?, d.parts.get(piece.dst_part as usize)?);
    Some(CopySet {
        layer: d.layer,
        layers: 1,
        layer_delta: (0, 0),
        src_group: s.group,
        dst_group: d.group,
        src_region: sp.region,
        dst_region: dp.region,
        src_offset: sp.offset,
        dst_offset: dp.offset,
        src_block_stride: sp.block_stride,
        dst_block_stride: dp.block_stride,
        template: piece.template.clone(),
    })
}

/// From the readers of every source rank: those that the rank reads, and its share of those that nobody reads.
fn acknowledges(readers: &[RankSet], rank: usize, destinations: usize) -> Vec<(u32, u32)> {
    let share = |s: usize| (s * destinations).checked_div(readers.len());
    let told = |(s, set): (usize, &RankSet)| match set.len() {
        0 => (share(s) == Some(rank)).then_some((s as u32, 1)),
        n => set.contains(rank as u32).then_some((s as u32, n as u32)),
    };
    readers.iter().enumerate().filter_map(told).collect()
}

fn held<'a>(side: &'a [Arc<Layout>], found: &[Option<Named>]) -> Vec<Option<Held<'a>>> {
    side.iter().zip(found).map(|(l, i)| tensor(l, *i)).collect()
}

fn tensor(layout: &Layout, found: Option<Named>) -> Option<Held<'_>> {
    let tensor = layout.tensors().get(found?.tensor as usize)?;
    Some(Held { tensor, group: layout.groups().get(tensor.group as usize)? })
}

/// Joins layers at equal distances whose runs touch on both sides (cross-layer blocks): walked block by block they
/// become one span where layer by layer they would be many.
fn join_layers(sets: &mut Vec<CopySet>) {
    let mut out: Vec<CopySet> = Vec::with_capacity(sets.len());
    for set in sets.drain(..) {
        let Some(joined) = out.iter_mut().rev().take(8).find_map(|last| joins(last, &set).map(|d| (last, d))) else {
            out.push(set);
            continue;
        };
        let (last, delta) = joined;
        last.layers += 1;
        last.layer_delta = delta;
    }
    for set in &mut out {
        if set.layers > 1 {
            set.template = Arc::new(with_layers(&set.template, u64::from(set.layers), set.layer_delta));
        }
    }
    *sets = out;
}

fn joins(last: &CopySet, set: &CopySet) -> Option<(u64, u64)> {
    let place =
        |c: &CopySet| (c.src_group, c.dst_group, c.src_region, c.dst_region, c.src_block_stride, c.dst_block_stride);
    if place(last) != place(set) || !Arc::ptr_eq(&last.template, &set.template) {
        return None;
    }
    if last.layer.checked_add(last.layers)? != set.layer {
        return None;
    }
    let n = u64::from(last.layers);
    let delta = if n == 1 {
        let src = set.src_offset.checked_sub(last.src_offset)?;
        (src, set.dst_offset.checked_sub(last.dst_offset)?)
    } else {
        last.layer_delta
    };
    let at = |offset: u64, d: u64| d.checked_mul(n).and_then(|x| x.checked_add(offset));
    if at(last.src_offset, delta.0)? != set.src_offset || at(last.dst_offset, delta.1)? != set.dst_offset {
        return None;
    }
    let fewer = last.template.cuts.iter().all(|cut| {
        last.template.shapes.get(cut.shape as usize).is_some_and(|shape: &Shape| {
            let one = shape.fold(cut.tokens, 1, (0, 0));
            shape.fold(cut.tokens, 2, delta).runs() < one.runs().saturating_mul(2)
        })
    });
    fewer.then_some(delta)
}

fn with_layers(template: &Template, layers: u64, delta: (u64, u64)) -> Template {
    let mut out = template.clone();
    out.loops.clear();
    for cut in &mut out.cuts {
        if let Some(shape) = template.shapes.get(cut.shape as usize) {
            let loops = shape.fold(cut.tokens, layers, delta);
            cut.loops = match out.loops.iter().position(|l| *l == loops) {
                Some(i) => i as u32,
                None => {
                    out.loops.push(loops);
                    (out.loops.len() - 1) as u32
                }
            };
        }
    }
    out
}
