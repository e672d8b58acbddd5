//! The same bytes as vLLM 0.33.0's NIXL connector, for mappings that were recorded from it and found right.

mod common;

use common::case::local_tokens;
use common::oracle::{self, List, Lists};
use kvlink::layout::form::{Attention, Conv, ConvOrder, KeyValue, Order, Place, Record, Section, State, shard};
use kvlink::layout::{
    ContextParallel, DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region, Request, Scratch, Span,
    compile,
};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    config: Config,
    #[serde(rename = "P")]
    prefill: Side,
    #[serde(rename = "D")]
    decode: Side,
    requests: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Config {
    model: String,
    prefill: Options,
    decode: Options,
}

#[derive(Deserialize)]
struct Options {
    #[serde(default = "one")]
    dcp: u32,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
struct Side {
    tp: u32,
    layout: String,
    num_blocks: u32,
    logical_block_size_tokens: u32,
    groups: Vec<SideGroup>,
    kv_cache_tensors: Vec<SideTensor>,
}

#[derive(Deserialize)]
struct SideGroup {
    #[serde(rename = "type")]
    kind: String,
    layers: Vec<String>,
    #[serde(default)]
    state_shapes: Vec<Vec<u64>>,
}

#[derive(Deserialize)]
struct SideTensor {
    size: u64,
    layer_stride: u64,
    block_stride: u64,
    offset: u64,
}

#[derive(Deserialize)]
struct Recorded {
    prefill_block_ids: Vec<Vec<u32>>,
    decode_block_ids: Vec<Vec<u32>>,
    ranks: HashMap<String, Rank>,
}

#[derive(Deserialize)]
struct Rank {
    xfers: Vec<Xfer>,
}

/// Side, rank, byte offset.
type At = (char, u32, u64);

#[derive(Deserialize)]
struct Xfer {
    pairs: Vec<(At, At, u64)>,
}

/// KV heads and elements of a key; 0 heads: MLA with that many elements of a record.
fn geometry(model: &str) -> (u64, u64) {
    match model {
        "llama31-8b" => (8, 128),
        "gqa2kv" => (2, 128),
        "gemma3-like" => (8, 128),
        "qwen35-like" => (2, 256),
        "deepseek-v2-lite" | "kimi-linear-48b" => (0, 576),
        other => panic!("unknown model {other}"),
    }
}

fn layer(name: &str) -> u32 {
    name.split('.').nth(2).unwrap().parse().unwrap()
}

/// How blocks land on the decode side before vLLM permutes them there: storage order, tokens of a kernel block.
struct Landing(Order, u32);

/// One rank's layout, from the file's description of its side.
fn describe(model: &str, side: &Side, ids: &[Vec<u32>], dcp: u32, rank: u32, landing: &Landing) -> Arc<Layout> {
    let (heads, dim) = geometry(model);
    let block_tokens = side.logical_block_size_tokens;
    let mut desc = LayoutDesc { regions: vec![Region { len: side.kv_cache_tensors[0].size }], ..LayoutDesc::default() };
    for (g, (group, tensor)) in side.groups.iter().zip(&side.kv_cache_tensors).enumerate() {
        let layers: Vec<u32> = group.layers.iter().map(|l| layer(l)).collect();
        let state = group.kind == "MambaSpec";
        let window = (ids[g].len() as u64) * u64::from(block_tokens);
        desc.groups.push(Group {
            kind: if state { GroupKind::Slots } else { GroupKind::Paged },
            block_tokens: if state { 1 } else { block_tokens },
            num_blocks: side.num_blocks,
            reach: if group.kind == "SlidingWindowSpec" { Reach::Window(window) } else { Reach::Full },
            context: ContextParallel { size: dcp, rank: rank % dcp, interleave: block_tokens },
        });
        let place = Place {
            region: 0,
            offset: tensor.offset,
            num_blocks: side.num_blocks,
            block_stride: tensor.block_stride,
            layer_stride: tensor.layer_stride,
        };
        let group_index = g as u32;
        if state {
            for (i, layer) in layers.iter().enumerate() {
                let offset = tensor.offset + i as u64 * tensor.layer_stride;
                desc.tensors.extend(states(side.tp, rank, group, *layer, group_index, offset, tensor.block_stride));
            }
            continue;
        }
        let element = Element::of(DType::Bf16);
        let (tensors, _) = if heads == 0 {
            Record {
                layers: &layers,
                role: "mla",
                group: group_index,
                place,
                block_tokens,
                element,
                elements: dim,
                token_stride: 0,
            }
            .tensors()
        } else {
            Attention {
                layers: &layers,
                role: "kv",
                group: group_index,
                place,
                order: landing.0,
                block_tokens,
                kernel_tokens: landing.1,
                heads,
                shard: shard(heads, side.tp, rank),
                dims: (dim, dim),
                key_value: KeyValue::Packed,
                element,
            }
            .tensors()
        }
        .unwrap();
        desc.tensors.extend(tensors);
    }
    Arc::new(Layout::new(desc).unwrap())
}

/// `[q|k|v]` convolution and recurrent state.
fn states(
    tp: u32,
    rank: u32,
    group: &SideGroup,
    layer: u32,
    index: u32,
    offset: u64,
    slot_stride: u64,
) -> [kvlink::layout::Tensor; 2] {
    let ([channels, rows], [value_heads, k, v]) =
        (group.state_shapes[0][..].try_into().unwrap(), group.state_shapes[1][..].try_into().unwrap());
    let (channels, rows): (u64, u64) = (channels, rows);
    let tp64 = u64::from(tp);
    let width = 128;
    let value = Section { units: value_heads * tp64, width };
    let key = Section { units: (channels - value_heads * width) / 2 / width * tp64, width };
    let part = |s: Section| (s, shard(s.units, tp, rank));
    let sections = [part(key), part(key), part(value)];
    let (conv, bytes) = Conv {
        layer,
        group: index,
        region: 0,
        offset,
        slot_stride,
        sections: &sections,
        rows,
        order: ConvOrder::Ds,
        element: Element::of(DType::Bf16),
    }
    .tensor()
    .unwrap();
    let section = Section { units: value.units, width: k * v };
    let (state, _) = State {
        layer,
        role: "state",
        group: index,
        region: 0,
        offset: offset + bytes,
        slot_stride,
        section,
        shard: shard(section.units, tp, rank),
        element: Element::of(DType::F32),
    }
    .tensor()
    .unwrap();
    [conv, state]
}

/// A destination interval and where its bytes come from.
#[derive(Clone, Copy, Debug)]
struct Interval {
    dst: u64,
    len: u64,
    rank: u32,
    src: u64,
}

struct Pair {
    golden: Golden,
    src: Vec<Arc<Layout>>,
    dst: Vec<Arc<Layout>>,
    end: u64,
}

fn load(name: &str, landing: Option<Landing>) -> Pair {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/vllm-golden");
    let text = std::fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let request = &golden.requests[0];
    let make = |side: &Side, ids: &[Vec<u32>], dcp: u32, landing: &Landing| {
        (0..side.tp).map(|r| describe(&golden.config.model, side, ids, dcp, r, landing)).collect::<Vec<_>>()
    };
    let own = |side: &Side| Landing(side.layout.parse().unwrap(), side.logical_block_size_tokens);
    let (p, d) = (&golden.prefill, &golden.decode);
    let src = make(p, &request.prefill_block_ids, golden.config.prefill.dcp, &own(p));
    let dst = make(d, &request.decode_block_ids, golden.config.decode.dcp, &landing.unwrap_or(own(d)));
    let capacity = |side: &Side, ids: &[Vec<u32>], dcp: u32| {
        let full = side.groups.iter().zip(ids).filter(|(g, _)| g.kind.ends_with("AttentionSpec"));
        full.map(|(_, ids)| ids.len() as u64 * u64::from(side.logical_block_size_tokens * dcp)).min().unwrap()
    };
    let end = capacity(p, &request.prefill_block_ids, golden.config.prefill.dcp).min(capacity(
        d,
        &request.decode_block_ids,
        golden.config.decode.dcp,
    ));
    Pair { golden, src, dst, end }
}

impl Pair {
    fn lists(&self, side: &Side, ids: &[Vec<u32>]) -> Lists {
        let list = |(g, ids): (&SideGroup, &Vec<u32>)| {
            let blocks = self.end.div_ceil(u64::from(side.logical_block_size_tokens));
            let first = if g.kind == "SlidingWindowSpec" { blocks - ids.len() as u64 } else { 0 };
            List { first, ids: ids.clone() }
        };
        Lists(side.groups.iter().zip(ids).map(list).collect())
    }

    /// What kvlink copies to a rank.
    fn spans(&self, rank: usize) -> Vec<(u32, Vec<Span>)> {
        let request = &self.golden.requests[0];
        let src = self.lists(&self.golden.prefill, &request.prefill_block_ids);
        let dst = self.lists(&self.golden.decode, &request.decode_block_ids);
        let inbound = compile(&self.src, &self.dst, rank).unwrap_or_else(|v| panic!("{v}"));
        let expand = |plan: &Arc<kvlink::layout::Plan>| {
            let (src, dst) = (src.borrow(), dst.borrow());
            let mut spans = Vec::new();
            plan.expand(&Request::whole(&src, &dst, self.end), &mut Scratch::default(), &mut spans).unwrap();
            (plan.source(), spans)
        };
        inbound.plans.iter().map(expand).collect()
    }

    /// What vLLM copied to a rank; pairs name the side that issued the transfer first.
    fn recorded(&self, rank: usize) -> Vec<Interval> {
        let mut out = Vec::new();
        for xfer in self.golden.requests[0].ranks.values().flat_map(|r| &r.xfers) {
            for (a, b, len) in &xfer.pairs {
                let (d, p) = if a.0 == 'D' { (a, b) } else { (b, a) };
                assert_eq!((d.0, p.0), ('D', 'P'));
                if d.1 as usize == rank {
                    out.push(Interval { dst: d.2, len: *len, rank: p.1, src: p.2 });
                }
            }
        }
        out.sort_by_key(|i| i.dst);
        assert!(out.windows(2).all(|w| w[0].dst + w[0].len <= w[1].dst), "recorded intervals overlap");
        out
    }

    /// Bytes of a rank that carry data.
    fn useful(&self, rank: usize) -> u64 {
        let layout = &self.dst[rank];
        let ids = &self.golden.requests[0].decode_block_ids;
        let volume = |t: &kvlink::layout::Tensor| -> u64 {
            let elements: u64 = t.parts.iter().map(|p| p.extents.iter().map(|e| e.len).product::<u64>()).sum();
            elements * u64::from(t.element.bytes)
        };
        let count = |t: &kvlink::layout::Tensor| {
            let g = &layout.groups()[t.group as usize];
            match g.kind {
                GroupKind::Slots => ids[t.group as usize].len() as u64,
                _ => local_tokens(g, self.end) - local_tokens(g, g.reach.first(self.end)),
            }
        };
        layout.tensors().iter().map(|t| volume(t) * count(t)).sum()
    }

    /// Whether two source ranks hold the same elements of the group that this destination byte belongs to.
    fn replicas(&self, dst: u64, a: u32, b: u32) -> bool {
        let ids = &self.golden.requests[0].decode_block_ids;
        let group = if ids.len() == 1 {
            0
        } else {
            let t = &self.golden.decode.kv_cache_tensors[0];
            let id = (dst % t.layer_stride / t.block_stride) as u32;
            ids.iter().position(|ids| ids.contains(&id)).unwrap()
        };
        let of = |r: u32| {
            let l = &self.src[r as usize];
            l.tensors().iter().filter(|t| t.group as usize == group).cloned().collect::<Vec<_>>()
        };
        let context = |r: u32| self.src[r as usize].groups()[group].context;
        context(a) == context(b) && of(a) == of(b)
    }

    fn compare(&self) {
        for rank in 0..self.dst.len() {
            let recorded = self.recorded(rank);
            let mut total = 0;
            for (source, spans) in self.spans(rank) {
                for span in spans {
                    total += span.len;
                    let mut at = 0;
                    while at < span.len {
                        let dst = span.dst_offset + at;
                        let i = recorded.partition_point(|r| r.dst + r.len <= dst);
                        let r = recorded.get(i).filter(|r| r.dst <= dst);
                        let r = r.unwrap_or_else(|| panic!("rank {rank}: byte {dst} is not in the recording"));
                        assert_eq!(span.src_offset + at, r.src + (dst - r.dst), "rank {rank} byte {dst}: source byte");
                        assert!(
                            source == r.rank || self.replicas(dst, source, r.rank),
                            "rank {rank} byte {dst}: source rank {source}, recorded {}",
                            r.rank
                        );
                        at = (r.dst + r.len - span.dst_offset).min(span.len);
                    }
                }
            }
            assert_eq!(total, self.useful(rank), "rank {rank}: bytes moved");
            let all: u64 = recorded.iter().map(|r| r.len).sum();
            assert!(total <= all && total > 0);
        }
    }
}

macro_rules! same_bytes {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                load(stringify!($name), None).compare();
            }
        )*
    };
}

same_bytes!(
    gdn_p1_d2,
    gdn_p2_d1,
    gemma3_p2_d2,
    gqa_blhnc_p2_d1,
    gqa_lhbnc_p2_d2,
    gqa_p2_d4,
    gqa_p4_d2,
    gqa_repl_p4_d8,
    kimi_p2_d2,
    kimi_p4_d2,
    mla_dcp_p2_d4,
    mla_p2_d4,
    mla_p4_d2,
    push_mla_p2_d4,
);

/// vLLM lands these blocks in the prefill's form and permutes them afterwards; kvlink writes the final form at once.
fn permuted(name: &str, landing: fn() -> Landing) {
    let landed = load(name, Some(landing()));
    landed.compare();
    let direct = load(name, None);
    let ids = direct.lists(&direct.golden.decode, &direct.golden.requests[0].decode_block_ids);
    let prefill = direct.lists(&direct.golden.prefill, &direct.golden.requests[0].prefill_block_ids);
    let sources: Vec<oracle::Memory> =
        direct.src.iter().enumerate().map(|(i, l)| oracle::source_memory(l, &prefill, direct.end, i as u64)).collect();
    for rank in 0..direct.dst.len() {
        let empty = || vec![vec![0u8; direct.dst[rank].regions()[0].len as usize]];
        let (mut have, mut theirs, mut want) = (empty(), empty(), empty());
        for (source, spans) in direct.spans(rank) {
            oracle::copy(&sources[source as usize], &mut have, &spans).unwrap();
        }
        for r in landed.recorded(rank) {
            let span = Span { src_offset: r.src, dst_offset: r.dst, len: r.len, ..Span::default() };
            oracle::copy(&sources[r.rank as usize], &mut theirs, &[span]).unwrap();
        }
        let (from, to) = (&landed.dst[rank..=rank], &direct.dst[rank..=rank]);
        let local = one_to_one(from, to);
        let mut spans = Vec::new();
        let lists = ids.borrow();
        let request = Request::whole(&lists, &lists, direct.end);
        local.expand(&request, &mut Scratch::default(), &mut spans).unwrap();
        oracle::copy(&theirs, &mut want, &spans).unwrap();
        assert!(have == want, "rank {rank}: bytes after the permutation");
    }
}

/// The plan between two forms of one rank: a shard alone is a whole instance of its own.
fn one_to_one(from: &[Arc<Layout>], to: &[Arc<Layout>]) -> Arc<kvlink::layout::Plan> {
    compile(from, to, 0).unwrap_or_else(|v| panic!("{v}")).plans.remove(0)
}

#[test]
fn gqa_bs16_bs64_h4() {
    permuted("gqa_bs16_bs64_h4", || Landing(Order::LBHNC, 16));
}

#[test]
fn gqa_permute_p2_d4() {
    permuted("gqa_permute_p2_d4", || Landing(Order::LBHNC, 16));
}
