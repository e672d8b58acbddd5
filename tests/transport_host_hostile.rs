//! A peer that writes whatever it likes to the data socket.

mod host;

use host::*;
use kvlink::error::{Error, Status};
use kvlink::layout::Span;
use kvlink::transport::{Action, Transport};
use std::io::{Read, Write};
use std::net::TcpStream;

const SIZE: usize = 1 << 20;
const MAGIC: u32 = 0x4B56_0000;

fn header(kind: u32, tag: u64, offset: u64, length: u64, status: i32) -> Vec<u8> {
    let mut b = (MAGIC | kind).to_le_bytes().to_vec();
    b.extend(status.to_le_bytes());
    for word in [tag, offset, length, 0, 0] {
        b.extend(word.to_le_bytes());
    }
    b
}

/// A stream of one lane that nobody waits for.
fn opening(tag: u64, total: u64) -> Vec<u8> {
    let mut b = header(1, tag, 0, total, 0);
    b[32..40].copy_from_slice(&total.to_le_bytes());
    b
}

/// A sink that waits for stream 1, and a socket of a peer that knows how to open it.
struct Victim {
    node: Node,
    socket: TcpStream,
    open: Vec<u8>,
    list: Vec<Span>,
}

fn victim() -> Victim {
    let list: Vec<Span> = (0..10)
        .map(|i| Span { src_offset: i * 100, dst_offset: i * 5000, len: 1000, src_region: REGION, dst_region: REGION })
        .collect();
    // An honest sender says what the opening looks like.
    let mut honest = Node::new(Way::Tcp.options(), Block::new(false, 1, SIZE));
    let mut node = Node::new(Way::Tcp.options(), Block::new(false, 2, SIZE));
    let (near, mut far) = sockets();
    honest.host.connect(LINK, &node.host.metadata()).unwrap();
    honest.host.attach(LINK, near).unwrap();
    honest.host.post(job(1, Action::Send { tag: 1 }, list.clone(), false)).unwrap();
    honest.round(std::time::Duration::ZERO, 1 << 20);
    let mut open = vec![0; 48];
    far.read_exact(&mut open).unwrap();
    node.host.connect(LINK, &honest.host.metadata()).unwrap();
    let (socket, theirs) = sockets();
    node.host.attach(LINK, theirs).unwrap();
    node.host.post(job(1, Action::Receive { tag: 1 }, list.clone(), false)).unwrap();
    Victim { node, socket, open, list }
}

/// What becomes of the receive if the peer writes this and closes. Nothing outside the spans may change.
fn attack(make: impl Fn(&[u8]) -> Vec<u8>) -> Error {
    let mut v = victim();
    let bytes = make(&v.open);
    // The victim may hang up before it has read everything.
    let _ = v.socket.write_all(&bytes);
    let _ = v.socket.shutdown(std::net::Shutdown::Write);
    let done = v.node.finish(1);
    let clean = pattern(2, SIZE);
    let mut inside = vec![false; SIZE];
    for s in &v.list {
        inside[s.dst_offset as usize..(s.dst_offset + s.len) as usize].fill(true);
    }
    let outside = v.node.block.bytes().iter().zip(&clean).zip(&inside).all(|((a, b), inside)| *inside || a == b);
    assert!(outside, "bytes outside the spans changed");
    let e = done.result.unwrap_err();
    assert_eq!(v.node.host.post(job(2, Action::Receive { tag: 2 }, vec![], false)).unwrap_err().status(), e.status());
    e
}

fn refused(make: impl Fn(&[u8]) -> Vec<u8>, says: &str) {
    let e = attack(make);
    assert_eq!(e.status(), Status::Protocol, "{e}");
    assert!(e.message().contains(says), "{e}");
}

#[test]
fn garbage_breaks_the_link() {
    refused(|_| b"GET / HTTP/1.1\r\nHost: example\r\nUser-Agent: somebody\r\n\r\n".to_vec(), "magic");
    refused(|_| header(9, 1, 0, 0, 0), "kind 0x9");
    refused(|_| header(3, 1, 0, 5, 1), "status 0x1");
    let mut total = header(3, 1, 0, 5, 0);
    total[32] = 1;
    refused(|_| total.clone(), "total 0x1");
    refused(|_| header(4, 1, 0, 0, 77), "status 77");
}

#[test]
fn chunks_that_do_not_fit_break_the_link() {
    let after = |open: &[u8], rest: Vec<u8>| [open.to_vec(), rest].concat();
    refused(|o| after(o, header(3, 1, 0, 10_001, 0)), "10001 bytes where 10000 are left");
    refused(|o| after(o, header(3, 1, 0, u64::MAX, 0)), "18446744073709551615 bytes where 10000 are left");
    refused(|o| after(o, header(3, 1, 8, 100, 0)), "offset 8 where 0 is next");
    refused(|o| after(o, header(3, 1, u64::MAX, 100, 0)), "where 0 is next");
    refused(|o| after(o, header(4, 1, 0, 0, 0)), "ended after 0 of 10000 bytes");
    let partial = [header(3, 1, 0, 4000, 0), vec![7; 4000], header(3, 1, 4000, 6001, 0), vec![7; 6001]].concat();
    refused(|o| after(o, partial.clone()), "6001 bytes where 6000 are left");
}

#[test]
fn streams_that_nobody_opened_break_the_link() {
    refused(|_| header(3, 44, 0, 100, 0), "stream 44");
    refused(|_| header(4, 44, 0, 0, -300), "stream 44");
    refused(|o| [o, o].concat(), "opened twice");
    refused(|_| [opening(5, 100), header(3, 5, 0, 100, 0)].concat(), "before it was accepted");
    refused(|_| [opening(5, 100), header(4, 5, 0, 0, 0)].concat(), "before it was accepted");
    let flood: Vec<u8> = (10..2000).flat_map(|tag| opening(tag, 1 << 40)).collect();
    refused(|_| flood.clone(), "1024 may");
}

#[test]
fn answers_to_nothing_are_harmless_and_answers_twice_are_not() {
    let harmless = [header(2, 70, 0, 0, 0), header(5, 70, 0, 0, -300)].concat();
    let e = attack(|_| harmless.clone());
    assert_eq!(e.status(), Status::PeerDead);
    let mut v = victim();
    let list = v.list.clone();
    v.node.host.post(job(9, Action::Send { tag: 9 }, list, false)).unwrap();
    v.node.round(std::time::Duration::ZERO, 1 << 20);
    v.socket.write_all(&[header(2, 9, 0, 0, 0), header(2, 9, 0, 0, 0)].concat()).unwrap();
    // Either it was sent in between, then the second answer is for nothing, or it is refused.
    let done = v.node.finish(9);
    assert!(done.result.is_ok() || done.result.unwrap_err().status() == Status::Protocol);
}

#[test]
fn a_wrong_digest_ends_the_stream_and_not_the_link() {
    let mut v = victim();
    let mut open = v.open.clone();
    open[47] ^= 1;
    v.socket.write_all(&open).unwrap();
    let e = v.node.finish(1).result.unwrap_err();
    assert_eq!(e.status(), Status::Protocol);
    assert!(e.message().contains("different spans"), "{e}");
    let mut answer = [0; 48];
    v.node.round(std::time::Duration::ZERO, 1 << 20);
    v.socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, header(5, 1, 0, 0, Status::Protocol.code())[..]);
    v.node.host.post(job(2, Action::Receive { tag: 2 }, vec![], false)).unwrap();
}

#[test]
fn a_stream_that_breaks_off_is_a_dead_peer() {
    let whole = [header(3, 1, 0, 10_000, 0), vec![9; 10_000], header(4, 1, 0, 0, 0)].concat();
    for cut in [0, 1, 47, 48, 49, 5000, 10_047, 10_048, 10_060, 10_095] {
        let e = attack(|o| [o, &whole[..cut]].concat());
        assert_eq!(e.status(), Status::PeerDead, "cut after {cut}: {e}");
    }
}

#[test]
fn a_cancelled_stream_may_not_send_more_than_it_announced() {
    let mut v = victim();
    v.socket.write_all(&v.open).unwrap();
    v.socket.write_all(&[header(3, 1, 0, 100, 0), vec![5; 50]].concat()).unwrap();
    within("the first bytes", || {
        v.node.round(std::time::Duration::from_millis(1), 1 << 20);
        v.node.block.bytes()[..50] == [5; 50]
    });
    v.node.host.cancel(kvlink::transport::JobId(1), Status::Cancelled);
    let frozen = v.node.block.bytes().to_vec();
    v.socket.write_all(&[vec![6; 50], header(3, 1, 100, 9900, 0), vec![6; 9900]].concat()).unwrap();
    v.socket.write_all(&header(3, 1, 10_000, 1, 0)).unwrap();
    within("the refusal", || {
        v.node.round(std::time::Duration::from_millis(1), 1 << 20);
        v.node
            .host
            .post(job(50, Action::Receive { tag: 50 }, vec![], false))
            .is_err_and(|e| e.status() == Status::Protocol)
    });
    assert!(v.node.block.bytes() == frozen);
}

#[test]
fn random_bytes_after_an_honest_opening() {
    let mut rng = Rng(4);
    for _ in 0..200 {
        let mut tail = Vec::new();
        for _ in 0..rng.below(6) {
            let kind = 1 + rng.below(5) as u32;
            tail.extend(header(kind, 1 + rng.below(2), rng.below(3) * 100, rng.below(300), 0));
            tail.extend(vec![0xAB; rng.below(300) as usize]);
        }
        let e = attack(|o| [o, &tail].concat());
        assert!(matches!(e.status(), Status::Protocol | Status::PeerDead), "{e}");
    }
}
