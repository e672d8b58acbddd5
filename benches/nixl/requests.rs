//! Whole requests: reads of blocks of one layer and of more.

use crate::bare::Bare;
use crate::common::engine::{read, wait};
use crate::common::{IN_ORDER, percentile, unhex, wanted};
use crate::{LAYERS, SIZES, WAYS, World, blocks_of, ids, indices};
use kvlink::proto::{Direction, EventKind};
use std::time::{Duration, Instant};

/// Blocks of a request in each layer.
const BLOCKS: usize = 64;
const DEPTHS: [u32; 4] = [1, 4, 16, LAYERS];
/// Rounds before those that are timed.
const WARM: usize = 4;
/// How the source's blocks lie: anywhere, or one behind the other, as a cache that is rarely full hands them out.
const SOURCES: [(&str, u64); 2] = [("any", 1), ("adjacent", IN_ORDER)];

/// Times of requests, and the processor time of both processes for all of them.
#[derive(Default)]
struct Series {
    times: Vec<f64>,
    posts: Vec<f64>,
    cpu: f64,
}

impl Series {
    fn add(&mut self, time: Duration, post: Duration, cpu: f64) {
        self.times.push(time.as_secs_f64());
        self.posts.push(post.as_secs_f64());
        self.cpu += cpu;
    }

    /// GB/s at the median, milliseconds of p50 and p99, µs of p50 and p99 of the posting call, CPU seconds per GB.
    fn columns(&mut self, bytes: usize) -> String {
        let (p50, p99) = (percentile(&mut self.times, 0.5), percentile(&mut self.times, 0.99));
        let (post, slow) = (percentile(&mut self.posts, 0.5) * 1e6, percentile(&mut self.posts, 0.99) * 1e6);
        let gb = bytes as f64 / 1e9;
        let cpu = self.cpu / self.times.len() as f64 / gb;
        format!("{:>7.2}{:>9.3}{:>9.3}{post:>8.0}{slow:>8.0}{cpu:>7.2}", gb / p50, p50 * 1e3, p99 * 1e3)
    }
}

pub fn print(world: &mut World) {
    let asked = |way: &str| SIZES.iter().any(|size| wanted(&format!("{way}/{size}")));
    if !WAYS.iter().any(|(way, _)| asked(way)) {
        return;
    }
    println!(
        "requests of {BLOCKS} blocks a layer that go anywhere; per line kvlink over NIXL, then NIXL with prepared"
    );
    println!("lists of all blocks and one transfer a request");
    let columns = format!("{:>7}{:>9}{:>9}{:>8}{:>8}{:>7}", "GB/s", "p50 ms", "p99 ms", "call us", "p99", "cpu/GB");
    println!("{:<8}{:>6}{:>7}{:>9}{columns}  |{columns}{:>7}", "", "block", "layers", "source", "ratio");
    for (w, (way, engine)) in WAYS.iter().enumerate() {
        if !asked(way) {
            continue;
        }
        let bare = Bare::new(&format!("requests {way}"), engine, &world.memory);
        let name = bare.connect(&world.bare[w]);
        for (s, size) in SIZES.into_iter().enumerate().filter(|(_, size)| wanted(&format!("{way}/{size}"))) {
            let i = w * SIZES.len() + s;
            let all = (LAYERS * blocks_of(size)) as i32;
            let (local, far) = (bare.prepare(c"", world.own(size), all), bare.prepare(&name, world.far(size), all));
            let agent = &world.agents[i];
            let peer = agent.handshake(&world.addresses[i], Direction::Inbound, 0).unwrap();
            wait(agent, EventKind::Handshake);
            let to_ids = ids(size, BLOCKS, 2);
            for (layers, (source, seed)) in DEPTHS.into_iter().flat_map(|d| SOURCES.map(|s| (d, s))) {
                let (from, to) = (indices(size, layers, &ids(size, BLOCKS, seed)), indices(size, layers, &to_ids));
                let (mut ours, mut theirs) = (Series::default(), Series::default());
                for round in 0..WARM + (120 / layers as usize).clamp(12, 60) {
                    let offer = format!("offer {i} {BLOCKS} r{layers}-{round}-{seed} {seed}");
                    let ticket = unhex(&world.remote.ask(&offer));
                    // Who comes second finds the data in the caches: they take turns. The first rounds warm up.
                    for ours_now in [round % 2 == 0, round % 2 != 0] {
                        let before = world.remote.cpu();
                        let begin = Instant::now();
                        let posted = match ours_now {
                            true => read(agent, peer, &ticket, &to_ids, layers),
                            false => bare.read(local, &to, far, &from),
                        };
                        let time = begin.elapsed();
                        let cpu = world.remote.cpu() - before;
                        if round >= WARM {
                            if ours_now { &mut ours } else { &mut theirs }.add(time, posted, cpu);
                        }
                    }
                }
                let bytes = to.len() * size as usize;
                let ratio = percentile(&mut theirs.times, 0.5) / percentile(&mut ours.times, 0.5);
                let (ours, theirs) = (ours.columns(bytes), theirs.columns(bytes));
                println!("{way:<8}{size:>6}{layers:>7}{source:>9}{ours}  |{theirs}{ratio:>7.2}");
            }
        }
    }
}
