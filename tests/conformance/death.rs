//! The other process dies or hangs in the middle: every event comes in time, and the agent goes on with others.

use crate::flat::*;
use crate::load::*;
use crate::process::Child;
use crate::rank::{PATIENCE, Rank, config};
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, Event, EventKind, Id};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const HEARTBEAT: Duration = Duration::from_millis(250);
const MISSES: u32 = 4;
/// For a busy machine; far below the time that a transfer itself has.
const SLACK: Duration = Duration::from_secs(15);

fn rank(t: Transport, name: &str, seed: u64) -> Rank {
    let mut c = config(t, name, 0, 1);
    c.endpoint.heartbeat = HEARTBEAT;
    c.endpoint.heartbeat_misses = MISSES;
    assert!(c.endpoint.transfer_timeout > 2 * SLACK);
    let rank = Rank::start(t, c, BIG.layout());
    BIG.fill(&rank, seed);
    rank
}

fn due() -> Instant {
    Instant::now() + HEARTBEAT * MISSES + SLACK
}

/// One event for each id before the deadline.
fn ends(rank: &Rank, kind: EventKind, ids: &[Id], deadline: Instant) -> Vec<Event> {
    let events = rank.several(kind, ids.len(), deadline);
    let seen: HashSet<u64> = events.iter().map(|e| e.id).collect();
    assert!(seen == ids.iter().map(|id| id.0).collect(), "not one {kind:?} for each");
    events
}

fn down(rank: &Rank, peer: Id, deadline: Instant) {
    rank.wait_until(deadline, "the peer's end", |e| e.kind == EventKind::PeerDown && e.peer == peer.0);
}

/// What it was made for goes on with somebody else, either way.
fn goes_on(t: Transport, rank: &Rank, reads: bool) {
    let other = Rank::alone(t, "other", BIG.layout());
    if reads {
        let peer = rank.handshake(&other, Direction::Inbound);
        still_works(BIG, &other, rank, peer, "other");
    } else {
        let peer = other.handshake(rank, Direction::Inbound);
        still_works(BIG, rank, &other, peer, "other");
    }
}

fn handshake(rank: &Rank, child: &Child, direction: Direction) -> Id {
    let peer = rank.agent.handshake(&child.address, direction, 0).unwrap();
    let e = rank.wait("the handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
    assert_eq!(e.status, Status::Ok, "{}", e.text);
    peer
}

fn reads(rank: &Rank, peer: Id, tickets: &[Vec<u8>], images: &Images) -> Vec<Id> {
    tickets.iter().enumerate().map(|(i, ticket)| read(rank, peer, ticket, piece(&images.to, i))).collect()
}

fn some_died(events: &[Event], of: &[Status]) {
    assert!(events.iter().any(|e| e.status != Status::Ok), "nothing was under way");
    for e in events.iter().filter(|e| e.status != Status::Ok) {
        assert!(of.contains(&e.status), "{:?}: {}", e.status, e.text);
    }
}

/// A process that is gone, as it shows to somebody who copies from it.
const GONE: &[Status] = &[Status::PeerDead, Status::Incarnation];

pub fn of_the_source_of_reads(t: Transport) {
    let images = Images::new();
    let sink = rank(t, "decode", 2);
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", HEARTBEAT, 1);
    let peer = handshake(&sink, &source, Direction::Inbound);
    let ids = reads(&sink, peer, &source.offers(MANY), &images);
    started(&sink, &images);
    source.kill();
    let deadline = due();
    some_died(&ends(&sink, EventKind::Transfer, &ids, deadline), GONE);
    down(&sink, peer, deadline);
    let then = sink.snapshot();
    images.mixed(&then[0]);
    goes_on(t, &sink, true);
    same(&then[0], &sink.snapshot()[0]);
}

/// A lease outlives its reader: somebody else may still come for it.
pub fn of_the_sink_of_reads(t: Transport) {
    let images = Images::new();
    let source = rank(t, "prefill", 1);
    let mut sink = Child::start(t, "decode", "127.0.0.1:0", HEARTBEAT, 2);
    let peer = handshake(&source, &sink, Direction::Outbound);
    sink.ask(&format!("handshake {} in", source.address()));
    let one = |i: usize| offer(&source, &format!("r{i}"), piece(&images.from, i));
    let (offers, tickets): (Vec<Id>, Vec<Vec<u8>>) = (0..MANY).map(one).unzip();
    sink.tell(&format!("read 4 {}", crate::process::hex(&tickets)));
    sink.answer();
    sink.ask("started");
    sink.kill();
    down(&source, peer, due());
    goes_on(t, &source, false);
    // What was not read is still offered, and free at once when the engine takes it back.
    offers.iter().for_each(|id| drop(source.agent.cancel(*id)));
    let all = once_each(&source, EventKind::Released, &offers, &[Status::Ok, Status::Cancelled]);
    assert!(all.iter().any(|e| e.status == Status::Cancelled), "nothing was under way");
    source.store(0, 0, &images.reused);
    goes_on(t, &source, false);
}

pub fn of_the_source_of_writes(t: Transport) {
    let images = Images::new();
    let sink = rank(t, "decode", 2);
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", HEARTBEAT, 1);
    let peer = handshake(&sink, &source, Direction::Inbound);
    source.ask(&format!("handshake {} out", sink.address()));
    let name = |i: usize| format!("w{i}");
    let ids: Vec<Id> = (0..MANY).map(|i| accept(&sink, &name(i), piece(&images.to, i))).collect();
    source.tell(&format!("write {MANY}"));
    sink.good(EventKind::Notification);
    started(&sink, &images);
    source.kill();
    let deadline = due();
    some_died(&ends(&sink, EventKind::Received, &ids, deadline), GONE);
    down(&sink, peer, deadline);
    let then = sink.snapshot();
    images.mixed(&then[0]);
    goes_on(t, &sink, true);
    same(&then[0], &sink.snapshot()[0]);
}

pub fn of_the_sink_of_writes(t: Transport) {
    let images = Images::new();
    let source = rank(t, "prefill", 1);
    let mut sink = Child::start(t, "decode", "127.0.0.1:0", HEARTBEAT, 2);
    let peer = handshake(&source, &sink, Direction::Outbound);
    sink.ask(&format!("accept {MANY}"));
    let one = |i: usize| write(&source, peer, &format!("w{i}"), piece(&images.from, i));
    let ids: Vec<Id> = (0..MANY).map(one).collect();
    sink.ask("started");
    sink.kill();
    let deadline = due();
    some_died(&ends(&source, EventKind::Transfer, &ids, deadline), GONE);
    down(&source, peer, deadline);
    goes_on(t, &source, false);
}

/// Where the sink copies by itself, a source that stands still is no obstacle; elsewhere its reads end.
pub fn a_source_that_hangs(t: Transport) {
    let images = Images::new();
    let sink = rank(t, "decode", 2);
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", HEARTBEAT, 1);
    let peer = handshake(&sink, &source, Direction::Inbound);
    let ids = reads(&sink, peer, &source.offers(MANY), &images);
    started(&sink, &images);
    source.stop();
    let deadline = due();
    let events = ends(&sink, EventKind::Transfer, &ids, deadline);
    for e in events.iter().filter(|e| e.status != Status::Ok) {
        assert!(GONE.contains(&e.status), "{:?}: {}", e.status, e.text);
    }
    down(&sink, peer, deadline);
    let then = sink.snapshot();
    images.mixed(&then[0]);
    goes_on(t, &sink, true);
    source.go_on();
    assert_eq!(source.ask("ping"), "pong");
    source.ask("fill 3");
    // By now it has dealt with everything that was in its sockets, and can be talked to again.
    let peer = handshake(&sink, &source, Direction::Inbound);
    sink.agent.notify(peer, None, b"again", None).unwrap();
    same(&then[0], &sink.snapshot()[0]);
}

pub fn a_sink_that_hangs(t: Transport) {
    let images = Images::new();
    let source = rank(t, "prefill", 1);
    let mut sink = Child::start(t, "decode", "127.0.0.1:0", HEARTBEAT, 2);
    let peer = handshake(&source, &sink, Direction::Outbound);
    sink.ask(&format!("accept {MANY}"));
    let one = |i: usize| write(&source, peer, &format!("w{i}"), piece(&images.from, i));
    let ids: Vec<Id> = (0..MANY).map(one).collect();
    sink.ask("started");
    sink.stop();
    let deadline = due();
    let events = ends(&source, EventKind::Transfer, &ids, deadline);
    some_died(&events, GONE);
    down(&source, peer, deadline);
    source.store(0, 0, &images.reused);
    goes_on(t, &source, false);
    sink.go_on();
    // What it says that it has received it has received in time.
    let statuses = sink.statuses("Received", MANY);
    let digests = sink.digests(4);
    for (i, have) in digests.iter().enumerate() {
        let good = crate::process::digest(BIG, &images.after, piece(&images.to, i));
        // Other requests for the same blocks may have failed later.
        if (i..MANY).step_by(PIECES).all(|r| statuses[r] == Status::Ok) {
            assert_eq!(*have, good);
        }
    }
    assert!(statuses.iter().any(|s| *s != Status::Ok));
}

pub fn a_writer_that_hangs(t: Transport) {
    let images = Images::new();
    let sink = rank(t, "decode", 2);
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", HEARTBEAT, 1);
    let peer = handshake(&sink, &source, Direction::Inbound);
    source.ask(&format!("handshake {} out", sink.address()));
    let name = |i: usize| format!("w{i}");
    let ids: Vec<Id> = (0..MANY).map(|i| accept(&sink, &name(i), piece(&images.to, i))).collect();
    source.tell(&format!("write {MANY}"));
    sink.good(EventKind::Notification);
    started(&sink, &images);
    source.stop();
    let deadline = due();
    some_died(&ends(&sink, EventKind::Received, &ids, deadline), GONE);
    down(&sink, peer, deadline);
    let then = sink.snapshot();
    images.mixed(&then[0]);
    source.go_on();
    source.answer();
    // A write that was complete when the sink lost patience may still count for the source.
    source.statuses("Transfer", MANY);
    source.ask("fill 3");
    goes_on(t, &sink, true);
    same(&then[0], &sink.snapshot()[0]);
}

pub fn restarted_under_the_same_address(t: Transport) {
    let images = Images::new();
    let sink = rank(t, "decode", 2);
    let address = format!("127.0.0.1:{}", crate::tools::free_port());
    let mut first = Child::start(t, "prefill", &address, HEARTBEAT, 1);
    let peer = handshake(&sink, &first, Direction::Inbound);
    let old = first.offers(1);
    first.kill();
    down(&sink, peer, Instant::now() + PATIENCE);
    let refused = |peer: Id, ticket: &[u8]| {
        let args = read_args(peer, ticket, piece(&images.to, 0), 0);
        sink.agent.read(args).unwrap_err()
    };
    assert_eq!(refused(peer, &old[0]).status(), Status::PeerDead);
    let mut second = Child::start(t, "prefill", &address, HEARTBEAT, 1);
    assert_eq!(second.address, address);
    let again = handshake(&sink, &second, Direction::Inbound);
    assert_eq!(refused(again, &old[0]).status(), Status::Incarnation);
    let ids = reads(&sink, again, &second.offers(PIECES), &images);
    once_each(&sink, EventKind::Transfer, &ids, &[Status::Ok]);
    same(&images.after, &sink.snapshot()[0]);
}

/// It ends by its own deadline; whoever has come back can be reached again.
pub fn a_peer_that_hangs_before_the_handshake(t: Transport) {
    let mut c = config(t, "decode", 0, 1);
    c.endpoint.handshake_timeout = Duration::from_millis(300);
    let sink = Rank::start(t, c, BIG.layout());
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", HEARTBEAT, 1);
    source.stop();
    let peer = sink.agent.handshake(&source.address, Direction::Inbound, 0).unwrap();
    let e = sink.wait_until(due(), "the handshake's end", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
    assert_eq!(e.status, Status::Deadline, "{}", e.text);
    assert!(e.text.contains(&source.address), "{}", e.text);
    source.go_on();
    assert_eq!(source.ask("ping"), "pong");
    // A busy machine may need more than one try.
    let again = (0..20).any(|_| {
        let peer = sink.agent.handshake(&source.address, Direction::Inbound, 0).unwrap();
        sink.wait("the handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0).status == Status::Ok
    });
    assert!(again);
}
