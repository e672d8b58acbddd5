//! What it costs to get to know a peer, until its first block is here.

use crate::bare::Bare;
use crate::common::engine::wait;
use crate::common::{percentile, wanted};
use crate::{LAYERS, SIZES, WAYS, World, blocks_of, transport};
use kvlink::layout::Span;
use kvlink::proto::{Direction, EventKind};
use kvlink::transport::{Action, Job, JobId, LinkId, Slice, Transport};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 24;
const BLOCK: u32 = SIZES[1];

/// Milliseconds of p50 and p99.
fn line(way: &str, what: &str, mut times: Vec<f64>) {
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!("{way:<9}{what:<62}{p50:>10.3}{p99:>10.3}");
}

fn timed(times: &mut Vec<f64>, f: impl FnOnce()) {
    let begin = Instant::now();
    f();
    times.push(begin.elapsed().as_secs_f64() * 1e3);
}

pub fn print(world: &World) {
    if !wanted("connect") {
        return;
    }
    println!("{:<71}{:>10}{:>10}", "getting to know a peer", "p50 ms", "p99 ms");
    for (w, (way, engine)) in WAYS.iter().enumerate() {
        let (mut nixl, poller) = transport(engine, &world.memory);
        let (mut linked, mut first) = (Vec::new(), Vec::new());
        for i in 0..ROUNDS {
            timed(&mut linked, || drop(nixl.connect(LinkId(i), &world.transports[w]).unwrap()));
            timed(&mut first, || {
                let spans = vec![Span { len: u64::from(BLOCK), ..Span::default() }];
                nixl.post(Job {
                    id: JobId(i),
                    link: LinkId(i),
                    action: Action::Pull,
                    spans,
                    staged: false,
                    mark: None,
                })
                .unwrap();
                let (mut ready, mut done) = (Vec::new(), Vec::new());
                while done.is_empty() {
                    let more = nixl.progress(&ready, Slice::of(0), &mut done);
                    let longest = if more || !done.is_empty() { 0 } else { 10 };
                    poller.wait(Some(Duration::from_secs(longest)), &mut ready).unwrap();
                }
                done.remove(0).result.unwrap();
            });
            nixl.disconnect(LinkId(i));
        }
        line(way, "kvlink, the transport's part: its metadata taken", linked);
        line(way, "    the first block read", first);

        let bare = Bare::new(&format!("connect {way}"), engine, &world.memory);
        let all = (LAYERS * blocks_of(BLOCK)) as i32;
        let local = bare.prepare(c"", world.own(BLOCK), all);
        let (mut loaded, mut lists, mut first) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let mut name = Default::default();
            timed(&mut loaded, || name = bare.connect(&world.bare[w]));
            let mut far = std::ptr::null_mut();
            timed(&mut lists, || far = bare.prepare(&name, world.far(BLOCK), all));
            timed(&mut first, || _ = bare.read("first", local, &[0], far, &[0]));
            bare.release(far);
            bare.forget(&name);
        }
        line(way, "NIXL: loadRemoteMD and makeConnection", loaded);
        line(way, &format!("    its {all} blocks prepared, as vLLM does then"), lists);
        line(way, "    the first block read", first);

        let (agent, address) = (&world.agents[w * SIZES.len() + 1], &world.addresses[w * SIZES.len() + 1]);
        let mut whole = Vec::new();
        for _ in 0..ROUNDS {
            let mut peer = None;
            timed(&mut whole, || {
                peer = Some(agent.handshake(address, Direction::Inbound, 0).unwrap());
                wait(agent, EventKind::Handshake);
            });
            agent.disconnect(peer.unwrap()).unwrap();
        }
        line(way, "kvlink, the whole handshake: layouts, plans and the above", whole);
    }
}
