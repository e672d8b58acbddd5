//! Messages between engines.

use crate::world::*;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind, Id};
use kvlink::wire::Message;

fn payloads(w: &World, node: usize) -> Vec<Vec<u8>> {
    w.sim.events(node, EventKind::Notification).iter().map(|e| e.payload.clone()).collect()
}

#[test]
fn notifications_keep_their_order() {
    let (mut w, p, d) = World::pair(1, &attention(), &place(2, 4), &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    for i in 0..50u8 {
        w.sim.call(d[0], |e, _| e.notify(peer, None, &[i], None)).unwrap();
    }
    w.sim.run_for(millis(100));
    for n in p {
        assert_eq!(payloads(&w, n), (0..50u8).map(|i| vec![i]).collect::<Vec<_>>());
    }
}

#[test]
fn a_notification_after_a_transfer_comes_after_it_or_not_at_all() {
    for pull in [true, false] {
        for fail in [false, true] {
            let (mut w, p, d) = World::pair(2, &attention(), &place(2, 4), &place(1, 4), pull);
            let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            let (ticket, offers) = w.offer(&p, "r", 64, 0, None);
            let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
            w.sim.call(d[0], |e, _| e.notify(peer, None, b"after", Some(read.1))).unwrap();
            w.sim.call(d[0], |e, _| e.notify(peer, None, b"now", None)).unwrap();
            let foreign = w.sim.call(d[0], |e, _| e.notify(Id(peer.0 ^ 1), None, b"lost", Some(read.1))).unwrap_err();
            assert_eq!(foreign.status(), Status::BadHandle);
            if fail {
                w.sim.call(d[0], |e, now| e.cancel(now, read.1)).unwrap();
            }
            w.wait(&[read.0], secs(1));
            w.sim.run_for(millis(50));
            for (i, n) in p.iter().enumerate() {
                let want: Vec<&[u8]> = if fail { vec![b"now"] } else { vec![b"now", b"after"] };
                assert_eq!(payloads(&w, *n), want);
                if !fail {
                    assert_eq!(w.outcome(offers[i].0), Some(Status::Ok));
                    let kinds: Vec<EventKind> = w.sim.nodes[*n].events.iter().map(|(_, e)| e.kind).collect();
                    let at = |k| kinds.iter().rposition(|x| *x == k);
                    assert!(at(EventKind::Released) < at(EventKind::Notification));
                }
            }
            let stale = w.sim.call(d[0], |e, _| e.notify(peer, None, b"late", Some(read.1))).unwrap_err();
            assert_eq!(stale.status(), Status::BadHandle);
        }
    }
}

#[test]
fn the_accepting_side_may_speak_as_soon_as_it_is_linked() {
    for pull in [true, false] {
        for seed in 0..20 {
            let (mut w, p, d) = World::pair(seed, &attention(), &place(1, 4), &place(1, 4), pull);
            let first = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
            w.sim.call(d[0], |e, _| e.notify(first, None, b"hello", None)).unwrap();
            w.sim.run_for(millis(20));
            let back = Id(w.sim.events(p[0], EventKind::Notification)[0].peer);
            // Another handshake of the same instance: the source speaks to all that is linked on its side.
            let user = w.user();
            w.sim.call(d[0], |e, now| e.handshake(now, "prefill-0:1", Direction::Inbound, user)).unwrap();
            for _ in 0..100 {
                w.sim.run_for(std::time::Duration::from_micros(50));
                w.sim.call(p[0], |e, _| e.notify(back, None, b"tick", None)).unwrap();
            }
            w.sim.run_for(millis(50));
            let ends = w.sim.events(d[0], EventKind::Handshake);
            assert!(ends.len() == 2 && ends.iter().all(|e| e.status == Status::Ok), "{ends:?}");
            assert_eq!(w.sim.sent(|m| matches!(m, Message::Refuse { .. })), 0);
        }
    }
}

#[test]
fn too_long_a_notification_is_refused() {
    let (mut w, _, d) = World::pair(3, &attention(), &place(1, 4), &place(1, 4), true);
    let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
    let long = vec![0; kvlink::wire::limit::PAYLOAD + 1];
    let e = w.sim.call(d[0], |e, _| e.notify(peer, None, &long, None)).unwrap_err();
    assert_eq!(e.status(), Status::Limit);
}
