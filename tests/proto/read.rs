//! Reads: the sink fetches an offered request.

use crate::world::*;
use kvlink::error::Status;
use kvlink::layout::model::{Model, Placement};
use kvlink::proto::{Direction, EventKind};

/// Reads one request into all ranks of the sink; returns the world when everything has ended.
fn transfer(seed: u64, model: &Model, from: &Placement, to: &Placement, pull: bool, tokens: u64) -> World {
    let (mut w, p, d) = World::pair(seed, model, from, to, pull);
    let peers = w.handshakes(&d, "prefill-0:1", Direction::Inbound);
    let (ticket, offers) = w.offer(&p, "r", tokens, 10, None);
    let mut all: Vec<u64> = offers.iter().map(|(u, _)| *u).collect();
    for (n, peer) in d.iter().zip(&peers) {
        all.push(w.read(*n, *peer, &ticket, "r", 40, Reading::default()).expect("a read").0);
    }
    let ends = w.wait(&all, secs(3));
    assert!(ends.iter().all(|s| *s == Status::Ok), "{ends:?}");
    w.check();
    for n in &p {
        assert_eq!(w.sim.events(*n, EventKind::Released).len(), 1);
    }
    for n in &d {
        assert_eq!(w.sim.events(*n, EventKind::Transfer).len(), 1);
    }
    w
}

#[test]
fn a_request_arrives_in_both_ways_whatever_the_topology() {
    for pull in [true, false] {
        for model in [attention(), latent(), hybrid()] {
            for (from, to) in [(1, 1), (2, 1), (1, 2), (4, 2), (2, 4), (4, 1)] {
                for (a, b) in [(4, 4), (8, 4), (4, 16)] {
                    let seed = u64::from(from * 100 + to * 10 + a + b);
                    transfer(seed, &model, &place(from, a), &place(to, b), pull, 37);
                }
            }
        }
    }
}

#[test]
fn source_ranks_that_nobody_reads_are_released_too() {
    for pull in [true, false] {
        let w = transfer(5, &latent(), &place(4, 4), &place(1, 4), pull, 16);
        let released: usize = (0..4).map(|n| w.sim.events(n, EventKind::Released).len()).sum();
        assert_eq!(released, 4);
    }
}

#[test]
fn a_source_that_cannot_send_says_so_at_once() {
    let (mut w, p, d) = World::pair(3, &attention(), &place(1, 4), &place(1, 4), false);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let (ticket, _) = w.offer(&p, "r", 64, 0, None);
    w.sim.nodes[p[0]].mute = true;
    let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
    w.wait(&[read.0], millis(100));
    assert_eq!(w.outcome(read.0), Some(Status::Internal));
}
