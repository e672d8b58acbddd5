//! Registrations with a router, under virtual time.

use kvlink::error::{Error, Status};
use kvlink::proto::{Event, Registration, RegistrationOutput as Output, RouterArgs};
use kvlink::wire::moriio::{Register, Role, TransferMode, ZmqAddress};
use kvlink::wire::zmtp::{self, Command};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

fn args() -> RouterArgs {
    RouterArgs {
        discovery: "tcp://router:5555".into(),
        register: Register {
            role: Role::Prefill,
            http_address: "10.0.0.1:8000".into(),
            zmq_address: ZmqAddress::new("10.0.0.1", 6301, 61005).unwrap(),
            dp_size: 1,
            tp_size: 4,
            mode: TransferMode::Read,
        },
        beat: RouterArgs::BEAT,
        user_data: 42,
    }
}

/// A registration, its clock, and what came out of it.
struct World {
    now: Instant,
    start: Instant,
    it: Registration,
    connects: Vec<Duration>,
    sent: Vec<u8>,
    closes: usize,
    events: Vec<Event>,
    /// The router answers pings.
    alive: bool,
}

impl World {
    fn new(args: RouterArgs) -> World {
        let now = Instant::now();
        let it = Registration::new(now, args, "me".into()).unwrap();
        let mut w =
            World { now, start: now, it, connects: vec![], sent: vec![], closes: 0, events: vec![], alive: true };
        w.run(Duration::ZERO);
        w
    }

    fn outputs(&mut self) {
        while let Some(o) = self.it.poll_output() {
            match o {
                Output::Connect => self.connects.push(self.now - self.start),
                Output::Send(b) => {
                    let pings = count(&b, &ping());
                    self.sent.extend(b);
                    for _ in 0..pings * usize::from(self.alive) {
                        self.it.handle_bytes(self.now, &Command::Pong { context: vec![] }.encode());
                    }
                }
                Output::Close => self.closes += 1,
                Output::Event(e) => self.events.push(e),
            }
        }
    }

    /// Lets time pass; whatever is due happens on time.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.it.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.it.handle_timeout(self.now);
            self.outputs();
        }
        self.now = end;
        self.outputs();
    }

    fn say(&mut self, bytes: &[u8]) {
        self.it.handle_bytes(self.now, bytes);
        self.outputs();
    }

    fn connected(&mut self) {
        self.it.handle_connected(self.now);
        self.outputs();
    }

    fn fail(&mut self, status: Status) {
        self.it.handle_failed(self.now, Error::new(status, "why"));
        self.outputs();
    }

    fn attach(&mut self) {
        self.connected();
        self.say(&router());
    }

    fn beats(&self) -> usize {
        count(&self.sent, &zmtp::message(&args().register.encode()))
    }
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|w| *w == what).count()
}

/// What asks a router for a sign of life; it may hang up after five seconds of silence.
fn ping() -> Vec<u8> {
    Command::Ping { ttl: 50, context: vec![] }.encode()
}

/// What a router says first.
fn router() -> Vec<u8> {
    let ready = Command::Ready { socket_type: "ROUTER".into(), identity: vec![] };
    [zmtp::greeting().to_vec(), ready.encode()].concat()
}

#[test]
fn it_registers_at_once_and_beats_every_second() {
    let mut w = World::new(args());
    assert_eq!(w.connects, [Duration::ZERO]);
    w.connected();
    assert_eq!(w.sent, zmtp::greeting());
    for b in router() {
        assert_eq!(w.beats(), 0);
        w.say(&[b]);
    }
    assert_eq!((w.beats(), w.events.len()), (1, 1));
    assert_eq!((w.events[0].status, w.events[0].user_data), (Status::Ok, 42));
    w.run(999 * MS);
    assert_eq!(w.beats(), 1);
    w.run(MS);
    assert_eq!(w.beats(), 2);
    w.run(60_000 * MS);
    assert_eq!((w.beats(), w.events.len()), (62, 1));
}

#[test]
fn a_stalled_thread_sends_one_beat_and_no_burst() {
    let mut w = World::new(args());
    w.attach();
    w.now += 30_000 * MS;
    w.it.handle_timeout(w.now);
    w.outputs();
    assert_eq!(w.beats(), 2);
    assert_eq!(w.it.poll_timeout(), Some(w.now + 1000 * MS));
}

#[test]
fn a_router_that_stands_still_is_noticed_within_four_beats() {
    let mut w = World::new(args());
    w.attach();
    w.run(10_000 * MS);
    assert_eq!((w.beats(), count(&w.sent, &ping()), w.events.len()), (11, 11, 1));
    w.alive = false;
    w.run(3999 * MS);
    assert_eq!((w.closes, w.events.len()), (0, 1));
    w.run(MS);
    assert_eq!((w.closes, w.events.len()), (1, 2));
    assert_eq!(w.events[1].status, Status::Unreachable);
    assert!(w.events[1].text.contains("no sign of life to 3 pings"), "{}", w.events[1].text);
    // Its kernel still takes connections: only a handshake says that it is back.
    w.connected();
    w.run(4000 * MS);
    assert_eq!(w.events.len(), 2);
    w.alive = true;
    w.say(&router());
    assert_eq!(w.events.last().unwrap().status, Status::Ok);
}

#[test]
fn rapid_beats_give_a_router_a_second() {
    let mut w = World::new(RouterArgs { beat: 10 * MS, ..args() });
    w.alive = false;
    w.attach();
    w.run(999 * MS);
    assert_eq!(w.closes, 0);
    w.run(2 * MS);
    assert_eq!(w.closes, 1);
}

#[test]
fn whatever_comes_is_a_sign_of_life() {
    for life in [zmtp::message(b"x"), Command::Ping { ttl: 0, context: vec![] }.encode(), vec![0]] {
        let mut w = World::new(args());
        w.alive = false;
        w.attach();
        for _ in 0..10 {
            w.run(2500 * MS);
            // The last kind is one frame without content, byte after byte.
            w.say(&life);
        }
        assert_eq!((w.closes, w.events.len()), (0, 1), "{life:?}");
    }
}

#[test]
fn a_router_that_knows_no_heartbeats_is_not_asked() {
    let mut w = World::new(args());
    w.alive = false;
    let mut old = router();
    old[11] = 0;
    w.connected();
    w.say(&old);
    w.run(60_000 * MS);
    assert_eq!((w.beats(), count(&w.sent, &ping()), w.closes), (61, 0, 0));
}

#[test]
fn an_absent_router_is_asked_again_and_reported_once() {
    let mut w = World::new(args());
    for _ in 0..40 {
        w.fail(Status::Unreachable);
        w.run(1000 * MS);
    }
    assert_eq!(w.connects.len(), 41);
    assert_eq!(w.events.len(), 1, "{:?}", w.events);
    assert_eq!(w.events[0].status, Status::Unreachable);
    assert!(w.events[0].text.contains("router:5555: why"), "{}", w.events[0].text);
    w.attach();
    assert_eq!(w.events.last().unwrap().status, Status::Ok);
}

#[test]
fn the_wait_doubles_up_to_a_beat() {
    let mut w = World::new(args());
    let mut waits = Vec::new();
    for _ in 0..7 {
        w.fail(Status::Unreachable);
        waits.push((w.it.poll_timeout().unwrap() - w.now).as_millis());
        w.run(1000 * MS);
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
    w.attach();
    w.fail(Status::Unreachable);
    assert_eq!(w.it.poll_timeout(), Some(w.now + 1000 * MS), "a router that hangs up at once is not there");
    w.run(1000 * MS);
    w.attach();
    w.run(1000 * MS);
    w.fail(Status::Unreachable);
    assert_eq!(w.it.poll_timeout(), Some(w.now), "one that took a second beat was");
}

#[test]
fn a_restarted_router_knows_it_again_at_once() {
    let mut w = World::new(args());
    w.attach();
    w.run(500 * MS);
    w.fail(Status::Unreachable);
    w.run(Duration::ZERO);
    assert_eq!(w.connects, [Duration::ZERO, 500 * MS]);
    w.attach();
    assert_eq!(w.beats(), 2);
    let told: Vec<Status> = w.events.iter().map(|e| e.status).collect();
    assert_eq!(told, [Status::Ok, Status::Unreachable, Status::Ok]);
}

#[test]
fn every_connection_has_a_name_of_its_own() {
    let mut w = World::new(args());
    w.attach();
    w.fail(Status::Unreachable);
    w.run(Duration::ZERO);
    w.attach();
    for name in [&b"me.1"[..], b"me.2"] {
        assert!(w.sent.windows(name.len()).any(|s| s == name));
    }
}

#[test]
fn a_silent_peer_has_five_seconds() {
    let mut w = World::new(args());
    w.connected();
    w.run(4999 * MS);
    assert_eq!(w.closes, 0);
    w.run(MS);
    assert_eq!((w.closes, w.events[0].status), (1, Status::Unreachable));
    assert!(w.events[0].text.contains("no ZeroMQ handshake within 5000 ms"), "{}", w.events[0].text);
}

#[test]
fn peers_of_another_kind_are_named() {
    let mut curve = zmtp::greeting();
    curve[12..17].copy_from_slice(b"CURVE");
    let ready = |kind: &str| Command::Ready { socket_type: kind.into(), identity: vec![] }.encode();
    let greeted = |more: Vec<u8>| [zmtp::greeting().to_vec(), more].concat();
    let error = Command::Error { reason: "go away".into() };
    for (bytes, status, named) in [
        (b"HTTP/1.1 400 Bad Request".to_vec(), Status::Protocol, "not a ZeroMQ socket"),
        (vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7e], Status::Protocol, "not a ZeroMQ socket"),
        ([&zmtp::greeting()[..10], &[1]].concat(), Status::Protocol, "it speaks ZMTP 1"),
        (curve.to_vec(), Status::Protocol, "\"CURVE\""),
        (greeted(ready("PUB")), Status::Protocol, "type \"PUB\""),
        (greeted([ready("ROUTER"), ready("ROUTER")].concat()), Status::Protocol, "second READY"),
        (greeted(zmtp::message(b"x")), Status::Protocol, "before READY"),
        (greeted(error.encode()), Status::Refused, "go away"),
        (greeted(vec![0x80, 0]), Status::Protocol, "flags 0x80"),
        (greeted(vec![6, 255, 0, 0, 0, 0, 0, 0, 0]), Status::Protocol, "bytes"),
    ] {
        let mut w = World::new(args());
        w.connected();
        w.say(&bytes);
        let e = w.events.iter().find(|e| e.status != Status::Ok).expect(named);
        assert!(e.status == status && e.text.contains(named), "{e:?}");
        assert_eq!(w.closes, 1);
    }
}

#[test]
fn pings_are_answered_and_messages_are_not_kept() {
    let mut w = World::new(args());
    w.attach();
    w.sent.clear();
    w.say(&Command::Ping { ttl: 30, context: b"abc".to_vec() }.encode());
    assert_eq!(w.sent, Command::Pong { context: b"abc".to_vec() }.encode());
    // The beginning of a message of 2^40 bytes, and some of them.
    w.say(&[2, 0, 0, 1, 0, 0, 0, 0, 0]);
    for _ in 0..100 {
        w.say(&[0xff; 4096]);
    }
    assert_eq!((w.closes, w.events.len()), (0, 1));
}

#[test]
fn what_comes_late_does_no_harm() {
    let mut w = World::new(args());
    w.say(b"before any connection");
    w.fail(Status::Unreachable);
    w.fail(Status::Unreachable);
    assert_eq!(w.closes, 1);
    w.connected();
    assert_eq!(w.closes, 2, "a connection that nobody waits for is closed");
}

#[test]
fn impossible_registrations_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut RouterArgs)| {
        let mut a = args();
        change(&mut a);
        Registration::new(Instant::now(), a, "me".into()).err().unwrap().message().to_string()
    };
    for (text, named) in [
        (refused(&|a| a.discovery = "router".into()), "\"router\" is not host:port"),
        (refused(&|a| a.discovery = "udp://router".into()), "is not host:port"),
        (refused(&|a| a.discovery = ":1".into()), "is not host:port"),
        (refused(&|a| a.discovery = "r:0".into()), "is not host:port"),
        (refused(&|a| a.beat = 3000 * MS), "a beat every 3000 ms: must be 10..=2500"),
        (refused(&|a| a.beat = Duration::ZERO), "a beat every 0 ms"),
        (refused(&|a| a.register.http_address = "x".into()), "http_address"),
        (refused(&|a| a.register.dp_size = 0), "dp_size is 0"),
        (refused(&|a| a.register.tp_size = 5000), "tp_size is 5000"),
    ] {
        assert!(text.contains(named), "{text}");
    }
}
