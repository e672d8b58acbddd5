//! Agents in one process move a hybrid cache between unequal topologies.

use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::form::Section;
use kvlink::layout::model::{Cache, Layers, Model, Pages, Placement};
use kvlink::layout::{DType, Element, Layout};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, Event, EventKind, Id, Offer, ReadArgs};
use kvlink::wire::Blocks;
use std::sync::Arc;
use std::time::Duration;

fn model() -> Model {
    let kda = Cache::State {
        conv: vec![Section { units: 8, width: 16 }; 3],
        conv_rows: 3,
        conv_dtype: DType::Bf16,
        state: Section { units: 8, width: 256 },
        state_dtype: DType::F32,
    };
    let mla = Cache::Record { role: "mla".into(), element: Element::of(DType::Bf16), elements: 64 };
    Model {
        name: "tiny-kimi".into(),
        num_layers: 4,
        caches: vec![Layers { layers: vec![0, 1, 2], cache: kda }, Layers { layers: vec![3], cache: mla }],
    }
}

struct Rank {
    agent: Agent,
    memory: Arc<SharedMemory>,
}

fn start(name: &str, tp: u32, require: &str) -> Vec<Rank> {
    let place =
        Placement { tp, pages: Pages::Shared, block_tokens: 0, align: 16, num_blocks: 32, ..Placement::default() };
    let mut ranks: Vec<Rank> = Vec::new();
    for r in 0..tp {
        let layout = Arc::new(Layout::new(model().describe(&place.at(r)).unwrap()).unwrap());
        let mut config = AgentConfig::new(name, r, tp);
        config.require = Require::Named(require.into());
        if let Some(first) = ranks.first() {
            config.leader = first.agent.address().to_string();
        }
        let way = require.rsplit('/').next().unwrap();
        config.host.shm = way == "shm";
        config.host.cma = way == "cma" || way == "shm";
        let agent = Agent::new(config, layout.clone()).unwrap();
        let memory = Arc::new(SharedMemory::allocate(layout.regions()[0].len as usize).unwrap());
        let m = if way == "shm" {
            Memory::shared(memory.clone())
        } else {
            Memory::new(memory.addr(), memory.len()).unwrap()
        };
        agent.register(0, m).unwrap();
        ranks.push(Rank { agent, memory });
    }
    ranks
}

fn wait(agent: &Agent, kind: EventKind) -> Event {
    for _ in 0..100 {
        for e in agent.events().poll(1, Some(Duration::from_secs(10))) {
            if e.kind == kind {
                return e;
            }
            assert_eq!(e.status, Status::Ok, "{e:?}");
        }
    }
    panic!("no {kind:?}");
}

fn lists(ids: &[u32], per: usize) -> Vec<Blocks> {
    let mut out: Vec<Blocks> = ids[..3].iter().map(|i| Blocks { first: 0, ids: vec![*i] }).collect();
    out.push(Blocks { first: 0, ids: ids[3..3 + per].to_vec() });
    out
}

fn read(require: &str) {
    let p = start("prefill", 2, require);
    let d = start("decode", 4, require);
    let tokens = 100;
    let per = |r: &Rank| {
        let g = &r.agent.layout().groups()[3];
        (tokens as usize).div_ceil(g.block_tokens as usize)
    };
    let ids: Vec<u32> = (1..32).collect();
    let mut offers = Vec::new();
    for r in &p {
        let offer = Offer { request: "r".into(), blocks: lists(&ids, per(r)), tokens, lease: None, user_data: 7 };
        offers.push(r.agent.offer(offer).unwrap());
    }
    let ticket = p[0].agent.ticket(offers[0]).unwrap();
    let mut peers: Vec<Id> = Vec::new();
    for r in &d {
        peers.push(r.agent.handshake(p[0].agent.address(), Direction::Inbound, 3).unwrap());
    }
    for (r, peer) in d.iter().zip(&peers) {
        let e = wait(&r.agent, EventKind::Handshake);
        assert_eq!((e.status, e.peer, e.user_data), (Status::Ok, peer.0, 3), "{}", e.text);
        assert!(e.text.contains(require), "{}", e.text);
    }
    for (r, peer) in d.iter().zip(&peers) {
        let args = ReadArgs {
            peer: *peer,
            ticket: &ticket,
            blocks: lists(&ids, per(r)),
            token_begin: 0,
            token_end: None,
            layers: (0, u32::MAX),
            timeout: None,
            user_data: 9,
        };
        r.agent.read(args).unwrap();
    }
    for r in &d {
        let e = wait(&r.agent, EventKind::Transfer);
        assert_eq!((e.status, e.user_data), (Status::Ok, 9), "{}", e.text);
        assert!(e.bytes > 0);
        let _ = r.memory.len();
    }
    for r in &p {
        assert_eq!(wait(&r.agent, EventKind::Released).status, Status::Ok);
    }
}

#[test]
fn a_read_completes_over_shared_memory() {
    read("host/shm");
}

#[test]
fn a_read_completes_over_cross_process_copies() {
    read("host/cma");
}

#[test]
fn a_read_completes_over_tcp() {
    read("host/tcp");
}
