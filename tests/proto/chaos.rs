//! Random operations and faults. Whatever happens: one event per operation, no success with wrong bytes, no change after
//! an event, everything ends by its deadline, and no table keeps anything.

use crate::sim::Sim;
use crate::world::*;
use kvlink::error::Status;
use kvlink::proto::{Config, Counts, Direction, EventKind, Id};
use kvlink::wire::Range;
use std::collections::BTreeMap;

struct Request {
    name: String,
    tokens: u64,
    block: u32,
}

struct Chaos {
    w: World,
    sides: [Vec<usize>; 2],
    /// Handshakes by process: reads come from there, writes go there.
    peers: BTreeMap<usize, (Id, Id)>,
    names: u64,
    block: u32,
    /// Operations by process and id that may be cancelled.
    running: Vec<(usize, Id)>,
    users: Vec<(usize, u64)>,
    writes: Vec<(Request, usize, u64)>,
    tickets: Vec<(Request, usize, Vec<u8>)>,
}

const ADDRESS: [&str; 2] = ["prefill-0:1", "decode-0:1"];

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let mut w = World::new(seed);
        let r = &mut w.sim.rng;
        let model = [attention(), latent(), hybrid()][r.below(0..3) as usize].clone();
        let places = [(1, 4), (2, 4), (2, 8), (4, 4)];
        let (a, b) = (*r.pick(&places), *r.pick(&places));
        let pulls = [r.chance(50), r.chance(50)];
        w.sim.net.slice_bytes = 16..r.below(32..1024);
        w.sim.net.slice = 10..r.below(20..20_000);
        w.sim.net.latency = 10..r.below(20..5000);
        w.sim.config = Config { transfer_timeout: secs(5), lease: secs(5), ..Config::default() };
        let p = w.sim.instance("prefill", &layouts(&model, &place(a.0, a.1)), pulls[0]);
        let d = w.sim.instance("decode", &layouts(&model, &place(b.0, b.1)), pulls[1]);
        let sides = [p, d];
        let mut c = Chaos {
            w,
            sides,
            peers: BTreeMap::new(),
            names: 0,
            block: 0,
            running: Vec::new(),
            users: Vec::new(),
            writes: Vec::new(),
            tickets: Vec::new(),
        };
        for side in 0..2 {
            let (from, to) = (c.sides[side].clone(), ADDRESS[1 - side]);
            let ins = c.w.handshakes(&from, to, Direction::Inbound);
            let outs = c.w.handshakes(&from, to, Direction::Outbound);
            c.peers.extend(from.into_iter().zip(ins.into_iter().zip(outs)));
        }
        c
    }

    fn request(&mut self) -> Request {
        self.names += 1;
        let tokens = self.w.sim.rng.below(1..24);
        self.block += 6;
        Request { name: format!("r{}", self.names), tokens, block: self.block }
    }

    fn live(&self, side: usize) -> Vec<usize> {
        self.sides[side].iter().copied().filter(|n| self.w.sim.alive(*n)).collect()
    }

    fn act(&mut self) {
        let side = self.w.sim.rng.below(0..2) as usize;
        match self.w.sim.rng.below(0..12) {
            0..=2 => self.offer(side),
            3..=5 => self.read(),
            6..=7 => self.accept(side),
            8..=9 => self.write(),
            10 => {
                if !self.running.is_empty() {
                    let (node, id) = *self.w.sim.rng.pick(&self.running);
                    if self.w.sim.alive(node) {
                        let _ = self.w.sim.call(node, |e, now| e.cancel(now, id));
                    }
                }
            }
            _ => self.notify(side),
        }
    }

    fn offer(&mut self, side: usize) {
        let r = self.request();
        let nodes = self.live(side);
        if nodes.is_empty() {
            return;
        }
        let lease = self.w.sim.rng.chance(40).then(|| self.w.sim.rng.micros(100..50_000));
        let (ticket, offers) = self.w.offer(&nodes, &r.name, r.tokens, r.block, lease);
        for (n, (user, id)) in nodes.iter().zip(offers) {
            self.users.push((*n, user));
            self.running.push((*n, id));
        }
        self.tickets.push((r, side, ticket));
    }

    /// All ranks of the other side read one of the tickets, or some of them do.
    fn read(&mut self) {
        if self.tickets.is_empty() {
            return;
        }
        let at = self.w.sim.rng.below(0..self.tickets.len() as u64) as usize;
        let (r, side, ticket) = self.tickets.swap_remove(at);
        for n in self.live(1 - side) {
            if self.w.sim.rng.chance(10) {
                continue;
            }
            let peer = self.peers[&n].0;
            let begin = self.w.sim.rng.below(0..r.tokens);
            let how = Reading { token_begin: if self.w.sim.rng.chance(50) { 0 } else { begin }, timeout: None };
            if let Ok((user, id)) = self.w.read(n, peer, &ticket, &r.name, r.block, how) {
                self.users.push((n, user));
                self.running.push((n, id));
            }
        }
    }

    fn accept(&mut self, side: usize) {
        let r = self.request();
        for n in self.live(side) {
            if self.w.sim.rng.chance(5) {
                continue;
            }
            let (user, id) = self.w.accept(n, &r.name, r.tokens, r.block, None).expect("an accept");
            self.users.push((n, user));
            self.running.push((n, id));
        }
        self.writes.push((r, 1 - side, 0));
    }

    /// The next chunk of one of the writes, from all ranks.
    fn write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.w.sim.rng.below(0..self.writes.len() as u64) as usize;
        let (r, side, begin) = self.writes.swap_remove(at);
        let end = if self.w.sim.rng.chance(60) { r.tokens } else { self.w.sim.rng.below(begin..r.tokens) };
        for n in self.live(side) {
            let peer = self.peers[&n].1;
            let range =
                Range { token_begin: begin, token_end: end, token_total: r.tokens, layer_begin: 0, layer_end: 9 };
            let last = end == r.tokens;
            if let Ok((user, id)) = self.w.write(n, peer, &r.name, range, r.block, last, b"") {
                self.users.push((n, user));
                self.running.push((n, id));
            }
        }
        if end < r.tokens {
            self.writes.push((r, side, end));
        }
    }

    fn notify(&mut self, side: usize) {
        for n in self.live(side) {
            let peer = self.peers[&n].0;
            let _ = self.w.sim.call(n, |e, _| e.notify(peer, None, b"x", None));
        }
    }

    fn fault(&mut self) {
        let side = self.w.sim.rng.below(0..2) as usize;
        let (ours, theirs) = (self.live(side), self.live(1 - side));
        if ours.is_empty() || theirs.is_empty() {
            return;
        }
        let (a, b) = (*self.w.sim.rng.pick(&ours), *self.w.sim.rng.pick(&theirs));
        match self.w.sim.rng.below(0..5) {
            0 => self.w.sim.kill(a, false),
            1 => self.w.sim.kill(a, true),
            2 => self.w.sim.cut(a, b),
            3 => {
                let time = self.w.sim.rng.micros(1000..6_000_000);
                self.w.sim.pause(a, time);
            }
            _ => {
                let peer = self.peers[&a].0;
                let _ = self.w.sim.call(a, |e, now| e.disconnect(now, peer));
            }
        }
    }

    fn finish(mut self, faults: bool) -> usize {
        // Deadline, then the time for answers to a cancel, then a stopped process going on.
        self.w.sim.run_for(secs(5 + 4 + 8));
        self.w.check();
        let mut good = 0;
        for (node, user) in &self.users {
            let end = self.w.outcome(*user);
            if self.w.sim.alive(*node) {
                assert!(end.is_some(), "operation {user} of process {node} never ended");
            }
            good += usize::from(end == Some(Status::Ok));
            if !faults {
                assert_ne!(end, Some(Status::PeerDead));
                assert_ne!(end, Some(Status::Protocol));
            }
        }
        let all: Vec<usize> = self.sides.concat().into_iter().filter(|n| self.w.sim.alive(*n)).collect();
        for n in all.iter().copied() {
            let down = self.w.sim.events(n, EventKind::PeerDown).len();
            assert!(faults || down == 0, "process {n} lost a peer that lives");
        }
        for n in all.iter().copied() {
            let sessions = self.w.sim.call(n, |e, _| e.counts()).sessions;
            let peers: Vec<Id> = [self.peers[&n].0, self.peers[&n].1].to_vec();
            let c = self.w.sim.call(n, |e, _| e.counts());
            let left = Counts { sessions: 0, peers: 0, timers: 0, ..c };
            assert_eq!(left, Counts::default(), "process {n}");
            assert_eq!(c.timers, sessions, "only sessions keep timers");
            for p in peers {
                let _ = self.w.sim.call(n, |e, now| e.disconnect(now, p));
            }
        }
        self.w.sim.run_for(secs(5));
        for n in all.iter().copied() {
            let c = self.w.sim.call(n, |e, _| e.counts());
            assert_eq!(c.peers, 0, "process {n}: {c:?}");
        }
        good
    }
}

fn run(seed: u64, faults: bool) -> usize {
    let mut c = Chaos::new(seed);
    let steps = c.w.sim.rng.below(10..35);
    for _ in 0..steps {
        c.act();
        let wait = c.w.sim.rng.micros(0..15_000);
        c.w.sim.run_for(wait);
        if faults && c.w.sim.rng.chance(4) {
            c.fault();
        }
    }
    c.finish(faults)
}

fn many(faults: bool, seeds: std::ops::Range<u64>) -> usize {
    let mut good = 0;
    for seed in seeds {
        let one = std::panic::catch_unwind(|| run(seed, faults));
        match one {
            Ok(n) => good += n,
            Err(e) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(e);
            }
        }
    }
    good
}

fn seeds() -> u64 {
    std::env::var("KVLINK_CHAOS_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150)
}

#[test]
fn random_operations_hold_the_contracts() {
    assert!(many(false, 0..seeds()) > 500);
}

#[test]
fn random_operations_and_faults_hold_the_contracts() {
    assert!(many(true, 10_000..10_000 + 2 * seeds()) > 500);
}

#[test]
fn a_seed_reproduces_its_run() {
    let trace = |seed| {
        let mut c = Chaos::new(seed);
        for _ in 0..15 {
            c.act();
            c.w.sim.run_for(millis(3));
        }
        let s: &Sim = &c.w.sim;
        s.log.iter().map(|(a, b, m)| (*a, *b, m.type_code())).collect::<Vec<_>>()
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
