//! Checks a [`LayoutDesc`] once, so that a [`Layout`](super::Layout) needs no checks later.

use super::footprint::{Dim, Strided, apart};
use super::limit;
use super::shape::{Alias, Group, GroupKind, LayoutDesc, Page, Part, Reach, Tensor};
use crate::error::{Error, Result, Status};
use std::collections::{BTreeMap, HashSet};

/// What is found wrong: a readable number of texts, and how many more there are.
#[derive(Default)]
struct Problems {
    shown: Vec<String>,
    more: u64,
}

impl Problems {
    fn add(&mut self, text: String) {
        const SHOWN: usize = 16;
        match self.shown.len() < SHOWN {
            true => self.shown.push(text),
            false => self.more = self.more.saturating_add(1),
        }
    }

    fn into_result(self) -> Result<()> {
        if self.shown.is_empty() {
            return Ok(());
        }
        let mut text = self.shown.join("; ");
        if self.more > 0 {
            text.push_str(&format!("; and {} more", self.more));
        }
        Err(Error::new(Status::InvalidLayout, text))
    }
}

/// A part with the bytes it covers.
struct Placed<'a> {
    tensor: &'a Tensor,
    part: &'a Part,
    group: &'a Group,
    all: Strided,
}

pub(crate) fn validate(desc: &LayoutDesc) -> Result<Vec<Alias>> {
    limits(desc)?;
    let mut problems = Problems::default();
    for (i, g) in desc.groups.iter().enumerate() {
        group(i, g, &mut problems);
    }
    let mut names = HashSet::new();
    for t in &desc.tensors {
        if !names.insert((t.layer, t.role.as_str())) {
            problems.add(format!("{} is described twice", name(t)));
        }
        tensor(desc, t, &mut problems);
    }
    problems.into_result()?;

    let mut problems = Problems::default();
    let mut placed = Vec::new();
    for t in &desc.tensors {
        for p in &t.parts {
            placed.extend(place(desc, t, p, &mut problems));
        }
    }
    let aliases = overlaps(&placed, &mut problems);
    problems.into_result()?;
    Ok(aliases)
}

fn limits(desc: &LayoutDesc) -> Result<()> {
    let check = |what: &str, have: usize, max: usize| {
        if have > max {
            return Err(Error::new(Status::Limit, format!("layout has {have} {what}, at most {max} are allowed")));
        }
        Ok(())
    };
    check("regions", desc.regions.len(), limit::REGIONS)?;
    check("groups", desc.groups.len(), limit::GROUPS)?;
    check("tensors", desc.tensors.len(), limit::TENSORS)?;
    check("bytes of model name", desc.model.len(), limit::NAME)?;
    for t in &desc.tensors {
        check(&format!("parts in {}", name(t)), t.parts.len(), limit::PARTS)?;
        check(&format!("axes in {}", name(t)), t.axes.len(), limit::AXES)?;
        check("bytes in a role name", t.role.len(), limit::NAME)?;
        for a in &t.axes {
            check("bytes in an axis name", a.name.len(), limit::NAME)?;
        }
    }
    Ok(())
}

fn name(t: &Tensor) -> String {
    format!("layer {} {}", t.layer, t.role)
}

fn group(i: usize, g: &Group, problems: &mut Problems) {
    if g.block_tokens == 0 || g.block_tokens > limit::BLOCK_TOKENS {
        problems.add(format!("group {i}: block_tokens {} is not in 1..={}", g.block_tokens, limit::BLOCK_TOKENS));
    }
    if g.kind == GroupKind::Slots && g.block_tokens != 1 {
        problems.add(format!("group {i}: a slots group has block_tokens {}, must be 1", g.block_tokens));
    }
    if g.num_blocks == 0 || g.num_blocks > limit::BLOCKS {
        problems.add(format!("group {i}: num_blocks {} is not in 1..={}", g.num_blocks, limit::BLOCKS));
    }
    if matches!(g.reach, Reach::Window(0) | Reach::Chunk(0)) {
        problems.add(format!("group {i}: a window or chunk of 0 tokens"));
    }
    let c = g.context;
    if c.size == 0 || c.rank >= c.size || c.interleave == 0 || c.size as usize > limit::RANKS {
        problems.add(format!(
            "group {i}: context parallel rank {} of {} with interleave {} is impossible",
            c.rank, c.size, c.interleave
        ));
    }
    if g.kind != GroupKind::Paged && c.size != 1 {
        problems.add(format!("group {i}: context parallel size {} on a group that is not paged", c.size));
    }
}

fn tensor(desc: &LayoutDesc, t: &Tensor, problems: &mut Problems) {
    let what = name(t);
    if t.role.is_empty() {
        problems.add(format!("{what}: empty role"));
    }
    if t.element.bytes == 0 || t.element.bytes > limit::ELEMENT {
        problems.add(format!("{what}: element of {} bytes is not in 1..={}", t.element.bytes, limit::ELEMENT));
    } else if t.element.dtype.bytes().is_some_and(|b| b != t.element.bytes) {
        problems.add(format!(
            "{what}: element of {} bytes, but {} has {:?}",
            t.element.bytes,
            t.element.dtype.name(),
            t.element.dtype.bytes()
        ));
    }
    let Some(g) = desc.groups.get(t.group as usize) else {
        problems.add(format!("{what}: group {} of {} groups", t.group, desc.groups.len()));
        return;
    };
    for (i, a) in t.axes.iter().enumerate() {
        if a.extent == 0 {
            problems.add(format!("{what}: axis {} has extent 0", a.name));
        }
        if a.name.is_empty() || t.axes.iter().take(i).any(|b| b.name == a.name) {
            problems.add(format!("{what}: axis {i} is named {:?}, names must be unique and not empty", a.name));
        }
    }
    if t.parts.is_empty() {
        problems.add(format!("{what}: no parts"));
    }
    for (i, p) in t.parts.iter().enumerate() {
        part(desc, t, g, &format!("{what} part {i}"), p, problems);
        for (j, q) in t.parts.iter().enumerate().take(i) {
            let meet = p.extents.iter().zip(&q.extents).all(|(a, b)| a.begin < b.end() && b.begin < a.end());
            if meet && p.extents.len() == t.axes.len() && q.extents.len() == t.axes.len() {
                problems.add(format!("{what}: parts {j} and {i} hold the same elements"));
            }
        }
    }
}

fn part(desc: &LayoutDesc, t: &Tensor, g: &Group, what: &str, p: &Part, problems: &mut Problems) {
    if p.region as usize >= desc.regions.len() {
        problems.add(format!("{what}: region {} of {} regions", p.region, desc.regions.len()));
    }
    if p.extents.len() != t.axes.len() {
        problems.add(format!("{what}: {} extents for {} axes", p.extents.len(), t.axes.len()));
        return;
    }
    for (a, e) in t.axes.iter().zip(&p.extents) {
        if e.len == 0 || e.begin.checked_add(e.len).is_none_or(|end| end > a.extent) {
            problems.add(format!(
                "{what}: axis {} interval [{}, {}) does not lie in extent {}",
                a.name,
                e.begin,
                u128::from(e.begin) + u128::from(e.len),
                a.extent
            ));
        }
    }
    if let Some(tile) = p.tile {
        if tile.tokens == 0 || !g.block_tokens.is_multiple_of(tile.tokens.max(1)) {
            problems.add(format!("{what}: tile of {} tokens does not divide block of {}", tile.tokens, g.block_tokens));
        }
        if g.kind == GroupKind::Slots {
            problems.add(format!("{what}: a tile in a slots group"));
        }
    }
}

/// Containment and self-overlap of one part.
fn place<'a>(desc: &'a LayoutDesc, t: &'a Tensor, p: &'a Part, problems: &mut Problems) -> Option<Placed<'a>> {
    let what = name(t);
    let group = desc.groups.get(t.group as usize)?;
    let region = desc.regions.get(p.region as usize)?;
    let Some(all) = Strided::of_part(p, group, t.element) else {
        problems.add(format!("{what}: its byte range overflows 64 bits"));
        return None;
    };
    if all.end() > region.len {
        problems.add(format!(
            "{what}: ends at byte {} of region {}, which has {} bytes",
            all.end(),
            p.region,
            region.len
        ));
    }
    if !all.injective() {
        problems.add(format!("{what}: its strides overlap: two elements share a byte"));
    }
    Some(Placed { tensor: t, part: p, group, all })
}

/// Overlap inside a group is an error; between groups it is an alias (a block id belongs to one group at a time).
fn overlaps(placed: &[Placed<'_>], problems: &mut Problems) -> Vec<Alias> {
    let mut order: Vec<&Placed<'_>> = placed.iter().collect();
    order.sort_by_key(|p| (p.part.region, p.all.base));
    let bundles = bundles(&order);
    // Past the run of neighbours of one bundle that each part is in.
    let mut past: Vec<usize> = Vec::new();
    for run in bundles.chunk_by(|a, b| a == b) {
        past.resize(past.len() + run.len(), past.len() + run.len());
    }
    let mut aliases: Vec<Alias> = Vec::new();
    let mut steps = limit::OVERLAP_STEPS;
    for (i, a) in order.iter().enumerate() {
        let mut next = i + 1;
        while let Some(b) = order.get(next).filter(|b| b.part.region == a.part.region && b.all.base < a.all.end()) {
            if bundles.get(i) == bundles.get(next) {
                next = past.get(next).copied().unwrap_or(order.len());
                continue;
            }
            next += 1;
            if a.tensor.group == b.tensor.group {
                match a.all.overlaps(&b.all, &mut steps) {
                    Some(false) => {}
                    Some(true) => {
                        problems.add(format!("{} and {} share bytes of one group", name(a.tensor), name(b.tensor)))
                    }
                    None => {
                        problems.add(format!(
                            "{} and {}: too entangled to prove disjoint",
                            name(a.tensor),
                            name(b.tensor)
                        ));
                        return aliases;
                    }
                }
            } else {
                add_alias(&mut aliases, a, b, &mut steps, problems);
                if steps == 0 {
                    problems.add(format!("{} and {}: too entangled to compare", name(a.tensor), name(b.tensor)));
                    return aliases;
                }
            }
        }
    }
    aliases
}

/// Numbers the parts so that those of one number are known to share no byte. Parts of one group whose ranges interleave,
/// as layers within blocks do, are proven disjoint all at once where they are regular.
fn bundles(order: &[&Placed<'_>]) -> Vec<usize> {
    let mut out: Vec<usize> = (0..order.len()).collect();
    let mut groups: BTreeMap<(u32, u32), Vec<(usize, &Strided)>> = BTreeMap::new();
    for (i, p) in order.iter().enumerate() {
        groups.entry((p.part.region, p.tensor.group)).or_default().push((i, &p.all));
    }
    for parts in groups.values() {
        let mut end = 0;
        let interleave = |(_, s): &(usize, &Strided), (_, next): &(usize, &Strided)| {
            end = s.end().max(end);
            next.base < end
        };
        for chain in parts.chunk_by(interleave) {
            if apart(&chain.iter().map(|(_, s)| *s).collect::<Vec<_>>()) {
                let first = chain.first().map_or(0, |(i, _)| *i);
                for (i, _) in chain {
                    if let Some(number) = out.get_mut(*i) {
                        *number = first;
                    }
                }
            }
        }
    }
    out
}

fn add_alias(aliases: &mut Vec<Alias>, a: &Placed<'_>, b: &Placed<'_>, steps: &mut u32, problems: &mut Problems) {
    let (a, b) = if a.tensor.group < b.tensor.group { (a, b) } else { (b, a) };
    let groups = (a.tensor.group, b.tensor.group);
    let (Some(left), Some(right)) = (pages(a), pages(b)) else {
        if a.all.overlaps(&b.all, steps) != Some(false) {
            problems.add(format!(
                "{} of group {} and {} of group {} share bytes in too scattered a form",
                name(a.tensor),
                groups.0,
                name(b.tensor),
                groups.1
            ));
        }
        return;
    };
    // Which ids collide depends on the distance of the pages alone.
    let form = |x: Page, y: Page| (i128::from(y.offset) - i128::from(x.offset), x.stride, x.len, y.stride, y.len);
    for x in &left {
        for y in &right {
            let known = |k: &Alias| k.groups == groups && form(k.pages.0, k.pages.1) == form(*x, *y);
            if !aliases.iter().any(known) && meet((*x, a.group), (*y, b.group), steps) {
                aliases.push(Alias { groups, pages: (*x, *y) });
            }
        }
    }
}

/// The contiguous pages of block 0: one, or one for every step of the dims that lie outside of blocks. `None` if there
/// are too many of them.
fn pages(p: &Placed<'_>) -> Option<Vec<Page>> {
    let block = Strided::of_block(p.part, p.group, p.tensor.element)?;
    let stride = p.part.block_stride;
    let outside = |d: &&Dim| d.stride >= stride && p.group.num_blocks > 1;
    let inner: Vec<Dim> = block.dims.iter().filter(|d| !outside(d)).copied().collect();
    let len = Strided { base: 0, dims: inner, unit: block.unit }.extent()?;
    let mut offsets = vec![p.part.offset];
    for d in block.dims.iter().filter(outside) {
        if (offsets.len() as u64).saturating_mul(d.count) > limit::PAGES {
            return None;
        }
        let step = |o: &u64| (0..d.count).map(|i| o.saturating_add(i.saturating_mul(d.stride))).collect::<Vec<_>>();
        offsets = offsets.iter().flat_map(step).collect();
    }
    Some(offsets.into_iter().map(|offset| Page { offset, stride, len }).collect())
}

fn meet(a: (Page, &Group), b: (Page, &Group), steps: &mut u32) -> bool {
    let all = |(p, g): (Page, &Group)| {
        Strided::new(p.offset, p.len, [Dim { count: u64::from(g.num_blocks), stride: p.stride }])
    };
    match (all(a), all(b)) {
        (Some(x), Some(y)) => x.overlaps(&y, steps) != Some(false),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::form::Order;
    use crate::layout::model::{Cache, Layers, Model, Placement};
    use crate::layout::{DType, Layout};

    fn layers(n: u32, heads: u64) -> Model {
        let cache = Cache::Attention { heads, dims: (3, 5), dtype: DType::Bf16, reach: Reach::Full };
        Model { name: String::new(), num_layers: n, caches: vec![Layers { layers: (0..n).collect(), cache }] }
    }

    /// Pairs of parts that only an overlap test of their own can tell apart.
    fn pairs_to_compare(desc: &LayoutDesc) -> usize {
        let mut problems = Problems::default();
        let parts = desc.tensors.iter().flat_map(|t| t.parts.iter().map(move |p| (t, p)));
        let placed: Vec<Placed<'_>> = parts.filter_map(|(t, p)| place(desc, t, p, &mut problems)).collect();
        let mut order: Vec<&Placed<'_>> = placed.iter().collect();
        order.sort_by_key(|p| (p.part.region, p.all.base));
        let bundles = bundles(&order);
        let meet = |a: &Placed<'_>, b: &Placed<'_>| a.part.region == b.part.region && b.all.base < a.all.end();
        let pairs = (0..order.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        pairs.filter(|(i, j)| meet(order[*i], order[*j]) && bundles[*i] != bundles[*j]).count()
    }

    #[test]
    fn layers_in_any_storage_order_need_no_pairwise_comparison() {
        let letters = ["L", "B", "H", "N", "C"];
        let mut texts = vec![String::new()];
        for _ in letters {
            let longer = |t: &String| {
                let left = letters.iter().filter(|l| !t.contains(**l));
                left.map(|l| format!("{t}{l}")).collect::<Vec<_>>()
            };
            texts = texts.iter().flat_map(longer).collect();
        }
        assert_eq!(texts.len(), 120);
        for text in texts {
            for planes in [false, true] {
                let order: Order = text.parse().unwrap();
                let desc = layers(6, 2).describe(&Placement { order, planes, ..Placement::default() }).unwrap();
                assert_eq!(pairs_to_compare(&desc), 0, "{text}, planes {planes}");
            }
        }
    }

    #[test]
    fn as_many_layers_as_allowed_fit_into_one_block() {
        let order = Order::BLHNC;
        let n = limit::TENSORS as u32;
        Layout::new(layers(n, 1).describe(&Placement { order, ..Placement::default() }).unwrap()).unwrap();
    }
}
