//! Expansion and compilation of the catalog's models.
//!
//! `cargo bench --bench layout`: nanoseconds per span of every pair of tensor-parallel sizes, next to the time that a
//! copy of the finished span list takes, compile times, and how times grow with layers, ranks and blocks.

use kvlink::layout::model::{Cache, Model, Placement};
use kvlink::layout::{BlockList, GroupKind, Layout, Plan, Request, Scratch, Span, compile};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZES: [u32; 6] = [1, 2, 3, 4, 6, 8];

fn models() -> Vec<Model> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| serde_json::from_str(&std::fs::read_to_string(p).unwrap()).unwrap()).collect()
}

fn instance(model: &Model, placement: &Placement) -> Vec<Arc<Layout>> {
    let rank = |r| Arc::new(Layout::new(model.describe(&placement.at(r)).unwrap()).unwrap());
    (0..placement.ranks()).map(rank).collect()
}

/// The shortest of several runs.
fn best(budget: Duration, mut f: impl FnMut()) -> Duration {
    let begin = Instant::now();
    let mut least = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || begin.elapsed() < budget {
        let t = Instant::now();
        f();
        least = least.min(t.elapsed());
        runs += 1;
    }
    least
}

struct Expansion {
    spans: usize,
    runs: u64,
    time: Duration,
    reference: Duration,
}

/// Expands all plans of rank 0; every second block, so that neighbours do not merge.
fn expansion(plans: &[Arc<Plan>], tokens: u64) -> Expansion {
    let ids: Vec<u32> = (0..tokens.div_ceil(16) as u32).map(|i| i * 2).collect();
    let lists = |l: &Layout| {
        let list = |k| BlockList::new(if k == GroupKind::Slots { &ids[..1] } else { &ids });
        l.groups().iter().map(|g| list(g.kind)).collect::<Vec<_>>()
    };
    let lists: Vec<_> = plans.iter().map(|p| (lists(p.source_layout()), lists(p.destination_layout()))).collect();
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let mut runs = 0;
    let time = best(Duration::from_millis(3), || {
        out.clear();
        runs = 0;
        for (plan, (s, d)) in plans.iter().zip(&lists) {
            runs += plan.expand(&Request::whole(s, d, tokens), &mut scratch, &mut out).unwrap().runs;
        }
        black_box(&out);
    });
    let mut copy = vec![Span::default(); out.len()];
    let reference = best(Duration::from_millis(1), || {
        copy.copy_from_slice(black_box(&out));
        black_box(&copy);
    });
    Expansion { spans: out.len(), runs, time, reference }
}

fn nanoseconds(t: Duration, n: usize) -> f64 {
    t.as_nanos() as f64 / n.max(1) as f64
}

fn catalog() {
    println!("expansion, 4,096 tokens, destination rank 0 (worst pair per model; all pairs are measured)");
    println!(
        "{:34} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8}",
        "model", "pair", "spans", "runs", "ns/span", "ns/run", "memcpy"
    );
    let mut worst = 0.0f64;
    for model in models() {
        let place = |tp| Placement { tp, num_blocks: 1024, ..Placement::default() };
        let sides: Vec<_> = SIZES.iter().map(|tp| (*tp, instance(&model, &place(*tp)))).collect();
        let mut rows = Vec::new();
        for (p, src) in &sides {
            for (d, dst) in &sides {
                let e = expansion(&compile(src, dst, 0).unwrap().plans, 4096);
                rows.push((nanoseconds(e.time, e.spans), format!("{p}->{d}"), e));
            }
        }
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (ns, pair, e) = &rows[0];
        worst = worst.max(*ns);
        println!(
            "{:34} {:>7} {:>9} {:>9} {:>8.2} {:>8.2} {:>8.2}",
            model.name,
            pair,
            e.spans,
            e.runs,
            ns,
            nanoseconds(e.time, e.runs as usize),
            nanoseconds(e.reference, e.spans)
        );
    }
    println!("worst: {worst:.2} ns per span\n");
}

fn compile_times() {
    println!("compile, TP 8 -> 8, one destination rank");
    let mut all: Vec<(Duration, String)> = models()
        .iter()
        .map(|m| {
            let side = instance(m, &Placement { tp: 8, num_blocks: 1024, ..Placement::default() });
            (best(Duration::from_millis(30), || drop(black_box(compile(&side, &side, 3)))), m.name.clone())
        })
        .collect();
    all.sort_by(|a, b| b.cmp(a));
    for (t, name) in all.iter().take(3) {
        println!("{name:34} {:>9.3} ms", t.as_secs_f64() * 1e3);
    }
    println!();
}

/// Times per unit of a doubling quantity; linear growth keeps them level.
fn series(title: &str, sizes: &[u32], measure: impl Fn(u32) -> Duration) {
    println!("{title}");
    for n in sizes {
        let t = measure(*n);
        println!("{n:>8} {:>11.1} us {:>11.3} us each", t.as_secs_f64() * 1e6, t.as_secs_f64() * 1e6 / f64::from(*n));
    }
    println!();
}

fn growth() {
    let llama = models().into_iter().find(|m| m.name == "Llama-3.1-8B").unwrap();
    let layers = |n: u32| {
        let mut m = llama.clone();
        m.num_layers = n;
        m.caches[0].layers = (0..n).collect();
        m
    };
    let budget = Duration::from_millis(30);
    series("compile by layers, TP 8 -> 8", &[32, 64, 128, 256, 512, 1024], |n| {
        let side = instance(&layers(n), &Placement { tp: 8, ..Placement::default() });
        best(budget, || drop(black_box(compile(&side, &side, 3))))
    });
    let ranks = [8, 16, 32, 64, 128, 256, 512, 1024];
    let by_ranks = |model: &Model, src: Placement, dst: Placement| {
        let (src, dst) = (instance(model, &src), instance(model, &dst));
        best(budget, || drop(black_box(compile(&src, &dst, 0))))
    };
    let tp = |n| Placement { tp: n, ..Placement::default() };
    let mut wide = llama.clone();
    if let Cache::Attention { heads, .. } = &mut wide.caches[0].cache {
        *heads = 1024;
    }
    let mla = models().into_iter().find(|m| m.name.starts_with("DeepSeek-V3/R1")).unwrap();
    series("compile by ranks, TP n -> n, replicated (MLA)", &ranks, |n| by_ranks(&mla, tp(n), tp(n)));
    series("compile by ranks, TP n -> n, sharded (1,024 heads)", &ranks, |n| by_ranks(&wide, tp(n), tp(n)));
    series("compile by ranks, TP n -> n, replica groups (8 heads)", &ranks, |n| by_ranks(&llama, tp(n), tp(n)));
    series("compile by ranks, TP n -> 1, sharded", &ranks, |n| by_ranks(&wide, tp(n), tp(1)));
    series("compile by ranks, TP 1 -> n, sharded", &ranks, |n| by_ranks(&wide, tp(1), tp(n)));
    let dcp = |n| Placement { dcp: n, ..tp(n) };
    series("compile by ranks, TP n -> n, context parallel (MLA)", &ranks, |n| by_ranks(&mla, dcp(n), dcp(n)));
    series("expand by blocks, TP 2 -> 4", &[64, 128, 256, 512, 1024, 2048], |n| {
        let side = |tp| instance(&llama, &Placement { tp, num_blocks: 2 * n, ..Placement::default() });
        expansion(&compile(&side(2), &side(4), 0).unwrap().plans, u64::from(n) * 16).time
    });
    series("validate by layers (cross-layer blocks)", &[32, 64, 128, 256, 512, 1024, 2048, 4096], |n| {
        let order = kvlink::layout::form::Order::BLHNC;
        let desc = layers(n).describe(&Placement { order, ..Placement::default() }).unwrap();
        best(budget, || drop(black_box(Layout::new(desc.clone()))))
    });
}

fn main() {
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    catalog();
    compile_times();
    growth();
}
