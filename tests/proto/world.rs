//! Instances with engines: they fill their caches, hand over requests, and reuse every block the moment they may.

use crate::content::{self, What};
use crate::sim::Sim;
use kvlink::error::{Result, Status};
use kvlink::layout::form::Section;
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Element, GroupKind, Layout};
use kvlink::proto::{AcceptArgs, Direction, Event, EventKind, Id, Offer, ReadArgs, WriteArgs};
use kvlink::wire::{Blocks, Range};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Two attention layers of four heads.
pub fn attention() -> Model {
    let cache = Cache::Attention { heads: 4, dims: (2, 2), dtype: DType::Bf16, reach: Default::default() };
    Model { name: "attention".into(), num_layers: 2, caches: vec![Layers { layers: vec![0, 1], cache }] }
}

/// Two layers of records that every rank stores whole.
pub fn latent() -> Model {
    let element = Element::of(DType::Bf16);
    let cache = Cache::Record { role: "mla".into(), element, elements: 6 };
    Model { name: "latent".into(), num_layers: 2, caches: vec![Layers { layers: vec![0, 1], cache }] }
}

/// An attention layer and a layer of recurrent state.
pub fn hybrid() -> Model {
    let state = Cache::State {
        conv: vec![Section { units: 4, width: 2 }],
        conv_rows: 3,
        conv_dtype: DType::Bf16,
        state: Section { units: 4, width: 5 },
        state_dtype: DType::F32,
    };
    let mut model = attention();
    model.name = "hybrid".into();
    model.num_layers = 3;
    model.caches.push(Layers { layers: vec![2], cache: state });
    model
}

pub fn place(tp: u32, block_tokens: u32) -> Placement {
    Placement { tp, block_tokens, num_blocks: 256, ..Placement::default() }
}

pub fn layouts(model: &Model, placement: &Placement) -> Vec<Arc<Layout>> {
    let one = |r| Arc::new(Layout::new(model.describe(&placement.at(r)).expect("a placement")).expect("a layout"));
    (0..placement.ranks()).map(one).collect()
}

/// Blocks for `tokens` tokens in every group, ids from `first` on.
pub fn blocks(layout: &Layout, tokens: u64, first: u32) -> Vec<Blocks> {
    let one = |g: &kvlink::layout::Group| {
        let n = match g.kind {
            GroupKind::Slots => 1,
            _ => tokens.div_ceil(u64::from(g.block_tokens) * u64::from(g.context.size)) as u32,
        };
        Blocks { first: 0, ids: (0..n).map(|i| first + (i ^ 1).min(n - 1)).collect() }
    };
    let mut all: Vec<Blocks> = layout.groups().iter().map(one).collect();
    for b in &mut all {
        b.ids.sort_unstable();
        b.ids.dedup();
        let n = b.ids.len() as u32;
        b.ids = (0..n).map(|i| first + n - 1 - i).collect();
    }
    all
}

/// A request's identity decides its content.
pub fn seed(request: &str) -> u64 {
    request.bytes().fold(7, |h, b| crate::rng::mix(h ^ u64::from(b)))
}

struct Held {
    blocks: Vec<Blocks>,
    what: What,
    seed: u64,
}

/// What the engines know and found out; operations are named by their user data.
#[derive(Default)]
pub struct Engine {
    /// Blocks whose content is overwritten as soon as the event says that they are free.
    lent: HashMap<u64, (Vec<Blocks>, What)>,
    /// Blocks that must have the right content when the event says so.
    sinks: HashMap<u64, Held>,
    /// Bytes that may not change any more.
    frozen: Vec<(usize, Vec<Blocks>, What, Vec<u8>)>,
    pub ended: HashMap<u64, Vec<Status>>,
    pub faults: Vec<String>,
    scribbles: u64,
}

impl Engine {
    fn on_event(&mut self, memory: &mut [Vec<u8>], layout: &Layout, node: usize, e: &Event) {
        if !matches!(e.kind, EventKind::Transfer | EventKind::Released | EventKind::Received) {
            return;
        }
        self.ended.entry(e.user_data).or_default().push(e.status);
        if let Some((blocks, what)) = self.lent.remove(&e.user_data) {
            self.scribbles += 1;
            content::fill(memory, layout, &blocks, &what, self.scribbles ^ 0xdead_beef_0000_0000);
        }
        if let Some(h) = self.sinks.remove(&e.user_data) {
            let wrong = content::wrong(memory, layout, &h.blocks, &h.what, h.seed);
            if e.status == Status::Ok && wrong > 0 {
                self.faults.push(format!("process {node}: success with {wrong} wrong elements: {e:?}"));
            }
            let copy = content::copy_of(memory, layout, &h.blocks, &h.what);
            self.frozen.push((node, h.blocks, h.what, copy));
        }
    }
}

pub struct World {
    pub sim: Sim,
    pub engine: Rc<RefCell<Engine>>,
    next: u64,
}

/// How to read; the default reads all of it.
#[derive(Clone, Default)]
pub struct Reading {
    pub token_begin: u64,
    pub timeout: Option<Duration>,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut sim = Sim::new(seed);
        let engine = Rc::new(RefCell::new(Engine::default()));
        let shared = engine.clone();
        sim.hook = Some(Box::new(move |m, l, n, e| shared.borrow_mut().on_event(m, l, n, e)));
        World { sim, engine, next: 1000 }
    }

    /// A source and a destination instance, complete.
    pub fn pair(
        seed: u64,
        model: &Model,
        source: &Placement,
        sink: &Placement,
        pull: bool,
    ) -> (World, Vec<usize>, Vec<usize>) {
        let mut w = World::new(seed);
        let p = w.sim.instance("prefill", &layouts(model, source), pull);
        let d = w.sim.instance("decode", &layouts(model, sink), pull);
        (w, p, d)
    }

    pub fn user(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Handshakes of all these processes, waited for.
    pub fn handshakes(&mut self, from: &[usize], to: &str, direction: Direction) -> Vec<Id> {
        let start = |w: &mut World, n: &usize| {
            let user = w.user();
            let id = w.sim.call(*n, |e, now| e.handshake(now, to, direction, user));
            (*n, id.expect("a handshake"))
        };
        let ids: Vec<(usize, Id)> = from.iter().map(|n| start(self, n)).collect();
        let done = |s: &Sim, (n, id): &(usize, Id)| {
            let found = s.events(*n, EventKind::Handshake).into_iter().find(|e| e.peer == id.0);
            found.inspect(|e| assert_eq!(e.status, Status::Ok, "{}", e.text)).is_some()
        };
        self.sim.until("the handshakes", Duration::from_secs(5), |s| ids.iter().all(|i| done(s, i)));
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// All ranks of a source fill and offer a request. Returns the first rank's ticket and the offers' user data.
    pub fn offer(
        &mut self,
        nodes: &[usize],
        request: &str,
        tokens: u64,
        first: u32,
        lease: Option<Duration>,
    ) -> (Vec<u8>, Vec<(u64, Id)>) {
        let mut out = Vec::new();
        let mut ticket = Vec::new();
        for n in nodes {
            let layout = self.sim.nodes[*n].layout.clone();
            let blocks = blocks(&layout, tokens, first);
            content::fill(&mut self.sim.nodes[*n].memory, &layout, &blocks, &What::all(tokens), seed(request));
            let user_data = self.user();
            self.engine.borrow_mut().lent.insert(user_data, (blocks.clone(), What::all(tokens)));
            let offer = Offer { request: request.into(), blocks, tokens, lease, user_data };
            let id = self.sim.call(*n, |e, now| e.offer(now, offer)).expect("an offer");
            if ticket.is_empty() {
                ticket = self.sim.call(*n, |e, _| e.ticket(id)).expect("a ticket");
            }
            out.push((user_data, id));
        }
        (ticket, out)
    }

    pub fn read(
        &mut self,
        node: usize,
        peer: Id,
        ticket: &[u8],
        request: &str,
        first: u32,
        how: Reading,
    ) -> Result<(u64, Id)> {
        let layout = self.sim.nodes[node].layout.clone();
        let tokens = kvlink::wire::Ticket::decode(ticket).map_or(16, |t| t.tokens);
        let blocks = blocks(&layout, tokens, first);
        let user_data = self.user();
        let what = What { tokens: how.token_begin..tokens, ..What::all(tokens) };
        let held = Held { blocks: blocks.clone(), what, seed: seed(request) };
        self.engine.borrow_mut().sinks.insert(user_data, held);
        let args = ReadArgs {
            peer,
            ticket,
            blocks,
            token_begin: how.token_begin,
            token_end: None,
            layers: (0, u32::MAX),
            timeout: how.timeout,
            user_data,
        };
        let id = self.sim.call(node, |e, now| e.read(now, args));
        if id.is_err() {
            self.engine.borrow_mut().sinks.remove(&user_data);
        }
        Ok((user_data, id?))
    }

    pub fn accept(
        &mut self,
        node: usize,
        request: &str,
        tokens: u64,
        first: u32,
        timeout: Option<Duration>,
    ) -> Result<(u64, Id)> {
        let layout = self.sim.nodes[node].layout.clone();
        let blocks = blocks(&layout, tokens, first);
        let user_data = self.user();
        let held = Held { blocks: blocks.clone(), what: What::all(tokens), seed: seed(request) };
        self.engine.borrow_mut().sinks.insert(user_data, held);
        let args = AcceptArgs { request: request.into(), blocks, token_begin: 0, tokens, timeout, user_data };
        let id = self.sim.call(node, |e, now| e.accept(now, args));
        if id.is_err() {
            self.engine.borrow_mut().sinks.remove(&user_data);
        }
        Ok((user_data, id?))
    }

    /// Fills what one write covers, and writes it.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &mut self,
        node: usize,
        peer: Id,
        request: &str,
        range: Range,
        first: u32,
        last: bool,
        aux: &[u8],
    ) -> Result<(u64, Id)> {
        let layout = self.sim.nodes[node].layout.clone();
        let blocks = blocks(&layout, range.token_total, first);
        let what = What {
            tokens: range.token_begin..range.token_end,
            layers: range.layer_begin..range.layer_end,
            state: range.token_end == range.token_total,
        };
        content::fill(&mut self.sim.nodes[node].memory, &layout, &blocks, &what, seed(request));
        let user_data = self.user();
        self.engine.borrow_mut().lent.insert(user_data, (blocks.clone(), what));
        let args = WriteArgs {
            peer,
            request: request.into(),
            blocks,
            range,
            last,
            aux: aux.to_vec(),
            timeout: None,
            user_data,
        };
        let id = self.sim.call(node, |e, now| e.write(now, args));
        if id.is_err() {
            self.engine.borrow_mut().lent.remove(&user_data);
        }
        Ok((user_data, id?))
    }

    /// How an operation ended, once it has.
    pub fn outcome(&self, user_data: u64) -> Option<Status> {
        self.engine.borrow().ended.get(&user_data).map(|v| v[0])
    }

    pub fn wait(&mut self, users: &[u64], limit: Duration) -> Vec<Status> {
        let engine = self.engine.clone();
        let all = users.to_vec();
        self.sim.until("all operations' ends", limit, |_| all.iter().all(|u| engine.borrow().ended.contains_key(u)));
        users.iter().map(|u| self.outcome(*u).expect("it ended")).collect()
    }

    /// No success with wrong bytes, no byte changed after its event, no second event.
    pub fn check(&mut self) {
        self.sim.run_for(Duration::from_millis(200));
        let engine = self.engine.borrow();
        assert!(engine.faults.is_empty(), "{:#?}", engine.faults);
        for (user, ends) in &engine.ended {
            assert_eq!(ends.len(), 1, "operation {user} ended more than once: {ends:?}");
        }
        for (node, blocks, what, copy) in &engine.frozen {
            let n = &self.sim.nodes[*node];
            let now = content::copy_of(&n.memory, &n.layout, blocks, what);
            assert!(&now == copy, "process {node}: bytes changed after the operation's event");
        }
    }
}

/// Everything of a request.
pub fn whole(tokens: u64) -> Range {
    Range { token_begin: 0, token_end: tokens, token_total: tokens, layer_begin: 0, layer_end: u32::MAX }
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
