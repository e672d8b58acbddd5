//! One model, one topology: its layouts, its block lists, and what the planner says about them.

use crate::baseline::Pair;
use crate::oracle::Lists;
use crate::rng::Rng;
use kvlink::layout::model::{Cache, Model, Pages, Placement};
use kvlink::layout::{BlockList, GroupKind, Layout, Request, Scratch, compile};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Read,
    Write,
}

pub struct Scenario {
    pub model: Model,
    pub p_tp: u32,
    pub d_tp: u32,
    pub mode: Mode,
    pub tokens: u64,
    /// "shm", "cma", "tcp", "nixl", "mori".
    pub transports: Vec<String>,
    /// Options that say where NIXL or MoRI is installed.
    pub libraries: Vec<String>,
}

/// One instance: a layout per rank, as objects and as what the programs read, and the request's blocks.
pub struct Side {
    pub layouts: Vec<Arc<Layout>>,
    pub json: Vec<String>,
    pub lists: Lists,
}

impl Side {
    pub fn new(model: &Model, tp: u32, tokens: u64, seed: u64) -> Result<Side, String> {
        let shared = model.caches.iter().any(|c| matches!(c.cache, Cache::State { .. }));
        let records = model.caches.iter().any(|c| matches!(c.cache, Cache::Record { .. }));
        let mut placement = Placement { tp, num_blocks: 1, ..Placement::default() };
        if shared {
            placement.pages = Pages::Shared;
            placement.block_tokens = 0;
            placement.align = if records { 128 } else { 16 };
        }
        let layout = |p: &Placement| model.describe(p).and_then(Layout::new).map(Arc::new).map_err(|e| e.to_string());
        let needs: Vec<u32> = layout(&placement)?
            .groups()
            .iter()
            .map(|g| if g.kind == GroupKind::Slots { 1 } else { tokens.div_ceil(u64::from(g.block_tokens)) as u32 })
            .collect();
        let need = if shared { needs.iter().sum() } else { needs.iter().copied().max().unwrap_or(1) };
        placement.num_blocks = need + need / 8 + 4;
        let ranks: Vec<Placement> = (0..tp).map(|r| placement.at(r)).collect();
        let json = |p: &Placement| serde_json::json!({ "geometry": model, "placement": p }).to_string();
        let mut rng = Rng::new(seed);
        let mut pool = used_pool(placement.num_blocks, &mut rng);
        let mut lists = Lists::new();
        for n in needs {
            if !shared {
                pool = used_pool(placement.num_blocks, &mut rng);
            }
            lists.push(pool.drain(..n as usize).collect());
        }
        let layouts = ranks.iter().map(layout).collect::<Result<_, _>>()?;
        Ok(Side { layouts, json: ranks.iter().map(json).collect(), lists })
    }

    pub fn bytes(&self) -> u64 {
        self.layouts.iter().flat_map(|l| l.regions()).map(|r| r.len).sum()
    }

    /// The block lists as the programs read them.
    pub fn blocks(&self) -> String {
        let list = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        self.lists.iter().map(list).collect::<Vec<_>>().join("/")
    }
}

/// The free list of an engine that has run for a while: short stretches in any order.
fn used_pool(num_blocks: u32, rng: &mut Rng) -> Vec<u32> {
    let ids: Vec<u32> = (0..num_blocks).collect();
    let mut stretches: Vec<&[u32]> = Vec::new();
    let mut rest = &ids[..];
    while !rest.is_empty() {
        let (head, tail) = rest.split_at((1 + rng.below(4) as usize).min(rest.len()));
        stretches.push(head);
        rest = tail;
    }
    rng.shuffle(&mut stretches);
    stretches.concat()
}

/// What the planner says.
pub struct Planned {
    pub pairs: Vec<Pair>,
    pub runs: u64,
    pub spans: u64,
    pub bytes: u64,
    pub compile: Duration,
}

/// Compiles all destination ranks and expands the request: at once, or layer by layer.
pub fn plan(p: &Side, d: &Side, mode: Mode, model: &Model, tokens: u64) -> Result<Planned, String> {
    fn borrow(lists: &Lists) -> Vec<BlockList<'_>> {
        lists.iter().map(|l| BlockList::new(l)).collect()
    }
    let (src, dst) = (borrow(&p.lists), borrow(&d.lists));
    let whole = Request::whole(&src, &dst, tokens);
    let mut out = Planned { pairs: Vec::new(), runs: 0, spans: 0, bytes: 0, compile: Duration::ZERO };
    let mut scratch = Scratch::default();
    for rank in 0..d.layouts.len() {
        let begin = Instant::now();
        let inbound = compile(&p.layouts, &d.layouts, rank).map_err(|v| v.to_string())?;
        out.compile += begin.elapsed();
        for plan in &inbound.plans {
            let mut spans = Vec::new();
            let parts = match mode {
                Mode::Read => vec![whole.layers.clone()],
                Mode::Write => (0..model.num_layers).map(|l| l..l + 1).collect(),
            };
            for layers in parts {
                let request = Request { layers, ..whole.clone() };
                let summary = plan.expand(&request, &mut scratch, &mut spans).map_err(|e| e.to_string())?;
                out.runs += summary.runs;
                out.spans += summary.spans;
                out.bytes += summary.bytes;
            }
            out.pairs.push(Pair { source: plan.source() as usize, destination: rank, spans });
        }
    }
    Ok(out)
}
