//! Memory is taken away in the middle: the call returns, every event comes, the memory may be unmapped.

use crate::flat::*;
use crate::load::*;
use crate::rank::Rank;
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind, Id};
use std::sync::Arc;

const ENDS: &[Status] = &[Status::Ok, Status::Cancelled, Status::LeaseExpired, Status::BadHandle];

/// A message there and back: both reactors have dealt with all that was under way before.
fn settle(a: &Rank, peer: Id, b: &Rank) {
    a.agent.notify(peer, None, b"there", None).unwrap();
    let there = b.good(EventKind::Notification);
    b.agent.notify(Id(there.peer), None, b"back", None).unwrap();
    a.good(EventKind::Notification);
}

/// Nobody has the memory any more but the test; it is unmapped.
fn unmap(rank: &mut Rank) {
    let memory = rank.memory.pop().unwrap();
    assert_eq!(Arc::strong_count(&memory), 1, "the agent still holds the memory");
}

pub fn at_the_sink_of_reads(t: Transport) {
    let mut p = Pair::new(t);
    let (offers, reads) = p.reads("r", MANY);
    p.started();
    p.sink.agent.deregister(0).unwrap();
    let then = p.sink.snapshot();
    p.reuse_source();
    let ends = once_each(&p.sink, EventKind::Transfer, &reads, ENDS);
    assert!(ends.iter().any(|e| e.status == Status::Cancelled), "nothing was left to cancel");
    settle(&p.sink, p.inbound, &p.source);
    same(&then[0], &p.sink.snapshot()[0]);
    p.images.mixed(&then[0]);
    unmap(&mut p.sink);
    let (_, ticket) = offer(&p.source, "more", &[1]);
    let refused = p.sink.agent.read(read_args(p.inbound, &ticket, &[1], 0)).unwrap_err();
    assert_eq!(refused.status(), Status::WrongState);
    assert_eq!(p.sink.agent.deregister(0).unwrap_err().status(), Status::WrongState);
    settle(&p.sink, p.inbound, &p.source);
    offers.iter().for_each(|id| drop(p.source.agent.cancel(*id)));
    once_each(&p.source, EventKind::Released, &offers, &[Status::Ok, Status::Cancelled]);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = other.handshake(&p.source, Direction::Inbound);
    still_works(BIG, &p.source, &other, peer, "other");
}

pub fn at_the_source_of_reads(t: Transport) {
    let mut p = Pair::new(t);
    let (offers, reads) = p.reads("r", PIECES);
    p.started();
    p.source.agent.deregister(0).unwrap();
    p.reuse_source();
    once_each(&p.source, EventKind::Released, &offers, &[Status::Ok, Status::Cancelled]);
    unmap(&mut p.source);
    let ends =
        once_each(&p.sink, EventKind::Transfer, &reads, &[Status::Ok, Status::LeaseExpired, Status::Incarnation]);
    let have = p.sink.snapshot();
    for (i, _) in ends.iter().enumerate().filter(|(_, e)| e.status == Status::Ok) {
        p.images.landed(&have[0], i);
    }
    settle(&p.sink, p.inbound, &p.source);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = p.sink.handshake(&other, Direction::Inbound);
    still_works(BIG, &other, &p.sink, peer, "other");
}

pub fn at_the_sink_of_writes(t: Transport) {
    let mut p = Pair::new(t);
    let (accepts, writes) = p.writes(MANY);
    p.started();
    p.sink.agent.deregister(0).unwrap();
    let then = p.sink.snapshot();
    let ends = once_each(&p.sink, EventKind::Received, &accepts, ENDS);
    assert!(ends.iter().any(|e| e.status == Status::Cancelled), "nothing was left to cancel");
    // Writes that had not been announced when the accepts ended wait for other accepts.
    writes.iter().for_each(|id| drop(p.source.agent.cancel(*id)));
    once_each(&p.source, EventKind::Transfer, &writes, ENDS);
    p.reuse_source();
    settle(&p.sink, p.inbound, &p.source);
    same(&then[0], &p.sink.snapshot()[0]);
    p.images.mixed(&then[0]);
    unmap(&mut p.sink);
    settle(&p.sink, p.inbound, &p.source);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = other.handshake(&p.source, Direction::Inbound);
    still_works(BIG, &p.source, &other, peer, "other");
}

/// What the sink says that it has received is what was there before.
pub fn at_the_source_of_writes(t: Transport) {
    let mut p = Pair::new(t);
    let (accepts, writes) = p.writes(PIECES);
    p.started();
    p.source.agent.deregister(0).unwrap();
    p.reuse_source();
    once_each(&p.source, EventKind::Transfer, &writes, ENDS);
    unmap(&mut p.source);
    let allowed = &[Status::Ok, Status::Cancelled, Status::BadHandle, Status::Incarnation];
    let ends = once_each(&p.sink, EventKind::Received, &accepts, allowed);
    let have = p.sink.snapshot();
    for (i, _) in ends.iter().enumerate().filter(|(_, e)| e.status == Status::Ok) {
        p.images.landed(&have[0], i);
    }
    settle(&p.source, p.outbound, &p.sink);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = p.sink.handshake(&other, Direction::Inbound);
    still_works(BIG, &other, &p.sink, peer, "other");
}
