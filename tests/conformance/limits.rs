//! Every limit is an error that says so; what was there before goes on, and room comes back.

use crate::flat::*;
use crate::process::Child;
use crate::rank::{Rank, config, within};
use crate::transport::Transport;
use kvlink::error::{Result, Status};
use kvlink::proto::{Direction, EventKind, Id, WriteArgs};
use std::time::Duration;

fn start(t: Transport, name: &str, change: impl Fn(&mut kvlink::agent::AgentConfig)) -> Rank {
    let mut c = config(t, name, 0, 1);
    change(&mut c);
    Rank::start(t, c, SMALL.layout())
}

fn limit<T>(result: Result<T>, number: &str) {
    let e = result.err().unwrap();
    assert_eq!(e.status(), Status::Limit, "{e}");
    assert!(e.message().contains(number), "{e}");
}

pub fn of_transfers(t: Transport) {
    let source = start(t, "prefill", |c| c.endpoint.max_transfers = 5);
    let sink = Rank::alone(t, "decode", SMALL.layout());
    let peer = source.handshake(&sink, Direction::Outbound);
    let ids = SMALL.order(1);
    for round in 0..2 {
        let name = |i: usize| format!("{round}-{i}");
        // Without an accept they stay.
        for i in 0..5 {
            write(&source, peer, &name(i), &ids[i..=i]);
        }
        limit(source.agent.write(write_args(peer, "more", &ids[6..7])), "5");
        for i in 0..5 {
            accept(&sink, &name(i), &ids[i..=i]);
        }
        for _ in 0..5 {
            source.good(EventKind::Transfer);
            sink.good(EventKind::Received);
        }
    }
}

pub fn of_offers_and_accepts(t: Transport) {
    let rank = start(t, "prefill", |c| {
        c.endpoint.max_offers = 3;
        c.endpoint.max_accepts = 2;
    });
    for _ in 0..3 {
        let offers: Vec<Id> = (0..3).map(|i| offer(&rank, &format!("r{i}"), &[i]).0).collect();
        let more =
            kvlink::proto::Offer { request: "more".into(), blocks: list(&[7]), tokens: 16, lease: None, user_data: 0 };
        limit(rank.agent.offer(more), "3");
        let accepts: Vec<Id> = (0..2).map(|i| accept(&rank, &format!("r{i}"), &[8 + i])).collect();
        limit(rank.agent.accept(accept_args("more", &[7])), "2");
        for id in offers.iter().chain(&accepts) {
            rank.agent.cancel(*id).unwrap();
            assert_eq!(rank.agent.cancel(*id).unwrap_err().status(), Status::BadHandle);
        }
        (0..3).for_each(|_| assert_eq!(rank.next(EventKind::Released).status, Status::Cancelled));
        (0..2).for_each(|_| assert_eq!(rank.next(EventKind::Received).status, Status::Cancelled));
    }
}

pub fn of_peers(t: Transport) {
    let sink = start(t, "decode", |c| c.endpoint.max_peers = 2);
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let other = Rank::alone(t, "other", SMALL.layout());
    let first = sink.handshake(&source, Direction::Inbound);
    let second = sink.handshake(&other, Direction::Inbound);
    limit(sink.agent.handshake(source.address(), Direction::Inbound, 0), "2");
    // Nor may others come.
    let peer = other.agent.handshake(sink.address(), Direction::Inbound, 0).unwrap();
    let e = other.wait("the refusal", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
    assert_eq!(e.status, Status::Limit, "{}", e.text);
    still_works(SMALL, &source, &sink, first, "r0");
    sink.agent.disconnect(second).unwrap();
    assert_eq!(sink.agent.disconnect(second).unwrap_err().status(), Status::BadHandle);
    let second = sink.handshake(&other, Direction::Inbound);
    still_works(SMALL, &other, &sink, second, "r1");
}

/// A write beyond what may wait for its accept fails; those that wait do not.
pub fn of_parked_writes(t: Transport) {
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let sink = start(t, "decode", |c| c.endpoint.max_parked = 4);
    let peer = source.handshake(&sink, Direction::Outbound);
    let ids = SMALL.order(1);
    let writes: Vec<Id> = (0..6).map(|i| write(&source, peer, &format!("w{i}"), &ids[i..=i])).collect();
    for id in &writes[4..] {
        let e = source.wait("the refusal", |e| e.id == id.0);
        assert_eq!((e.kind, e.status), (EventKind::Transfer, Status::Limit), "{}", e.text);
        assert!(e.text.contains('4'), "{}", e.text);
    }
    for i in 0..4 {
        accept(&sink, &format!("w{i}"), &ids[i..=i]);
        sink.good(EventKind::Received);
        source.good(EventKind::Transfer);
    }
}

/// Side payloads of such writes count as well, by their bytes.
pub fn of_parked_bytes(t: Transport) {
    const AUX: usize = 100_000;
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let sink = start(t, "decode", |c| c.endpoint.max_parked_bytes = 3 * AUX);
    let peer = source.handshake(&sink, Direction::Outbound);
    let ids = SMALL.order(1);
    let aux = |i: usize| vec![i as u8; AUX];
    let writes: Vec<Id> = (0..3)
        .map(|i| {
            let args = WriteArgs { aux: aux(i), ..write_args(peer, &format!("w{i}"), &ids[i..=i]) };
            source.agent.write(args).unwrap()
        })
        .collect();
    let e = source.wait("the refusal", |e| e.id == writes[2].0);
    assert_eq!(e.status, Status::Limit, "{}", e.text);
    assert!(e.text.contains(&(3 * AUX).to_string()), "{}", e.text);
    for i in 0..2 {
        accept(&sink, &format!("w{i}"), &ids[i..=i]);
        assert_eq!(sink.good(EventKind::Received).payload, aux(i));
        source.good(EventKind::Transfer);
    }
}

/// An engine that takes no events: whoever floods it is cut off; nothing that it was told is lost or out of order.
pub fn of_events(t: Transport) {
    const MOST: usize = 64;
    let lazy = start(t, "lazy", |c| c.max_events = MOST);
    let flood = Rank::alone(t, "flood", SMALL.layout());
    let good = Rank::alone(t, "good", SMALL.layout());
    let to_good = lazy.handshake(&good, Direction::Inbound);
    let peer = flood.handshake(&lazy, Direction::Both);
    let mut sent = 0u32;
    while flood.agent.notify(peer, None, &sent.to_le_bytes(), None).is_ok() && sent < 5000 {
        sent += 1;
    }
    assert!(sent as usize > MOST);
    let e = flood.wait("the cut", |e| e.kind == EventKind::PeerDown);
    assert_eq!(e.peer, peer.0);
    let events = lazy.rest();
    // Its end is told too.
    assert!(events.len() <= MOST + 2, "{} events wait", events.len());
    let told: Vec<&[u8]> =
        events.iter().filter(|e| e.kind == EventKind::Notification).map(|e| e.payload.as_slice()).collect();
    assert!(told.len() >= MOST - 4, "{} were told", told.len());
    for (i, payload) in told.iter().enumerate() {
        assert_eq!(*payload, (i as u32).to_le_bytes());
    }
    // Others are not concerned, and the flooder may come again.
    still_works(SMALL, &good, &lazy, to_good, "r");
    let again = flood.handshake(&lazy, Direction::Inbound);
    still_works(SMALL, &lazy, &flood, again, "again");
}

/// Peers come and go, well or badly: the other process has as many descriptors as before.
pub fn nothing_is_left_behind(t: Transport) {
    let mut child = Child::start(t, "prefill", "127.0.0.1:0", Duration::from_millis(250), 1);
    let count = |child: &mut Child| child.ask("fds").parse::<usize>().unwrap();
    let before = count(&mut child);
    for i in 0..12 {
        let rank = Rank::alone(t, "decode", BIG.layout());
        let peer = rank.agent.handshake(&child.address, Direction::Both, 0).unwrap();
        if i % 3 > 0 {
            rank.good(EventKind::Handshake);
        }
        if i % 3 > 1 {
            rank.agent.disconnect(peer).unwrap();
        }
        drop(rank);
        drop(crate::raw::Raw::connect(&child.address));
        drop(crate::raw::open(&child.address));
    }
    within("the descriptors of those that are gone", || count(&mut child) <= before);
}
