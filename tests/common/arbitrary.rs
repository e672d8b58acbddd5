//! Random models, placements and requests.

use super::case::{Ask, case, instance};
use super::oracle::Case;
use kvlink::layout::form::{ConvOrder, Order, Section};
use kvlink::layout::model::{Cache, Layers, Model, Pages, Placement};
use kvlink::layout::{DType, Element, GroupKind, Layout, LayoutDesc, Reach};
use proptest::prelude::*;
use proptest::sample::select;
use std::sync::Arc;

pub fn order() -> impl Strategy<Value = Order> {
    Just(b"LBHNC".to_vec()).prop_shuffle().prop_map(|b| String::from_utf8(b).unwrap().parse().unwrap())
}

fn dtype() -> impl Strategy<Value = DType> {
    select(vec![DType::U8, DType::Bf16, DType::F32])
}

pub fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![
        2 => Just(Reach::Full),
        1 => (1u64..70).prop_map(Reach::Window),
        1 => (1u64..70).prop_map(Reach::Chunk),
    ]
}

fn attention() -> impl Strategy<Value = Cache> {
    (1u64..9, (1u64..4, 1u64..4), dtype(), reach()).prop_map(|(heads, dims, dtype, reach)| Cache::Attention {
        heads,
        dims,
        dtype,
        reach,
    })
}

fn record() -> impl Strategy<Value = Cache> {
    prop_oneof![
        (1u32..20).prop_map(|n| Cache::Record { role: "opaque".into(), element: Element::opaque(n), elements: 1 }),
        (1u64..9, dtype()).prop_map(|(n, d)| Cache::Record {
            role: "latent".into(),
            element: Element::of(d),
            elements: n
        }),
    ]
}

fn section() -> impl Strategy<Value = Section> {
    (1u64..9, 1u64..4).prop_map(|(units, width)| Section { units, width })
}

/// GDN and KDA (`[q|k|v]`), Mamba2 (`[x|B|C]`, also with one group), Mamba1 (one section), lightning (none).
fn state() -> impl Strategy<Value = Cache> {
    let sections = prop_oneof![
        (section(), section()).prop_map(|(k, v)| vec![k, k, v]),
        section().prop_map(|q| vec![q, q, q]),
        (section(), 1u64..4, 1u64..5).prop_map(|(x, g, n)| {
            let group = Section { units: g, width: n };
            vec![x, group, group]
        }),
        section().prop_map(|x| vec![x]),
        Just(vec![]),
    ];
    (sections, 1u64..4, dtype(), section(), dtype()).prop_map(|(conv, conv_rows, conv_dtype, state, state_dtype)| {
        Cache::State { conv, conv_rows, conv_dtype, state, state_dtype }
    })
}

/// Up to six layers; each has one of two kinds of attention or none, a record or none, a state or none.
pub fn model() -> impl Strategy<Value = Model> {
    let layer = (0u8..4, any::<bool>(), any::<bool>());
    (attention(), attention(), record(), state(), proptest::collection::vec(layer, 1..7)).prop_map(
        |(a, b, record, state, layers)| {
            let pick = |f: &dyn Fn(&(u8, bool, bool)) -> bool| {
                (0..layers.len() as u32).filter(|i| f(&layers[*i as usize])).collect::<Vec<u32>>()
            };
            let kinds = [
                (pick(&|l| l.0 == 1 || l.0 == 3), a),
                (pick(&|l| l.0 == 2), b),
                (pick(&|l| l.1), record),
                (pick(&|l| l.2), state),
            ];
            let mut caches: Vec<Layers> = kinds
                .into_iter()
                .filter(|(layers, _)| !layers.is_empty())
                .map(|(layers, cache)| Layers { layers, cache })
                .collect();
            if caches.is_empty() {
                let cache = Cache::Record { role: "latent".into(), element: Element::of(DType::Bf16), elements: 3 };
                caches.push(Layers { layers: vec![0], cache });
            }
            Model { name: "random".into(), num_layers: layers.len() as u32, caches }
        },
    )
}

/// One side: its placement, and whether windowed groups are rings.
#[derive(Clone, Debug)]
pub struct Side {
    pub placement: Placement,
    pub rings: bool,
}

pub fn side() -> impl Strategy<Value = Side> {
    let topology = (select(vec![1u32, 1, 2, 2, 3, 4, 4, 6, 8, 12, 16]), 1u32..4, 0usize..8);
    let blocks = (select(vec![1u32, 2, 3, 4, 6, 8, 16, 16, 48, 64]), 0usize..4);
    let context = select(vec![1u32, 2, 3, 4, 5, 8, 16]);
    let form = (order(), any::<bool>(), any::<bool>(), 0u64..3, 0u8..4, any::<bool>());
    (topology, blocks, context, form).prop_map(
        |((tp, pp, dcp), (block_tokens, tiles), interleave, (order, planes, sd, speculative, shared, rings))| {
            let divisors = |n: u32| (1..=n).filter(|d| n.is_multiple_of(*d)).collect::<Vec<u32>>();
            let dcps = divisors(tp);
            let dcp = if dcp < 4 { 1 } else { dcps[dcp % dcps.len()] };
            let kernels = divisors(block_tokens);
            let pages = if shared == 0 { Pages::Shared } else { Pages::Separate };
            let placement = Placement {
                tp,
                pp: if tp > 6 { 1 } else { pp },
                dcp,
                interleave,
                block_tokens,
                kernel_tokens: kernels[kernels.len().saturating_sub(1 + tiles) % kernels.len()],
                order: if pages == Pages::Shared { Order::LBNHC } else { order },
                planes: planes && pages == Pages::Separate,
                conv_order: if sd { ConvOrder::Sd } else { ConvOrder::Ds },
                speculative,
                pages,
                ..Placement::default()
            };
            Side { placement, rings }
        },
    )
}

pub fn ask() -> impl Strategy<Value = Ask> {
    let range = (0u8..3, 0u64..1000, 0u64..1000);
    (1u64..140, range, (any::<bool>(), 0u32..6, 1u32..4), any::<(bool, bool)>(), 1usize..3, any::<u64>()).prop_map(
        |(end, (partial, a, b), (some, layer, layers), (slots, holes), states, seed)| {
            let (a, b) = (a % (end + 1), b % (end + 1));
            Ask {
                tokens: if partial == 0 { a.min(b)..a.max(b) } else { 0..end },
                end,
                layers: if some { layer..layer + layers } else { 0..u32::MAX },
                slots,
                states,
                holes,
                seed,
            }
        },
    )
}

/// Windowed groups become rings.
fn with_rings(layouts: Vec<Arc<Layout>>) -> Vec<Arc<Layout>> {
    let ring = |l: Arc<Layout>| {
        let mut desc: LayoutDesc = l.desc().clone();
        for g in &mut desc.groups {
            if g.reach != Reach::Full && g.kind == GroupKind::Paged && g.context.size == 1 {
                g.kind = GroupKind::Ring;
            }
        }
        Arc::new(Layout::new(desc).unwrap())
    };
    layouts.into_iter().map(ring).collect()
}

/// A runnable case.
pub fn build(model: &Model, src: &Side, dst: &Side, ask: &Ask) -> Case {
    let make = |side: &Side| {
        let p = &side.placement;
        let cycle = u64::from(p.dcp * p.interleave);
        let local = ask.end.div_ceil(cycle) * u64::from(p.interleave);
        let per_group = local.div_ceil(u64::from(p.block_tokens)) as u32 + 2;
        let groups = if p.pages == Pages::Shared { 2 + model.num_layers * 3 } else { 1 };
        let layouts =
            instance(model, &Placement { num_blocks: per_group.max(ask.states as u32) * groups, ..p.clone() });
        if side.rings { with_rings(layouts) } else { layouts }
    };
    let shared = (src.placement.pages == Pages::Shared, dst.placement.pages == Pages::Shared);
    case(make(src), make(dst), shared, ask)
}
