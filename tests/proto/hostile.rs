//! Messages that a faulty or hostile peer could send, in any state: a refusal by name, never a panic, never a leak.

use crate::world::*;
use kvlink::error::Status;
use kvlink::proto::{Config, ConnId, Counts, Direction, Endpoint, EventKind, Identity, Output};
use kvlink::wire::{Blocks, Entry, Message, Purpose, Range, ReadRequest, WriteRequest};
use std::time::Instant;

fn lone() -> (Endpoint, Instant) {
    let now = Instant::now();
    let me = Identity { instance: "i".into(), incarnation: 7, rank: 0, ranks: 1, leader: String::new() };
    let mut e = Endpoint::new(Config::default(), me, layouts(&attention(), &place(1, 4))[0].clone());
    e.bind(now, "i-0:1".into(), vec![("sim".into(), vec![])]);
    while e.poll_output().is_some() {}
    (e, now)
}

fn outputs(e: &mut Endpoint) -> Vec<Output> {
    std::iter::from_fn(|| e.poll_output()).collect()
}

fn refusal(outputs: &[Output]) -> Option<Status> {
    outputs.iter().find_map(|o| match o {
        Output::Send { message: Message::Refuse { status, .. }, .. } => Status::from_code(*status),
        _ => None,
    })
}

fn hello(versions: (u16, u16), expected: u64) -> Message {
    let purpose = Purpose::Peer;
    Message::Hello { versions, purpose, instance: "other".into(), incarnation: 9, rank: 0, expected }
}

fn welcome(version: u16, incarnation: u64) -> Message {
    Message::Welcome { version, instance: "other".into(), incarnation, rank: 0, token: 1 }
}

fn entry() -> Entry {
    let layout = kvlink::layout::layout_to_json(&layouts(&attention(), &place(1, 4))[0]);
    Entry { rank: 0, address: "o:1".into(), incarnation: 9, layout, transports: vec![("sim".into(), vec![])] }
}

fn nothing(request: &str) -> (String, Range, Vec<Blocks>) {
    (request.to_string(), whole(16), vec![Blocks::default()])
}

/// One of every message, with values that fit nothing.
fn every() -> Vec<Message> {
    let (request, range, blocks) = nothing("x");
    let read = ReadRequest { op: 1, request: request.clone(), round: 1, range, blocks: blocks.clone() };
    let w = WriteRequest { op: 1, request, range, blocks: blocks.clone(), last: true, aux: vec![1] };
    let far = Range { token_begin: u64::MAX, token_end: 0, token_total: u64::MAX, layer_begin: 9, layer_end: 0 };
    vec![
        hello((1, 1), 0),
        Message::Hello {
            versions: (1, 1),
            purpose: Purpose::Join,
            instance: "i".into(),
            incarnation: 3,
            rank: 5,
            expected: 0,
        },
        welcome(1, 9),
        Message::Refuse { status: 0, text: "no".into() },
        Message::Refuse { status: 77, text: "no".into() },
        Message::Join(entry()),
        Message::Directory(vec![]),
        Message::Directory(vec![entry()]),
        Message::Directory(vec![entry(), entry()]),
        Message::Link { transport: "sim".into(), pull: false },
        Message::Link { transport: "what".into(), pull: true },
        Message::Read(read.clone()),
        Message::Read(ReadRequest { op: u64::MAX, ..read.clone() }),
        Message::Read(ReadRequest { op: 2, range: far, ..read }),
        Message::ReadFailed { op: 1, status: 0, text: String::new() },
        Message::ReadCancel { op: 1 },
        Message::Done { op: 1, request: "x".into(), round: 1, consumers: 0 },
        Message::Done { op: 1, request: "x".into(), round: 1, consumers: 1 },
        Message::Done { op: 1, request: "x".into(), round: 1, consumers: u32::MAX },
        Message::Ack { op: 1, status: 0 },
        Message::Ack { op: 3, status: 5 },
        Message::Write(w.clone()),
        Message::Write(WriteRequest { op: u64::MAX, ..w.clone() }),
        Message::Write(WriteRequest { op: 4, request: "a".into(), range: far, ..w.clone() }),
        Message::Write(WriteRequest { op: 5, request: "a".into(), ..w }),
        Message::WriteGo { op: 1, range, blocks: blocks.clone() },
        Message::WriteGo { op: 2, range: far, blocks: vec![] },
        Message::WriteDone { op: 1, status: 0, text: String::new(), bytes: u64::MAX },
        Message::WriteDone { op: 2, status: 12, text: String::new(), bytes: u64::MAX },
        Message::WriteCancel { op: 1 },
        Message::WriteAck { op: 1, status: 0 },
        Message::Notify(vec![0; 3]),
        Message::Ping,
        Message::Pong,
    ]
}

#[test]
fn the_newest_common_wire_version_is_chosen_or_none() {
    for (versions, want) in [((1, 1), Ok(1)), ((1, 9), Ok(1)), ((2, 9), Err(())), ((1, 0), Err(())), ((0, 0), Err(()))]
    {
        let (mut e, now) = lone();
        let conn = e.handle_accepted(now).unwrap();
        e.handle_message(now, conn, hello(versions, 0));
        let out = outputs(&mut e);
        match want {
            Ok(v) => {
                assert!(out.iter().any(
                    |o| matches!(o, Output::Send { message: Message::Welcome { version, .. }, .. } if *version == v)
                ))
            }
            Err(()) => {
                assert_eq!(refusal(&out), Some(Status::Version));
                assert!(out.iter().any(|o| matches!(o, Output::Close { .. })));
                assert_eq!(e.counts(), Counts::default());
            }
        }
    }
}

fn connecting() -> (Endpoint, Instant, ConnId) {
    let (mut e, now) = lone();
    e.handshake(now, "o:1", Direction::Both, 5).unwrap();
    let conn = outputs(&mut e).into_iter().find_map(|o| match o {
        Output::Connect { conn, .. } => Some(conn),
        _ => None,
    });
    let conn = conn.expect("it connects");
    e.handle_connected(now, conn);
    outputs(&mut e);
    (e, now, conn)
}

fn ended(e: &mut Endpoint) -> Option<Status> {
    outputs(e).into_iter().find_map(|o| match o {
        Output::Event(e) if e.kind == EventKind::Handshake => Some(e.status),
        _ => None,
    })
}

#[test]
fn a_peer_that_answers_in_another_version_ends_the_handshake() {
    let (mut e, now, conn) = connecting();
    e.handle_message(now, conn, welcome(2, 9));
    assert_eq!(ended(&mut e), Some(Status::Version));
    assert_eq!(e.counts(), Counts::default());
}

#[test]
fn another_process_than_the_expected_one_is_refused() {
    let (mut e, now) = lone();
    let conn = e.handle_accepted(now).unwrap();
    e.handle_message(now, conn, hello((1, 1), 8));
    assert_eq!(refusal(&outputs(&mut e)), Some(Status::Incarnation));
}

#[test]
fn a_refusal_with_status_ok_is_a_failure() {
    let (mut e, now, conn) = connecting();
    e.handle_message(now, conn, Message::Refuse { status: 0, text: String::new() });
    assert_eq!(ended(&mut e), Some(Status::Refused));
}

#[test]
fn every_message_in_every_state_of_a_session_leaves_nothing_behind() {
    let link = || kvlink::proto::LinkInfo { transport: "sim".into(), pull: true, ..Default::default() };
    for depth in 0..8 {
        for m in every() {
            for n in every() {
                let (mut e, now, conn) = if depth < 4 {
                    let (mut e, now) = lone();
                    let conn = e.handle_accepted(now).unwrap();
                    (e, now, conn)
                } else {
                    connecting()
                };
                let steps: [&dyn Fn(&mut Endpoint); 8] = [
                    &|_| {},
                    &|e| e.handle_message(now, conn, hello((1, 1), 0)),
                    &|e| e.handle_message(now, conn, Message::Directory(vec![entry()])),
                    &|e| {
                        e.handle_message(now, conn, Message::Link { transport: "sim".into(), pull: true });
                        e.handle_linked(now, conn, Ok(link()));
                    },
                    &|_| {},
                    &|e| e.handle_message(now, conn, welcome(1, 9)),
                    &|e| {
                        e.handle_message(now, conn, Message::Directory(vec![entry()]));
                        e.handle_linked(now, conn, Ok(link()));
                    },
                    &|e| e.handle_message(now, conn, Message::Link { transport: "sim".into(), pull: true }),
                ];
                let from = depth / 4 * 4;
                steps[from..=depth].iter().for_each(|s| s(&mut e));
                assert_eq!(refusal(&outputs(&mut e)), None, "depth {depth}");
                e.handle_message(now, conn, m.clone());
                e.handle_message(now, conn, n.clone());
                e.handle_closed(now, conn, kvlink::error::Error::new(Status::PeerDead, "closed"));
                for o in outputs(&mut e) {
                    match o {
                        Output::Event(e) if e.kind == EventKind::Handshake => {
                            assert!(e.status != Status::Ok || depth > 4, "{m:?} {n:?}");
                        }
                        Output::Post { job, .. } => {
                            let result = Err(kvlink::error::Error::new(Status::PeerDead, "closed"));
                            let end =
                                kvlink::proto::JobEnd { result, bytes: 0, spans: 0, quiescent: true, held: false };
                            e.handle_job(now, job, end);
                        }
                        _ => {}
                    }
                }
                let c = e.counts();
                assert_eq!(Counts { peers: 0, ..c }, Counts::default(), "depth {depth} {m:?} {n:?}");
                // Only a peer of ours stays, until it is let go.
                assert!(c.peers <= usize::from(depth > 4), "depth {depth} {m:?} {n:?}");
            }
        }
    }
}

#[test]
fn a_joining_rank_cannot_hand_the_first_rank_a_directory() {
    let now = Instant::now();
    let me = Identity { instance: "i".into(), incarnation: 7, rank: 0, ranks: 2, leader: String::new() };
    let mut e = Endpoint::new(Config::default(), me, layouts(&attention(), &place(1, 4))[0].clone());
    e.bind(now, "i-0:1".into(), vec![]);
    let conn = e.handle_accepted(now).unwrap();
    let purpose = Purpose::Join;
    let join = Message::Hello { versions: (1, 1), purpose, instance: "i".into(), incarnation: 9, rank: 1, expected: 0 };
    e.handle_message(now, conn, join);
    outputs(&mut e);
    let two = vec![Entry { incarnation: 7, ..entry() }, Entry { rank: 1, ..entry() }];
    e.handle_message(now, conn, Message::Directory(two));
    let out = outputs(&mut e);
    assert_eq!(refusal(&out), Some(Status::Protocol));
    assert!(!out.iter().any(|o| matches!(o, Output::Event(_))));
}

#[test]
fn a_connection_that_never_says_hello_is_dropped_however_often_it_pings() {
    let (mut e, now) = lone();
    let conn = e.handle_accepted(now).unwrap();
    e.handle_message(now, conn, Message::Ping);
    assert_eq!(refusal(&outputs(&mut e)), Some(Status::Protocol));
    e.handle_accepted(now).unwrap();
    let due = e.poll_timeout().expect("it has a deadline");
    e.handle_timeout(due);
    assert_eq!(e.counts(), Counts::default());
}

#[test]
fn a_consumer_that_lies_about_their_number_releases_nothing_early() {
    for lie in [0, 1, 3, 9] {
        let (mut w, p, d) = World::pair(1, &attention(), &place(1, 4), &place(2, 4), true);
        let peers = w.handshakes(&d, "prefill-0:1", Direction::Inbound);
        let (ticket, offers) = w.offer(&p, "r", 16, 0, Some(secs(2)));
        w.sim.inject(d[0], p[0], Message::Done { op: 99, request: "r".into(), round: 1, consumers: lie });
        w.sim.run_for(millis(20));
        assert_eq!(w.outcome(offers[0].0), None, "{lie}");
        let reads: Vec<u64> = (0..2)
            .filter_map(|i| w.read(d[i], peers[i], &ticket, "r", 50, Reading::default()).ok())
            .map(|r| r.0)
            .collect();
        w.wait(&reads, secs(6));
        w.wait(&[offers[0].0], secs(6));
        w.check();
    }
}

#[test]
fn a_repeated_acknowledgement_counts_once() {
    let (mut w, p, d) = World::pair(2, &attention(), &place(1, 4), &place(2, 4), true);
    let peers = w.handshakes(&d, "prefill-0:1", Direction::Inbound);
    let (ticket, offers) = w.offer(&p, "r", 16, 0, None);
    for op in 90..95 {
        w.sim.inject(d[0], p[0], Message::Done { op, request: "r".into(), round: 1, consumers: 2 });
    }
    w.sim.run_for(millis(20));
    assert_eq!(w.outcome(offers[0].0), None);
    let read = w.read(d[1], peers[1], &ticket, "r", 50, Reading::default()).unwrap();
    assert_eq!(w.wait(&[read.0, offers[0].0], secs(1)), [Status::Ok; 2]);
    w.check();
}

#[test]
fn a_failure_with_status_ok_is_a_failure() {
    for pull in [true, false] {
        let (mut w, p, d) = World::pair(3, &attention(), &place(1, 4), &place(1, 4), pull);
        let peer = w.handshakes(&d, "prefill-0:1", Direction::Inbound)[0];
        w.sim.net.slice = 1000..9000;
        w.sim.net.slice_bytes = 16..32;
        let (ticket, _) = w.offer(&p, "r", 64, 0, None);
        let read = w.read(d[0], peer, &ticket, "r", 50, Reading::default()).unwrap();
        w.sim.run_for(millis(5));
        for op in 0..9 {
            w.sim.inject(p[0], d[0], Message::ReadFailed { op, status: 0, text: String::new() });
        }
        assert_eq!(w.wait(&[read.0], secs(1)), [Status::Refused]);
        w.check();
    }
}
