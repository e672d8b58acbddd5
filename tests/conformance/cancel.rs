//! Cancelled in the middle: one event for each, and afterwards not a byte changes.

use crate::flat::BIG;
use crate::flat::still_works;
use crate::load::*;
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{EventKind, Id};

const ENDS: &[Status] = &[Status::Ok, Status::Cancelled];

/// The engine may be late: what has ended by itself cannot be cancelled.
fn cancel(rank: &crate::rank::Rank, ids: &[Id]) {
    for id in ids {
        if let Err(e) = rank.agent.cancel(*id) {
            assert_eq!(e.status(), Status::BadHandle);
        }
    }
}

pub fn by_the_sink_of_reads(t: Transport) {
    let p = Pair::new(t);
    let (offers, reads) = p.reads("r", MANY);
    p.started();
    cancel(&p.sink, &reads);
    let ends = once_each(&p.sink, EventKind::Transfer, &reads, ENDS);
    let then = p.sink.snapshot();
    p.reuse_source();
    assert!(ends.iter().any(|e| e.status == Status::Cancelled), "nothing was left to cancel");
    for (e, i) in ends.iter().zip(0..).filter(|(e, _)| e.status == Status::Cancelled) {
        let mut lost = p.sink.agent.failed_blocks(Id(e.id)).unwrap();
        lost.iter_mut().for_each(|(_, ids)| ids.sort_unstable());
        let mut whole = piece(&p.images.to, i).to_vec();
        whole.sort_unstable();
        assert_eq!(lost, vec![(0, whole)]);
    }
    cancel(&p.source, &offers);
    once_each(&p.source, EventKind::Released, &offers, ENDS);
    still_works(BIG, &p.source, &p.sink, p.inbound, "after");
    same(&then[0], &p.sink.snapshot()[0]);
    p.images.mixed(&then[0]);
    no_more(&p.sink, &[EventKind::Transfer, EventKind::PeerDown]);
}

pub fn by_the_source_of_writes(t: Transport) {
    let p = Pair::new(t);
    let (accepts, writes) = p.writes(MANY);
    p.started();
    cancel(&p.source, &writes);
    let ends = once_each(&p.source, EventKind::Transfer, &writes, ENDS);
    let then = p.sink.snapshot();
    p.reuse_source();
    assert!(ends.iter().any(|e| e.status == Status::Cancelled), "nothing was left to cancel");
    let received = once_each(&p.sink, EventKind::Received, &accepts, ENDS);
    still_works(BIG, &p.source, &p.sink, p.inbound, "after");
    same(&then[0], &p.sink.snapshot()[0]);
    p.images.mixed(&then[0]);
    for (w, r) in ends.iter().zip(&received).filter(|(w, _)| w.status == Status::Ok) {
        assert_eq!(r.status, Status::Ok, "written {w:?}");
    }
    no_more(&p.sink, &[EventKind::Received, EventKind::PeerDown]);
    no_more(&p.source, &[EventKind::Transfer, EventKind::PeerDown]);
}

/// The source takes its blocks back and writes over them at once: a read that succeeds has the bytes from before.
pub fn of_an_offer(t: Transport) {
    let p = Pair::new(t);
    let good = BIG.pattern(1);
    let mut caught = 0;
    for round in 0..25 {
        p.source.store(0, 0, &good);
        p.sink.store(0, 0, &p.images.before);
        let (offers, reads) = p.reads(&format!("r{round}-"), PIECES);
        p.started();
        cancel(&p.source, &offers);
        once_each(&p.source, EventKind::Released, &offers, ENDS);
        p.reuse_source();
        let ends = once_each(&p.sink, EventKind::Transfer, &reads, &[Status::Ok, Status::LeaseExpired]);
        let have = p.sink.snapshot();
        for (i, e) in ends.iter().enumerate() {
            match e.status {
                Status::Ok => p.images.landed(&have[0], i),
                _ => caught += 1,
            }
        }
        if caught > 0 && round >= 2 {
            break;
        }
    }
    assert!(caught > 0, "no read was caught in the middle");
    still_works(BIG, &p.source, &p.sink, p.inbound, "after");
}

pub fn of_an_accept(t: Transport) {
    let p = Pair::new(t);
    let (accepts, writes) = p.writes(MANY);
    p.started();
    cancel(&p.sink, &accepts);
    let ends = once_each(&p.sink, EventKind::Received, &accepts, ENDS);
    let then = p.sink.snapshot();
    assert!(ends.iter().any(|e| e.status == Status::Cancelled), "nothing was left to cancel");
    // Writes whose accept has gone wait for another: they are parked, and cancelled here.
    cancel(&p.source, &writes);
    once_each(&p.source, EventKind::Transfer, &writes, ENDS);
    p.reuse_source();
    still_works(BIG, &p.source, &p.sink, p.inbound, "after");
    same(&then[0], &p.sink.snapshot()[0]);
    p.images.mixed(&then[0]);
    no_more(&p.sink, &[EventKind::Received, EventKind::PeerDown]);
}
