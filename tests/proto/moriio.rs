//! A worker opposite vLLM's, under virtual time. The other side is a socket of ours that the test holds in its hands.

use kvlink::error::{Error, Status};
use kvlink::proto::{Event, EventKind, Id, LinkId, Moriio, MoriioArgs, MoriioOutput as Output, MoriioPort, Zmq};
use kvlink::wire::moriio::{GET_META, Notify, Role};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const AT: &str = "vllm:61005";

struct World {
    now: Instant,
    it: Moriio,
    connects: Vec<(LinkId, Duration)>,
    sent: Vec<(LinkId, Vec<u8>)>,
    closed: Vec<LinkId>,
    events: Vec<Event>,
    start: Instant,
}

impl World {
    fn new(role: Role) -> World {
        let now = Instant::now();
        let it = Moriio::new(MoriioArgs { role, handshake: None, user_data: 5 }, 1);
        World { now, it, connects: vec![], sent: vec![], closed: vec![], events: vec![], start: now }
    }

    fn outputs(&mut self) {
        while let Some(o) = self.it.poll_output() {
            match o {
                Output::Connect(link, to) => {
                    assert_eq!(to, AT);
                    self.connects.push((link, self.now - self.start));
                }
                Output::Send(link, bytes) => self.sent.push((link, bytes)),
                Output::Close(link) => self.closed.push(link),
                Output::Event(e) => {
                    assert_eq!(e.kind, EventKind::Moriio);
                    self.events.push(e);
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.it.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.it.handle_timeout(self.now);
            self.outputs();
            if self.it.poll_timeout() == Some(at) {
                panic!("what was due is due again");
            }
        }
        self.now = end;
    }

    fn send(&mut self, n: u32) -> Id {
        let message = Notify::WriteDone { transfer_id: format!("tx-{n}"), num_writers: 1 };
        let id = self.it.send(self.now, AT, &message, 1000 * MS, u64::from(n)).unwrap();
        self.outputs();
        id
    }

    fn meet(&mut self) -> Id {
        let id = self.it.meet(self.now, AT, 1000 * MS, 9).unwrap();
        self.outputs();
        id
    }

    fn connected(&mut self) -> LinkId {
        let (link, _) = *self.connects.last().unwrap();
        self.it.handle_connected(self.now, link);
        self.outputs();
        link
    }

    fn fail(&mut self, link: LinkId, status: Status) {
        self.it.handle_failed(self.now, link, Error::new(status, "why"));
        self.outputs();
    }

    /// Carries bytes between the worker and a peer until neither has anything to say.
    fn talk(&mut self, link: LinkId, peer: &mut Zmq) {
        loop {
            let ours: Vec<u8> = self.sent.drain(..).flat_map(|(to, b)| if to == link { b } else { vec![] }).collect();
            peer.handle_bytes(&ours).unwrap();
            let theirs = peer.take_output();
            if ours.is_empty() && theirs.is_empty() {
                return;
            }
            self.it.handle_bytes(self.now, link, &theirs);
            self.outputs();
        }
    }

    fn ends(&mut self) -> Vec<(u64, Status)> {
        self.events.drain(..).map(|e| (e.user_data, e.status)).collect()
    }
}

fn peer() -> Zmq {
    Zmq::router(1 << 20)
}

#[test]
fn a_message_is_confirmed_by_the_heartbeat_behind_it() {
    let mut w = World::new(Role::Prefill);
    let mut peer = peer();
    w.send(1);
    let link = w.connected();
    w.send(2);
    assert_eq!(w.connects.len(), 1, "one connection for one address");
    // The peer hears everything, and its answers are held back.
    let greeting = peer.take_output();
    w.it.handle_bytes(w.now, link, &greeting);
    w.outputs();
    let ours: Vec<u8> = w.sent.drain(..).flat_map(|(_, b)| b).collect();
    peer.handle_bytes(&ours).unwrap();
    let ready = peer.take_output();
    w.it.handle_bytes(w.now, link, &ready);
    w.outputs();
    let ours: Vec<u8> = w.sent.drain(..).flat_map(|(_, b)| b).collect();
    peer.handle_bytes(&ours).unwrap();
    for n in [1, 2] {
        let frame = Notify::WriteDone { transfer_id: format!("tx-{n}"), num_writers: 1 }.encode();
        assert_eq!(peer.take_message(), Some(vec![frame]), "exactly one frame");
    }
    assert_eq!(w.ends(), [], "nothing confirms it yet");
    let pongs = peer.take_output();
    let (first, second) = pongs.split_at(pongs.len() / 2);
    w.it.handle_bytes(w.now, link, first);
    w.outputs();
    assert_eq!(w.ends(), [(1, Status::Ok)]);
    w.it.handle_bytes(w.now, link, second);
    w.outputs();
    assert_eq!(w.ends(), [(2, Status::Ok)]);
    w.run(60_000 * MS);
    assert_eq!((w.closed.len(), w.it.poll_timeout()), (0, None), "the connection stays");
}

#[test]
fn what_may_have_arrived_is_told_and_never_sent_again() {
    let mut w = World::new(Role::Prefill);
    let mut first = peer();
    w.send(1);
    let link = w.connected();
    w.talk(link, &mut first);
    assert_eq!(w.ends(), [(1, Status::Ok)]);
    w.send(2);
    w.sent.clear();
    w.send(3);
    w.sent.clear();
    w.fail(link, Status::Unreachable);
    assert_eq!(w.ends(), [(2, Status::PeerDead), (3, Status::PeerDead)]);
    assert_eq!(w.closed, [link]);
    w.run(10_000 * MS);
    assert_eq!(w.connects.len(), 1, "nothing waits: nobody connects");
    w.send(4);
    let mut second = peer();
    let link = w.connected();
    w.talk(link, &mut second);
    let frame = Notify::WriteDone { transfer_id: "tx-4".into(), num_writers: 1 }.encode();
    assert_eq!((second.take_message(), second.take_message()), (Some(vec![frame]), None));
    assert_eq!(w.ends(), [(4, Status::Ok)]);
}

#[test]
fn a_peer_that_stands_still_is_told_in_time() {
    let mut w = World::new(Role::Prefill);
    let mut p = peer();
    w.send(1);
    let link = w.connected();
    w.talk(link, &mut p);
    w.ends();
    w.send(2);
    w.run(500 * MS);
    w.send(3);
    w.run(499 * MS);
    assert_eq!(w.ends(), []);
    w.run(MS);
    // Confirmations come in order: the younger cannot come either.
    assert_eq!((w.ends(), w.closed.len()), (vec![(2, Status::PeerDead), (3, Status::PeerDead)], 1));
}

#[test]
fn an_absent_peer_is_tried_until_time_is_over() {
    let mut w = World::new(Role::Prefill);
    let ids = [w.send(1), w.meet()];
    for _ in 0..100 {
        let open: Vec<LinkId> = w.connects.iter().map(|(l, _)| *l).collect();
        for link in open {
            if w.now - w.start < 1000 * MS {
                w.fail(link, Status::Unreachable);
            }
        }
        w.run(20 * MS);
    }
    let ends: Vec<Status> = w.events.iter().map(|e| e.status).collect();
    assert_eq!(ends, [Status::Unreachable; 2]);
    assert!(w.events.iter().all(|e| e.text.contains("why") && e.text.contains(AT)), "{:?}", w.events);
    assert!(w.connects.len() > 4 && w.connects.len() < 20, "{} attempts", w.connects.len());
    for id in ids {
        assert_eq!(w.it.cancel(id).unwrap_err().status(), Status::BadHandle);
    }
    assert_eq!(w.it.poll_timeout(), None);
}

#[test]
fn a_handshake_asks_once_and_wants_two_answers() {
    let answer = |parts: &[&[&[u8]]]| {
        let mut w = World::new(Role::Decode);
        let mut p = peer();
        w.meet();
        let link = w.connected();
        w.talk(link, &mut p);
        assert_eq!((p.take_message(), p.take_message()), (Some(vec![GET_META.to_vec()]), None));
        assert_eq!(w.ends(), []);
        parts.iter().for_each(|one| p.send_parts(one));
        let bytes = p.take_output();
        w.it.handle_bytes(w.now, link, &bytes);
        w.outputs();
        w.run(2000 * MS);
        let e = w.events.pop().unwrap();
        assert_eq!((w.events.len(), w.closed.last()), (0, Some(&link)));
        (e.status, e.text)
    };
    let (status, text) = answer(&[&[b"", b"\x80"], &[b"", b"\x80"]]);
    assert!(status == Status::Protocol && text.contains("engine_id is missing"), "{text}");
    for parts in [&[&b"x"[..], b"\x80"][..], &[b"\x80"], &[b"", b"\x80", b""]] {
        let (status, text) = answer(&[parts]);
        assert!(status == Status::Protocol && text.contains("frames with"), "{text}");
    }
    let (status, text) = answer(&[&[b"", b"\x80"]]);
    assert!(status == Status::Deadline && text.contains("no answer in time"), "{text}");
}

#[test]
fn callers_that_are_none_are_told_and_let_go() {
    let caller = |port, parts: &[&[u8]]| {
        let mut w = World::new(Role::Prefill);
        let link = w.it.handle_accepted(w.now, port).unwrap();
        w.outputs();
        let mut p = Zmq::dealer("them");
        w.talk(link, &mut p);
        p.send_parts(parts);
        w.talk(link, &mut p);
        (w.ends(), w.closed.len())
    };
    let wrong = vec![(5, Status::Protocol)];
    assert_eq!(caller(MoriioPort::Handshake, &[b"pop_done_recv"]), (wrong.clone(), 1));
    assert_eq!(caller(MoriioPort::Handshake, &[b"", GET_META]), (wrong.clone(), 1));
    assert_eq!(caller(MoriioPort::Notify, &[b"", b"tx-1"]), (wrong.clone(), 0));
    assert_eq!(caller(MoriioPort::Notify, &[b"\x81\xa4type\xa5hello"]), (wrong, 0));
    assert_eq!(caller(MoriioPort::Notify, &[b"tx-1"]), (vec![(5, Status::Ok)], 0));

    // Another kind of socket, and one that says nothing.
    let mut w = World::new(Role::Prefill);
    let link = w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap();
    w.it.handle_bytes(w.now, link, b"GET / HTTP/1.1\r\n\r\n");
    w.outputs();
    assert_eq!(w.closed, [link]);
    let link = w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap();
    w.run(9_999 * MS);
    assert_eq!(w.closed.len(), 1);
    w.run(MS);
    assert_eq!(w.closed[1..], [link]);
    assert_eq!(w.ends(), []);
}

#[test]
fn there_is_a_limit_of_callers() {
    let mut w = World::new(Role::Prefill);
    let links: Vec<LinkId> = (0..1024).map(|_| w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap()).collect();
    assert_eq!(w.it.handle_accepted(w.now, MoriioPort::Notify), None);
    w.fail(links[7], Status::Unreachable);
    assert!(w.it.handle_accepted(w.now, MoriioPort::Notify).is_some());
}

#[test]
fn callers_that_do_not_finish_take_little_memory() {
    let mut w = World::new(Role::Prefill);
    let mut links = Vec::new();
    for _ in 0..65 {
        let link = w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap();
        w.outputs();
        let mut p = Zmq::dealer("them");
        w.talk(link, &mut p);
        // The beginning of a message of 4 MiB.
        w.it.handle_bytes(w.now, link, &[2, 0, 0, 0, 0, 0, 0x40, 0, 0]);
        w.it.handle_bytes(w.now, link, &[7; (64 << 10) - 9]);
        w.outputs();
        links.push(link);
    }
    assert_eq!(w.closed, []);
    for link in &links {
        w.it.handle_bytes(w.now, *link, &[7; 9]);
        w.outputs();
    }
    assert_eq!(w.closed, [links[64]]);
    let link = w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap();
    w.outputs();
    let mut p = Zmq::dealer("them");
    w.talk(link, &mut p);
    w.it.handle_bytes(w.now, link, &[2, 0, 0, 0, 0, 0, 0x40, 0, 1]);
    w.outputs();
    assert_eq!(w.closed, [links[64], link]);
}

#[test]
fn closing_ends_everything_once() {
    let mut w = World::new(Role::Prefill);
    let mut p = peer();
    w.send(1);
    let link = w.connected();
    w.talk(link, &mut p);
    w.ends();
    w.send(2);
    w.meet();
    w.it.handle_accepted(w.now, MoriioPort::Notify).unwrap();
    w.it.shut_down();
    w.outputs();
    assert_eq!(w.ends(), [(2, Status::Cancelled), (9, Status::Cancelled)]);
    assert_eq!((w.closed.len(), w.it.poll_timeout()), (3, None));
}
