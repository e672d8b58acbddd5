//! Writes: the source announces data to a request that the destination accepts.

use crate::world::*;
use kvlink::error::Status;
use kvlink::layout::model::{Model, Placement};
use kvlink::proto::{Direction, EventKind, Id};
use kvlink::wire::{Message, Range};

struct Push {
    w: World,
    p: Vec<usize>,
    d: Vec<usize>,
    peers: Vec<Id>,
}

fn setup(seed: u64, model: &Model, from: &Placement, to: &Placement, pull: bool) -> Push {
    let (mut w, p, d) = World::pair(seed, model, from, to, pull);
    let peers = w.handshakes(&p, "decode-0:1", Direction::Outbound);
    Push { w, p, d, peers }
}

impl Push {
    /// All source ranks write this part.
    fn write(&mut self, request: &str, range: Range, last: bool, aux: &[u8]) -> Vec<u64> {
        let one = |(n, peer): (&usize, &Id)| self.w.write(*n, *peer, request, range, 0, last, aux).expect("a write").0;
        self.p.iter().zip(&self.peers).map(one).collect()
    }

    fn accept(&mut self, request: &str, tokens: u64) -> Vec<u64> {
        let one = |n: &usize| self.w.accept(*n, request, tokens, 100, None).expect("an accept").0;
        self.d.iter().map(one).collect()
    }
}

fn part(tokens: (u64, u64), total: u64, layers: (u32, u32)) -> Range {
    Range { token_begin: tokens.0, token_end: tokens.1, token_total: total, layer_begin: layers.0, layer_end: layers.1 }
}

#[test]
fn layers_times_chunks_arrive_in_both_ways_whatever_the_topology() {
    for pull in [true, false] {
        for model in [attention(), latent(), hybrid()] {
            for (from, to) in [(1, 1), (2, 1), (1, 2), (4, 2)] {
                for early in [true, false] {
                    let seed = u64::from(from * 10 + to);
                    let mut x = setup(seed, &model, &place(from, 4), &place(to, 8), pull);
                    let mut all = if early { x.accept("r", 30) } else { Vec::new() };
                    for (b, e) in [(0, 12), (12, 16), (16, 30)] {
                        for layer in 0..model.num_layers {
                            let last = e == 30 && layer + 1 == model.num_layers;
                            let aux: &[u8] = if last { b"first token" } else { b"" };
                            all.extend(x.write("r", part((b, e), 30, (layer, layer + 1)), last, aux));
                            x.w.sim.run_for(millis(1));
                        }
                    }
                    if !early {
                        all.extend(x.accept("r", 30));
                    }
                    let ends = x.w.wait(&all, secs(3));
                    assert!(ends.iter().all(|s| *s == Status::Ok), "{ends:?}");
                    x.w.check();
                    for n in &x.d {
                        let received = x.w.sim.events(*n, EventKind::Received);
                        assert_eq!(received.len(), 1);
                        assert_eq!(received[0].payload, b"first token");
                    }
                }
            }
        }
    }
}

#[test]
fn received_comes_after_the_last_byte_of_all_source_ranks() {
    for pull in [true, false] {
        let mut x = setup(3, &attention(), &place(4, 4), &place(1, 4), pull);
        let accept = x.accept("r", 16);
        for i in 0..4 {
            assert_eq!(x.w.outcome(accept[0]), None);
            x.w.write(x.p[i], x.peers[i], "r", whole(16), 0, true, b"").unwrap();
            x.w.sim.run_for(millis(100));
        }
        assert_eq!(x.w.outcome(accept[0]), Some(Status::Ok));
        x.w.check();
    }
}

#[test]
fn last_with_something_missing_is_incomplete_and_says_what() {
    for pull in [true, false] {
        let mut x = setup(4, &hybrid(), &place(1, 4), &place(1, 4), pull);
        for (first, (request, parts, text)) in [60, 80, 100].into_iter().zip([
            (
                "tokens",
                vec![part((0, 8), 30, (0, 3)), part((16, 30), 30, (0, 3))],
                "layer 0: tokens [(0, 8), (16, 30)]",
            ),
            ("layer", vec![part((0, 30), 30, (0, 1)), part((0, 30), 30, (2, 3))], "layer 1: tokens []"),
            ("state", vec![part((0, 30), 30, (0, 2))], "the state of layer 2"),
        ]) {
            let accept = x.w.accept(x.d[0], request, 30, first, None).unwrap();
            let n = parts.len();
            for (i, r) in parts.into_iter().enumerate() {
                x.write(request, r, i + 1 == n, b"");
            }
            assert_eq!(x.w.wait(&[accept.0], secs(2)), [Status::Incomplete]);
            let e = x.w.sim.event_of(x.d[0], accept.1).unwrap();
            assert!(e.text.contains(text), "{}", e.text);
        }
        x.w.check();
    }
}

#[test]
fn what_is_not_wanted_is_not_moved() {
    let mut x = setup(5, &attention(), &place(1, 4), &place(1, 4), true);
    let user_data = x.w.user();
    let blocks = blocks(&x.w.sim.nodes[x.d[0]].layout.clone(), 32, 0);
    let args = kvlink::proto::AcceptArgs {
        request: "r".into(),
        blocks,
        token_begin: 16,
        tokens: 32,
        timeout: None,
        user_data,
    };
    x.w.sim.call(x.d[0], |e, now| e.accept(now, args)).unwrap();
    let first = x.write("r", part((0, 12), 32, (0, 9)), false, b"");
    let second = x.write("r", part((12, 32), 32, (0, 9)), true, b"");
    assert_eq!(x.w.wait(&[first[0], second[0], user_data], secs(1)), [Status::Ok; 3]);
    let moved = x.w.sim.events(x.d[0], EventKind::Received)[0].bytes;
    assert_eq!(moved, 16 * 2 * 4 * 8);
}

#[test]
fn a_request_of_no_tokens_completes_with_its_payload() {
    for pull in [true, false] {
        let mut x = setup(6, &attention(), &place(2, 4), &place(1, 4), pull);
        let mut all = x.accept("r", 0);
        all.extend(x.write("r", whole(0), true, b"aux"));
        assert!(x.w.wait(&all, secs(1)).iter().all(|s| *s == Status::Ok));
        assert_eq!(x.w.sim.events(x.d[0], EventKind::Received)[0].payload, b"aux");
    }
}

#[test]
fn a_source_rank_that_nobody_needs_writes_nothing() {
    let mut x = setup(7, &latent(), &place(4, 4), &place(1, 4), true);
    let mut all = x.accept("r", 16);
    all.extend(x.write("r", whole(16), true, b""));
    assert!(x.w.wait(&all, secs(1)).iter().all(|s| *s == Status::Ok));
    x.w.check();
}

#[test]
fn another_instance_cannot_fail_an_accept() {
    for pull in [true, false] {
        let mut x = setup(8, &attention(), &place(2, 4), &place(1, 4), pull);
        let other = x.w.sim.instance("other", &layouts(&attention(), &place(1, 4)), pull);
        let peer = x.w.handshakes(&other, "decode-0:1", Direction::Outbound)[0];
        let accept = x.accept("r", 16);
        x.w.write(x.p[0], x.peers[0], "r", whole(16), 0, true, b"").unwrap();
        x.w.sim.run_for(millis(50));
        let foreign = x.w.write(other[0], peer, "r", whole(16), 0, true, b"").unwrap();
        assert_eq!(x.w.wait(&[foreign.0], secs(1)), [Status::Refused]);
        x.w.sim.kill(other[0], false);
        x.w.sim.run_for(millis(50));
        x.w.write(x.p[1], x.peers[1], "r", whole(16), 0, true, b"").unwrap();
        assert_eq!(x.w.wait(&accept, secs(1)), [Status::Ok]);
        x.w.check();
    }
}

#[test]
fn a_write_after_the_last_one_is_refused_alone() {
    let mut x = setup(9, &attention(), &place(2, 4), &place(1, 4), true);
    let accept = x.accept("r", 16);
    let first = x.w.write(x.p[0], x.peers[0], "r", whole(16), 0, true, b"").unwrap();
    assert_eq!(x.w.wait(&[first.0], secs(1)), [Status::Ok]);
    let more = x.w.write(x.p[0], x.peers[0], "r", whole(16), 0, false, b"").unwrap();
    assert_eq!(x.w.wait(&[more.0], secs(1)), [Status::Protocol]);
    x.w.write(x.p[1], x.peers[1], "r", whole(16), 0, true, b"").unwrap();
    assert_eq!(x.w.wait(&accept, secs(1)), [Status::Ok]);
    x.w.check();
}

#[test]
fn a_write_that_nobody_accepts_ends_at_its_deadline() {
    let mut x = setup(10, &attention(), &place(1, 4), &place(1, 4), true);
    let users = x.write("r", whole(16), true, b"");
    let ends = x.w.wait(&users, secs(34));
    assert!(matches!(ends[0], Status::Deadline | Status::UnknownRequest), "{ends:?}");
    x.w.sim.run_for(secs(1));
    assert_eq!(x.w.sim.call(x.d[0], |e, _| e.counts()).parked, 0);
}

#[test]
fn a_write_whose_destination_never_answers_a_cancel_still_ends() {
    let mut x = setup(11, &attention(), &place(1, 4), &place(1, 4), true);
    let write = x.w.write(x.p[0], x.peers[0], "r", whole(16), 0, true, b"").unwrap();
    x.w.sim.run_for(millis(10));
    x.w.sim.filter = Some(Box::new(|_, _, m| !matches!(m, Message::WriteCancel { .. })));
    x.w.sim.call(x.p[0], |e, now| e.cancel(now, write.1)).unwrap();
    assert_eq!(x.w.wait(&[write.0], millis(3200)), [Status::Cancelled]);
    // Whoever accepts it now must not take bytes that are free to change.
    x.w.sim.filter = None;
    let accept = x.accept("r", 16);
    let ends = x.w.wait(&accept, secs(31));
    assert_ne!(ends, [Status::Ok]);
    x.w.check();
}

#[test]
fn a_cancelled_write_is_never_received_stale() {
    for pull in [true, false] {
        for seed in 0..40 {
            let mut x = setup(seed, &attention(), &place(2, 4), &place(1, 4), pull);
            x.w.sim.net.slice_bytes = 16..64;
            let accept = x.accept("r", 64);
            let ids: Vec<_> =
                (0..2).map(|i| x.w.write(x.p[i], x.peers[i], "r", whole(64), 0, true, b"").unwrap()).collect();
            let wait = x.w.sim.rng.micros(0..20_000);
            x.w.sim.run_for(wait);
            let _ = x.w.sim.call(x.p[0], |e, now| e.cancel(now, ids[0].1));
            x.w.wait(&[accept[0], ids[0].0, ids[1].0], secs(5));
            x.w.check();
        }
    }
}

#[test]
fn bytes_of_a_source_that_gave_up_a_stopped_destination_are_never_success() {
    for seed in 0..40 {
        let mut x = setup(seed, &attention(), &place(1, 4), &place(1, 4), true);
        x.w.sim.net.slice_bytes = 16..64;
        x.w.sim.net.slice = 1000..20_000;
        let accept = x.accept("r", 64);
        let write = x.w.write(x.p[0], x.peers[0], "r", whole(64), 0, true, b"").unwrap();
        x.w.sim.run_for(millis(5));
        // Its copies go on while it is stopped; the source takes it for dead and reuses the blocks.
        x.w.sim.pause(x.d[0], secs(8));
        x.w.sim.net.slice = 100_000..900_000;
        assert_ne!(x.w.wait(&[write.0], secs(5)), [Status::Ok]);
        x.w.sim.net.slice = 10..100;
        x.w.wait(&accept, secs(40));
        x.w.check();
    }
}
