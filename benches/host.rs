//! Throughput of the host transport between two processes, each way against the bare system call that it is made of,
//! measured in the same run. `cargo bench --bench host`.

mod common;

use common::bare::{iovec, pull, receive, run, send, vectored};
use common::{filled, wanted};
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::{Action, Job, JobId, LinkId, Poller, Slice, Transport};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LINK: LinkId = LinkId(1);
const CAP: u64 = 512 << 20;
const SPANS: u64 = 32_768;
/// Bytes of one turn of the reactor.
const BUDGET: u64 = 4 << 20;
const ROUNDS: usize = 9;
const CHILD: &str = "KVLINK_BENCH_CHILD";

/// Blocks of one size at random places on both sides; of length 1, one block of 16 KiB.
fn permuted(len: u64) -> Vec<Span> {
    if len == 1 {
        return vec![Span { src_offset: 4096, dst_offset: 8192, len: 16 << 10, src_region: 0, dst_region: 0 }];
    }
    let order = |seed| common::permuted(SPANS.min(CAP / len) as u32, seed).into_iter().map(u64::from);
    let span = |(s, d)| Span { src_offset: s * len, dst_offset: d * len, len, src_region: 0, dst_region: 0 };
    order(1).zip(order(2)).map(span).collect()
}

fn main() {
    match std::env::var(CHILD) {
        Ok(address) => child(&address),
        Err(_) => parent(),
    }
}

fn only(shm: bool, cma: bool, tcp: bool) -> HostOptions {
    HostOptions { shm, cma, tcp, ..HostOptions::default() }
}

fn word(s: &mut TcpStream) -> u64 {
    let mut b = [0; 8];
    s.read_exact(&mut b).map(|()| u64::from_le_bytes(b)).unwrap_or(0)
}

fn bytes(s: &mut TcpStream) -> Vec<u8> {
    let mut b = vec![0; word(s) as usize];
    s.read_exact(&mut b).expect("bytes");
    b
}

fn tell(s: &mut TcpStream, bytes: &[u8]) {
    s.write_all(&(bytes.len() as u64).to_le_bytes()).expect("tell");
    s.write_all(bytes).expect("tell");
}

/// The source: sends what it is told, by the transport or by bare calls.
fn child(address: &str) {
    let memory = filled(CAP as usize);
    let poller = Arc::new(Poller::new().expect("poller"));
    let mut hosts: Vec<Host> = (0..3)
        .map(|i| Host::new(poller.clone(), i * 10..i * 10 + 10, only(i == 0, i == 1, i == 2)).expect("host"))
        .collect();
    let mut control = TcpStream::connect(address).expect("control");
    for host in &mut hosts {
        host.register(0, &Memory::shared(memory.clone())).expect("register");
        tell(&mut control, &host.metadata());
    }
    let mut host = hosts.pop().expect("tcp");
    host.connect(LINK, &bytes(&mut control)).expect("connect");
    host.attach(LINK, TcpStream::connect(address).expect("data")).expect("attach");
    let bare = TcpStream::connect(address).expect("bare");
    bare.set_nodelay(true).expect("nodelay");
    tell(&mut control, &[]);
    loop {
        match word(&mut control) {
            0 => return,
            command if command >> 32 == 1 => bare_send(&bare, &memory, &permuted(command & 0xFFFF_FFFF)),
            command => {
                let (tag, spans) = (command >> 32, permuted(command & 0xFFFF_FFFF));
                let job =
                    Job { id: JobId(tag), link: LINK, action: Action::Send { tag }, spans, staged: false, mark: None };
                run(&mut host, &poller, job, BUDGET);
            }
        }
    }
}

fn iovecs(base: usize, spans: &[Span], side: impl Fn(&Span) -> u64) -> Vec<libc::iovec> {
    spans.iter().map(|s| iovec(base + side(s) as usize, s.len as usize)).collect()
}

fn bare_send(socket: &TcpStream, memory: &SharedMemory, spans: &[Span]) {
    let mut list = iovecs(memory.addr(), spans, |s| s.src_offset);
    vectored(&mut list, 1024, |part| send(socket.as_raw_fd(), part));
}

fn bare_receive(socket: &TcpStream, memory: &SharedMemory, spans: &[Span]) {
    let mut list = iovecs(memory.addr(), spans, |s| s.dst_offset);
    vectored(&mut list, 1024, |part| receive(socket.as_raw_fd(), part));
}

fn bare_cma(pid: i32, base: usize, memory: &SharedMemory, spans: &[Span]) {
    let remote = iovecs(base, spans, |s| s.src_offset);
    pull(pid, &iovecs(memory.addr(), spans, |s| s.dst_offset), &remote);
}

fn bare_copy(base: usize, memory: &SharedMemory, spans: &[Span]) {
    for s in spans {
        let (from, to) = (base + s.src_offset as usize, memory.addr() + s.dst_offset as usize);
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, s.len as usize) };
    }
}

/// Alternates both, and takes the best of each: the one that other processes of the machine disturbed least.
fn race(mut ours: impl FnMut(), mut bare: impl FnMut()) -> (f64, f64) {
    let time = |f: &mut dyn FnMut()| {
        let t = Instant::now();
        f();
        t.elapsed().as_secs_f64()
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    time(&mut bare);
    time(&mut ours);
    for _ in 0..ROUNDS {
        a.push(time(&mut ours));
        b.push(time(&mut bare));
    }
    let best = |v: Vec<f64>| v.into_iter().fold(f64::MAX, f64::min);
    (best(a), best(b))
}

fn parent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let mut child = Command::new(std::env::current_exe().expect("self"))
        .env(CHILD, listener.local_addr().expect("address").to_string())
        .stdin(Stdio::null())
        .spawn()
        .expect("child");
    let pid = child.id() as i32;
    let memory = filled(CAP as usize);
    let poller = Arc::new(Poller::new().expect("poller"));
    let mut control = listener.accept().expect("control").0;
    control.set_nodelay(true).expect("nodelay");
    let mut hosts = Vec::new();
    for i in 0..3 {
        let mut host = Host::new(poller.clone(), i * 10..i * 10 + 10, only(i == 0, i == 1, i == 2)).expect("host");
        host.register(0, &Memory::shared(memory.clone())).expect("register");
        let metadata = bytes(&mut control);
        let link = host.connect(LINK, &metadata).expect("connect");
        hosts.push((host, link.name, metadata));
    }
    tell(&mut control, &hosts[2].0.metadata());
    hosts[2].0.attach(LINK, listener.accept().expect("data").0).expect("attach");
    let bare = listener.accept().expect("bare").0;
    bytes(&mut control);
    // The only region's fields end the metadata: address, length, device, inode.
    let field = |m: &[u8], back: usize| u64::from_le_bytes(m[m.len() - back..][..8].try_into().expect("8 bytes"));
    let base = field(&hosts[1].2, 32) as usize;
    // The reference for shared memory copies from a mapping of its own.
    let fd = i32::from_le_bytes(hosts[0].2[hosts[0].2.len() - 36..][..4].try_into().expect("4 bytes"));
    let file = std::fs::File::open(format!("/proc/{pid}/fd/{fd}")).expect("memfd");
    let mapped = unsafe {
        libc::mmap(std::ptr::null_mut(), CAP as usize, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    } as usize;

    println!("{:<10}{:>9}{:>9}{:>12}{:>12}{:>8}", "way", "span", "spans", "ours GB/s", "bare GB/s", "ratio");
    let mut tag = 2;
    for len in [4u64 << 10, 16 << 10, 64 << 10] {
        let spans = permuted(len);
        let total = spans.len() as f64 * len as f64;
        let job =
            |id, action| Job { id: JobId(id), link: LINK, action, spans: permuted(len), staged: false, mark: None };
        for (way, (host, name, _)) in hosts.iter_mut().enumerate() {
            if !wanted(&format!("{name}/{len}")) {
                continue;
            }
            let next = std::cell::Cell::new(tag);
            let take = || next.replace(next.get() + 1);
            let (ours, reference) = if way == 2 {
                let control = std::cell::RefCell::new(&mut control);
                let command = |n: u64| control.borrow_mut().write_all(&(n << 32 | len).to_le_bytes()).expect("command");
                race(
                    || {
                        let tag = take();
                        command(tag);
                        run(host, &poller, job(tag, Action::Receive { tag }), BUDGET);
                    },
                    || {
                        command(1);
                        bare_receive(&bare, &memory, &permuted(len));
                    },
                )
            } else {
                // Both sides make their list within the time measured.
                race(
                    || run(host, &poller, job(take(), Action::Pull), BUDGET),
                    || {
                        let spans = permuted(len);
                        if way == 0 { bare_copy(mapped, &memory, &spans) } else { bare_cma(pid, base, &memory, &spans) }
                    },
                )
            };
            tag = next.get();
            let (a, b) = (total / ours / 1e9, total / reference / 1e9);
            println!("{name:<10}{len:>9}{:>9}{a:>12.2}{b:>12.2}{:>8.2}", spans.len(), a / b);
        }
    }
    for (way, (host, name, _)) in hosts.iter_mut().enumerate() {
        let mut times: Vec<Duration> = (0..10_000u64)
            .map(|i| {
                let id = 1000 + i;
                let action = if way == 2 { Action::Receive { tag: id } } else { Action::Pull };
                let job = Job { id: JobId(id), link: LINK, action, spans: permuted(1), staged: false, mark: None };
                let t = Instant::now();
                if way == 2 {
                    control.write_all(&(id << 32 | 1).to_le_bytes()).expect("command");
                }
                run(host, &poller, job, BUDGET);
                t.elapsed()
            })
            .collect();
        times.sort();
        println!("{name}: 16 KiB, posted to done: median {:?}, 99 % {:?}", times[5000], times[9900]);
    }
    for (host, name, _) in hosts.iter_mut().take(2) {
        for len in [64u64, 64 << 10] {
            // Far apart and unpacked: the worst case for a turn.
            let spans = (0..CAP / (64 << 10) * 8)
                .map(|i| Span {
                    src_offset: i * (8 << 10),
                    dst_offset: i * (8 << 10),
                    len: len.min(8 << 10),
                    ..Span::default()
                })
                .collect();
            host.post(Job { id: JobId(1), link: LINK, action: Action::Pull, spans, staged: false, mark: None })
                .expect("post");
            let (mut done, mut times) = (Vec::new(), Vec::new());
            while done.is_empty() {
                let t = Instant::now();
                host.progress(&[], Slice::of(BUDGET), &mut done);
                times.push(t.elapsed());
            }
            times.sort();
            let (mid, high) = (times[times.len() / 2], times[times.len() * 9 / 10]);
            println!("{name}: one call of progress, spans of {} B: median {mid:?}, 90 % {high:?}", len.min(8 << 10));
        }
    }
    control.write_all(&0u64.to_le_bytes()).expect("end");
    child.wait().expect("child");
}
