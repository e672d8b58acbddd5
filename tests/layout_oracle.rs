//! The planner against brute force.

mod common;

use common::arbitrary::{ask, build, model, order, side};
use common::case::{Ask, pair};
use common::oracle;
use kvlink::layout::form::Order;
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Reach};
use proptest::prelude::*;
use proptest::test_runner::Config;

/// At least `n` cases; more if `PROPTEST_CASES` says so.
fn cases(n: u32) -> Config {
    let default = Config::default();
    Config { cases: n.max(default.cases), failure_persistence: None, ..default }
}

fn check(case: &oracle::Case) -> oracle::Moved {
    oracle::run(case).unwrap_or_else(|e| panic!("{e}"))
}

proptest! {
    #![proptest_config(cases(800))]

    #[test]
    fn any_model_between_any_two_instances(m in model(), s in side(), d in side(), a in ask()) {
        let case = build(&m, &s, &d, &a);
        prop_assert_eq!(oracle::run(&case).map(|_| ()), Ok(()));
    }
}

/// One attention cache per layer.
fn attention(layers: u32, heads: u64, dims: (u64, u64), reach: Reach) -> Model {
    let cache = Cache::Attention { heads, dims, dtype: DType::U8, reach };
    Model { name: String::new(), num_layers: layers, caches: vec![Layers { layers: (0..layers).collect(), cache }] }
}

fn permutations() -> Vec<Order> {
    let mut out: Vec<String> = vec![String::new()];
    for letter in "LBHNC".chars() {
        let insert = |s: &String| (0..=s.len()).map(|i| format!("{}{letter}{}", &s[..i], &s[i..])).collect::<Vec<_>>();
        out = out.iter().flat_map(insert).collect();
    }
    out.iter().map(|s| s.parse().unwrap()).collect()
}

#[test]
fn every_storage_order_against_every_other() {
    let model = attention(2, 2, (1, 2), Reach::Full);
    let orders = permutations();
    assert_eq!(orders.len(), 120);
    for (i, a) in orders.iter().enumerate() {
        for (j, b) in orders.iter().enumerate() {
            let side = |order, tp, planes| Placement {
                tp,
                order,
                planes,
                block_tokens: 2,
                num_blocks: 3,
                ..Placement::default()
            };
            let (src, dst) = (side(*a, 1 + (i as u32 & 1), i & 2 != 0), side(*b, 1 + (j as u32 & 1), j & 2 != 0));
            check(&pair(&model, &src, &dst, &Ask::whole(5)));
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_pair_of_block_sizes(
        sizes in proptest::sample::select(vec![(16u32, 48u32), (48, 16), (64, 16), (16, 64), (544, 272), (272, 544), (1920, 1024), (5, 7)]),
        orders in (order(), order()),
        tp in (1u32..4, 1u32..4),
        window in proptest::option::of(1u64..900),
        end in 1u64..1500,
    ) {
        let model = attention(1, 2, (1, 1), window.map_or(Reach::Full, Reach::Window));
        let side = |tp, order, block_tokens| Placement { tp, order, block_tokens, num_blocks: 1500 / block_tokens + 2, ..Placement::default() };
        let case = pair(&model, &side(tp.0, orders.0, sizes.0), &side(tp.1, orders.1, sizes.1), &Ask::whole(end));
        prop_assert_eq!(oracle::run(&case).map(|_| ()), Ok(()));
    }
}

proptest! {
    #![proptest_config(cases(800))]

    #[test]
    fn any_boxes_on_any_ranks(seed in any::<u64>()) {
        prop_assert_eq!(oracle::run(&common::boxes::build(seed)).map(|_| ()), Ok(()));
    }
}
