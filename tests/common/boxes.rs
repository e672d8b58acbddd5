//! Tensors that no engine has: random boxes on random ranks, strides in any order, gaps anywhere.

use super::case::{Ask, case};
use super::oracle::Case;
use super::rng::Rng;
use kvlink::layout::{
    Axis, ContextParallel, Element, Extent, Group, GroupKind, Layout, LayoutDesc, Matching, Part, Reach, Region,
    Tensor, Tile,
};
use std::sync::Arc;

type Box = Vec<(u64, u64)>;

/// What both sides have in common.
struct World {
    tensors: Vec<(u32, &'static str, Element, Vec<Axis>, bool)>,
    reach: Reach,
    end: u64,
}

fn world(rng: &mut Rng) -> World {
    let axes = |rng: &mut Rng| {
        let names = ["head", "content", "row"];
        names[..rng.below(4) as usize]
            .iter()
            .map(|n| Axis { name: n.to_string(), extent: 1 + rng.below(6), matching: Matching::Exact })
            .collect::<Vec<Axis>>()
    };
    let kinds: Vec<_> = (0..1 + rng.below(2))
        .map(|i| {
            let (role, slots) = if i == 0 { ("kv", false) } else { ("state", rng.chance(70)) };
            (role, Element::opaque(1 + rng.below(5) as u32), axes(rng), slots)
        })
        .collect();
    let layers = 1 + rng.below(3) as u32;
    let tensors = (0..layers)
        .flat_map(|layer| kinds.iter().map(move |(r, e, a, s)| (layer, *r, *e, a.clone(), *s)).collect::<Vec<_>>())
        .collect();
    let end = 1 + rng.below(60);
    let reach = match rng.below(4) {
        0 => Reach::Window(1 + rng.below(40)),
        1 => Reach::Chunk(1 + rng.below(40)),
        _ => Reach::Full,
    };
    World { tensors, reach, end }
}

/// Cuts a box into random smaller ones.
fn split(whole: Box, rng: &mut Rng, out: &mut Vec<Box>) {
    let axis = rng.below(whole.len().max(1) as u64) as usize;
    match whole.get(axis) {
        Some((begin, len)) if *len > 1 && out.len() < 6 && rng.chance(60) => {
            let at = 1 + rng.below(len - 1);
            let (mut low, mut high) = (whole.clone(), whole.clone());
            low[axis] = (*begin, at);
            high[axis] = (begin + at, len - at);
            split(low, rng, out);
            split(high, rng, out);
        }
        _ => out.push(whole),
    }
}

/// Strides for counts in a random nesting, gaps included; and the bytes they span.
fn strides(counts: &[u64], unit: u64, rng: &mut Rng) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    rng.shuffle(&mut order);
    let mut out = vec![0; counts.len()];
    let mut below = unit;
    for i in order {
        out[i] = below + if rng.chance(30) { rng.below(4) } else { 0 };
        below = out[i] * counts[i];
    }
    (out, below)
}

fn side(world: &World, rng: &mut Rng) -> Vec<Arc<Layout>> {
    let ranks = 1 + rng.below(4) as u32;
    let context = if rng.chance(30) { 1 + rng.below(3) as u32 } else { 1 };
    let interleave = 1 + rng.below(6) as u32;
    let tile = 1 + rng.below(3) as u32;
    let block_tokens = tile * (1 + rng.below(4) as u32);
    let num_blocks = world.end as u32 / block_tokens + interleave + 3;
    // Every layer of a role is dealt to the ranks in the same way; every context rank holds the whole box.
    let mut deals: Vec<(&str, Vec<(Box, Vec<bool>)>)> = Vec::new();
    for (_, role, _, axes, _) in &world.tensors {
        if deals.iter().all(|d| d.0 != *role) {
            let mut boxes = Vec::new();
            split(axes.iter().map(|a| (0, a.extent)).collect(), rng, &mut boxes);
            let deal = boxes.into_iter().map(|b| {
                let mut holders: Vec<bool> = (0..ranks).map(|_| rng.chance(40)).collect();
                holders[rng.below(u64::from(ranks)) as usize] = true;
                (b, holders)
            });
            deals.push((role, deal.collect()));
        }
    }
    let rank = |r: u32, rng: &mut Rng| {
        let context = ContextParallel { size: context, rank: r % context, interleave };
        let paged = Group { kind: GroupKind::Paged, block_tokens, num_blocks, reach: world.reach, context };
        let slots = Group {
            kind: GroupKind::Slots,
            block_tokens: 1,
            reach: Reach::Full,
            context: ContextParallel::default(),
            ..paged.clone()
        };
        let mut desc = LayoutDesc { groups: vec![paged, slots], ..LayoutDesc::default() };
        let regions = 1 + rng.below(3) as usize;
        let mut ends = vec![0u64; regions];
        for (layer, role, element, axes, slots) in &world.tensors {
            let mut parts = Vec::new();
            for (b, holders) in &deals.iter().find(|d| d.0 == *role).unwrap().1 {
                if !holders[(r / context.size) as usize] {
                    continue;
                }
                let tiles = !slots && rng.chance(50);
                let tokens = if *slots { 1 } else { u64::from(block_tokens) };
                let (outer, inner) = if tiles { (tokens / u64::from(tile), u64::from(tile)) } else { (1, tokens) };
                let mut counts = vec![u64::from(num_blocks), outer, inner];
                counts.extend(b.iter().map(|(_, n)| *n));
                let (s, bytes) = strides(&counts, u64::from(element.bytes), rng);
                let region = rng.below(regions as u64) as usize;
                parts.push(Part {
                    region: region as u32,
                    offset: ends[region],
                    block_stride: s[0],
                    token_stride: s[2],
                    tile: tiles.then_some(Tile { tokens: tile, stride: s[1] }),
                    extents: b
                        .iter()
                        .zip(&s[3..])
                        .map(|((begin, len), stride)| Extent { begin: *begin, len: *len, stride: *stride })
                        .collect(),
                });
                ends[region] += bytes + rng.below(3);
            }
            if !parts.is_empty() {
                desc.tensors.push(Tensor {
                    layer: *layer,
                    role: role.to_string(),
                    group: u32::from(*slots),
                    element: *element,
                    axes: axes.clone(),
                    parts,
                });
            }
        }
        desc.regions = ends.into_iter().map(|len| Region { len }).collect();
        Arc::new(Layout::new(desc).unwrap_or_else(|e| panic!("{e}")))
    };
    (0..ranks * context).map(|r| rank(r, rng)).collect()
}

pub fn build(seed: u64) -> Case {
    let mut rng = Rng::new(seed);
    let world = world(&mut rng);
    let (src, dst) = (side(&world, &mut rng), side(&world, &mut rng));
    let (a, b) = (rng.below(world.end + 1), rng.below(world.end + 1));
    let ask = Ask {
        tokens: if rng.chance(30) { a.min(b)..a.max(b) } else { 0..world.end },
        layers: if rng.chance(30) { 1..2 } else { 0..u32::MAX },
        states: 1 + rng.below(2) as usize,
        holes: rng.chance(50),
        seed: rng.next(),
        ..Ask::whole(world.end)
    };
    case(src, dst, (false, false), &ask)
}
