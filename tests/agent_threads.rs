//! Many threads at a pair of agents: submitting, cancelling, polling, asking, and ending. Run under the thread sanitizer
//! by `make tsan`.

use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Element, Layout};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{AcceptArgs, Direction, Event, EventKind, Id, Offer, ReadArgs, WriteArgs};
use kvlink::wire::{Blocks, Range};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const THREADS: u64 = 4;
const ROUNDS: u64 = 15;

struct Side {
    agent: Agent,
    _memory: Arc<SharedMemory>,
}

fn layout() -> Arc<Layout> {
    let cache = Cache::Record { role: "mla".into(), element: Element::of(DType::Bf16), elements: 64 };
    let model =
        Model { name: "m".into(), num_layers: 2, caches: vec![Layers { layers: vec![0, 1], cache }] };
    let place = Placement { block_tokens: 4, num_blocks: 64, ..Placement::default() };
    Arc::new(Layout::new(model.describe(&place).unwrap()).unwrap())
}

fn start(name: &str, way: &str) -> Side {
    let layout = layout();
    let mut config = AgentConfig::new(name, 0, 1);
    config.require = Require::Named(format!("host/{way}"));
    (config.host.shm, config.host.cma) = (way == "shm", way != "tcp");
    // A write whose accept was cancelled before it came waits for another one this long.
    config.endpoint.transfer_timeout = Duration::from_secs(3);
    let agent = Agent::new(config, layout.clone()).unwrap();
    let memory = Arc::new(SharedMemory::allocate(layout.regions()[0].len as usize).unwrap());
    let m = if way == "shm" { Memory::shared(memory.clone()) } else { Memory::new(memory.addr(), memory.len()).unwrap() };
    agent.register(0, m).unwrap();
    assert_eq!(next(&agent, EventKind::Ready).status, Status::Ok);
    Side { agent, _memory: memory }
}

fn next(agent: &Agent, kind: EventKind) -> Event {
    let mut events = agent.events().poll(1, Some(Duration::from_secs(60)));
    let e = events.pop().unwrap();
    assert_eq!(e.kind, kind, "{e:?}");
    e
}

fn connect(from: &Side, to: &Side, direction: Direction) -> Id {
    let peer = from.agent.handshake(to.agent.address(), direction, 0).unwrap();
    let e = next(&from.agent, EventKind::Handshake);
    assert_eq!(e.status, Status::Ok, "{}", e.text);
    peer
}

fn blocks(thread: u64) -> Vec<Blocks> {
    vec![Blocks { first: 0, ids: (thread as u32 * 8..thread as u32 * 8 + 4).collect() }]
}

/// Requests of one thread; every one that was begun must end once.
fn submit(source: &Agent, sink: &Agent, peer: Id, to_sink: Id, t: u64) {
    for i in 0..ROUNDS {
        let (request, tag) = (format!("r-{t}-{i}"), t << 32 | i);
        let offer = Offer { request, blocks: blocks(t), tokens: 16, lease: None, user_data: tag };
        let offered = source.offer(offer).unwrap();
        let ticket = source.ticket(offered).unwrap();
        let read = ReadArgs {
            peer,
            ticket: &ticket,
            blocks: blocks(t),
            token_begin: 0,
            token_end: None,
            layers: (0, u32::MAX),
            timeout: None,
            user_data: tag,
        };
        let id = sink.read(read).unwrap();
        if i % 4 == 1 {
            let _ = sink.cancel(id);
        }
        if i % 4 != 0 {
            let _ = source.cancel(offered);
        }
        let request = format!("w-{t}-{i}");
        let accept = AcceptArgs {
            request: request.clone(),
            blocks: blocks(t + THREADS),
            token_begin: 0,
            tokens: 16,
            timeout: None,
            user_data: tag,
        };
        let id = sink.accept(accept).unwrap();
        let range = Range { token_begin: 0, token_end: 16, token_total: 16, layer_begin: 0, layer_end: u32::MAX };
        let write = WriteArgs {
            peer: to_sink,
            request,
            blocks: blocks(t),
            range,
            last: true,
            aux: vec![t as u8],
            timeout: None,
            user_data: tag,
        };
        source.write(write).unwrap();
        if i % 4 == 3 {
            let _ = sink.cancel(id);
        }
        sink.notify(peer, None, b"hello", None).unwrap();
        let _ = (sink.statistics(), sink.effective_transports(peer).unwrap(), sink.events().len());
        assert_eq!(sink.cancel(Id(7)).unwrap_err().status(), Status::BadHandle);
    }
}

/// Takes the events that must come, each once.
fn drain(agent: &Agent, want: [(EventKind, u64); 2]) {
    let mut seen: HashMap<(u32, u64), u32> = HashMap::new();
    let mut counts = [0, 0];
    while counts[0] < want[0].1 || counts[1] < want[1].1 {
        let events = agent.events().poll(16, Some(Duration::from_secs(60)));
        assert!(!events.is_empty(), "{counts:?} of {want:?}");
        for e in events {
            for (n, (kind, _)) in counts.iter_mut().zip(want) {
                if e.kind == kind {
                    *n += 1;
                    *seen.entry((kind as u32, e.user_data)).or_default() += 1;
                }
            }
        }
    }
    assert!(seen.values().all(|n| *n == 1));
}

fn several_threads(way: &str) {
    let (source, sink) = (start("source", way), start("sink", way));
    let (peer, to_sink) =
        (connect(&sink, &source, Direction::Inbound), connect(&source, &sink, Direction::Outbound));
    let (source, sink) = (&source.agent, &sink.agent);
    let all = THREADS * ROUNDS;
    thread::scope(|s| {
        for t in 0..THREADS {
            s.spawn(move || submit(source, sink, peer, to_sink, t));
        }
        s.spawn(|| drain(source, [(EventKind::Released, all), (EventKind::Transfer, all)]));
        s.spawn(|| drain(sink, [(EventKind::Transfer, all), (EventKind::Received, all)]));
    });
}

#[test]
fn several_threads_over_shared_memory() {
    several_threads("shm");
}

#[test]
fn several_threads_over_cross_process_copies() {
    several_threads("cma");
}

#[test]
fn several_threads_over_tcp() {
    several_threads("tcp");
}

#[test]
fn stopping_an_agent_wakes_and_refuses_everybody() {
    let side = start("stopped", "shm");
    let agent = &side.agent;
    let stopping = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            // For ever, as far as it knows.
            while !stopping.load(Ordering::Relaxed) {
                agent.events().poll(4, None);
            }
        });
        for t in 0..THREADS {
            s.spawn(move || {
                for i in 0.. {
                    let request = format!("{t}-{i}");
                    match agent.offer(Offer { request, blocks: blocks(t), tokens: 16, lease: None, user_data: 0 }) {
                        Ok(id) => drop(agent.cancel(id)),
                        Err(e) => {
                            assert_eq!(e.status(), Status::BadHandle);
                            return;
                        }
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(50));
        stopping.store(true, Ordering::Relaxed);
        agent.shut_down();
    });
}

#[test]
fn deregistering_answers_while_others_submit() {
    let side = start("deregistered", "shm");
    let agent = &side.agent;
    thread::scope(|s| {
        for t in 0..THREADS {
            s.spawn(move || {
                for i in 0.. {
                    let request = format!("{t}-{i}");
                    match agent.offer(Offer { request, blocks: blocks(t), tokens: 16, lease: None, user_data: 0 }) {
                        Ok(_) => {}
                        Err(e) if e.status() == Status::Limit => thread::yield_now(),
                        Err(e) => {
                            assert_eq!(e.status(), Status::WrongState);
                            return;
                        }
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(50));
        agent.deregister(0).unwrap();
        assert!(agent.events().poll(usize::MAX, None).iter().all(|e| e.status == Status::Cancelled));
    });
    assert!(agent.events().is_empty());
}
