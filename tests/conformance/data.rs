//! Caches of all shapes, read and written, every byte of every destination compared with the brute-force oracle.

use crate::common::arbitrary;
use crate::common::case::{Ask, pair};
use crate::common::oracle::{self, Case};
use crate::rank::{Rank, connect, instance};
use crate::transport::Transport;
use kvlink::layout::form::{ConvOrder, Order, Section};
use kvlink::layout::model::{Cache, Layers, Model, Pages, Placement};
use kvlink::layout::{DType, Element, GroupKind, Layout, LayoutDesc, Reach};
use kvlink::proto::{AcceptArgs, Direction, EventKind, Offer, ReadArgs, WriteArgs};
use kvlink::wire::{Blocks, Range};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::sync::Arc;

/// Layers and tokens of one write.
const CHUNK: u64 = 37;
const LAYERS: u32 = 2;

fn blocks(lists: &oracle::Lists) -> Vec<Blocks> {
    lists.0.iter().map(|l| Blocks { first: l.first, ids: l.ids.clone() }).collect()
}

/// The ranks of a source share its block tables, as a ticket needs: the longest of every group.
fn share_lists(case: &mut Case) {
    for g in 0..case.src_lists[0].0.len() {
        let longest = case.src_lists.iter().map(|l| &l.0[g]).max_by_key(|l| l.ids.len()).unwrap().clone();
        case.src_lists.iter_mut().for_each(|l| l.0[g] = longest.clone());
    }
}

fn store(rank: &Rank, memory: &oracle::Memory) {
    for (region, bytes) in memory.iter().enumerate() {
        rank.store(region, 0, bytes);
    }
}

struct Setup {
    src: Vec<Rank>,
    dst: Vec<Rank>,
    before: Vec<oracle::Memory>,
}

fn setup(t: Transport, case: &Case) -> Setup {
    let (src, dst) = (instance(t, "prefill", &case.src), instance(t, "decode", &case.dst));
    for (i, r) in src.iter().enumerate() {
        store(r, &oracle::source_memory(&case.src[i], &case.src_lists[i], case.end, i as u64));
    }
    let before: Vec<oracle::Memory> =
        case.dst.iter().enumerate().map(|(i, l)| oracle::poison(l, 1000 + i as u64)).collect();
    dst.iter().zip(&before).for_each(|(r, m)| store(r, m));
    Setup { src, dst, before }
}

fn compare(case: &Case, s: &Setup, bytes: &[u64]) {
    for (i, r) in s.dst.iter().enumerate() {
        let (want, n) = oracle::expected(case, i, &s.before[i]).unwrap();
        let mut have = r.snapshot();
        have.iter_mut().zip(&want).for_each(|(h, w)| h.truncate(w.len()));
        oracle::compare(case, i, &have, &want).unwrap();
        assert_eq!(bytes[i], n, "rank {i}");
    }
}

/// Every rank of the source offers, every rank of the sink reads.
pub fn read(t: Transport, case: &Case) {
    let s = setup(t, case);
    let mut tickets = Vec::new();
    for (r, l) in s.src.iter().zip(&case.src_lists) {
        let offer = Offer { request: "r".into(), blocks: blocks(l), tokens: case.end, lease: None, user_data: 7 };
        tickets.push(r.agent.ticket(r.agent.offer(offer).unwrap()).unwrap());
    }
    let peers = connect(&s.dst, &s.src, Direction::Inbound);
    for (i, (r, peer)) in s.dst.iter().zip(&peers).enumerate() {
        let args = ReadArgs {
            peer: *peer,
            ticket: &tickets[i % tickets.len()],
            blocks: blocks(&case.dst_lists[i]),
            token_begin: case.tokens.start,
            token_end: Some(case.tokens.end),
            layers: (case.layers.start, case.layers.end),
            timeout: None,
            user_data: i as u64,
        };
        r.agent.read(args).unwrap();
    }
    let one = |(i, r): (usize, &Rank)| {
        let e = r.good(EventKind::Transfer);
        assert_eq!(e.user_data, i as u64);
        e.bytes
    };
    let bytes: Vec<u64> = s.dst.iter().enumerate().map(one).collect();
    for r in &s.src {
        assert_eq!(r.good(EventKind::Released).user_data, 7);
    }
    compare(case, &s, &bytes);
}

/// Every rank of the sink accepts, every rank of the source writes, some layers and some tokens at a time.
pub fn write(t: Transport, case: &Case) {
    let s = setup(t, case);
    let peers = connect(&s.src, &s.dst, Direction::Outbound);
    for (r, l) in s.dst.iter().zip(&case.dst_lists) {
        let args = AcceptArgs {
            request: "r".into(),
            blocks: blocks(l),
            token_begin: case.tokens.start,
            tokens: case.end,
            timeout: None,
            user_data: 5,
        };
        r.agent.accept(args).unwrap();
    }
    let layers = case.src.iter().flat_map(|l| l.tensors()).map(|t| t.layer + 1).max().unwrap_or(0);
    let mut writes = 0;
    for (i, (r, peer)) in s.src.iter().zip(&peers).enumerate() {
        writes = 0;
        for token in (case.tokens.start..case.end).step_by(CHUNK as usize) {
            for layer in (0..layers).step_by(LAYERS as usize) {
                let token_end = (token + CHUNK).min(case.end);
                let layer_end = (layer + LAYERS).min(layers);
                let last = (token_end, layer_end) == (case.end, layers);
                let range =
                    Range { token_begin: token, token_end, token_total: case.end, layer_begin: layer, layer_end };
                let args = WriteArgs {
                    peer: *peer,
                    request: "r".into(),
                    blocks: blocks(&case.src_lists[i]),
                    range,
                    last,
                    aux: if last { b"logits".to_vec() } else { Vec::new() },
                    timeout: None,
                    user_data: 9,
                };
                r.agent.write(args).unwrap();
                writes += 1;
            }
        }
    }
    let one = |r: &Rank| {
        let e = r.good(EventKind::Received);
        assert_eq!((e.user_data, e.payload.as_slice()), (5, &b"logits"[..]));
        assert_eq!(e.spans > 0, e.bytes > 0, "{} spans", e.spans);
        e.bytes
    };
    let bytes: Vec<u64> = s.dst.iter().map(one).collect();
    let mut sent = 0;
    for r in &s.src {
        for _ in 0..writes {
            let e = r.good(EventKind::Transfer);
            assert_eq!(e.user_data, 9);
            sent += e.bytes;
        }
    }
    assert_eq!(sent, bytes.iter().sum::<u64>());
    compare(case, &s, &bytes);
}

fn both(t: Transport, mut case: Case) {
    share_lists(&mut case);
    read(t, &case);
    if case.tokens.end == case.end && case.tokens.start < case.end {
        // An accept takes every layer.
        case.layers = 0..u32::MAX;
        write(t, &case);
    }
}

fn model(num_layers: u32, caches: Vec<(Vec<u32>, Cache)>) -> Model {
    let caches = caches.into_iter().map(|(layers, cache)| Layers { layers, cache }).collect();
    Model { name: "tiny".into(), num_layers, caches }
}

fn attention(heads: u64, dims: u64, reach: Reach) -> Cache {
    Cache::Attention { heads, dims: (dims, dims), dtype: DType::Bf16, reach }
}

fn latent() -> Cache {
    Cache::Record { role: "mla".into(), element: Element::of(DType::Bf16), elements: 64 }
}

fn state() -> Cache {
    Cache::State {
        conv: vec![Section { units: 8, width: 16 }; 3],
        conv_rows: 3,
        conv_dtype: DType::Bf16,
        state: Section { units: 8, width: 128 },
        state_dtype: DType::F32,
    }
}

fn hybrid() -> Model {
    model(4, vec![(vec![0, 1, 2], state()), (vec![3], latent())])
}

fn shared(tp: u32) -> Placement {
    Placement { tp, pages: Pages::Shared, block_tokens: 0, align: 16, num_blocks: 32, ..Placement::default() }
}

fn place(tp: u32) -> Placement {
    Placement { tp, ..Placement::default() }
}

pub fn hybrid_pages_to_more_ranks(t: Transport) {
    both(t, pair(&hybrid(), &shared(2), &shared(4), &Ask::whole(100)));
}

pub fn hybrid_pages_to_fewer_ranks(t: Transport) {
    both(t, pair(&hybrid(), &shared(4), &shared(2), &Ask::whole(100)));
}

pub fn heads_are_sliced_out_of_tokens(t: Transport) {
    let m = model(3, vec![(vec![0, 1, 2], attention(4, 4, Reach::Full))]);
    let nhd = |tp| Placement { order: Order::LBNHC, num_blocks: 24, ..place(tp) };
    both(t, pair(&m, &nhd(1), &nhd(4), &Ask::whole(333)));
    both(t, pair(&m, &nhd(4), &Placement { order: Order::LBHNC, ..nhd(1) }, &Ask::whole(100)));
}

pub fn keys_and_values_in_planes(t: Transport) {
    let m = model(3, vec![(vec![0, 1, 2], attention(4, 8, Reach::Full))]);
    let planes = Placement { planes: true, ..place(2) };
    both(t, pair(&m, &planes, &place(1), &Ask { tokens: 20..90, ..Ask::whole(90) }));
    both(t, pair(&m, &place(1), &planes, &Ask::whole(90)));
    // The middle of a request.
    both(t, pair(&m, &planes, &place(4), &Ask { tokens: 13..61, slots: false, ..Ask::whole(90) }));
}

pub fn small_blocks_into_large(t: Transport) {
    let m = model(2, vec![(vec![0, 1], attention(2, 8, Reach::Full))]);
    both(t, pair(&m, &place(1), &Placement { block_tokens: 48, ..place(2) }, &Ask::whole(200)));
}

pub fn large_blocks_into_small(t: Transport) {
    let m = model(2, vec![(vec![0], attention(2, 8, Reach::Full)), (vec![1], latent())]);
    let large = Placement { block_tokens: 48, kernel_tokens: 16, order: Order::LBNHC, ..place(2) };
    both(t, pair(&m, &large, &place(1), &Ask { tokens: 70..200, ..Ask::whole(200) }));
}

pub fn pipeline_stages(t: Transport) {
    let m = model(5, vec![(vec![0, 2, 4], attention(2, 8, Reach::Full)), (vec![1, 3], latent())]);
    let stages = |tp, pp| Placement { pp, ..place(tp) };
    both(t, pair(&m, &stages(1, 3), &stages(2, 1), &Ask::whole(100)));
    both(t, pair(&m, &stages(2, 1), &stages(1, 2), &Ask { layers: 1..4, ..Ask::whole(100) }));
}

pub fn context_parallel_ranks(t: Transport) {
    let m = model(2, vec![(vec![0, 1], latent())]);
    let dcp = |tp, dcp, interleave| Placement { dcp, interleave, ..place(tp) };
    both(t, pair(&m, &dcp(4, 2, 1), &dcp(2, 1, 1), &Ask::whole(150)));
    both(t, pair(&m, &dcp(1, 1, 1), &dcp(4, 4, 3), &Ask { tokens: 31..150, ..Ask::whole(150) }));
}

/// Windowed groups keep their rows in rings.
fn ring(layouts: &[Arc<Layout>]) -> Vec<Arc<Layout>> {
    let one = |l: &Arc<Layout>| {
        let mut desc: LayoutDesc = l.desc().clone();
        let windowed = desc.groups.iter_mut().filter(|g| g.reach != Reach::Full);
        windowed.for_each(|g| g.kind = GroupKind::Ring);
        Arc::new(Layout::new(desc).unwrap())
    };
    layouts.iter().map(one).collect()
}

pub fn windows_rings_and_holes(t: Transport) {
    let m = model(3, vec![(vec![0, 2], attention(2, 8, Reach::Window(40))), (vec![1], attention(2, 8, Reach::Full))]);
    let ask = Ask { holes: true, seed: 4, ..Ask::whole(170) };
    both(t, pair(&m, &place(1), &place(2), &ask));
    let (src, dst) = (crate::common::case::instance(&m, &place(1)), crate::common::case::instance(&m, &place(2)));
    let case = crate::common::case::case(src, ring(&dst), (false, false), &Ask::whole(170));
    let mut case = case;
    share_lists(&mut case);
    read(t, &case);
}

pub fn speculative_rows(t: Transport) {
    let m = model(2, vec![(vec![0], state()), (vec![1], latent())]);
    let rows = |tp, speculative, conv_order| Placement { speculative, conv_order, ..place(tp) };
    both(t, pair(&m, &rows(2, 0, ConvOrder::Ds), &rows(4, 2, ConvOrder::Sd), &Ask::whole(40)));
    both(t, pair(&m, &rows(4, 3, ConvOrder::Sd), &rows(2, 1, ConvOrder::Sd), &Ask { states: 2, ..Ask::whole(40) }));
}

/// The generator of the planner's own tests, whole requests and few ranks.
pub fn random_cases(t: Transport) {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (arbitrary::model(), arbitrary::side(), arbitrary::side(), arbitrary::ask());
    let mut done = 0;
    while done < 6 {
        let (m, s, d, a) = strategy.new_tree(&mut runner).unwrap().current();
        let small = |s: &arbitrary::Side| s.placement.ranks() <= 4;
        if !small(&s) || !small(&d) || a.tokens.is_empty() {
            continue;
        }
        let rings = s.rings || d.rings;
        let mut case = arbitrary::build(&m, &s, &d, &Ask { slots: a.tokens.end == a.end, ..a });
        share_lists(&mut case);
        // Where the planner itself says no there is nothing to move.
        if oracle::run(&case).is_err() {
            continue;
        }
        read(t, &case);
        // A ring does not hold a request's early chunks.
        if !rings && case.tokens.end == case.end {
            case.layers = 0..u32::MAX;
            write(t, &case);
        }
        done += 1;
    }
}
