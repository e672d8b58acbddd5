//! When packing pays: short runs copied one by one against a large copy and a second one within the process. Prints both
//! and where they cross; the constants `layout::STAGE_RUN_BYTES` and `transport::host::STAGE_GAP_BYTES` come from here.
//! `cargo bench --bench staging`.

mod common;

use common::bare::{iovec, pull};
use common::filled;
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::{Host, HostOptions};
use kvlink::transport::{Action, Job, JobId, LinkId, Poller, Ready, Slice, Transport};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const AREA: usize = 256 << 20;
const RUNS: usize = 65_536;
const BUFFER: usize = 256 << 10;
const LINK: LinkId = LinkId(1);

fn main() {
    let (src, dst) = (filled(AREA), filled(AREA));
    println!("cross-process copy of {RUNS} runs, ns a run: span by span, or covering reads and unpacking");
    println!("{:>6}{:>8}{:>10}{:>10}{:>10}{:>8}", "run", "gap", "density", "direct", "staged", "gain");
    for gap in [0u64, 64, 256, 1024, 2048, 4096, 8192] {
        let mut cross = None;
        for run in [16u64, 64, 128, 256, 512, 1024, 2048, 4096] {
            if (run + gap) * RUNS as u64 > AREA as u64 {
                continue;
            }
            let spans = strided(run, gap);
            let direct = best(|| direct(&src, &dst, &spans));
            let staged = best(|| staged(&src, &dst, &spans));
            let per = |t: Duration| t.as_nanos() as f64 / spans.len() as f64;
            let gain = per(direct) / per(staged);
            if gain < 1.0 && cross.is_none() {
                cross = Some(run);
            }
            let density = run as f64 / (run + gap) as f64;
            println!("{run:>6}{gap:>8}{density:>10.2}{:>10.1}{:>10.1}{gain:>8.2}", per(direct), per(staged));
        }
        match cross {
            Some(run) => println!("gap {gap}: staging stops paying at runs of {run} bytes"),
            None => println!("gap {gap}: staging pays at every length measured"),
        }
    }
    println!("stream of {RUNS} runs over a loopback socket, ns a run: scattered by the kernel, or packed and unpacked");
    for run in [16u64, 64, 128, 256, 512, 1024, 2048] {
        let (direct, staged) = stream(&src, &dst, &strided(run, 64));
        println!("{run:>6}{direct:>10.1}{staged:>10.1}{:>8.2}", direct / staged);
    }
}

/// Ascending runs in the source, spread over the destination.
fn strided(run: u64, gap: u64) -> Vec<Span> {
    let slots = AREA as u64 / run.max(64) / 2;
    let place = |i: u64| (i * 40_503 % slots.min(RUNS as u64 * 2)) * run.max(64) * 2 % (AREA as u64 - run);
    (0..RUNS as u64)
        .map(|i| Span { src_offset: i * (run + gap), dst_offset: place(i), len: run, src_region: 0, dst_region: 0 })
        .collect()
}

fn best(mut f: impl FnMut()) -> Duration {
    let time = |f: &mut dyn FnMut()| {
        let t = Instant::now();
        f();
        t.elapsed()
    };
    (0..7).map(|_| time(&mut f)).min().unwrap_or_default()
}

/// Reading one's own memory costs what reading another's does.
fn own() -> i32 {
    std::process::id() as i32
}

fn direct(src: &SharedMemory, dst: &SharedMemory, spans: &[Span]) {
    let (mut local, mut remote) = (Vec::with_capacity(1024), Vec::<libc::iovec>::with_capacity(1024));
    for part in spans.chunks(1024) {
        local.clear();
        remote.clear();
        for s in part {
            local.push(iovec(dst.addr() + s.dst_offset as usize, s.len as usize));
            // Neighbours in the source are one piece, as in the transport.
            match remote.last_mut() {
                Some(v) if v.iov_base as usize + v.iov_len == src.addr() + s.src_offset as usize => {
                    v.iov_len += s.len as usize;
                }
                _ => remote.push(iovec(src.addr() + s.src_offset as usize, s.len as usize)),
            }
        }
        pull(own(), &local, &remote);
    }
}

fn staged(src: &SharedMemory, dst: &SharedMemory, spans: &[Span]) {
    let mut buffer = vec![0u8; BUFFER];
    let mut rest = spans;
    while let Some(first) = rest.first() {
        let fits = |s: &Span| s.src_offset + s.len - first.src_offset <= BUFFER as u64;
        let n = rest.iter().take_while(|s| fits(s)).count();
        let (now, later) = rest.split_at(n);
        let cover = now.last().map_or(0, |s| s.src_offset + s.len - first.src_offset);
        let (from, cover) = (src.addr() + first.src_offset as usize, cover as usize);
        pull(own(), &[iovec(buffer.as_mut_ptr() as usize, cover)], &[iovec(from, cover)]);
        for s in now {
            let from = buffer[(s.src_offset - first.src_offset) as usize..].as_ptr();
            unsafe {
                std::ptr::copy_nonoverlapping(from, (dst.addr() + s.dst_offset as usize) as *mut u8, s.len as usize)
            };
        }
        rest = later;
    }
}

/// Both ends in one thread: what is compared is work, not latency.
fn stream(src: &Arc<SharedMemory>, dst: &Arc<SharedMemory>, spans: &[Span]) -> (f64, f64) {
    let poller = Arc::new(Poller::new().expect("poller"));
    let options = || HostOptions { shm: false, cma: false, ..HostOptions::default() };
    let mut a = Host::new(poller.clone(), 0..4, options()).expect("host");
    let mut b = Host::new(poller.clone(), 4..8, options()).expect("host");
    a.register(0, &Memory::shared(src.clone())).expect("register");
    b.register(0, &Memory::shared(dst.clone())).expect("register");
    a.connect(LINK, &b.metadata()).expect("connect");
    b.connect(LINK, &a.metadata()).expect("connect");
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    a.attach(LINK, TcpStream::connect(listener.local_addr().expect("address")).expect("socket")).expect("attach");
    b.attach(LINK, listener.accept().expect("socket").0).expect("attach");
    let mut tag = 0;
    let mut one = |staged: bool| {
        best(|| {
            tag += 1;
            let job = |action| Job { id: JobId(tag), link: LINK, action, spans: spans.to_vec(), staged, mark: None };
            a.post(job(Action::Send { tag })).expect("post");
            b.post(job(Action::Receive { tag })).expect("post");
            let (mut sent, mut got): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
            let mut ready: Vec<Ready> = Vec::new();
            while got.is_empty() || sent.is_empty() {
                poller.wait(Some(Duration::ZERO), &mut ready).expect("wait");
                a.progress(&ready, Slice::of(1 << 20), &mut sent);
                b.progress(&ready, Slice::of(1 << 20), &mut got);
            }
            assert!(got.iter().chain(&sent).all(|d| d.result.is_ok()));
        })
        .as_nanos() as f64
            / spans.len() as f64
    };
    (one(false), one(true))
}
