//! Real models: every pair of tensor-parallel sizes compiles, moves the right number of bytes, and the right bytes.

mod common;

use common::case::{Ask, instance, pair};
use common::{models, oracle};
use kvlink::layout::form::{ConvOrder, Order, shard};
use kvlink::layout::model::{Cache, Model, Pages, Placement};
use kvlink::layout::{BlockList, Element, Layout, Reach, Request, Scratch, compile};
use std::sync::Arc;

const SIZES: [u32; 6] = [1, 2, 3, 4, 6, 8];

/// Model, bytes per token without and with a window, state bytes per request.
const FIGURES: [(&str, u64, u64, u64); 19] = [
    ("Llama-3.1-8B", 131_072, 0, 0),
    ("Llama-3.1-70B", 327_680, 0, 0),
    ("Qwen3-235B-A22B", 192_512, 0, 0),
    ("DeepSeek-V3/R1", 70_272, 0, 0),
    ("DeepSeek-V3.2", 48_068, 0, 0),
    ("GLM-5", 92_628, 0, 0),
    ("GPT-OSS-120B", 36_864, 36_864, 0),
    ("Gemma-3-27B", 81_920, 425_984, 0),
    ("Llama-4 Scout", 49_152, 147_456, 0),
    ("Qwen3-Next-80B-A3B", 24_576, 0, 39_518_208),
    ("Qwen3.5-MoE-35B-A3B", 20_480, 0, 32_931_840),
    ("Kimi-Linear-48B-A3B", 8_064, 0, 43_417_600),
    ("Nemotron-H-8B", 16_384, 0, 102_137_856),
    ("Nemotron-Nano-12B-v2", 24_576, 0, 148_865_024),
    ("Granite-4.0-H-Small", 16_384, 0, 152_819_712),
    ("MiniMax-Text-01", 40_960, 0, 293_601_280),
    ("Jamba-1.5-Mini", 16_384, 0, 8_716_288),
    ("Jamba-1.5-Large", 36_864, 0, 39_223_296),
    ("Falcon-H1-34B", 147_456, 0, 304_201_728),
];

/// Bytes that one rank keeps: (per token, per token of a window, per request).
fn kept(model: &Model, tp: u32, rank: u32) -> (u64, u64, u64) {
    let (mut growing, mut windowed, mut state) = (0, 0, 0);
    for entry in &model.caches {
        let n = entry.layers.len() as u64;
        match &entry.cache {
            Cache::Attention { heads, dims, dtype, reach } => {
                let bytes = n * shard(*heads, tp, rank).1 * (dims.0 + dims.1) * u64::from(Element::of(*dtype).bytes);
                *if *reach == Reach::Full { &mut growing } else { &mut windowed } += bytes;
            }
            Cache::Record { element, elements, .. } => growing += n * elements * u64::from(element.bytes),
            Cache::State { conv, conv_rows, conv_dtype, state: s, state_dtype } => {
                let channels: u64 = conv.iter().map(|s| shard(s.units, tp, rank).1 * s.width).sum();
                state += n * channels * conv_rows * u64::from(Element::of(*conv_dtype).bytes);
                state += n * shard(s.units, tp, rank).1 * s.width * u64::from(Element::of(*state_dtype).bytes);
            }
        }
    }
    (growing, windowed, state)
}

#[test]
fn the_descriptions_have_the_catalogs_figures() {
    let all = models::all();
    assert_eq!(all.len(), FIGURES.len());
    for (name, growing, windowed, state) in FIGURES {
        assert_eq!(kept(&models::named(name), 1, 0), (growing, windowed, state), "{name}");
    }
}

/// Bytes that destination rank `rank` takes for a request of `end` tokens.
fn bytes(src: &[Arc<Layout>], dst: &[Arc<Layout>], rank: usize, end: u64) -> u64 {
    let inbound = compile(src, dst, rank).unwrap_or_else(|v| panic!("{v}"));
    let ids: Vec<u32> = (0..end.div_ceil(16) as u32).collect();
    let lists = |layout: &Layout| {
        let slots = |g: &kvlink::layout::Group| g.kind == kvlink::layout::GroupKind::Slots;
        let list = |g| BlockList::new(if slots(g) { &ids[..1] } else { &ids });
        layout.groups().iter().map(list).collect::<Vec<_>>()
    };
    let mut total = 0;
    for plan in &inbound.plans {
        let (s, d) = (lists(plan.source_layout()), lists(plan.destination_layout()));
        let request = Request::whole(&s, &d, end);
        total += plan.expand(&request, &mut Scratch::default(), &mut Vec::new()).unwrap().bytes;
    }
    total
}

#[test]
fn every_pair_of_sizes_compiles_and_moves_exactly_the_useful_bytes() {
    for model in models::all() {
        let window = model.caches.iter().find_map(|c| match c.cache {
            Cache::Attention { reach: Reach::Window(n) | Reach::Chunk(n), .. } => Some(n),
            _ => None,
        });
        let at = |tp| instance(&model, &Placement { tp, num_blocks: 16, ..Placement::default() });
        let sides: Vec<(u32, Vec<Arc<Layout>>)> = SIZES.iter().map(|tp| (*tp, at(*tp))).collect();
        for (s, src) in &sides {
            for (d, dst) in &sides {
                for rank in 0..*d {
                    let end = 200;
                    let (growing, windowed, state) = kept(&model, *d, rank);
                    let want = growing * end + windowed * end.min(window.unwrap_or(0)) + state;
                    let have = bytes(src, dst, rank as usize, end);
                    assert_eq!(have, want, "{} P{s} D{d} rank {rank}", model.name);
                }
            }
        }
    }
}

#[test]
fn every_pair_of_sizes_moves_the_right_bytes() {
    for model in models::all() {
        let model = models::thin(&model, 1, 64);
        for (i, s) in SIZES.iter().enumerate() {
            for (j, d) in SIZES.iter().enumerate() {
                let order = [Order::LBHNC, Order::LBNHC, Order::BLHNC][(i + j) % 3];
                let conv_order = if (i + j) % 2 == 0 { ConvOrder::Ds } else { ConvOrder::Sd };
                let side = Placement { block_tokens: 8, num_blocks: 3, ..Placement::default() };
                let src = Placement { tp: *s, order, conv_order, ..side.clone() };
                let dst = Placement { tp: *d, block_tokens: 6, ..side };
                let case = pair(&model, &src, &dst, &Ask::whole(13));
                oracle::run(&case).unwrap_or_else(|e| panic!("{} P{s} D{d}: {e}", model.name));
            }
        }
    }
}

fn kimi(tp: u32, num_blocks: u32) -> Placement {
    Placement {
        tp,
        block_tokens: 0,
        align: 128,
        kernel_tokens: 64,
        num_blocks,
        pages: Pages::Shared,
        ..Placement::default()
    }
}

#[test]
fn pages_of_kimi_linear_follow_the_hybrid_rule() {
    let model = models::named("Kimi-Linear");
    let table: [(u32, u64, u32, u64, u64); 4] = [
        (1, 2_170_880, 1_920, 2_211_840, 30),
        (2, 1_085_440, 1_024, 1_179_648, 16),
        (4, 542_720, 512, 589_824, 8),
        (8, 271_360, 256, 294_912, 4),
    ];
    for (tp, state_bytes, block_tokens, page, kernel_blocks) in table {
        assert_eq!(kept(&model, tp, 0).2, 20 * state_bytes);
        for layout in instance(&model, &kimi(tp, 4)) {
            let mla = layout.find(3, "mla").unwrap();
            assert_eq!(layout.groups()[mla.group as usize].block_tokens, block_tokens);
            assert_eq!(mla.parts[0].block_stride, page);
            assert_eq!(layout.regions()[0].len, page * 4 * 7);
            assert_eq!(page, kernel_blocks * 64 * 1_152);
            for layer in 0..27 {
                let tensor = layout.find(layer, "mla").or(layout.find(layer, "state")).unwrap();
                assert_eq!(tensor.parts[0].block_stride, page, "layer {layer}");
            }
        }
    }
}

#[test]
fn the_hybrid_rule_gives_all_ranks_the_same_block() {
    for model in models::all() {
        let hybrid = model.caches.iter().any(|c| matches!(c.cache, Cache::State { .. }));
        for tp in SIZES.iter().filter(|_| hybrid) {
            let p = Placement { tp: *tp, block_tokens: 0, num_blocks: 4, pages: Pages::Shared, ..Placement::default() };
            let tokens = |l: &Arc<Layout>| l.groups().iter().map(|g| g.block_tokens).max();
            let layouts = instance(&model, &p);
            assert!(layouts.iter().all(|l| tokens(l) == tokens(&layouts[0])), "{} TP {tp}", model.name);
        }
    }
}

#[test]
fn qwen35_blocks_are_544_and_272_tokens_where_only_the_state_is_split() {
    let model = models::named("Qwen3.5-MoE");
    let tokens = |tp| {
        let p = Placement { tp, block_tokens: 0, num_blocks: 4, pages: Pages::Shared, ..Placement::default() };
        instance(&model, &p)[0].groups().iter().map(|g| g.block_tokens).max()
    };
    assert_eq!([1, 2, 4].map(tokens), [Some(544), Some(544), Some(272)]);
}

#[test]
fn one_prefill_page_of_kimi_linear_feeds_two_decode_pages() {
    let mut model = models::named("Kimi-Linear");
    for entry in &mut model.caches {
        entry.layers.retain(|l| *l < 8);
    }
    model.num_layers = 8;
    let case = pair(&model, &kimi(4, 8), &kimi(8, 8), &Ask::whole(700));
    let moved = oracle::run(&case).unwrap_or_else(|e| panic!("{e}"));
    let state: u64 = 6 * 2_170_880;
    assert_eq!(moved.bytes, 8 * 2 * 700 * 1_152 + state);

    let mla = case.src[0].find(3, "mla").unwrap().group as usize;
    assert_eq!((case.src_lists[0].0[mla].ids.len(), case.dst_lists[0].0[mla].ids.len()), (2, 3));
    let back = pair(&model, &kimi(8, 8), &kimi(4, 8), &Ask::whole(700));
    oracle::run(&back).unwrap_or_else(|e| panic!("{e}"));
}
