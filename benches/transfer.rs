//! Throughput of whole requests between two processes, from the call to the event, read and written, beside what the same
//! bytes cost without kvlink in the same run: `memcpy` out of a mapping, bare `process_vm_readv`, bare scatter-gather
//! sockets. `cargo bench --bench transfer`.

use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::form::{Place, Record};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{AcceptArgs, Direction, EventKind, Id, Offer, ReadArgs, WriteArgs};
use kvlink::wire::{Blocks, Range};
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 256 << 20;
const SIZES: [u32; 3] = [4 << 10, 16 << 10, 64 << 10];
const WAYS: [&str; 3] = ["shm", "cma", "tcp"];
const ROUNDS: usize = 7;
const CHILD: &str = "KVLINK_BENCH_TRANSFER";

fn layout(block: u32) -> Arc<Layout> {
    let blocks = BYTES as u32 / block;
    let record = Record {
        layers: &[0],
        role: "x",
        group: 0,
        place: Place { region: 0, offset: 0, num_blocks: blocks, block_stride: 0, layer_stride: 0 },
        block_tokens: 16,
        element: Element::of(DType::U8),
        elements: u64::from(block / 16),
        token_stride: 0,
    };
    let (tensors, bytes) = record.tensors().unwrap();
    let (kind, reach, context) = (GroupKind::Paged, Reach::Full, Default::default());
    let group = Group { kind, block_tokens: 16, num_blocks: blocks, reach, context };
    let regions = vec![Region { len: bytes }];
    Arc::new(Layout::new(LayoutDesc { model: "bench".into(), regions, groups: vec![group], tensors }).unwrap())
}

/// All blocks in an order of the seed's.
fn permuted(block: u32, seed: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..BYTES as u32 / block).collect();
    let mut state = seed;
    for i in (1..ids.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ids.swap(i, (state >> 33) as usize % (i + 1));
    }
    ids
}

fn memory() -> Arc<SharedMemory> {
    let m = Arc::new(SharedMemory::allocate(BYTES).unwrap());
    // Pages that nobody has touched would be allocated within the time measured.
    unsafe { std::ptr::write_bytes(m.addr() as *mut u8, 7, m.len()) };
    m
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
            let agent = Agent::new(c, layout(size)).unwrap();
            agent.register(0, Memory::shared(memory.clone())).unwrap();
            out.push(agent);
        }
    }
    out
}

fn size_of(agent: usize) -> u32 {
    SIZES[agent % SIZES.len()]
}

fn wait(agent: &Agent, kind: EventKind) {
    loop {
        let e = agent.events().poll(1, Some(Duration::from_secs(60))).pop().expect("an event");
        assert_eq!(e.status, Status::Ok, "{kind:?}: {}", e.text);
        if e.kind == kind {
            return;
        }
    }
}

fn blocks(ids: &[u32]) -> Vec<Blocks> {
    vec![Blocks { first: 0, ids: ids.to_vec() }]
}

fn cpu() -> f64 {
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn iovecs(base: usize, block: u32, ids: &[u32]) -> Vec<libc::iovec> {
    let one =
        |id: &u32| libc::iovec { iov_base: (base + *id as usize * block as usize) as *mut _, iov_len: block as usize };
    ids.iter().map(one).collect()
}

/// Calls until every piece of the list was moved, up to `most` pieces at a time.
fn vectored(list: &mut [libc::iovec], most: usize, call: impl Fn(&[libc::iovec]) -> isize) {
    let mut at = 0;
    while at < list.len() {
        let mut n = usize::try_from(call(&list[at..list.len().min(at + most)])).expect("bare call");
        while n > 0 {
            let take = n.min(list[at].iov_len);
            list[at].iov_base = (list[at].iov_base as usize + take) as *mut _;
            list[at].iov_len -= take;
            n -= take;
            at += usize::from(list[at].iov_len == 0);
        }
    }
}

/// The source of everything.
fn child(bare: &str) {
    let memory = memory();
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
                let (agent, ids) = (&agents[number(1)], permuted(size_of(number(1)), 1));
                let tokens = ids.len() as u64 * 16;
                let offer = Offer { request: words[2].into(), blocks: blocks(&ids), tokens, lease: None, user_data: 0 };
                let ticket = agent.ticket(agent.offer(offer).unwrap()).unwrap();
                let hex: String = ticket.iter().map(|b| format!("{b:02x}")).collect();
                writeln!(out, "{hex}").unwrap();
            }
            "write" => {
                let ids = permuted(size_of(number(1)), 1);
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
                let mut list = iovecs(memory.addr(), block, &permuted(block, 1));
                vectored(&mut list, number(2), |part| {
                    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
                    (m.msg_iov, m.msg_iovlen) = (part.as_ptr().cast_mut(), part.len() as _);
                    unsafe { libc::sendmsg(bare.as_raw_fd(), &m, libc::MSG_NOSIGNAL) }
                });
            }
            "cpu" => writeln!(out, "{}", cpu()).unwrap(),
            other => panic!("{other}"),
        }
        out.flush().unwrap();
    }
}

struct Remote {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.lines.next().unwrap().unwrap()
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
        let both = |remote: &mut Remote| cpu() + remote.ask("cpu").parse::<f64>().unwrap();
        let before = both(remote);
        let begin = Instant::now();
        f(remote);
        self.wall = self.wall.min(begin.elapsed().as_secs_f64());
        self.cpu = self.cpu.min(both(remote) - before);
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
        let (from, to) = (permuted(block, 1), permuted(block, 2));
        let mut local = iovecs(self.memory.addr(), block, &to);
        match way {
            "shm" => {
                for (s, d) in from.iter().zip(&local) {
                    let source = (self.mapped + *s as usize * block as usize) as *const u8;
                    unsafe { std::ptr::copy_nonoverlapping(source, d.iov_base as *mut u8, d.iov_len) };
                }
            }
            "cma" => {
                let foreign = iovecs(self.base, block, &from);
                for (l, r) in local.chunks(1024).zip(foreign.chunks(1024)) {
                    let (ln, rn) = (l.len() as u64, r.len() as u64);
                    let n = unsafe { libc::process_vm_readv(self.pid, l.as_ptr(), ln, r.as_ptr(), rn, 0) };
                    assert_eq!(n as u64, ln * u64::from(block));
                }
            }
            _ => vectored(&mut local, most, |part| unsafe {
                libc::readv(self.socket.as_raw_fd(), part.as_ptr(), part.len() as i32)
            }),
        }
    }
}

fn read(agent: &Agent, peer: Id, ticket: &[u8], ids: &[u32]) {
    let args = ReadArgs {
        peer,
        ticket,
        blocks: blocks(ids),
        token_begin: 0,
        token_end: None,
        layers: (0, u32::MAX),
        timeout: None,
        user_data: 0,
    };
    agent.read(args).unwrap();
    wait(agent, EventKind::Transfer);
}

fn parent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, listener.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = process.id() as i32;
    let memory = memory();
    let agents = agents("decode", &memory);
    let socket = listener.accept().unwrap().0;
    let stdin = process.stdin.take().unwrap();
    let lines = BufReader::with_capacity(1 << 20, process.stdout.take().unwrap()).lines();
    let mut remote = Remote { stdin, lines };
    let first = remote.lines.next().unwrap().unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    let base: usize = words[0].parse().unwrap();
    let file = std::fs::File::open(format!("/proc/{pid}/fd/{}", words[1])).unwrap();
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, prot, flags, file.as_raw_fd(), 0) } as usize;
    let bare = Bare { memory, pid, base, mapped, socket };
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();

    println!("{BYTES} bytes in permuted blocks; best of {ROUNDS}");
    println!(
        "{:<10}{:>8}{:>8}{:>10}{:>10}{:>8}{:>12}{:>12}",
        "", "", "span", "GB/s", "bare", "ratio", "CPU s/GB", "bare"
    );
    for (i, agent) in agents.iter().enumerate() {
        let (way, block) = (WAYS[i / SIZES.len()], size_of(i));
        let name = format!("{way}/{block}");
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        let peer = agent.handshake(words[2 + i], Direction::Inbound, 0).unwrap();
        wait(agent, EventKind::Handshake);
        remote.ask(&format!("peer {i} {}", agent.address()));
        let ids = permuted(block, 2);
        let (mut reads, mut writes, mut reference) = (NONE, NONE, NONE);
        // The first round warms up.
        for round in 0..=ROUNDS {
            let ticket = remote.ask(&format!("offer {i} r{round}"));
            let byte = |at: usize| u8::from_str_radix(&ticket[2 * at..2 * at + 2], 16).unwrap();
            let ticket: Vec<u8> = (0..ticket.len() / 2).map(byte).collect();
            let (mut r, mut w, mut b) = (NONE, NONE, NONE);
            r.measure(&mut remote, |_| read(agent, peer, &ticket, &ids));
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
    drop(remote);
    process.wait().unwrap();
}

fn main() {
    match std::env::var(CHILD) {
        Ok(bare) => child(&bare),
        Err(_) => parent(),
    }
}
