//! A rank in a process of its own: this binary starts itself again and tells it what to do, one line at a time.

use crate::common::rng::mix;
use crate::flat::*;
use crate::load::{Images, PIECES, piece, started};
use crate::rank::{PATIENCE, Rank, config};
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, Event, EventKind, Id};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const CHILD: &str = "KVLINK_CONFORMANCE_CHILD";

pub fn hex(tickets: &[Vec<u8>]) -> String {
    let one = |t: &Vec<u8>| t.iter().map(|b| format!("{b:02x}")).collect::<String>();
    tickets.iter().map(one).collect::<Vec<_>>().join(" ")
}

pub fn unhex(s: &str) -> Vec<u8> {
    (0..s.len() / 2).map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// A number that follows from the content of these blocks.
pub fn digest(flat: Flat, bytes: &[u8], ids: &[u32]) -> u64 {
    let words = ids.iter().flat_map(|id| flat.block(bytes, *id).chunks_exact(8));
    words.fold(0, |h, w| mix(h ^ u64::from_le_bytes(w.try_into().unwrap())))
}

/// The other process, from here.
pub struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    pub address: String,
}

impl Child {
    /// A rank with [`BIG`] memory of pattern `seed`; a peer is dead after four silent heartbeats.
    pub fn start(t: Transport, name: &str, listen: &str, heartbeat: Duration, seed: u64) -> Child {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = stdout.lines().map_while(Result::ok);
            lines.filter_map(|l| l.strip_prefix('@').map(str::to_string)).try_for_each(|l| sender.send(l))
        });
        let mut child = Child { process, stdin, answers, address: String::new() };
        child.address = child.ask(&format!("start {} {name} {listen} {} {seed}", t.label, heartbeat.as_millis()));
        child
    }

    /// Tells it something without waiting for the answer.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
        self.stdin.flush().unwrap();
    }

    pub fn answer(&mut self) -> String {
        self.answers.recv_timeout(4 * PATIENCE).expect("an answer of the other process")
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Offers `n` requests with blocks of order 3.
    pub fn offers(&mut self, n: usize) -> Vec<Vec<u8>> {
        self.ask(&format!("offer {n}")).split(' ').map(unhex).collect()
    }

    pub fn statuses(&mut self, kind: &str, n: usize) -> Vec<Status> {
        let answer = self.ask(&format!("await {kind} {n}"));
        answer.split(' ').map(|s| Status::from_code(s.parse().unwrap()).unwrap()).collect()
    }

    /// Of every piece of this order.
    pub fn digests(&mut self, order: u64) -> Vec<u64> {
        self.ask(&format!("digests {order}")).split(' ').map(|d| d.parse().unwrap()).collect()
    }

    /// Returns when it stands still.
    pub fn stop(&mut self) {
        crate::tools::stop(self.process.id());
    }

    pub fn go_on(&self) {
        crate::tools::signal(self.process.id(), rustix::process::Signal::CONT);
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other process, from inside. Ends when nobody tells it anything any more.
pub fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    // The test harness has begun a line.
    let mut out = std::io::stdout();
    writeln!(out).unwrap();
    let mut state: Option<Inside> = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match (words[0], &mut state) {
            ("start", state) => {
                let inside = Inside::start(&words);
                let address = inside.rank.address().to_string();
                *state = Some(inside);
                address
            }
            (_, Some(inside)) => inside.obey(&words),
            (other, None) => panic!("{other} before start"),
        };
        writeln!(out, "@{answer}").unwrap();
        out.flush().unwrap();
    }
    // Memory and agent go with the process.
    std::process::exit(0);
}

struct Inside {
    rank: Rank,
    peer: Option<Id>,
    ids: Vec<Id>,
    images: Images,
}

impl Inside {
    fn start(words: &[&str]) -> Inside {
        let &[_, transport, name, listen, heartbeat, seed] = words else { panic!("{words:?}") };
        let t = Transport::labelled(transport);
        let mut c = config(t, name, 0, 1);
        c.listen = listen.into();
        c.endpoint.heartbeat = Duration::from_millis(heartbeat.parse().unwrap());
        c.endpoint.heartbeat_misses = 4;
        let rank = Rank::start(t, c, BIG.layout());
        BIG.fill(&rank, seed.parse().unwrap());
        Inside { rank, peer: None, ids: Vec::new(), images: Images::new() }
    }

    fn obey(&mut self, words: &[&str]) -> String {
        let number = |i: usize| words[i].parse::<u64>().unwrap();
        let Inside { rank, ids, images, .. } = self;
        match words[0] {
            "handshake" => {
                let direction = if words[2] == "in" { Direction::Inbound } else { Direction::Outbound };
                let peer = rank.agent.handshake(words[1], direction, 0).unwrap();
                self.peer = Some(peer);
                let e = rank.wait("a handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
                assert_eq!(e.status, Status::Ok, "{}", e.text);
                e.text.replace('\n', "; ")
            }
            "offer" => {
                let n = number(1) as usize;
                let one = |i: usize| offer(rank, &format!("r{i}"), piece(&images.from, i)).1;
                hex(&(0..n).map(one).collect::<Vec<_>>())
            }
            "read" => {
                let to = BIG.order(number(1));
                let peer = self.peer.unwrap();
                let one = |(i, t): (usize, &&str)| read(rank, peer, &unhex(t), piece(&to, i));
                *ids = words[2..].iter().enumerate().map(one).collect();
                "reading".into()
            }
            "accept" => {
                let n = number(1) as usize;
                *ids = (0..n).map(|i| accept(rank, &format!("w{i}"), piece(&images.to, i))).collect();
                "accepting".into()
            }
            "write" => {
                let (n, peer) = (number(1) as usize, self.peer.unwrap());
                *ids = (0..n).map(|i| write(rank, peer, &format!("w{i}"), piece(&images.from, i))).collect();
                rank.agent.notify(peer, None, b"announced", None).unwrap();
                "writing".into()
            }
            "started" => {
                started(rank, images);
                "started".into()
            }
            "await" => {
                let kind = match words[1] {
                    "Transfer" => EventKind::Transfer,
                    "Received" => EventKind::Received,
                    other => panic!("{other}"),
                };
                // An accept that no write has reached ends at its own deadline only.
                let events = rank.several(kind, number(2) as usize, Instant::now() + 3 * PATIENCE);
                let status = |id: &Id| events.iter().find(|e: &&Event| e.id == id.0).unwrap().status.code().to_string();
                ids.iter().map(status).collect::<Vec<_>>().join(" ")
            }
            "digests" => {
                let (order, have) = (BIG.order(number(1)), rank.snapshot());
                let one = |i: usize| digest(BIG, &have[0], piece(&order, i)).to_string();
                (0..PIECES).map(one).collect::<Vec<_>>().join(" ")
            }
            "fill" => {
                BIG.fill(rank, number(1));
                "filled".into()
            }
            "idle" => {
                let before = cpu();
                std::thread::sleep(Duration::from_millis(number(1)));
                let used = cpu().into_iter().filter(|(thread, _)| thread.1 != words[2]);
                let used = used.map(|(thread, ticks)| ticks - before.get(&thread).copied().unwrap_or(0));
                (used.sum::<u64>() * TICK_US).to_string()
            }
            "fds" => std::fs::read_dir("/proc/self/fd").unwrap().count().to_string(),
            "ping" => "pong".into(),
            other => panic!("{other}"),
        }
    }
}

/// `USER_HZ` is 100.
const TICK_US: u64 = 10_000;

/// Processor time of each thread of this process, by its number and name, in ticks.
fn cpu() -> HashMap<(String, String), u64> {
    let one = |task: std::fs::DirEntry| {
        // The number of the thread, its name in brackets, and 11 fields before the time in user mode and in the kernel.
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (number, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let times = rest.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().unwrap());
        Some(((number.to_string(), name.to_string()), times.sum()))
    };
    std::fs::read_dir("/proc/self/task").unwrap().filter_map(|t| one(t.unwrap())).collect()
}
