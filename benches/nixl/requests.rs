//! Whole requests: reads of blocks of one layer and of more.

use crate::bare::Bare;
use crate::common::engine::{read, read_polling, wait};
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
        "requests of {BLOCKS} blocks a layer that go anywhere; per line kvlink over NIXL, polled in a loop, then NIXL with"
    );
    println!(
        "prepared lists of all blocks and one transfer a request, polled in a loop; ratios of times: NIXL's to kvlink's,"
    );
    println!("polled and with an engine that sleeps until its event comes; the call of that one");
    let columns = format!("{:>7}{:>9}{:>9}{:>8}{:>8}{:>7}", "GB/s", "p50 ms", "p99 ms", "call us", "p99", "cpu/GB");
    println!(
        "{:<8}{:>6}{:>7}{:>9}{columns}  |{columns}{:>7}{:>7}{:>8}{:>8}",
        "", "block", "layers", "source", "ratio", "asleep", "call us", "p99"
    );
    for (w, (way, engine)) in WAYS.iter().enumerate() {
        if !asked(way) {
            continue;
        }
        let bare = Bare::new(&format!("requests {way}"), engine, &world.memory);
        let source = bare.connect(&world.bare[w]);
        for (s, size) in SIZES.into_iter().enumerate().filter(|(_, size)| wanted(&format!("{way}/{size}"))) {
            let i = w * SIZES.len() + s;
            let all = (LAYERS * blocks_of(size)) as i32;
            let (local, far) = (bare.prepare(c"", world.own(size), all), bare.prepare(&source, world.far(size), all));
            let agent = &world.agents[i];
            let peer = agent.handshake(&world.addresses[i], Direction::Inbound, 0).unwrap();
            wait(agent, EventKind::Handshake);
            let to_ids = ids(size, BLOCKS, 2);
            for (layers, (source, seed)) in DEPTHS.into_iter().flat_map(|d| SOURCES.map(|s| (d, s))) {
                let (from, to) = (indices(size, layers, &ids(size, BLOCKS, seed)), indices(size, layers, &to_ids));
                let mut series: [Series; 4] = Default::default();
                let rounds = WARM + (120 / layers as usize).clamp(12, 60);
                // An engine polls or sleeps. Beside each NIXL alone; who comes later finds the data in the caches, so they
                // take turns. The first rounds warm up.
                for (round, sleeps) in (0..rounds).map(|r| (r, 0)).chain((0..rounds).map(|r| (r, 2))) {
                    for turn in [sleeps + round % 2, sleeps + (round + 1) % 2] {
                        let name = format!("r{layers}-{round}-{turn}-{seed}");
                        let ticket = unhex(&world.remote.ask(&format!("offer {i} {BLOCKS} {name} {seed}")));
                        let before = world.remote.cpu();
                        let begin = Instant::now();
                        let posted = match turn {
                            0 => read_polling(agent, peer, &ticket, &to_ids, layers),
                            1 | 3 => bare.read(&name, local, &to, far, &from),
                            _ => read(agent, peer, &ticket, &to_ids, layers),
                        };
                        let time = begin.elapsed();
                        let cpu = world.remote.cpu() - before;
                        if round >= WARM {
                            series[turn].add(time, posted, cpu);
                        }
                    }
                }
                let bytes = to.len() * size as usize;
                let [ours, theirs, asleep, beside] = series.each_mut().map(|s| percentile(&mut s.times, 0.5));
                let (ratio, waiting) = (theirs / ours, beside / asleep);
                let calls = &mut series[2].posts;
                let (call, slow) = (percentile(calls, 0.5) * 1e6, percentile(calls, 0.99) * 1e6);
                let [ours, theirs, ..] = series.each_mut().map(|s| s.columns(bytes));
                println!(
                    "{way:<8}{size:>6}{layers:>7}{source:>9}{ours}  |{theirs}{ratio:>7.2}{waiting:>7.2}{call:>8.0}{slow:>8.0}"
                );
            }
        }
    }
}
