//! Instances of many ranks: who reads whom, counted from the plans of all ranks.

mod common;

use common::case::instance;
use common::{boxes, models};
use kvlink::layout::model::{Model, Pages, Placement};
use kvlink::layout::{Layout, Plan, compile};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use std::sync::Arc;

type Side = Vec<Arc<Layout>>;

/// Every rank's acknowledgements are what the plans of all ranks say.
fn check(src: &Side, dst: &Side) {
    let all: Vec<_> = (0..dst.len()).map(|d| compile(src, dst, d).unwrap_or_else(|v| panic!("{v}"))).collect();
    let reads = |d: usize, s: u32| all[d].plans.iter().any(|p| p.source() == s);
    let readers: Vec<usize> = (0..src.len() as u32).map(|s| (0..dst.len()).filter(|d| reads(*d, s)).count()).collect();
    for (d, inbound) in all.iter().enumerate() {
        let told = |s: u32| match readers[s as usize] {
            0 => (s as usize * dst.len() / src.len() == d).then_some((s, 1)),
            n => reads(d, s).then_some((s, n as u32)),
        };
        let expected: Vec<(u32, u32)> = (0..src.len() as u32).filter_map(told).collect();
        assert_eq!(inbound.acknowledges, expected, "rank {d} of {}, source of {} ranks", dst.len(), src.len());
    }
}

/// One layer of each kind that a model has.
fn thin(name: &str) -> Model {
    models::thin(&models::named(name), 1, 64)
}

/// Replicated records, heads on replicated ranks, sections of a convolution with a state, and several of them at once.
fn model() -> impl Strategy<Value = Model> {
    select(vec!["DeepSeek-V3/R1", "Llama-3.1-8B", "Qwen3-Next", "Nemotron-H-8B", "Falcon-H1"]).prop_map(thin)
}

fn side() -> impl Strategy<Value = Placement> {
    (
        select(vec![1u32, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 65]),
        1u32..3,
        any::<usize>(),
        1u32..6,
        1u32..17,
        any::<bool>(),
    )
        .prop_map(|(tp, pp, dcp, interleave, block_tokens, spread)| {
            let divisors: Vec<u32> = (1..=tp).filter(|d| tp % d == 0).collect();
            let dcp = if spread { divisors[dcp % divisors.len()].min(16) } else { 1 };
            let dcp = if tp % dcp == 0 { dcp } else { 1 };
            Placement {
                tp,
                pp: if tp > 32 { 1 } else { pp },
                dcp,
                interleave,
                block_tokens,
                num_blocks: 3,
                ..Placement::default()
            }
        })
}

proptest! {
    #![proptest_config(Config { cases: 200.max(Config::default().cases), failure_persistence: None, ..Config::default() })]

    #[test]
    fn acknowledgements_agree_with_the_plans_of_all_ranks(m in model(), s in side(), d in side()) {
        check(&instance(&m, &s), &instance(&m, &d));
    }

    #[test]
    fn acknowledgements_agree_with_the_plans_of_any_boxes(seed in any::<u64>()) {
        let case = boxes::build(seed);
        check(&case.src, &case.dst);
    }
}

fn tensor_parallel(model: &Model, tp: u32) -> Side {
    instance(model, &Placement { tp, num_blocks: 2, pages: Pages::Separate, ..Placement::default() })
}

fn sources(plans: &[Arc<Plan>]) -> Vec<u32> {
    plans.iter().map(|p| p.source()).collect()
}

#[test]
fn the_rule_of_choice_is_part_of_the_contract() {
    let (replicated, heads) = (thin("DeepSeek-V3/R1"), thin("Llama-3.1-8B"));
    for (a, b) in [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2), (4, 4), (12, 5), (5, 12)] {
        let (src, dst) = (tensor_parallel(&replicated, a), tensor_parallel(&replicated, b));
        for d in 0..b {
            assert_eq!(sources(&compile(&src, &dst, d as usize).unwrap().plans), [d * a / b], "{a} -> {b}, rank {d}");
        }
        // Eight heads, each on `a` ranks of the source and wanted by `b` ranks of the destination.
        let (src, dst) = (tensor_parallel(&heads, 8 * a), tensor_parallel(&heads, 8 * b));
        for d in 0..8 * b {
            let (head, wanting) = (d / b, d % b);
            let plans = compile(&src, &dst, d as usize).unwrap().plans;
            assert_eq!(sources(&plans), [head * a + wanting * a / b], "8 x {a} -> 8 x {b}, rank {d}");
        }
    }
}

#[test]
fn instances_of_the_largest_size_compile() {
    let (replicated, heads) = (thin("DeepSeek-V3/R1"), thin("Llama-3.1-8B"));
    let most = kvlink::layout::limit::RANKS as u32;
    for model in [replicated, heads] {
        let (many, one) = (tensor_parallel(&model, most), tensor_parallel(&model, 1));
        for (src, dst) in [(&many, &many), (&many, &one), (&one, &many)] {
            let last = compile(src, dst, dst.len() - 1).unwrap();
            let n: u32 = last.acknowledges.iter().map(|(_, n)| n).sum();
            assert!(last.acknowledges.iter().any(|(s, _)| *s as usize == src.len() - 1));
            let (more, fewer) = (src.len().max(dst.len()), src.len().min(dst.len()));
            assert_eq!(n as usize, more / fewer, "{} -> {}", src.len(), dst.len());
        }
    }
}
