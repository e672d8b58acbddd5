//! One transfer over several connections, from the source's process to ours: 1, 2 and 4 sockets, as fast as loopback goes,
//! and with every socket paced as clouds cap a flow. Beside it, in the same run: the same bytes over as many bare sockets,
//! a thread for each on both sides. `cargo bench --bench streams`.

mod common;

use common::bare::{iovec, receive, run, send, vectored};
use common::remote::Remote;
use common::{filled, permuted};
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::{Action, Job, JobId, LinkId, Poller, Transport};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

const LINK: LinkId = LinkId(1);
const SPAN: u64 = 64 << 10;
const SIZES: [u64; 3] = [1 << 20, 8 << 20, 256 << 20];
const SOCKETS: [usize; 3] = [1, 2, 4];
/// Bits a second of one socket; 0: as fast as it goes.
const RATES: [u64; 2] = [0, 5_000_000_000];
/// At least so many rounds, and up to a hundred of small transfers; the best counts.
const ROUNDS: u64 = 9;
const CHILD: &str = "KVLINK_BENCH_STREAMS";

/// Permuted blocks of 64 KiB.
fn spans(bytes: u64) -> Vec<Span> {
    let span = |(s, d): (u64, u32)| Span {
        src_offset: s * SPAN,
        dst_offset: u64::from(d) * SPAN,
        len: SPAN,
        ..Span::default()
    };
    (0..).zip(permuted((bytes / SPAN) as u32, 99)).map(span).collect()
}

fn pace(socket: &TcpStream, bits: u64) {
    if bits == 0 {
        return;
    }
    let bytes = bits / 8;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE);
    let r = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const bytes).cast(), 8) };
    assert_eq!(r, 0, "SO_MAX_PACING_RATE: {}", std::io::Error::last_os_error());
}

/// One end of every link, over one memory.
struct Side {
    hosts: Vec<Host>,
    /// Bare sockets of each link.
    bare: Vec<Vec<TcpStream>>,
    poller: Arc<Poller>,
    memory: Arc<SharedMemory>,
}

fn links() -> impl Iterator<Item = (u64, usize)> {
    RATES.into_iter().flat_map(|rate| SOCKETS.into_iter().map(move |n| (rate, n)))
}

impl Side {
    /// Both sides make the same links in the same order; `socket` makes the connections.
    fn new(mut exchange: impl FnMut(Vec<u8>) -> Vec<u8>, mut socket: impl FnMut() -> TcpStream) -> Side {
        let (poller, memory) = (Arc::new(Poller::new().unwrap()), filled(SIZES[SIZES.len() - 1] as usize));
        let (mut hosts, mut bare) = (Vec::new(), Vec::new());
        for (i, (rate, n)) in links().enumerate() {
            let options = HostOptions { shm: false, cma: false, streams: n, ..HostOptions::default() };
            let keys = i as u64 * 100..i as u64 * 100 + 100;
            let mut host = Host::new(poller.clone(), keys, options).unwrap();
            host.register(0, &Memory::shared(memory.clone())).unwrap();
            let theirs = exchange(host.metadata());
            host.connect(LINK, &theirs).unwrap();
            let mut plain = Vec::new();
            for _ in 0..n {
                let (a, b) = (socket(), socket());
                pace(&a, rate);
                pace(&b, rate);
                b.set_nodelay(true).unwrap();
                host.attach(LINK, a).unwrap();
                plain.push(b);
            }
            hosts.push(host);
            bare.push(plain);
        }
        Side { hosts, bare, poller, memory }
    }

    fn run(&mut self, link: usize, id: u64, action: Action, bytes: u64) {
        let job = Job { id: JobId(id), link: LINK, action, spans: spans(bytes), staged: false, mark: None };
        run(&mut self.hosts[link], &self.poller, job, 1 << 20);
    }

    /// Every socket moves a contiguous part of the spans on a thread of its own.
    fn bare(&self, link: usize, bytes: u64, side: fn(&Span) -> u64, call: fn(i32, &[libc::iovec]) -> isize) {
        let sockets = &self.bare[link];
        let (list, base) = (spans(bytes), self.memory.addr());
        std::thread::scope(|scope| {
            for (socket, part) in sockets.iter().zip(list.chunks(list.len().div_ceil(sockets.len()))) {
                scope.spawn(move || {
                    let one = |s: &Span| iovec(base + side(s) as usize, s.len as usize);
                    let mut list: Vec<libc::iovec> = part.iter().map(one).collect();
                    vectored(&mut list, 64, |part| call(socket.as_raw_fd(), part));
                });
            }
        });
    }
}

/// The source: sends what it is told.
fn child(address: &str) {
    let mut control = TcpStream::connect(address).unwrap();
    let exchange = |ours: Vec<u8>| {
        control.write_all(&(ours.len() as u64).to_le_bytes()).unwrap();
        control.write_all(&ours).unwrap();
        let mut n = [0; 8];
        control.read_exact(&mut n).unwrap();
        let mut theirs = vec![0; u64::from_le_bytes(n) as usize];
        control.read_exact(&mut theirs).unwrap();
        theirs
    };
    let mut side = Side::new(exchange, || TcpStream::connect(address).unwrap());
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").unwrap();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<u64> = line.split(' ').map(|w| w.parse().unwrap()).collect();
        let (link, id, bytes) = (words[0] as usize, words[1], words[2]);
        match id {
            0 => side.bare(link, bytes, |s| s.src_offset, send),
            tag => side.run(link, tag, Action::Send { tag }, bytes),
        }
        writeln!(out, "done").unwrap();
    }
}

fn parent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut remote = Remote::start(CHILD, &listener.local_addr().unwrap().to_string());
    let mut control = listener.accept().unwrap().0;
    let exchange = |ours: Vec<u8>| {
        let mut n = [0; 8];
        control.read_exact(&mut n).unwrap();
        let mut theirs = vec![0; u64::from_le_bytes(n) as usize];
        control.read_exact(&mut theirs).unwrap();
        control.write_all(&(ours.len() as u64).to_le_bytes()).unwrap();
        control.write_all(&ours).unwrap();
        theirs
    };
    let mut side = Side::new(exchange, || listener.accept().unwrap().0);
    remote.line();

    println!(
        "{:<12}{:>8}{:>9}{:>10}{:>10}{:>8}{:>12}",
        "a socket", "sockets", "KiB", "GB/s", "bare", "ratio", "over one"
    );
    let mut tag = 0;
    let mut single = [f64::MAX; SIZES.len()];
    for (link, (rate, sockets)) in links().enumerate() {
        for (i, bytes) in SIZES.into_iter().enumerate() {
            let (mut ours, mut bare) = (f64::MAX, f64::MAX);
            // The first round warms up.
            for round in 0..=((1 << 30) / bytes).clamp(ROUNDS, 100) {
                tag += 1;
                let begin = Instant::now();
                remote.tell(&format!("{link} {tag} {bytes}"));
                side.run(link, tag, Action::Receive { tag }, bytes);
                let a = begin.elapsed().as_secs_f64();
                remote.line();
                let begin = Instant::now();
                remote.tell(&format!("{link} 0 {bytes}"));
                side.bare(link, bytes, |s| s.dst_offset, receive);
                let b = begin.elapsed().as_secs_f64();
                remote.line();
                if round > 0 {
                    (ours, bare) = (ours.min(a), bare.min(b));
                }
            }
            if sockets == 1 {
                single[i] = ours;
            }
            let alone = single[i];
            let name = if rate == 0 { "loopback".to_string() } else { format!("{} Gb/s", rate / 1_000_000_000) };
            let gb = bytes as f64 / 1e9;
            println!(
                "{name:<12}{sockets:>8}{:>9}{:>10.2}{:>10.2}{:>8.2}{:>12.2}",
                bytes >> 10,
                gb / ours,
                gb / bare,
                bare / ours,
                alone / ours
            );
        }
    }
}

fn main() {
    match std::env::var(CHILD) {
        Ok(address) => child(&address),
        Err(_) => parent(),
    }
}
