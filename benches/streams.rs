//! One transfer over several connections, from the source's process to ours: 1, 2 and 4 sockets, as fast as loopback goes,
//! and with every socket paced as clouds cap a flow. Beside it, in the same run: the same bytes over as many bare sockets,
//! a thread for each on both sides. `cargo bench --bench streams`.

use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::{Action, Job, JobId, LinkId, Poller, Transport};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let n = bytes / SPAN;
    let mut state = 99u64;
    let mut order: Vec<u64> = (0..n).collect();
    for i in (1..n as usize).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    let span =
        |(i, d): (usize, u64)| Span { src_offset: i as u64 * SPAN, dst_offset: d * SPAN, len: SPAN, ..Span::default() };
    order.into_iter().enumerate().map(span).collect()
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

fn memory() -> Arc<SharedMemory> {
    let m = Arc::new(SharedMemory::allocate(SIZES[SIZES.len() - 1] as usize).unwrap());
    unsafe { std::ptr::write_bytes(m.addr() as *mut u8, 7, m.len()) };
    m
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
        let (poller, memory) = (Arc::new(Poller::new().unwrap()), memory());
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
        let host = &mut self.hosts[link];
        host.post(Job { id: JobId(id), link: LINK, action, spans: spans(bytes), staged: false, mark: None }).unwrap();
        let (mut ready, mut done, mut more) = (Vec::new(), Vec::new(), true);
        while done.is_empty() {
            let wait = if more { Duration::ZERO } else { Duration::from_secs(10) };
            self.poller.wait(Some(wait), &mut ready).unwrap();
            more = host.progress(&ready, 1 << 20, &mut done);
        }
        done.pop().unwrap().result.unwrap();
    }

    /// Every socket moves a contiguous part of the spans on a thread of its own.
    fn bare(&self, link: usize, bytes: u64, side: fn(&Span) -> u64, call: fn(i32, &[libc::iovec]) -> isize) {
        let sockets = &self.bare[link];
        let (list, base) = (spans(bytes), self.memory.addr());
        std::thread::scope(|scope| {
            for (socket, part) in sockets.iter().zip(list.chunks(list.len().div_ceil(sockets.len()))) {
                scope.spawn(move || {
                    let iovec = |s: &Span| (base + side(s) as usize, s.len as usize);
                    let one = |(at, len)| libc::iovec { iov_base: at as *mut _, iov_len: len };
                    let mut list: Vec<libc::iovec> = part.iter().map(iovec).map(one).collect();
                    vectored(&mut list, |part| call(socket.as_raw_fd(), part));
                });
            }
        });
    }
}

/// Calls until every piece of the list was moved, 4 MiB at a time.
fn vectored(list: &mut [libc::iovec], call: impl Fn(&[libc::iovec]) -> isize) {
    let mut at = 0;
    while at < list.len() {
        let mut n = usize::try_from(call(&list[at..list.len().min(at + 64)])).expect("bare call");
        while n > 0 {
            let take = n.min(list[at].iov_len);
            list[at].iov_base = (list[at].iov_base as usize + take) as *mut _;
            list[at].iov_len -= take;
            n -= take;
            at += usize::from(list[at].iov_len == 0);
        }
    }
}

fn send(fd: i32, part: &[libc::iovec]) -> isize {
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    (m.msg_iov, m.msg_iovlen) = (part.as_ptr().cast_mut(), part.len() as _);
    unsafe { libc::sendmsg(fd, &m, libc::MSG_NOSIGNAL) }
}

fn receive(fd: i32, part: &[libc::iovec]) -> isize {
    unsafe { libc::readv(fd, part.as_ptr(), part.len() as i32) }
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

struct Remote {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    fn tell(&mut self, link: usize, id: u64, bytes: u64) {
        writeln!(self.stdin, "{link} {id} {bytes}").unwrap();
    }

    fn done(&mut self) {
        self.lines.next().unwrap().unwrap();
    }
}

fn parent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, listener.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
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
    let stdin = process.stdin.take().unwrap();
    let mut remote = Remote { stdin, lines: BufReader::new(process.stdout.take().unwrap()).lines() };
    remote.done();

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
                remote.tell(link, tag, bytes);
                side.run(link, tag, Action::Receive { tag }, bytes);
                let a = begin.elapsed().as_secs_f64();
                remote.done();
                let begin = Instant::now();
                remote.tell(link, 0, bytes);
                side.bare(link, bytes, |s| s.dst_offset, receive);
                let b = begin.elapsed().as_secs_f64();
                remote.done();
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
    drop(remote);
    process.wait().unwrap();
}

fn main() {
    match std::env::var(CHILD) {
        Ok(address) => child(&address),
        Err(_) => parent(),
    }
}
