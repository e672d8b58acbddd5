//! Agents that are dropped with everything under way: their memory is left alone, and their peers hear of it.

use crate::flat::*;
use crate::load::*;
use crate::rank::{Rank, bytes};
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::memory::SharedMemory;
use kvlink::proto::{Direction, EventKind};
use std::sync::Arc;

const ENDS: &[Status] = &[Status::Ok, Status::PeerDead, Status::LeaseExpired, Status::Incarnation];

fn destroy(rank: Rank) -> Arc<SharedMemory> {
    let Rank { agent, mut memory, .. } = rank;
    drop(agent);
    let memory = memory.pop().unwrap();
    assert_eq!(Arc::strong_count(&memory), 1, "somebody still holds the memory");
    memory
}

fn all(memory: &SharedMemory) -> Vec<u8> {
    bytes(memory, 0, memory.len())
}

pub fn the_sink_of_reads(t: Transport) {
    let p = Pair::new(t);
    let (offers, _) = p.reads("r", MANY);
    p.started();
    let memory = destroy(p.sink);
    let then = all(&memory);
    p.source.store(0, 0, &p.images.reused);
    assert_eq!(p.source.next(EventKind::PeerDown).peer, p.outbound.0);
    offers.iter().for_each(|id| drop(p.source.agent.cancel(*id)));
    once_each(&p.source, EventKind::Released, &offers, &[Status::Ok, Status::Cancelled]);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = other.handshake(&p.source, Direction::Inbound);
    still_works(BIG, &p.source, &other, peer, "other");
    same(&then, &all(&memory));
    p.images.mixed(&then);
}

pub fn the_source_of_reads(t: Transport) {
    let p = Pair::new(t);
    let (_, reads) = p.reads("r", PIECES);
    p.started();
    let Pair { source, sink, images, inbound, .. } = p;
    let memory = destroy(source);
    unsafe { std::ptr::copy(images.reused.as_ptr(), memory.addr() as *mut u8, images.reused.len()) };
    drop(memory);
    let ends = once_each(&sink, EventKind::Transfer, &reads, ENDS);
    let have = sink.snapshot();
    for (i, _) in ends.iter().enumerate().filter(|(_, e)| e.status == Status::Ok) {
        images.landed(&have[0], i);
    }
    sink.wait("the source's end", |e| e.kind == EventKind::PeerDown && e.peer == inbound.0);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = sink.handshake(&other, Direction::Inbound);
    still_works(BIG, &other, &sink, peer, "other");
    same(&have[0], &sink.snapshot()[0]);
}

pub fn the_sink_of_writes(t: Transport) {
    let p = Pair::new(t);
    let (_, writes) = p.writes(MANY);
    p.started();
    let memory = destroy(p.sink);
    let then = all(&memory);
    let ends = once_each(&p.source, EventKind::Transfer, &writes, ENDS);
    assert!(ends.iter().any(|e| e.status == Status::PeerDead), "nothing was under way");
    p.source.store(0, 0, &p.images.reused);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = other.handshake(&p.source, Direction::Inbound);
    still_works(BIG, &p.source, &other, peer, "other");
    same(&then, &all(&memory));
    p.images.mixed(&then);
}

pub fn the_source_of_writes(t: Transport) {
    let p = Pair::new(t);
    let (accepts, _) = p.writes(MANY);
    p.started();
    let Pair { source, sink, images, .. } = p;
    let memory = destroy(source);
    let ends = once_each(&sink, EventKind::Received, &accepts, ENDS);
    let then = sink.snapshot();
    assert!(ends.iter().any(|e| e.status != Status::Ok), "nothing was under way");
    drop(memory);
    let other = Rank::alone(t, "other", BIG.layout());
    let peer = sink.handshake(&other, Direction::Inbound);
    still_works(BIG, &other, &sink, peer, "other");
    same(&then[0], &sink.snapshot()[0]);
    images.mixed(&then[0]);
}
