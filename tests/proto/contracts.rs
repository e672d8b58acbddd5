//! The contracts: never hang, never late, quiescence, restart-safe, precise failure.

use crate::content::What;
use crate::world::*;
use kvlink::error::{Error, Status};
use kvlink::proto::{Config, Counts, Direction, EventKind, Id};
use kvlink::wire::{LeaseMark, Message, Ticket};
use std::collections::HashMap;
use std::time::Duration;

/// Time within which a silent peer is dead by the configuration.
fn death(config: &Config) -> Duration {
    config.heartbeat * config.heartbeat_misses + config.heartbeat
}

fn idle(w: &mut World, node: usize) -> Counts {
    let c = w.sim.call(node, |e, _| e.counts());
    Counts { sessions: 0, peers: 0, timers: 0, ..c }
}

// ---- 1. never hang ----

#[test]
fn a_silently_dead_peer_fails_everything_within_the_heartbeats() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(1, &attention(), &place(2, 4), &place(1, 4), pull);
        let read_from = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        let write_to = w.handshakes(&d, "prefill-0:1", Direction::Outbound)[0];
        let (ticket, _) = w.offer(&p, "r", 64, 0, None);
        w.sim.net.slice = 100_000..900_000;
        w.sim.net.slice_bytes = 16..64;
        let read = w.read(d[0], read_from, &ticket, "r", 50, Reading::default()).unwrap();
        let write = w.write(d[0], write_to, "w", whole(32), 100, true, b"").unwrap();
        w.sim.run_for(millis(100));
        w.sim.kill(p[1], true);
        let began = w.sim.now;
        let ends = w.wait(&[read.0, write.0], secs(20));
        assert_eq!(ends, [Status::PeerDead; 2]);
        assert!(w.sim.now - began <= death(&w.sim.config), "{:?}", w.sim.now - began);
        assert_eq!(w.sim.events(d[0], EventKind::PeerDown).len(), 2);
        w.check();
        assert_eq!(idle(&mut w, d[0]), Counts::default());
    }
}

/// A peer that came to us is lost when its last rank is, and only an engine that has heard of it is told.
#[test]
fn the_end_of_a_peer_that_came_to_us_is_told_to_who_knows_it() {
    for leaves in [true, false] {
        let (mut w, p, d) = World::pair(23, &attention(), &place(1, 4), &place(2, 4), true);
        let peers = w.handshakes(&d, "prefill-0:1", Direction::Inbound);
        let stranger = w.sim.instance("stranger", &layouts(&attention(), &place(1, 4)), true)[0];
        w.handshakes(&[stranger], "prefill-0:1", Direction::Inbound);
        w.sim.call(d[0], |e, _| e.notify(peers[0], None, b"hello", None)).unwrap();
        w.sim.run_for(secs(1));
        let known = w.sim.events(p[0], EventKind::Notification)[0].peer;

        w.sim.kill(stranger, false);
        for (n, peer) in d.iter().zip(&peers) {
            w.sim.run_for(secs(1));
            assert!(w.sim.events(p[0], EventKind::PeerDown).is_empty());
            match leaves {
                true => w.sim.call(*n, |e, now| e.disconnect(now, *peer)).unwrap(),
                false => w.sim.kill(*n, false),
            }
        }
        w.sim.run_for(secs(1));
        let down = w.sim.events(p[0], EventKind::PeerDown);
        assert_eq!(down.iter().map(|e| (e.peer, e.status)).collect::<Vec<_>>(), [(known, Status::PeerDead)]);
        let stale = w.sim.call(p[0], |e, _| e.notify(Id(known), None, b"?", None)).unwrap_err();
        assert_eq!(stale.status(), Status::BadHandle);
    }
}

#[test]
fn an_accept_fails_when_its_source_dies() {
    for (pull, silent) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut w, p, d) = World::pair(2, &attention(), &place(2, 4), &place(1, 4), pull);
        let peers = w.handshakes(&p, "decode-0:1", Direction::Outbound);
        let accept = w.accept(d[0], "r", 16, 0, None).unwrap();
        w.write(p[0], peers[0], "r", whole(16), 0, true, b"").unwrap();
        w.sim.run_for(millis(50));
        let began = w.sim.now;
        w.sim.kill(p[1], silent);
        assert_eq!(w.wait(&[accept.0], secs(20)), [Status::PeerDead]);
        assert!(w.sim.now - began <= death(&w.sim.config));
        w.check();
    }
}

#[test]
fn every_wait_ends_at_its_deadline_though_the_peer_lives() {
    let lost: [fn(&Message) -> bool; 4] = [
        |m| matches!(m, Message::Done { .. }),
        |m| matches!(m, Message::Ack { .. }),
        |m| matches!(m, Message::Read(_)),
        |m| matches!(m, Message::ReadFailed { .. }),
    ];
    for f in lost {
        for pull in [true, false] {
            let (mut w, p, d) = World::pair(3, &attention(), &place(1, 4), &place(1, 4), pull);
            let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            let (ticket, offers) = w.offer(&p, "r", 16, 0, Some(secs(2)));
            w.sim.filter = Some(Box::new(move |_, _, m| !f(m)));
            let how = Reading { timeout: Some(secs(1)), ..Reading::default() };
            let read = w.read(d[0], peer, &ticket, "r", 50, how).unwrap();
            w.wait(&[read.0], millis(1100));
            w.wait(&[offers[0].0], millis(2100));
            w.check();
            assert_eq!(idle(&mut w, d[0]), Counts::default());
            assert_eq!(idle(&mut w, p[0]), Counts::default());
        }
    }
}

#[test]
fn an_accept_that_nobody_writes_ends_at_its_deadline() {
    let (mut w, _, d) = World::pair(4, &attention(), &place(1, 4), &place(1, 4), true);
    let accept = w.accept(d[0], "r", 16, 0, Some(secs(2))).unwrap();
    assert_eq!(w.wait(&[accept.0], millis(2001)), [Status::Deadline]);
    w.check();
}

#[test]
fn a_rank_without_any_cache_receives_at_once() {
    let mut w = World::new(5);
    let model = attention();
    let empty = kvlink::layout::LayoutDesc::default();
    let Ok(empty) = kvlink::layout::Layout::new(empty) else { return };
    w.sim.instance("prefill", &layouts(&model, &place(1, 4)), true);
    let mut all = layouts(&model, &place(1, 4));
    all.push(std::sync::Arc::new(empty));
    let d = w.sim.instance("decode", &all, true);
    w.sim.run_for(secs(1));
    let accept = w.accept(d[1], "r", 16, 0, Some(secs(2))).unwrap();
    assert_eq!(w.wait(&[accept.0], millis(1)), [Status::Ok]);
}

#[test]
fn a_stall_of_ours_is_not_the_death_of_a_peer() {
    let (mut w, _, d) = World::pair(6, &attention(), &place(1, 4), &place(1, 4), true);
    w.handshakes(&d, "prefill-0:1", Direction::Inbound);
    // Shorter than the peer's patience, longer than what a timer that comes first would forgive.
    w.sim.config.heartbeat_misses = 3;
    for _ in 0..20 {
        w.sim.pause(d[0], millis(1900));
        w.sim.run_for(secs(4));
    }
    assert!(w.sim.events(d[0], EventKind::PeerDown).is_empty());
}

#[test]
fn timeouts_beyond_the_clock_are_not_a_panic() {
    let (mut w, p, d) = World::pair(7, &attention(), &place(1, 4), &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let (ticket, offers) = w.offer(&p, "r", 16, 0, Some(Duration::MAX));
    let how = Reading { timeout: Some(Duration::MAX), ..Reading::default() };
    let read = w.read(d[0], peer, &ticket, "r", 50, how).unwrap();
    w.accept(d[0], "w", 16, 90, Some(Duration::MAX)).unwrap();
    assert_eq!(w.wait(&[read.0, offers[0].0], secs(1)), [Status::Ok; 2]);
}

// ---- 2. never late ----

#[test]
fn a_lease_that_ends_in_mid_read_is_expired_and_never_a_success() {
    for pull in [true, false] {
        for seed in 0..60 {
            let (mut w, p, d) = World::pair(seed, &attention(), &place(2, 4), &place(1, 4), pull);
            let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            w.sim.net.slice_bytes = 16..128;
            let lease = w.sim.rng.micros(500..12_000);
            let (ticket, offers) = w.offer(&p, "r", 64, 0, Some(lease));
            let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
            let ends = w.wait(&[read.0, offers[0].0, offers[1].0], secs(2));
            assert!(matches!(ends[0], Status::Ok | Status::LeaseExpired), "{ends:?}");
            assert!(ends[0] == Status::LeaseExpired || ends == [Status::Ok; 3], "{ends:?}");
            w.check();
        }
    }
}

/// Two requests whose leases show at the same word of a source's board.
fn sharing_a_slot(source: u64) -> (String, String) {
    let mut seen = HashMap::new();
    let mut name = |i: u32| {
        let name = format!("r{i}");
        seen.insert(LeaseMark::new(source, &name, 1).offset, name.clone()).map(|other| (other, name))
    };
    (0..).find_map(&mut name).unwrap()
}

/// Who does not find its own word asks, and nobody takes the other's for its own.
#[test]
fn leases_that_share_a_slot_of_the_board_are_told_apart() {
    for seed in 0..120 {
        let (mut w, p, d) = World::pair(seed, &attention(), &place(1, 4), &place(1, 4), true);
        let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        let (probe, _) = w.offer(&p, "probe", 4, 90, None);
        let (a, b) = sharing_a_slot(Ticket::decode(&probe).unwrap().incarnation);
        w.sim.net.slice_bytes = 16..128;

        // The first ends at any moment of its read, and the second begins before it or after it.
        let (first, offers) = w.offer(&p, &a, 32, 0, None);
        let early = (seed % 2 == 0).then(|| w.offer(&p, &b, 32, 20, None).0);
        let one = w.read(d[0], peer, &first, &a, 50, Reading::default()).unwrap().0;
        let wait = w.sim.rng.micros(0..4000);
        w.sim.run_for(wait);
        let _ = w.sim.call(p[0], |e, now| e.cancel(now, offers[0].1));
        let second = early.unwrap_or_else(|| w.offer(&p, &b, 32, 20, None).0);
        let two = w.read(d[0], peer, &second, &b, 70, Reading::default()).unwrap().0;
        let ends = w.wait(&[one, two], secs(2));
        assert!(matches!(ends[0], Status::Ok | Status::LeaseExpired), "{ends:?}");
        assert_eq!(ends[1], Status::Ok);
        w.check();
    }
}

#[test]
fn the_ticket_of_an_ended_offer_reads_nothing_of_the_next_one() {
    for pull in [true, false] {
        for seed in 0..30 {
            let (mut w, p, d) = World::pair(seed, &attention(), &place(1, 4), &place(1, 4), pull);
            let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            w.sim.net.slice_bytes = 16..128;
            let (old, offers) = w.offer(&p, "r", 64, 0, None);
            let read = w.read(d[0], peer, &old, "r", 50, Reading::default()).unwrap();
            let wait = w.sim.rng.micros(100..4000);
            w.sim.run_for(wait);
            // Withdrawn, overwritten, and offered again under the same name, elsewhere.
            let _ = w.sim.call(p[0], |e, now| e.cancel(now, offers[0].1));
            let (new, again) = w.offer(&p, "r", 64, 100, None);
            w.wait(&[read.0], secs(2));
            w.check();
            if w.outcome(again[0].0).is_none() {
                let read = w.read(d[0], peer, &new, "r", 100, Reading::default()).unwrap();
                assert_eq!(w.wait(&[read.0, again[0].0], secs(2)), [Status::Ok; 2]);
            }
            w.check();
        }
    }
}

#[test]
fn a_late_reader_learns_what_became_of_its_request() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(9, &attention(), &place(1, 4), &place(1, 4), pull);
        let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        let (ticket, offers) = w.offer(&p, "r", 16, 0, Some(millis(10)));
        w.wait(&[offers[0].0], secs(1));
        let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
        assert_eq!(w.wait(&[read.0], secs(1)), [Status::LeaseExpired]);
        w.check();
    }
}

// ---- 3. quiescence ----

#[test]
fn nothing_moves_after_a_cancelled_operation() {
    for pull in [true, false] {
        for seed in 0..40 {
            let (mut w, p, d) = World::pair(seed, &attention(), &place(2, 4), &place(1, 4), pull);
            let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            let peers = w.handshakes(&p, "decode-0:1", Direction::Outbound);
            w.sim.net.slice_bytes = 16..128;
            let (ticket, _) = w.offer(&p, "r", 64, 0, None);
            let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
            let accept = w.accept(d[0], "w", 64, 100, None).unwrap();
            for (n, peer) in p.iter().zip(&peers) {
                w.write(*n, *peer, "w", whole(64), 150, true, b"").unwrap();
            }
            let wait = w.sim.rng.micros(0..8000);
            w.sim.run_for(wait);
            for id in [read.1, accept.1] {
                let _ = w.sim.call(d[0], |e, now| e.cancel(now, id));
            }
            w.wait(&[read.0, accept.0], secs(1));
            w.check();
            w.sim.run_for(secs(5));
            w.check();
        }
    }
}

#[test]
fn disconnecting_ends_what_runs() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(11, &attention(), &place(1, 4), &place(1, 4), pull);
        let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        w.sim.net.slice_bytes = 16..64;
        let (ticket, _) = w.offer(&p, "r", 64, 0, None);
        let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
        w.sim.run_for(millis(1));
        w.sim.call(d[0], |e, now| e.disconnect(now, peer)).unwrap();
        assert_eq!(w.wait(&[read.0], millis(10)), [Status::PeerDead]);
        w.check();
        assert_eq!(w.sim.call(d[0], |e, _| e.counts()), Counts::default());
    }
}

// ---- 4. restart-safe ----

#[test]
fn an_acknowledgement_of_a_restarted_source_is_no_proof() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(12, &attention(), &place(1, 4), &place(1, 4), pull);
        let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        w.sim.net.slice_bytes = 16..64;
        let (ticket, _) = w.offer(&p, "r", 64, 0, None);
        let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
        w.sim.run_for(millis(1));
        w.sim.kill(p[0], false);
        let again = w.sim.instance("prefill", &layouts(&attention(), &place(1, 4)), pull);
        w.offer(&again, "r", 64, 0, None);
        assert_eq!(w.wait(&[read.0], secs(5)), [Status::PeerDead]);
        w.check();
    }
}

// ---- 5. failure is precise ----

#[test]
fn a_failed_read_names_the_blocks_that_it_wanted_and_no_others() {
    let (mut w, p, d) = World::pair(13, &hybrid(), &place(1, 4), &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let (ticket, _) = w.offer(&p, "r", 30, 0, Some(millis(1)));
    let how = Reading { token_begin: 9, ..Reading::default() };
    w.sim.run_for(millis(5));
    let read = w.read(d[0], peer, &ticket, "r", 50, how).unwrap();
    assert_eq!(w.wait(&[read.0], secs(1)), [Status::LeaseExpired]);
    let lists = blocks(&w.sim.nodes[d[0]].layout.clone(), 30, 50);
    let failed = w.sim.call(d[0], |e, _| e.failed_blocks(read.1).map(<[_]>::to_vec)).expect("they are known");
    // Tokens 0..8 lie in the first two blocks, which were here before.
    assert_eq!(failed, [(0, lists[0].ids[2..].to_vec()), (1, lists[1].ids.clone())]);
    assert_eq!(What::all(30).tokens, 0..30);
}

#[test]
fn a_failed_read_names_only_the_groups_of_the_ranks_that_failed() {
    // Two pipeline stages: attention layers on the first, state on the second.
    let two = kvlink::layout::model::Placement { pp: 3, ..place(1, 4) };
    let (mut w, p, d) = World::pair(14, &hybrid(), &two, &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let (ticket, offers) = w.offer(&p, "r", 30, 0, None);
    w.sim.call(p[2], |e, now| e.cancel(now, offers[2].1)).unwrap();
    let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
    assert_eq!(w.wait(&[read.0], secs(1)), [Status::LeaseExpired]);
    let failed = w.sim.call(d[0], |e, _| e.failed_blocks(read.1).map(<[_]>::to_vec)).expect("they are known");
    assert!(failed.iter().any(|(g, _)| *g == 1), "{failed:?}");
}

// ---- several consumers ----

#[test]
fn a_second_instance_may_read_what_the_first_one_could_not() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(15, &attention(), &place(1, 4), &place(2, 4), pull);
        let other = w.sim.instance("other", &layouts(&attention(), &place(1, 4)), pull);
        let one = w.handshakes(&d, "prefill-0:1", Direction::Inbound);
        let two = w.handshakes(&other, "prefill-0:1", Direction::Inbound)[0];
        let (ticket, offers) = w.offer(&p, "r", 16, 0, None);
        let half = w.read(d[0], one[0], &ticket, "r", 50, Reading::default()).unwrap();
        assert_eq!(w.wait(&[half.0], secs(1)), [Status::Ok]);
        w.sim.kill(d[1], false);
        let read = w.read(other[0], two, &ticket, "r", 80, Reading::default()).unwrap();
        assert_eq!(w.wait(&[read.0, offers[0].0], secs(1)), [Status::Ok; 2]);
        w.check();
    }
}

#[test]
fn a_process_that_closes_ends_everything_with_its_events() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(16, &attention(), &place(1, 4), &place(1, 4), pull);
        let peer: Id = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        let (ticket, _) = w.offer(&p, "r", 64, 0, None);
        let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
        let accept = w.accept(d[0], "w", 64, 100, None).unwrap();
        w.sim.call(d[0], |e, now| e.close(now, Error::new(Status::Cancelled, "the agent is destroyed")));
        assert_eq!(w.wait(&[read.0, accept.0], millis(10)), [Status::Cancelled; 2]);
        w.check();
        assert_eq!(idle(&mut w, d[0]), Counts::default());
    }
}
