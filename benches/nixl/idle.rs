//! What agents cost that have nothing to do.

use crate::bare::Bare;
use crate::common::engine::wait;
use crate::common::{cpu, wanted};
use crate::{SIZES, WAYS, World};
use kvlink::proto::{Direction, EventKind};
use std::time::Duration;

/// An agent has done something a while ago.
const SETTLED: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(5);

/// Processor time of this process meanwhile, in percent of a core.
fn percent() -> f64 {
    let before = cpu();
    std::thread::sleep(MEASURED);
    (cpu() - before) / MEASURED.as_secs_f64() * 100.0
}

pub fn print(world: &World) {
    if !wanted("idle") {
        return;
    }
    for (agent, address) in world.agents.iter().zip(&world.addresses) {
        agent.handshake(address, Direction::Both, 0).unwrap();
        wait(agent, EventKind::Handshake);
    }
    std::thread::sleep(SETTLED);
    let ours = percent();
    let bare: Vec<Bare> = (0..WAYS.len() * SIZES.len())
        .map(|i| Bare::new(&format!("idle {i}"), WAYS[i / SIZES.len()].1, &world.memory))
        .collect();
    for (i, b) in bare.iter().enumerate() {
        b.connect(&world.bare[i / SIZES.len()]);
    }
    std::thread::sleep(SETTLED);
    let both = percent();
    let n = bare.len() as f64;
    println!("an agent that is connected and has nothing to do, percent of a core:");
    println!("kvlink {:.2}; NIXL, whose thread sleeps for 1 ms, {:.2}", ours / n, (both - ours) / n);
}
