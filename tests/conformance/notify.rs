//! Messages of the engines.

use crate::flat::*;
use crate::rank::Rank;
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind, Id};
use kvlink::wire::limit;

fn pair(t: Transport) -> (Rank, Rank, Id) {
    let source = Rank::alone(t, "prefill", BIG.layout());
    let sink = Rank::alone(t, "decode", BIG.layout());
    BIG.fill(&source, 1);
    let peer = sink.handshake(&source, Direction::Inbound);
    (source, sink, peer)
}

pub fn in_order(t: Transport) {
    let (source, sink, peer) = pair(t);
    for i in 0..2000u32 {
        sink.agent.notify(peer, None, &i.to_le_bytes(), None).unwrap();
    }
    for i in 0..2000u32 {
        let e = source.good(EventKind::Notification);
        assert_eq!((e.payload.as_slice(), e.rank), (&i.to_le_bytes()[..], 0));
        if i == 0 {
            // And the way back, by the peer that the event names.
            source.agent.notify(Id(e.peer), Some(0), b"answer", None).unwrap();
        }
    }
    assert_eq!(sink.good(EventKind::Notification).payload, b"answer");
}

/// The source hears of it when all bytes are in the sink's memory.
pub fn after_the_data_of_a_read(t: Transport) {
    let (source, sink, peer) = pair(t);
    let (from, to) = (BIG.order(1), BIG.order(2));
    let mut want = vec![0; BIG.pattern(0).len()];
    BIG.copy(&BIG.pattern(1), &from, &mut want, &to);
    // A read may end before the message is attached to it: then there is nothing to attach to, and no message.
    let attached = (0..50).any(|i| {
        let (_, ticket) = offer(&source, &format!("r{i}"), &from);
        let id = read(&sink, peer, &ticket, &to);
        let attached = sink.agent.notify(peer, None, b"here", Some(id));
        if attached.is_ok() {
            assert_eq!(source.good(EventKind::Notification).payload, b"here");
            assert!(sink.snapshot()[0] == want);
        }
        sink.good(EventKind::Transfer);
        let late = sink.agent.notify(peer, None, b"late", Some(id)).unwrap_err();
        assert_eq!(late.status(), Status::BadHandle);
        attached.is_ok()
    });
    assert!(attached);
}

pub fn after_the_data_of_a_write(t: Transport) {
    let (source, sink, _) = pair(t);
    let peer = source.handshake(&sink, Direction::Outbound);
    let (from, to) = (BIG.order(1), BIG.order(2));
    let mut want = vec![0; BIG.pattern(0).len()];
    BIG.copy(&BIG.pattern(1), &from, &mut want, &to);
    // Before its accept a write cannot end: the message is attached in time.
    let id = write(&source, peer, "r", &from);
    source.agent.notify(peer, None, b"written", Some(id)).unwrap();
    source.agent.notify(peer, None, b"and more", Some(id)).unwrap();
    accept(&sink, "r", &to);
    assert_eq!(sink.good(EventKind::Notification).payload, b"written");
    assert!(sink.snapshot()[0] == want);
    assert_eq!(sink.good(EventKind::Notification).payload, b"and more");
    sink.good(EventKind::Received);
    source.good(EventKind::Transfer);

    // A write that fails takes its message with it.
    let id = write(&source, peer, "never", &from);
    source.agent.notify(peer, None, b"lost", Some(id)).unwrap();
    source.agent.cancel(id).unwrap();
    assert_eq!(source.next(EventKind::Transfer).status, Status::Cancelled);
    source.agent.notify(peer, None, b"next", None).unwrap();
    assert_eq!(sink.good(EventKind::Notification).payload, b"next");
}

pub fn the_largest_and_one_byte_more(t: Transport) {
    let (source, sink, peer) = pair(t);
    let large: Vec<u8> = (0..limit::PAYLOAD).map(|i| ((i * 31) >> 8) as u8).collect();
    for _ in 0..3 {
        sink.agent.notify(peer, None, &large, None).unwrap();
    }
    for _ in 0..3 {
        assert!(source.good(EventKind::Notification).payload == large);
    }
    let more = vec![0; limit::PAYLOAD + 1];
    let e = sink.agent.notify(peer, None, &more, None).unwrap_err();
    assert_eq!(e.status(), Status::Limit);
    assert!(e.message().contains("1048577") && e.message().contains("1048576"), "{e}");
    sink.agent.notify(peer, None, &[], None).unwrap();
    assert!(source.good(EventKind::Notification).payload.is_empty());
}
