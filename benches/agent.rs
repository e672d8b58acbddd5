//! Latency of whole requests between two processes: call to completion event, polling and through the event descriptor;
//! idle CPU time. Beside it, in the same run: one pull by the bare system call, one round trip over a bare socket.

use kvlink::agent::{Agent, AgentConfig};
use kvlink::error::Status;
use kvlink::layout::form::{Place, Record};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, EventKind, Offer, ReadArgs};
use kvlink::wire::Blocks;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u32 = 16 << 10;
const REQUESTS: usize = 4000;
/// Blocks in use: after the first rounds their pages are mapped, as an engine's are.
const WARM: usize = 64;

fn layout() -> Arc<Layout> {
    let blocks = 4096;
    let place = Place { region: 0, offset: 0, num_blocks: blocks, block_stride: 0, layer_stride: 0 };
    let record = Record {
        layers: &[0],
        role: "x",
        group: 0,
        place,
        block_tokens: 16,
        element: Element::of(DType::U8),
        elements: u64::from(BLOCK / 16),
        token_stride: 0,
    };
    let (tensors, bytes) = record.tensors().unwrap();
    let group = Group {
        kind: GroupKind::Paged,
        block_tokens: 16,
        num_blocks: blocks,
        reach: Reach::Full,
        context: Default::default(),
    };
    let regions = vec![Region { len: bytes }];
    Arc::new(Layout::new(LayoutDesc { model: "bench".into(), regions, groups: vec![group], tensors }).unwrap())
}

fn start(name: &str, way: &str) -> (Agent, Arc<SharedMemory>) {
    let layout = layout();
    let mut config = AgentConfig::new(name, 0, 1);
    config.host.shm = way == "shm";
    config.host.cma = way == "cma";
    config.endpoint.lease = Duration::from_secs(300);
    let agent = Agent::new(config, layout.clone()).unwrap();
    let memory = Arc::new(SharedMemory::allocate(layout.regions()[0].len as usize).unwrap());
    agent.register(0, Memory::shared(memory.clone())).unwrap();
    (agent, memory)
}

fn source(way: &str) {
    let (agent, _memory) = start("prefill", way);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", agent.address()).unwrap();
    for i in 0..REQUESTS {
        let blocks = vec![Blocks { first: 0, ids: vec![(i % WARM) as u32] }];
        let offer = Offer { request: format!("r{i}"), blocks, tokens: 16, lease: None, user_data: 0 };
        let id = agent.offer(offer).unwrap();
        let hex: String = agent.ticket(id).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        writeln!(out, "{hex}").unwrap();
    }
    out.flush().unwrap();
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn percentile(mut v: Vec<f64>, p: f64) -> f64 {
    v.sort_by(f64::total_cmp);
    v[((v.len() - 1) as f64 * p) as usize]
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn sink(way: &str) {
    let exe = std::env::current_exe().unwrap();
    let mut child =
        Command::new(exe).args(["--source", way]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|l| l.unwrap());
    let address = lines.next().unwrap();
    let tickets: Vec<Vec<u8>> = lines
        .take(REQUESTS)
        .map(|l| (0..l.len() / 2).map(|i| u8::from_str_radix(&l[2 * i..2 * i + 2], 16).unwrap()).collect())
        .collect();
    let (agent, _memory) = start("decode", way);
    let peer = agent.handshake(&address, Direction::Inbound, 0).unwrap();
    loop {
        let e = agent.events().poll(1, Some(Duration::from_secs(10))).remove(0);
        if e.kind == EventKind::Handshake {
            assert_eq!(e.status, Status::Ok, "{}", e.text);
            break;
        }
    }
    let (mut calls, mut polled, mut waited) = (Vec::new(), Vec::new(), Vec::new());
    for (i, ticket) in tickets.iter().enumerate() {
        let spin = i < REQUESTS / 2;
        if !spin && i % 8 == 0 {
            // Lets the reactor fall asleep: the descriptor's users come back from a wait.
            std::thread::sleep(Duration::from_micros(500));
        }
        let begin = Instant::now();
        let blocks = vec![Blocks { first: 0, ids: vec![(i % WARM) as u32] }];
        let args = ReadArgs {
            peer,
            ticket,
            blocks,
            token_begin: 0,
            token_end: None,
            layers: (0, u32::MAX),
            timeout: None,
            user_data: 0,
        };
        agent.read(args).unwrap();
        calls.push(begin.elapsed().as_secs_f64() * 1e6);
        let event = loop {
            if !spin {
                poll(&mut [PollFd::new(&agent.events().fd(), PollFlags::IN)], None).unwrap();
            }
            if let Some(e) = agent.poll(1, Some(Duration::ZERO)).pop() {
                break e;
            }
        };
        let time = begin.elapsed().as_secs_f64() * 1e6;
        // What an event loop does before it waits again.
        while agent.poll(1, Some(Duration::ZERO)).pop().is_some() {}
        assert_eq!(event.status, Status::Ok, "{}", event.text);
        if spin { &mut polled } else { &mut waited }.push(time);
    }
    let (p50, p99) = (percentile(calls.clone(), 0.5), percentile(calls, 0.99));
    println!("{way:>4}: the call itself               p50 {p50:7.1} us   p99 {p99:7.1} us");
    let (p50, p99) = (percentile(polled.clone(), 0.5), percentile(polled, 0.99));
    println!("{way:>4}: 16 KiB read, polling         p50 {p50:7.1} us   p99 {p99:7.1} us");
    let (p50, p99) = (percentile(waited.clone(), 0.5), percentile(waited, 0.99));
    println!("{way:>4}: 16 KiB read, event descriptor p50 {p50:7.1} us   p99 {p99:7.1} us");
    let before = cpu();
    std::thread::sleep(Duration::from_secs(2));
    println!("{way:>4}: idle agent uses {:.2} % of a core", (cpu() - before) / 2.0 * 100.0);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
}

fn reference() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let mut s = listener.accept().unwrap().0;
        s.set_nodelay(true).unwrap();
        let mut b = [0u8; 64];
        while s.read_exact(&mut b).is_ok() {
            s.write_all(&b).unwrap();
        }
    });
    let mut s = TcpStream::connect(address).unwrap();
    s.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begin = Instant::now();
        let mut b = [0u8; 64];
        s.write_all(&b).unwrap();
        s.read_exact(&mut b).unwrap();
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    drop(s);
    echo.join().unwrap();
    println!("reference: 64-byte round trip, two blocking threads  p50 {:.1} us", percentile(times, 0.5));
    let (a, mut b) = (vec![1u8; BLOCK as usize], vec![0u8; BLOCK as usize]);
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begin = Instant::now();
        b.copy_from_slice(std::hint::black_box(&a));
        std::hint::black_box(&b);
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    println!("reference: 16 KiB memcpy                             p50 {:.1} us", percentile(times, 0.5));
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--source") {
        return source(&args[at + 1]);
    }
    reference();
    for way in ["shm", "cma", "tcp"] {
        sink(way);
    }
}
