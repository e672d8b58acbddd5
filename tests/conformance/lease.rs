//! Leases that end before the sink is done: stale bytes are never reported as success.

use crate::flat::{BIG, offer_for, read, still_works};
use crate::load::*;
use crate::process::Child;
use crate::rank::Rank;
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{EventKind, Id};
use std::time::Duration;

/// The source writes over its blocks as soon as it has them back.
pub fn expires_while_the_source_reuses_its_blocks(t: Transport) {
    let p = Pair::new(t);
    let good = BIG.pattern(1);
    let (mut valid, mut stale) = (0, 0);
    for round in 0..25u64 {
        p.source.store(0, 0, &good);
        p.sink.store(0, 0, &p.images.before);
        let lease = Duration::from_micros(500 * (1 + round % 12));
        let (mut offers, mut reads, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..PIECES {
            let (id, ticket) = offer_for(&p.source, &format!("r{round}-{i}"), piece(&p.images.from, i), Some(lease));
            offers.push(id);
            if let Some(ticket) = ticket {
                reads.push(read(&p.sink, p.inbound, &ticket, piece(&p.images.to, i)));
                pieces.push(i);
            }
        }
        once_each(&p.source, EventKind::Released, &offers, &[Status::Ok, Status::LeaseExpired]);
        p.reuse_source();
        let ends = once_each(&p.sink, EventKind::Transfer, &reads, &[Status::Ok, Status::LeaseExpired]);
        let have = p.sink.snapshot();
        for (i, e) in pieces.into_iter().zip(&ends) {
            match e.status {
                Status::Ok => {
                    p.images.landed(&have[0], i);
                    valid += 1;
                }
                _ => stale += 1,
            }
        }
        if valid > 0 && stale > 0 && round >= 8 {
            break;
        }
    }
    assert!(stale > 0, "no lease ended in time");
    still_works(BIG, &p.source, &p.sink, p.inbound, "after");
}

/// The sink's process stands still from the middle of its reads until after the source has reused its blocks.
pub fn expires_while_the_sink_stands_still(t: Transport) {
    let images = Images::new();
    let source = Rank::alone(t, "prefill", BIG.layout());
    let mut sink = Child::start(t, "decode", "127.0.0.1:0", Duration::from_secs(10), 2);
    sink.ask(&format!("handshake {} in", source.address()));
    let mut caught = 0;
    for round in 0..8 {
        BIG.fill(&source, 1);
        sink.ask("fill 2");
        let lease = Duration::from_millis(20 + 5 * round);
        let one = |i: usize| offer_for(&source, &format!("r{round}-{i}"), piece(&images.from, i), Some(lease));
        let (offers, tickets): (Vec<Id>, Vec<Option<Vec<u8>>>) = (0..PIECES).map(one).unzip();
        let Some(tickets) = tickets.into_iter().collect::<Option<Vec<_>>>() else {
            once_each(&source, EventKind::Released, &offers, &[Status::LeaseExpired]);
            continue;
        };
        sink.ask(&format!("read 4 {}", crate::process::hex(&tickets)));
        sink.stop();
        once_each(&source, EventKind::Released, &offers, &[Status::Ok, Status::LeaseExpired]);
        source.store(0, 0, &images.reused);
        sink.go_on();
        let ends = sink.statuses("Transfer", PIECES);
        let digests = sink.digests(4);
        for (i, status) in ends.iter().enumerate() {
            assert!([Status::Ok, Status::LeaseExpired].contains(status), "{status:?}");
            match status {
                Status::Ok => assert_eq!(digests[i], crate::process::digest(BIG, &images.after, piece(&images.to, i))),
                _ => caught += 1,
            }
        }
        if caught > 0 && round >= 2 {
            break;
        }
    }
}
