//! Throughput of whole requests between two processes, from the call to the event, read and written, beside what the same
//! bytes cost without kvlink in the same run: `memcpy` out of a mapping, bare `process_vm_readv`, bare scatter-gather
//! sockets. `cargo bench --bench transfer`.

mod common;

use common::bare::{iovec, pull, receive, send, vectored};
use common::engine::{blocks, layout, offer, read, wait};
use common::remote::Remote;
use common::{cpu, filled, hex, permuted, unhex, wanted};
use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{AcceptArgs, Direction, EventKind, Id, WriteArgs};
use kvlink::wire::Range;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 256 << 20;
const SIZES: [u32; 3] = [4 << 10, 16 << 10, 64 << 10];
const WAYS: [&str; 3] = ["shm", "cma", "tcp"];
const ROUNDS: usize = 7;
const CHILD: &str = "KVLINK_BENCH_TRANSFER";

/// Blocks of a size.
fn count(block: u32) -> u32 {
    BYTES as u32 / block
}

/// All of them in an order of the seed's.
fn order(block: u32, seed: u64) -> Vec<u32> {
    permuted(count(block), seed)
}

/// One agent for every way and size, all over one memory.
fn agents(name: &str, memory: &Arc<SharedMemory>) -> Vec<Agent> {
    let mut out = Vec::new();
    for way in WAYS {
        for size in SIZES {
            let mut c = AgentConfig::new(name, 0, 1);
            (c.host.shm, c.host.cma, c.host.tcp) = (way == "shm", way == "cma", way == "tcp");
            c.host.ptracer_any = true;
            c.require = Require::Named(format!("host/{way}"));
            c.endpoint.lease = Duration::from_secs(3600);
            let agent = Agent::new(c, layout(1, count(size), size)).unwrap();
            agent.register(0, Memory::shared(memory.clone())).unwrap();
            out.push(agent);
        }
    }
    out
}

fn size_of(agent: usize) -> u32 {
    SIZES[agent % SIZES.len()]
}

fn iovecs(base: usize, block: u32, ids: &[u32]) -> Vec<libc::iovec> {
    ids.iter().map(|id| iovec(base + *id as usize * block as usize, block as usize)).collect()
}

/// The source of everything.
fn child(bare: &str) {
    let memory = filled(BYTES);
    let agents = agents("prefill", &memory);
    let bare = TcpStream::connect(bare).unwrap();
    bare.set_nodelay(true).unwrap();
    let mut out = std::io::stdout().lock();
    let addresses: Vec<&str> = agents.iter().map(Agent::address).collect();
    let fd = memory.fd().as_fd().as_raw_fd();
    writeln!(out, "{} {fd} {}", memory.addr(), addresses.join(" ")).unwrap();
    let mut peers: Vec<Option<Id>> = vec![None; agents.len()];
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "peer" => {
                let agent = &agents[number(1)];
                peers[number(1)] = Some(agent.handshake(words[2], Direction::Outbound, 0).unwrap());
                wait(agent, EventKind::Handshake);
                writeln!(out, "ok").unwrap();
            }
            "offer" => {
                let (agent, ids) = (&agents[number(1)], order(size_of(number(1)), 1));
                writeln!(out, "{}", hex(&offer(agent, words[2], &ids))).unwrap();
            }
            "write" => {
                let ids = order(size_of(number(1)), 1);
                let n = ids.len() as u64 * 16;
                let range = Range { token_begin: 0, token_end: n, token_total: n, layer_begin: 0, layer_end: 1 };
                let args = WriteArgs {
                    peer: peers[number(1)].unwrap(),
                    request: words[2].into(),
                    blocks: blocks(&ids),
                    range,
                    last: true,
                    aux: Vec::new(),
                    timeout: None,
                    user_data: 0,
                };
                agents[number(1)].write(args).unwrap();
            }
            "send" => {
                let block = number(1) as u32;
                let mut list = iovecs(memory.addr(), block, &order(block, 1));
                vectored(&mut list, number(2), |part| send(bare.as_raw_fd(), part));
            }
            "cpu" => writeln!(out, "{}", cpu()).unwrap(),
            other => panic!("{other}"),
        }
        out.flush().unwrap();
    }
}

/// Best wall time, and least processor time of both processes.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

const NONE: Cost = Cost { wall: f64::MAX, cpu: f64::MAX };

impl Cost {
    fn measure(&mut self, remote: &mut Remote, f: impl FnOnce(&mut Remote)) {
        let before = remote.cpu();
        let begin = Instant::now();
        f(remote);
        self.wall = self.wall.min(begin.elapsed().as_secs_f64());
        self.cpu = self.cpu.min(remote.cpu() - before);
    }
}

/// What the same spans cost by themselves.
struct Bare {
    memory: Arc<SharedMemory>,
    pid: i32,
    base: usize,
    mapped: usize,
    socket: TcpStream,
}

impl Bare {
    fn run(&self, way: &str, block: u32, most: usize, remote: &mut Remote) {
        if way == "tcp" {
            remote.tell(&format!("send {block} {most}"));
        }
        let (from, to) = (order(block, 1), order(block, 2));
        let mut local = iovecs(self.memory.addr(), block, &to);
        match way {
            "shm" => {
                for (s, d) in from.iter().zip(&local) {
                    let source = (self.mapped + *s as usize * block as usize) as *const u8;
                    unsafe { std::ptr::copy_nonoverlapping(source, d.iov_base as *mut u8, d.iov_len) };
                }
            }
            "cma" => pull(self.pid, &local, &iovecs(self.base, block, &from)),
            _ => vectored(&mut local, most, |part| receive(self.socket.as_raw_fd(), part)),
        }
    }
}

fn parent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut remote = Remote::start(CHILD, &listener.local_addr().unwrap().to_string());
    let pid = remote.pid();
    let memory = filled(BYTES);
    let agents = agents("decode", &memory);
    let socket = listener.accept().unwrap().0;
    let first = remote.line();
    let words: Vec<&str> = first.split(' ').collect();
    let base: usize = words[0].parse().unwrap();
    let file = std::fs::File::open(format!("/proc/{pid}/fd/{}", words[1])).unwrap();
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, prot, flags, file.as_raw_fd(), 0) } as usize;
    let bare = Bare { memory, pid, base, mapped, socket };

    println!("{BYTES} bytes in permuted blocks; best of {ROUNDS}");
    println!(
        "{:<10}{:>8}{:>8}{:>10}{:>10}{:>8}{:>12}{:>12}",
        "", "", "span", "GB/s", "bare", "ratio", "CPU s/GB", "bare"
    );
    for (i, agent) in agents.iter().enumerate() {
        let (way, block) = (WAYS[i / SIZES.len()], size_of(i));
        if !wanted(&format!("{way}/{block}")) {
            continue;
        }
        let peer = agent.handshake(words[2 + i], Direction::Inbound, 0).unwrap();
        wait(agent, EventKind::Handshake);
        remote.ask(&format!("peer {i} {}", agent.address()));
        let ids = order(block, 2);
        let (mut reads, mut writes, mut reference) = (NONE, NONE, NONE);
        // The first round warms up.
        for round in 0..=ROUNDS {
            let ticket = unhex(&remote.ask(&format!("offer {i} r{round}")));
            let (mut r, mut w, mut b) = (NONE, NONE, NONE);
            r.measure(&mut remote, |_| _ = read(agent, peer, &ticket, &ids, 1));
            b.measure(&mut remote, |remote| bare.run(way, block, 1024, remote));
            if way == "tcp" {
                // Long lists outgrow the caches: the reference is whichever is better.
                b.measure(&mut remote, |remote| bare.run(way, block, (256 << 10) / block as usize, remote));
            }
            let args = AcceptArgs {
                request: format!("w{round}"),
                blocks: blocks(&ids),
                token_begin: 0,
                tokens: ids.len() as u64 * 16,
                timeout: None,
                user_data: 0,
            };
            agent.accept(args).unwrap();
            w.measure(&mut remote, |remote| {
                remote.tell(&format!("write {i} w{round}"));
                wait(agent, EventKind::Received);
            });
            if round > 0 {
                for (best, now) in [(&mut reads, r), (&mut writes, w), (&mut reference, b)] {
                    *best = Cost { wall: best.wall.min(now.wall), cpu: best.cpu.min(now.cpu) };
                }
            }
        }
        let gb = BYTES as f64 / 1e9;
        for (what, cost) in [("read", reads), ("write", writes)] {
            let (ours, theirs) = (gb / cost.wall, gb / reference.wall);
            println!(
                "host/{way:<5}{what:>8}{block:>8}{ours:>10.2}{theirs:>10.2}{:>8.2}{:>12.3}{:>12.3}",
                ours / theirs,
                cost.cpu / gb,
                reference.cpu / gb
            );
        }
    }
}

fn main() {
    match std::env::var(CHILD) {
        Ok(bare) => child(&bare),
        Err(_) => parent(),
    }
}
