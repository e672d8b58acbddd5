//! Several data connections for one link: that they are there, that a transfer uses all, and what happens when one is
//! missing or too many.

use crate::flat::*;
use crate::rank::{Rank, config};
use crate::raw::{Liar, open};
use crate::transport::TCP;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind};
use kvlink::wire::{Preamble, StreamKind};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::RawFd;

fn rank(name: &str, streams: usize, flat: Flat) -> Rank {
    let mut c = config(TCP, name, 0, 1);
    c.host.streams = streams;
    Rank::start(TCP, c, flat.layout())
}

/// Offsets of two counters in the kernel's `struct tcp_info`, newer than the C library's.
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;

fn counter(info: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(info[at..at + 8].try_into().unwrap())
}

/// What the kernel has sent and received on each connection of this process that was accepted at this address.
fn traffic(address: &str) -> Vec<(u64, u64)> {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().file_name());
    let fds = fds.map(|name| name.to_str().unwrap().parse::<RawFd>().unwrap());
    fds.filter(|fd| local_port(*fd) == Some(port)).filter_map(info).collect()
}

fn local_port(fd: RawFd) -> Option<u16> {
    let mut a: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut n = size_of_val(&a) as libc::socklen_t;
    let r = unsafe { libc::getsockname(fd, (&raw mut a).cast(), &mut n) };
    (r == 0 && i32::from(a.sin_family) == libc::AF_INET).then(|| u16::from_be(a.sin_port))
}

/// Of an established connection.
fn info(fd: RawFd) -> Option<(u64, u64)> {
    let mut b = [0u8; 256];
    let mut n = b.len() as libc::socklen_t;
    let r = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, b.as_mut_ptr().cast(), &mut n) };
    assert!(r != 0 || n as usize >= BYTES_SENT + 8, "this kernel counts {n} bytes of information only");
    (r == 0 && b[0] == 1).then(|| (counter(&b, BYTES_SENT), counter(&b, BYTES_RECEIVED)))
}

#[test]
fn a_large_read_and_a_large_write_use_every_data_connection() {
    for (ours, theirs, expected) in [(4, 4, 4), (2, 4, 2), (4, 1, 1)] {
        let source = rank("prefill", theirs, BIG);
        let sink = rank("decode", ours, BIG);
        BIG.fill(&source, 1);
        let peer = sink.handshake(&source, Direction::Inbound);
        let ids = BIG.order(3);
        let total = ids.len() as u64 * BIG.bytes;
        let (_, ticket) = offer(&source, "r", &ids);
        read(&sink, peer, &ticket, &ids);
        sink.good(EventKind::Transfer);
        // One more for control.
        let after = traffic(source.address());
        assert_eq!(after.len(), expected + 1);
        let used = |n: u64| n >= total / expected as u64;
        assert_eq!(after.iter().filter(|(sent, _)| used(*sent)).count(), expected, "{after:?} of {total}");
        assert_eq!(BIG.pattern(1)[..total as usize], sink.snapshot()[0][..total as usize]);

        // The connections of a writer that connects carry what it writes.
        BIG.fill(&sink, 2);
        let peer = sink.handshake(&source, Direction::Outbound);
        accept(&source, "w", &ids);
        write(&sink, peer, "w", &ids);
        source.good(EventKind::Received);
        let after = traffic(source.address());
        let received = after.iter().filter(|(_, received)| used(*received)).count();
        assert_eq!(received, expected, "{after:?} of {total}");
        assert_eq!(BIG.pattern(2)[..total as usize], source.snapshot()[0][..total as usize]);
    }
}

/// A way to an agent that lets one connection pass and nothing after it.
fn narrow(listener: TcpListener, to: String) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let near = listener.accept().unwrap().0;
        drop(listener);
        let far = TcpStream::connect(to).unwrap();
        let copy = |from: &TcpStream, to: &TcpStream| {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut b = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut b) {
                    if to.write_all(&b[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Both);
                let _ = from.shutdown(std::net::Shutdown::Both);
            })
        };
        let both = [copy(&near, &far), copy(&far, &near)];
        both.into_iter().for_each(|t| t.join().unwrap());
    })
}

#[test]
fn a_data_connection_that_cannot_be_made_fails_the_handshake_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way_in = listener.local_addr().unwrap();
    let mut c = config(TCP, "prefill", 0, 1);
    c.advertise = way_in.to_string();
    c.listen = format!("127.0.0.2:{}", way_in.port());
    let way = narrow(listener, c.listen.clone());
    let _source = Rank::start(TCP, c.clone(), SMALL.layout());
    let sink = rank("decode", 4, SMALL);
    let peer = sink.agent.handshake(&c.advertise, Direction::Inbound, 0).unwrap();
    let e = sink.wait("the handshake's end", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
    assert_eq!(e.status, Status::Unreachable, "{}", e.text);
    assert!(e.text.contains("data connection 1 of 4"), "{}", e.text);
    assert!(e.text.contains(&c.advertise), "{}", e.text);
    way.join().unwrap();
    // Who can be reached is reached.
    let other = rank("other", 4, SMALL);
    sink.handshake(&other, Direction::Inbound);
}

#[test]
fn one_data_connection_too_many_ends_the_session_and_nothing_else() {
    let victim = rank("victim", 4, SMALL);
    let good = rank("good", 4, SMALL);
    let peer = good.handshake(&victim, Direction::Inbound);
    let (raw, token) = Liar::new(TCP, 7).link(victim.address());
    let kept: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut data = open(victim.address());
            data.write_all(&Preamble(StreamKind::Data { token }).encode()).unwrap();
            data
        })
        .collect();
    raw.ended();
    drop(kept);
    still_works(SMALL, &victim, &good, peer, "good");
}
