//! Layout pairs that serving engines are known to copy wrongly, or to refuse without need.

mod common;

use common::case::{Ask, instance, pair};
use common::{models, oracle};
use kvlink::layout::form::{ConvOrder, Order, Section, State, shard};
use kvlink::layout::model::{Cache, Layers, Model, Pages, Placement};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region, Request, Scratch, compile};
use std::sync::Arc;

fn right(model: &Model, src: &Placement, dst: &Placement, ask: &Ask) -> oracle::Moved {
    oracle::run(&pair(model, src, dst, ask)).unwrap_or_else(|e| panic!("{}: {e}\n{src:?}\n{dst:?}", model.name))
}

fn tp(tp: u32) -> Placement {
    Placement { tp, block_tokens: 16, num_blocks: 8, ..Placement::default() }
}

fn gqa(heads: u64, layers: u32) -> Model {
    let cache = Cache::Attention { heads, dims: (8, 8), dtype: DType::Bf16, reach: Reach::Full };
    Model { name: String::new(), num_layers: layers, caches: vec![Layers { layers: (0..layers).collect(), cache }] }
}

const BOTH: [ConvOrder; 2] = [ConvOrder::Ds, ConvOrder::Sd];

#[test]
fn case_1_mamba2_with_one_group_copies_b_and_c_whole() {
    let model = models::thin(&models::named("Granite-4.0-H"), 1, 512);
    let halves = instance(&model, &tp(2));
    let conv = halves[0].find(0, "conv").unwrap();
    assert_eq!(conv.parts.iter().map(|p| p.extents[0].len).collect::<Vec<_>>(), [4_096, 128, 128]);
    for order in BOTH {
        for (p, d) in [(1, 2), (2, 1), (2, 4), (4, 2), (3, 2)] {
            let side = |n| Placement { conv_order: order, ..tp(n) };
            right(&model, &side(p), &side(d), &Ask::whole(20));
        }
    }
}

#[test]
fn case_1_mamba2_with_more_ranks_than_groups() {
    let model = models::thin(&models::named("Nemotron-H-8B"), 1, 512);
    right(&model, &tp(8), &tp(16), &Ask::whole(20));
    right(&model, &tp(16), &tp(8), &Ask::whole(20));
}

#[test]
fn case_2_other_number_of_speculative_tokens_moves_the_common_rows() {
    let model = models::thin(&models::named("Granite-4.0-H"), 1, 512);
    for order in BOTH {
        for (p, d) in [(1, 1), (1, 2), (2, 1)] {
            for (ours, theirs) in [(1, 2), (2, 1), (0, 3)] {
                let side = |n, speculative| Placement { conv_order: order, speculative, ..tp(n) };
                let moved = right(&model, &side(p, ours), &side(d, theirs), &Ask::whole(20));
                let rows = 3 + ours.min(theirs);
                let channels = if d == 1 { 8_448 } else { 2 * 4_352 };
                let rest = right(&model, &side(p, 0), &side(d, 0), &Ask::whole(20)).bytes - channels * 3 * 2;
                assert_eq!(moved.bytes, rest + channels * rows * 2);
            }
        }
    }
}

#[test]
fn case_3_other_state_types_are_a_verdict() {
    let model = models::named("Granite-4.0-H");
    let mut other = model.clone();
    for entry in &mut other.caches {
        if let Cache::State { state_dtype, .. } = &mut entry.cache {
            *state_dtype = DType::Bf16;
        }
    }
    let verdict = compile(&instance(&other, &tp(2)), &instance(&model, &tp(1)), 0).unwrap_err();
    assert_eq!(verdict.findings.len(), 36);
    assert_eq!(verdict.findings[0].to_string(), "layer 0 state: dtype destination f32, source bf16");
}

#[test]
fn case_4_mamba2_sections_are_sharded_one_by_one() {
    let model = models::thin(&models::named("Nemotron-H-8B"), 1, 512);
    for order in BOTH {
        for (p, d) in [(1, 2), (2, 1), (1, 8), (4, 2)] {
            let side = |n| Placement { conv_order: order, ..tp(n) };
            right(&model, &side(p), &side(d), &Ask::whole(20));
        }
    }
}

#[test]
fn case_5_windows_over_other_block_sizes_pair_by_position() {
    let cache = Cache::Attention { heads: 2, dims: (4, 4), dtype: DType::U8, reach: Reach::Window(1024) };
    let model = Model { caches: vec![Layers { layers: vec![0], cache }], ..gqa(2, 1) };
    for prompt in [1_500, 2_000, 1_023, 1_025] {
        let side = |block_tokens, num_blocks| Placement { block_tokens, num_blocks, ..tp(1) };
        let ask = Ask { holes: true, seed: prompt, ..Ask::whole(prompt) };
        let case = pair(&model, &side(16, 128), &side(64, 32), &Ask { holes: false, ..ask.clone() });
        let moved = oracle::run(&case).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(moved.bytes, prompt.min(1_024) * 16);
        right(&model, &side(16, 128), &side(64, 32), &ask);
        right(&model, &side(64, 32), &side(16, 128), &ask);
    }
}

#[test]
fn case_6_larger_prefill_blocks_with_several_heads() {
    for (p, d) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        for order in [Order::LBHNC, Order::LBNHC] {
            let side = |n, block_tokens| Placement { block_tokens, order, ..tp(n) };
            let ask = Ask { layers: 1..2, tokens: 10..90, ..Ask::whole(100) };
            right(&gqa(8, 3), &side(p, 64), &side(d, 16), &ask);
            right(&gqa(8, 3), &side(p, 64), &side(d, 16), &Ask::whole(100));
        }
    }
}

#[test]
fn case_7_more_prefill_ranks_than_heads_and_than_decode_ranks() {
    right(&gqa(2, 2), &tp(4), &tp(2), &Ask::whole(40));
    right(&gqa(8, 2), &tp(16), &tp(8), &Ask::whole(40));
}

#[test]
fn case_7_smaller_decode_blocks_at_any_tp() {
    for (p, d) in [(1, 1), (4, 2), (2, 4), (4, 1)] {
        for (a, b) in [(64, 16), (16, 64), (48, 16), (32, 48)] {
            let side = |n, block_tokens| Placement { block_tokens, ..tp(n) };
            right(&gqa(4, 2), &side(p, a), &side(d, b), &Ask::whole(100));
        }
    }
}

/// Pages shared by attention and state, block size by the hybrid rule.
fn hybrid(n: u32, align: u32, kernel_tokens: u32) -> Placement {
    Placement { block_tokens: 0, align, kernel_tokens, num_blocks: 8, pages: Pages::Shared, ..tp(n) }
}

#[test]
fn case_7_gdn_hybrids_whose_block_sizes_differ() {
    let mut model = models::named("Qwen3.5-MoE");
    for entry in &mut model.caches {
        entry.layers.truncate(if matches!(entry.cache, Cache::State { .. }) { 3 } else { 1 });
    }
    for (p, d) in [(1, 4), (2, 4), (4, 1)] {
        right(&model, &hybrid(p, 16, 0), &hybrid(d, 16, 0), &Ask::whole(600));
    }
}

#[test]
fn case_7_kimi_linear_over_unequal_tp_after_a_prefix_hit() {
    let mut model = models::named("Kimi-Linear");
    for entry in &mut model.caches {
        entry.layers.retain(|l| *l < 4);
    }
    for (p, d) in [(4, 2), (2, 4), (4, 8)] {
        let ask = Ask { tokens: 520..900, holes: true, ..Ask::whole(900) };
        let moved = right(&model, &hybrid(p, 128, 64), &hybrid(d, 128, 64), &ask);
        assert!(moved.bytes > 0);
    }
}

#[test]
fn case_7_storage_orders_mix_at_any_tp() {
    let pairs = [
        (Order::LBHNC, Order::BLHNC),
        (Order::BLHNC, Order::LBHNC),
        (Order::LBNHC, Order::LBNHC),
        (Order::LHBNC, Order::LHBNC),
        (Order::LBNHC, Order::LHBNC),
    ];
    for (a, b) in pairs {
        for (p, d) in [(1, 1), (2, 4), (4, 2)] {
            right(&gqa(4, 3), &Placement { order: a, ..tp(p) }, &Placement { order: b, ..tp(d) }, &Ask::whole(40));
        }
    }
}

#[test]
fn case_7_tp_sizes_that_do_not_divide() {
    for (p, d) in [(6, 4), (4, 6), (3, 2), (2, 3), (3, 8)] {
        right(&gqa(12, 2), &tp(p), &tp(d), &Ask::whole(40));
        right(&gqa(8, 2), &tp(p), &tp(d), &Ask::whole(40));
    }
}

#[test]
fn case_7_pipeline_parallel_on_either_side() {
    for (p, d) in [((1, 1), (1, 3)), ((2, 3), (1, 2)), ((1, 2), (2, 3))] {
        let side = |(n, pp)| Placement { pp, ..tp(n) };
        right(&gqa(4, 7), &side(p), &side(d), &Ask::whole(40));
    }
}

#[test]
fn case_7_more_than_two_state_tensors() {
    let side = |size: u32| {
        let rank = |rank: u32| {
            let mut offset = 0;
            let mut tensors = Vec::new();
            for (role, dtype) in [("state", DType::F32), ("replay", DType::Bf16), ("cursor", DType::I32)] {
                let section = Section { units: 8, width: 6 };
                let (tensor, bytes) = State {
                    layer: 0,
                    role,
                    group: 0,
                    region: 0,
                    offset,
                    slot_stride: 1024,
                    section,
                    shard: shard(8, size, rank),
                    element: Element::of(dtype),
                }
                .tensor()
                .unwrap();
                tensors.push(tensor);
                offset += bytes;
            }
            let group = Group {
                kind: GroupKind::Slots,
                block_tokens: 1,
                num_blocks: 4,
                reach: Reach::Full,
                context: Default::default(),
            };
            let regions = vec![Region { len: 4096 }];
            Arc::new(
                Layout::new(LayoutDesc { regions, groups: vec![group], tensors, ..LayoutDesc::default() }).unwrap(),
            )
        };
        (0..size).map(rank).collect::<Vec<_>>()
    };
    for (p, d) in [(1, 2), (4, 2), (2, 3)] {
        let case = common::case::case(side(p), side(d), (false, false), &Ask::whole(1));
        oracle::run(&case).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn case_8_a_short_prompt_moves_only_its_tokens_and_slots() {
    let model = models::named("Kimi-Linear");
    let (src, dst) = (instance(&model, &hybrid(2, 128, 64)), instance(&model, &hybrid(2, 128, 64)));
    let case = common::case::case(src, dst, (true, true), &Ask::whole(100));
    for rank in 0..2 {
        let (mut bytes, mut state) = (0, 0);
        for plan in compile(&case.src, &case.dst, rank).unwrap().plans {
            let lists = (case.src_lists[plan.source() as usize].borrow(), case.dst_lists[rank].borrow());
            let whole = Request::whole(&lists.0, &lists.1, 100);
            let expand =
                |request: &Request<'_>| plan.expand(request, &mut Scratch::default(), &mut Vec::new()).unwrap().bytes;
            let all = expand(&whole);
            bytes += expand(&Request { slots: false, ..whole.clone() });
            state += all;
        }
        assert_eq!(bytes, 100 * 7 * 1_152);
        assert_eq!(state - bytes, 20 * 1_085_440);
    }
}

#[test]
fn case_8_neighbouring_blocks_and_layers_are_one_span() {
    let ids: Vec<u32> = (2..6).collect();
    let lists = [kvlink::layout::BlockList::new(&ids)];
    let spans = |model: &Model, p: &Placement| {
        let side = instance(model, p);
        let inbound = compile(&side, &side, 0).unwrap();
        let mut out = Vec::new();
        let request = Request::whole(&lists, &lists, 4 * u64::from(p.block_tokens));
        inbound.plans[0].expand(&request, &mut Scratch::default(), &mut out).unwrap();
        out.len()
    };
    assert_eq!(spans(&gqa(4, 3), &tp(1)), 3, "blocks of one layer");
    assert_eq!(spans(&gqa(4, 3), &Placement { kernel_tokens: 4, ..tp(1) }), 3, "kernel blocks");
    assert_eq!(spans(&gqa(4, 3), &Placement { order: Order::BLHNC, ..tp(1) }), 1, "layers of a block");
}
