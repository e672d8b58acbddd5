//! Handshakes: an instance forms, peers find all of its ranks, and link those that the plans need.

use crate::sim::Sim;
use crate::world::*;
use kvlink::error::Status;
use kvlink::proto::{Config, Direction, Event, EventKind};
use kvlink::wire::Message;

fn ready(sim: &Sim, node: usize) -> Vec<Status> {
    sim.events(node, EventKind::Ready).iter().map(|e| e.status).collect()
}

fn result(w: &mut World, node: usize, to: &str) -> Event {
    let user = w.user();
    w.sim.call(node, |e, now| e.handshake(now, to, Direction::Inbound, user)).expect("a handshake");
    let find = |s: &Sim| s.events(node, EventKind::Handshake).into_iter().find(|e| e.user_data == user).cloned();
    w.sim.until("the handshake's end", secs(40), |s| find(s).is_some());
    find(&w.sim).expect("it ended")
}

#[test]
fn ranks_join_in_any_order_and_the_first_rank_may_come_late() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut w = World::new(1);
        let all = layouts(&attention(), &place(4, 4));
        let nodes: Vec<usize> = (0..4).map(|r| w.sim.spawn("i", r, 4, &all[r as usize])).collect();
        for r in order {
            w.sim.run_for(millis(700));
            assert!(nodes.iter().all(|n| ready(&w.sim, *n).is_empty()));
            w.sim.bind(nodes[r]);
        }
        w.sim.until("readiness", secs(2), |s| nodes.iter().all(|n| !ready(s, *n).is_empty()));
        assert!(nodes.iter().all(|n| ready(&w.sim, *n) == [Status::Ok]));
    }
}

#[test]
fn a_rank_that_died_while_the_instance_formed_may_come_again() {
    let mut w = World::new(2);
    let all = layouts(&attention(), &place(2, 4));
    let leader = w.sim.spawn("i", 0, 3, &all[0]);
    let first = w.sim.spawn("i", 1, 3, &all[1]);
    w.sim.bind(leader);
    w.sim.bind(first);
    w.sim.run_for(millis(100));
    w.sim.kill(first, false);
    w.sim.run_for(millis(100));
    let again = w.sim.spawn("i", 1, 3, &all[1]);
    let last = w.sim.spawn("i", 2, 3, &all[1]);
    w.sim.bind(again);
    w.sim.bind(last);
    w.sim.run_for(secs(1));
    assert!([leader, again, last].iter().all(|n| ready(&w.sim, *n) == [Status::Ok]));
}

#[test]
fn two_processes_of_the_same_rank_are_told_and_the_first_stays() {
    let mut w = World::new(3);
    let all = layouts(&attention(), &place(2, 4));
    let leader = w.sim.spawn("i", 0, 3, &all[0]);
    w.sim.bind(leader);
    // Both say hello before either has joined.
    let one = w.sim.spawn("i", 1, 3, &all[1]);
    let two = w.sim.spawn("i", 1, 3, &all[1]);
    w.sim.bind(one);
    w.sim.bind(two);
    w.sim.run_for(secs(1));
    let last = w.sim.spawn("i", 2, 3, &all[1]);
    w.sim.bind(last);
    w.sim.run_for(secs(1));
    assert_eq!(ready(&w.sim, leader), [Status::Ok]);
    let mut both = [ready(&w.sim, one), ready(&w.sim, two)];
    both.sort_by_key(|s| s[0].code());
    assert_eq!(both, [vec![Status::Refused], vec![Status::Ok]]);
}

#[test]
fn a_rank_whose_connection_broke_before_the_directory_came_joins_again() {
    for late in [false, true] {
        let mut w = World::new(4);
        let all = layouts(&attention(), &place(2, 4));
        let nodes: Vec<usize> = (0..3).map(|r| w.sim.spawn("i", r, 3, &all[r as usize % 2])).collect();
        w.sim.bind(nodes[0]);
        w.sim.bind(nodes[1]);
        w.sim.run_for(millis(100));
        if late {
            // The directory is lost with the connection: the instance is complete at the first rank already.
            w.sim.filter = Some(Box::new(|_, to, m| to != 1 || !matches!(m, Message::Directory(_))));
            w.sim.bind(nodes[2]);
            w.sim.run_for(millis(50));
            w.sim.filter = None;
        }
        w.sim.cut(nodes[0], nodes[1]);
        w.sim.run_for(secs(1));
        if !late {
            w.sim.bind(nodes[2]);
        }
        w.sim.run_for(secs(1));
        assert!(nodes.iter().all(|n| ready(&w.sim, *n) == [Status::Ok]), "late: {late}");
    }
}

fn failure(sim: &Sim, node: usize) -> (Status, String) {
    let all = sim.events(node, EventKind::Ready);
    assert_eq!(all.len(), 1, "{all:?}");
    (all[0].status, all[0].text.clone())
}

#[test]
fn an_instance_that_does_not_become_complete_says_who_is_missing_and_stays_so() {
    let mut w = World::new(21);
    w.sim.config.join_timeout = secs(60);
    let all = layouts(&attention(), &place(2, 4));
    let nodes: Vec<usize> = (0..3).map(|r| w.sim.spawn("i", r, 3, &all[r as usize % 2])).collect();
    w.sim.bind(nodes[0]);
    w.sim.bind(nodes[1]);
    // One handshake of its own waits, and one of a foreign instance.
    w.sim.run_for(secs(50));
    let begin = |w: &mut World, node: usize, to: &str| {
        let user = w.user();
        w.sim.call(node, |e, now| e.handshake(now, to, Direction::Both, user))
    };
    begin(&mut w, nodes[0], "other-0:1").unwrap();
    let other = w.sim.instance("other", &layouts(&attention(), &place(1, 4)), true)[0];
    begin(&mut w, other, "i-0:1").unwrap();
    w.sim.run_for(secs(20));

    let (status, text) = failure(&w.sim, nodes[0]);
    assert_eq!((status, text.contains("[2]") && text.contains("60 s")), (Status::Deadline, true), "{text}");
    let (status, text) = failure(&w.sim, nodes[1]);
    assert_eq!((status, text.contains("[2]") || text.contains("i-0:1")), (Status::Deadline, true), "{text}");
    for node in [nodes[0], other] {
        let ended = w.sim.events(node, EventKind::Handshake);
        assert_eq!((ended.len(), ended[0].status == Status::Ok), (1, false));
        assert!(ended[0].text.contains("[2]"), "{}", ended[0].text);
    }
    let refused = begin(&mut w, nodes[0], "other-0:1").unwrap_err();
    assert_eq!((refused.status(), refused.message().contains("[2]")), (Status::WrongState, true), "{refused}");

    // Too late.
    w.sim.bind(nodes[2]);
    w.sim.run_for(secs(1));
    let (status, text) = failure(&w.sim, nodes[2]);
    assert_eq!((status, text.contains("never became complete")), (Status::WrongState, true), "{text}");
}

#[test]
fn a_rank_that_never_reaches_the_first_one_says_where_and_why() {
    let mut w = World::new(22);
    w.sim.config.join_timeout = secs(60);
    let all = layouts(&attention(), &place(2, 4));
    let alone = w.sim.spawn("i", 1, 2, &all[1]);
    w.sim.bind(alone);
    w.sim.run_for(secs(59));
    assert!(ready(&w.sim, alone).is_empty());
    w.sim.run_for(secs(2));
    let (status, text) = failure(&w.sim, alone);
    assert_eq!(
        (status, text.contains("i-0:1") && text.contains("connection refused")),
        (Status::Deadline, true),
        "{text}"
    );
}

#[test]
fn a_handshake_waits_for_both_instances_to_be_complete() {
    let mut w = World::new(5);
    let (a, b) = (layouts(&attention(), &place(2, 4)), layouts(&attention(), &place(2, 4)));
    let p: Vec<usize> = (0..2).map(|r| w.sim.spawn("prefill", r, 2, &a[r as usize])).collect();
    let d: Vec<usize> = (0..2).map(|r| w.sim.spawn("decode", r, 2, &b[r as usize])).collect();
    w.sim.bind(p[0]);
    w.sim.bind(d[0]);
    let user = w.user();
    w.sim.call(d[0], |e, now| e.handshake(now, "prefill-0:1", Direction::Both, user)).unwrap();
    w.sim.run_for(secs(5));
    w.sim.bind(d[1]);
    w.sim.run_for(secs(5));
    assert!(w.sim.events(d[0], EventKind::Handshake).is_empty());
    w.sim.bind(p[1]);
    w.sim.run_for(secs(1));
    assert_eq!(w.sim.events(d[0], EventKind::Handshake)[0].status, Status::Ok);
}

#[test]
fn a_handshake_that_waits_in_vain_says_for_what() {
    let all = layouts(&attention(), &place(2, 4));
    // Its own instance.
    let mut w = World::new(6);
    let alone = w.sim.spawn("decode", 0, 2, &all[0]);
    w.sim.bind(alone);
    let e = result(&mut w, alone, "prefill-0:1");
    assert_eq!((e.status, e.text.contains("own instance is not complete")), (Status::Deadline, true), "{}", e.text);
    // The peer's.
    let mut w = World::new(7);
    let d = w.sim.instance("decode", &layouts(&attention(), &place(1, 4)), true);
    let half = w.sim.spawn("prefill", 0, 2, &all[0]);
    w.sim.bind(half);
    let e = result(&mut w, d[0], "prefill-0:1");
    assert_eq!((e.status, e.text.contains("did not send its directory")), (Status::Deadline, true), "{}", e.text);
    // A rank of the peer's that is silent.
    let (mut w, p, d) = World::pair(8, &attention(), &place(2, 4), &place(1, 4), true);
    w.sim.run_for(secs(1));
    w.sim.kill(p[1], true);
    let e = result(&mut w, d[0], "prefill-0:1");
    assert_eq!((e.status, e.text.contains("ranks [1]")), (Status::Deadline, true), "{}", e.text);
    w.sim.run_for(secs(1));
    let counts = w.sim.call(d[0], |e, _| e.counts());
    assert_eq!((counts.peers, counts.sessions), (0, 0));
}

#[test]
fn nobody_there_is_unreachable() {
    let mut w = World::new(9);
    let d = w.sim.instance("decode", &layouts(&attention(), &place(1, 4)), true);
    assert_eq!(result(&mut w, d[0], "nobody:1").status, Status::Unreachable);
}

#[test]
fn a_connection_that_hangs_ends_with_the_handshake() {
    let (mut w, p, d) = World::pair(10, &attention(), &place(1, 4), &place(1, 4), true);
    w.sim.kill(p[0], true);
    assert_eq!(result(&mut w, d[0], "prefill-0:1").status, Status::Deadline);
    w.sim.run_for(secs(1));
    assert_eq!(w.sim.call(d[0], |e, _| e.counts()).sessions, 0);
}

#[test]
fn only_the_ranks_that_the_plans_need_are_linked() {
    let (mut w, p, d) = World::pair(11, &attention(), &place(4, 4), &place(2, 4), true);
    w.handshakes(&d, "prefill-0:1", Direction::Inbound);
    assert_eq!(w.sim.nodes[d[0]].connects, ["prefill-0:1", "prefill-1:1"]);
    // The first rank only told the second destination who is there.
    let second = &w.sim.nodes[d[1]];
    assert_eq!(second.connects[1..], ["prefill-0:1", "prefill-2:1", "prefill-3:1"]);
    assert_eq!(second.links, 2);
    assert!(p.iter().all(|n| w.sim.nodes[*n].links == 1));
}

#[test]
fn incompatible_layouts_are_refused_with_the_verdict() {
    let mut other = attention();
    other.caches[0].cache = kvlink::layout::model::Cache::Attention {
        heads: 4,
        dims: (2, 2),
        dtype: kvlink::layout::DType::F32,
        reach: Default::default(),
    };
    let mut w = World::new(12);
    w.sim.instance("prefill", &layouts(&attention(), &place(2, 4)), true);
    let d = w.sim.instance("decode", &layouts(&other, &place(2, 4)), true);
    let e = result(&mut w, d[0], "prefill-0:1");
    assert_eq!(e.status, Status::Incompatible);
    assert!(e.text.contains("dtype") && e.text.contains("layer 0"), "{}", e.text);
}

#[test]
fn limits_refuse_by_name() {
    let mut w = World::new(13);
    w.sim.config = Config { max_peers: 1, ..Config::default() };
    w.sim.instance("prefill", &layouts(&attention(), &place(1, 4)), true);
    let d = w.sim.instance("decode", &layouts(&attention(), &place(1, 4)), true);
    w.handshakes(&d, "prefill-0:1", Direction::Inbound);
    let e = w.sim.call(d[0], |e, now| e.handshake(now, "prefill-0:1", Direction::Inbound, 1)).unwrap_err();
    assert_eq!((e.status(), e.message()), (Status::Limit, "1 peers, at most 1 are allowed"));
}

#[test]
fn a_second_handshake_with_the_same_instance_ends_alone() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(14, &attention(), &place(2, 4), &place(1, 4), pull);
        let first = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        let second = w.handshakes(&d, "prefill-1:1", Direction::Inbound)[0];
        w.sim.call(d[0], |e, now| e.disconnect(now, second)).unwrap();
        w.sim.run_for(millis(100));
        let (ticket, offers) = w.offer(&p, "r", 16, 0, None);
        let read = w.read(d[0], first, &ticket, "r", 50, Reading::default()).unwrap();
        let ends = w.wait(&[read.0, offers[0].0, offers[1].0], secs(2));
        assert_eq!(ends, [Status::Ok; 3]);
        w.check();
        w.sim.call(d[0], |e, now| e.disconnect(now, first)).unwrap();
        w.sim.run_for(millis(100));
        for n in p {
            assert_eq!(w.sim.call(n, |e, _| e.counts()).peers, 0);
        }
    }
}

#[test]
fn a_peer_that_restarted_is_another_peer() {
    let (mut w, p, d) = World::pair(15, &attention(), &place(1, 4), &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let (ticket, _) = w.offer(&p, "r", 16, 0, None);
    w.sim.kill(p[0], false);
    w.sim.run_for(millis(50));
    let down = w.sim.events(d[0], EventKind::PeerDown);
    assert_eq!((down.len(), down[0].status), (1, Status::PeerDead));
    let again = w.sim.instance("prefill", &layouts(&attention(), &place(1, 4)), true);
    let fresh = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let old = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap_err();
    assert_eq!(old.status(), Status::PeerDead);
    let stale = w.read(d[0], fresh, &ticket, "r", 50, Reading::default()).unwrap_err();
    assert_eq!(stale.status(), Status::Incarnation);
    let (ticket, _) = w.offer(&again, "r", 16, 0, None);
    let read = w.read(d[0], fresh, &ticket, "r", 50, Reading::default()).unwrap();
    assert_eq!(w.wait(&[read.0], secs(1)), [Status::Ok]);
    w.check();
}
