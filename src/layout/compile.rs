//! Two instances' layouts in, proven plans out.

use super::assign::{Gap, Held, Piece, assign, sources};
use super::check::check_tensor;
use super::limit;
use super::plan::{CopySet, Plan, Shape, Template};
use super::shape::Layout;
use super::verdict::{Findings, Verdict};
use std::collections::HashMap;
use std::sync::Arc;

/// What one destination rank needs from the source instance.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// One plan per source rank that it takes bytes from, by ascending rank.
    pub plans: Vec<Plan>,
    /// Source ranks that it acknowledges, with the number of ranks of its instance that acknowledge that source rank.
    ///
    /// Those are the ranks it has plans for, and its share of the source ranks that nobody reads: every source rank
    /// hears from at least one destination rank, so that it can release its blocks.
    pub acknowledges: Vec<(u32, u32)>,
}

/// Compiles the plans of destination rank `rank` from all ranks of the source instance.
///
/// Both slices hold the layouts of all ranks of an instance, by rank.
///
/// # Errors
/// A [`Verdict`] with every incompatibility.
pub fn compile(src: &[Arc<Layout>], dst: &[Arc<Layout>], rank: usize) -> Result<Inbound, Verdict> {
    let mut compiler = Compiler { src, dst, cache: HashMap::new() };
    let mut plans = compiler.plans(rank)?;
    for plan in &mut plans {
        join_layers(&mut plan.sets);
    }
    let acknowledges = compiler.acknowledges(rank);
    Ok(Inbound { plans, acknowledges })
}

type Assignment = Arc<Result<Vec<Piece>, Vec<Gap>>>;

struct Compiler<'a> {
    src: &'a [Arc<Layout>],
    dst: &'a [Arc<Layout>],
    /// By destination rank and the structure of the tensor on every rank.
    cache: HashMap<(usize, Vec<u32>), Assignment>,
}

/// The same tensor on all ranks of both sides: tensor indices, and the key of their structures.
struct Row {
    src: Vec<Option<usize>>,
    dst: Vec<Option<usize>>,
    classes: Vec<u32>,
}

impl<'a> Compiler<'a> {
    fn row(&self, layer: u32, role: &str) -> Row {
        let find = |side: &[Arc<Layout>]| side.iter().map(|l| l.find_index(layer, role)).collect::<Vec<_>>();
        let (src, dst) = (find(self.src), find(self.dst));
        let class = |side: &[Arc<Layout>], found: &[Option<usize>]| {
            side.iter().zip(found).map(|(l, i)| i.map_or(u32::MAX, |i| l.class(i))).collect::<Vec<_>>()
        };
        let mut classes = class(self.src, &src);
        classes.extend(class(self.dst, &dst));
        Row { src, dst, classes }
    }

    fn assignment(&mut self, rank: usize, row: &Row) -> Assignment {
        let key = (rank, row.classes.clone());
        if let Some(found) = self.cache.get(&key) {
            return found.clone();
        }
        let fresh = Arc::new(assign(rank, &held(self.src, &row.src), &held(self.dst, &row.dst)));
        self.cache.insert(key, fresh.clone());
        fresh
    }

    fn plans(&mut self, rank: usize) -> Result<Vec<Plan>, Verdict> {
        let mut findings = Findings::default();
        for (side, n) in [("destination", self.dst.len()), ("source", self.src.len())] {
            if n > limit::RANKS {
                findings.add(format!("{side} instance"), "ranks", limit::RANKS, n);
            }
        }
        std::mem::take(&mut findings).into_result()?;
        let Some(own) = self.dst.get(rank).cloned() else {
            findings.add("destination", "rank", rank, format!("{} ranks", self.dst.len()));
            return Err(findings.into_result().err().unwrap_or(Verdict { findings: Vec::new() }));
        };
        self.check_models(&own, &mut findings);
        let mut sets: Vec<Vec<CopySet>> = vec![Vec::new(); self.src.len()];
        for index in own.order() {
            let Some(tensor) = own.tensors().get(*index as usize) else { continue };
            let row = self.row(tensor.layer, &tensor.role);
            let subject = format!("layer {} {}", tensor.layer, tensor.role);
            let (srcs, dsts) = (held(self.src, &row.src), held(self.dst, &row.dst));
            let Some(me) = dsts.get(rank).copied().flatten() else { continue };
            if srcs.iter().all(Option::is_none) {
                findings.add(&subject, "presence", "present", "absent on every rank");
                continue;
            }
            for s in srcs.iter().flatten() {
                check_tensor(&subject, me, *s, &mut findings);
            }
            match self.assignment(rank, &row).as_ref() {
                Ok(pieces) => {
                    for piece in pieces {
                        if let Some((at, set)) = self.place(rank, &row, piece)
                            && let Some(list) = sets.get_mut(at)
                        {
                            list.push(set);
                        }
                    }
                }
                Err(gaps) => {
                    for (field, local, remote) in gaps {
                        findings.add(&subject, field.clone(), local, remote);
                    }
                }
            }
        }
        findings.into_result()?;
        let plan = |(s, sets): (usize, Vec<CopySet>)| {
            let src = self.src.get(s)?.clone();
            (!sets.is_empty()).then(|| Plan::new((s as u32, rank as u32), src, own.clone(), sets))
        };
        Ok(sets.into_iter().enumerate().filter_map(plan).collect())
    }

    fn check_models(&self, own: &Layout, findings: &mut Findings) {
        for s in self.src {
            if !own.model().is_empty() && !s.model().is_empty() {
                findings.differ("model", "name", own.model(), s.model());
            }
        }
    }

    /// Places a piece at the offsets of this layer's parts.
    fn place(&self, rank: usize, row: &Row, piece: &Piece) -> Option<(usize, CopySet)> {
        let at = piece.src_rank as usize;
        let tensor = |side: &'a [Arc<Layout>], found: &[Option<usize>], rank: usize| {
            found.get(rank).copied().flatten().and_then(|i| side.get(rank)?.tensors().get(i))
        };
        let (s, d) = (tensor(self.src, &row.src, at)?, tensor(self.dst, &row.dst, rank)?);
        let (sp, dp) = (s.parts.get(piece.src_part as usize)?, d.parts.get(piece.dst_part as usize)?);
        let set = CopySet {
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
        };
        Some((at, set))
    }

    /// Source ranks that each destination rank reads, from the structures alone.
    fn readers(&self) -> Vec<Vec<u32>> {
        let mut names: Vec<(u32, String)> =
            self.dst.iter().flat_map(|l| l.tensors()).map(|t| (t.layer, t.role.clone())).collect();
        names.sort();
        names.dedup();
        let mut rows: Vec<Row> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for (layer, role) in names {
            let row = self.row(layer, &role);
            if seen.insert(row.classes.clone()) {
                rows.push(row);
            }
        }
        let mut out: Vec<Vec<u32>> = vec![Vec::new(); self.dst.len()];
        for row in &rows {
            let (srcs, dsts) = (held(self.src, &row.src), held(self.dst, &row.dst));
            for (d, list) in out.iter_mut().enumerate() {
                list.extend(sources(d, &srcs, &dsts));
            }
        }
        for list in &mut out {
            list.sort_unstable();
            list.dedup();
        }
        out
    }

    fn acknowledges(&self, rank: usize) -> Vec<(u32, u32)> {
        let readers = self.readers();
        let (sources, destinations) = (self.src.len(), self.dst.len());
        let mut out = Vec::new();
        for s in 0..sources as u32 {
            let count = readers.iter().filter(|r| r.binary_search(&s).is_ok()).count();
            if count == 0 {
                let share = (s as usize * destinations).checked_div(sources).unwrap_or(0);
                if share == rank {
                    out.push((s, 1));
                }
            } else if readers.get(rank).is_some_and(|r| r.binary_search(&s).is_ok()) {
                out.push((s, count as u32));
            }
        }
        out
    }
}

fn held<'b>(side: &'b [Arc<Layout>], found: &[Option<usize>]) -> Vec<Option<Held<'b>>> {
    side.iter()
        .zip(found)
        .map(|(l, i)| {
            let tensor = l.tensors().get((*i)?)?;
            Some(Held { tensor, group: l.groups().get(tensor.group as usize)? })
        })
        .collect()
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
