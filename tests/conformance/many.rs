//! Much at once.

use crate::flat::*;
use crate::rank::Rank;
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind};
use std::collections::HashSet;

/// 64 bytes a block: as many spans as blocks.
const TINY: Flat = Flat { blocks: 220_001, bytes: 64 };

fn tiny(t: Transport) -> (Rank, Rank, Vec<u32>, Vec<u32>, Vec<u8>) {
    let source = Rank::alone(t, "prefill", TINY.layout());
    let sink = Rank::alone(t, "decode", TINY.layout());
    TINY.fill(&source, 1);
    TINY.fill(&sink, 2);
    let (from, to) = (TINY.order(3), TINY.order(4));
    let mut want = TINY.pattern(2);
    TINY.copy(&TINY.pattern(1), &from, &mut want, &to);
    (source, sink, from, to, want)
}

pub fn spans_in_one_read(t: Transport) {
    let (source, sink, from, to, want) = tiny(t);
    let peer = sink.handshake(&source, Direction::Inbound);
    let (_, ticket) = offer(&source, "r", &from);
    read(&sink, peer, &ticket, &to);
    let e = sink.good(EventKind::Transfer);
    assert!(e.spans >= 200_000, "{} spans", e.spans);
    assert!(sink.snapshot()[0] == want);
    source.good(EventKind::Released);
}

pub fn spans_in_one_write(t: Transport) {
    let (source, sink, from, to, want) = tiny(t);
    let peer = source.handshake(&sink, Direction::Outbound);
    accept(&sink, "r", &to);
    write(&source, peer, "r", &from);
    assert_eq!(sink.good(EventKind::Received).bytes, 64 * to.len() as u64);
    source.good(EventKind::Transfer);
    assert!(sink.snapshot()[0] == want);
}

/// Large requests take turns with a small one that comes after them. Where the engine was kept from asking for it in time,
/// that has shown nothing, and it is done again.
pub fn a_small_read_beside_large_ones(t: Transport) {
    const SPANS: usize = 100_000;
    let (source, sink, from, to, _) = tiny(t);
    let peer = sink.handshake(&source, Direction::Inbound);
    let parts = [0..SPANS, SPANS..2 * SPANS, 2 * SPANS..2 * SPANS + 1];
    let overtakes = |attempt: i32| {
        let tickets: Vec<_> = (parts.iter().enumerate())
            .map(|(i, part)| offer(&source, &format!("r{attempt}-{i}"), &from[part.clone()]).1)
            .collect();
        let reads: Vec<_> =
            parts.iter().zip(&tickets).map(|(part, ticket)| read(&sink, peer, ticket, &to[part.clone()]).0).collect();
        let order: Vec<_> = parts.iter().map(|_| sink.good(EventKind::Transfer).id).collect();
        order.last() != reads.last()
    };
    assert!((0..20).any(overtakes), "it always came last");
}

/// Reads and writes by the hundred, from several threads, in both directions.
pub fn transfers_from_many_threads(t: Transport) {
    const THREADS: u32 = 4;
    const EACH: u32 = 32;
    const PER: u32 = 4;
    let flat = Flat { blocks: 2 * THREADS * EACH * PER + 1, bytes: 1024 };
    let (a, b) = (Rank::alone(t, "a", flat.layout()), Rank::alone(t, "b", flat.layout()));
    flat.fill(&a, 1);
    flat.fill(&b, 2);
    let (from, to) = (flat.order(3), flat.order(4));
    let peer = b.handshake(&a, Direction::Inbound);
    let back = a.handshake(&b, Direction::Outbound);
    let ids = |n: u32, list: &[u32]| list[(n * PER) as usize..((n + 1) * PER) as usize].to_vec();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (a, b, from, to) = (&a, &b, &from, &to);
            scope.spawn(move || {
                for i in 0..EACH {
                    let n = 2 * (thread * EACH + i);
                    let name = format!("r{n}");
                    let (_, ticket) = offer(a, &name, &ids(n, from));
                    read(b, peer, &ticket, &ids(n, to));
                    let n = n + 1;
                    let name = format!("w{n}");
                    // Some writes come before their accept.
                    if i % 2 == 0 {
                        accept(b, &name, &ids(n, to));
                    }
                    write(a, back, &name, &ids(n, from));
                    if i % 2 == 1 {
                        accept(b, &name, &ids(n, to));
                    }
                }
            });
        }
    });
    let total = (THREADS * EACH) as usize;
    for (rank, kind) in
        [(&b, EventKind::Transfer), (&b, EventKind::Received), (&a, EventKind::Transfer), (&a, EventKind::Released)]
    {
        let mut seen = HashSet::new();
        for _ in 0..total {
            let e = rank.good(kind);
            assert!(seen.insert(e.id), "{kind:?} twice");
        }
    }
    let mut want = flat.pattern(2);
    flat.copy(&flat.pattern(1), &from, &mut want, &to);
    assert!(b.snapshot()[0] == want);
    still_works(flat, &a, &b, peer, "after");
    let late = |r: &Rank| r.rest().into_iter().filter(|e| e.kind != EventKind::Ready).collect::<Vec<_>>();
    assert_eq!(late(&b), vec![]);
    assert!(late(&a).iter().all(|e| e.kind == EventKind::Released && e.status == Status::Ok));
}
