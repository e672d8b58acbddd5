//! Latency of whole requests between two processes: call to completion event, polling, through the event descriptor and with
//! a poll that waits; idle CPU time. Beside it, in the same run: one pull by the bare system call, one round trip over a bare socket.

mod common;

use common::engine::{begin_read, layout, offer, wait};
use common::remote::Remote;
use common::{cpu, hex, percentile, unhex};
use kvlink::agent::{Agent, AgentConfig};
use kvlink::error::Status;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, EventKind};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u32 = 16 << 10;
const REQUESTS: usize = 4000;
/// Blocks in use: after the first rounds their pages are mapped, as an engine's are.
const WARM: usize = 64;
const CHILD: &str = "KVLINK_BENCH_AGENT";

fn start(name: &str, way: &str) -> (Agent, Arc<SharedMemory>) {
    let layout = layout(1, 4096, BLOCK);
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
        let ticket = offer(&agent, &format!("r{i}"), &[(i % WARM) as u32]);
        writeln!(out, "{}", hex(&ticket)).unwrap();
    }
    out.flush().unwrap();
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn sink(way: &str) {
    let mut source = Remote::start(CHILD, way);
    let address = source.line();
    let tickets: Vec<Vec<u8>> = (0..REQUESTS).map(|_| unhex(&source.line())).collect();
    let (agent, _memory) = start("decode", way);
    let peer = agent.handshake(&address, Direction::Inbound, 0).unwrap();
    wait(&agent, EventKind::Handshake);
    let mut calls = Vec::new();
    // An engine that polls in a loop, one that waits for the descriptor, one that waits in the call.
    let mut times: [Vec<f64>; 3] = Default::default();
    for (i, ticket) in tickets.iter().enumerate() {
        let how = i * times.len() / REQUESTS;
        if how > 0 && i % 8 == 0 {
            // Lets the reactor fall asleep: the descriptor's users come back from a wait.
            std::thread::sleep(Duration::from_micros(500));
        }
        let begin = Instant::now();
        let call = begin_read(&agent, peer, ticket, &[(i % WARM) as u32], 1);
        calls.push(call.as_secs_f64() * 1e6);
        let event = loop {
            if how == 1 {
                poll(&mut [PollFd::new(&agent.events().fd(), PollFlags::IN)], None).unwrap();
            }
            if let Some(e) = agent.poll(1, if how == 2 { None } else { Some(Duration::ZERO) }).pop() {
                break e;
            }
        };
        let time = begin.elapsed().as_secs_f64() * 1e6;
        // What an event loop does before it waits again.
        while how == 1 && agent.poll(1, Some(Duration::ZERO)).pop().is_some() {}
        assert_eq!(event.status, Status::Ok, "{}", event.text);
        times[how].push(time);
    }
    let [polled, waited, blocked] = &mut times;
    for (what, times) in [
        ("the call itself", &mut calls),
        ("16 KiB read, polling", polled),
        ("16 KiB read, event descriptor", waited),
        ("16 KiB read, poll that waits", blocked),
    ] {
        let (p50, p99) = (percentile(times, 0.5), percentile(times, 0.99));
        println!("{way:>4}: {what:<30} p50 {p50:7.1} us   p99 {p99:7.1} us");
    }
    let before = cpu();
    std::thread::sleep(Duration::from_secs(2));
    println!("{way:>4}: idle agent uses {:.2} % of a core", (cpu() - before) / 2.0 * 100.0);
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
    println!("reference: 64-byte round trip, two blocking threads  p50 {:.1} us", percentile(&mut times, 0.5));
    let (a, mut b) = (vec![1u8; BLOCK as usize], vec![0u8; BLOCK as usize]);
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begin = Instant::now();
        b.copy_from_slice(std::hint::black_box(&a));
        std::hint::black_box(&b);
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    println!("reference: 16 KiB memcpy                             p50 {:.1} us", percentile(&mut times, 0.5));
}

fn main() {
    if let Ok(way) = std::env::var(CHILD) {
        return source(&way);
    }
    reference();
    for way in ["shm", "cma", "tcp"] {
        sink(way);
    }
}
