//! Streams that travel over several sockets of their link: every byte in its place, one end for all lanes.

mod host;

use host::*;
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::transport::host::HostOptions;
use kvlink::transport::{Action, JobId, Transport};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const SIZE: usize = 12 << 20;

fn options(streams: usize) -> HostOptions {
    HostOptions { streams, ..Way::Tcp.options() }
}

fn pair(sockets: usize, chunk_bytes: u32) -> Pair {
    let options = HostOptions { chunk_bytes, ..options(sockets) };
    let source = Node::new(options.clone(), Block::new(false, 1, SIZE));
    let sink = Node::new(options, Block::new(false, 2, SIZE));
    Pair::link(Way::Tcp, source, sink, sockets)
}

fn bytes(list: &[Span]) -> u64 {
    list.iter().map(|s| s.len).sum()
}

/// Spans of about 10 MiB.
fn large(seed: u64) -> Vec<Span> {
    let list = spans(seed, 1200, 20_000, SIZE as u64, SIZE as u64);
    assert!(bytes(&list) > 8 << 20);
    list
}

/// Moves bytes until some have arrived and many have not.
fn to_the_middle(pair: &mut Pair) {
    let before = pair.sink.block.bytes().to_vec();
    within("the first bytes", || {
        pair.round(200_000);
        pair.sink.block.bytes() != before
    });
    assert!(pair.sink.done.is_empty(), "too fast to be in the middle");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_lands_where_a_plain_copy_puts_it(
        seed: u64,
        (count, longest) in prop_oneof![
            Just((0usize, 1u64)), Just((1, 9 << 20)), Just((3, 4 << 20)), Just((900, 20_000)), Just((60_000, 230)),
        ],
        sockets in 1usize..6,
        chunk in prop_oneof![Just(4096u32), Just(100_003), Just(1 << 20)],
        staged: bool,
        late: bool,
        empty: bool,
    ) {
        let mut pair = pair(sockets, chunk);
        let mut list = spans(seed, count, longest, SIZE as u64, SIZE as u64);
        if empty {
            // Spans without bytes, at the ends and in between.
            let nothing = Span { src_offset: 5, dst_offset: 5, len: 0, src_region: REGION, dst_region: REGION };
            list = list.iter().flat_map(|s| [nothing, *s]).chain([nothing]).collect();
        }
        let mut model = pair.sink.block.bytes().to_vec();
        apply(&list, pair.source.block.bytes(), &mut model);
        if late {
            pair.source.host.post(job(1, Action::Send { tag: 1 }, list.clone(), staged)).unwrap();
            pair.settle();
            pair.sink.host.post(job(1, Action::Receive { tag: 1 }, list.clone(), !staged)).unwrap();
        } else {
            pair.sink.host.post(job(1, Action::Receive { tag: 1 }, list.clone(), staged)).unwrap();
            pair.settle();
            pair.source.host.post(job(1, Action::Send { tag: 1 }, list.clone(), !staged)).unwrap();
        }
        let done = pair.finish(1);
        prop_assert!(done.result.is_ok(), "{:?}", done.result);
        prop_assert_eq!(done.bytes, bytes(&list));
        prop_assert_eq!(done.spans, list);
        prop_assert!(pair.sink.block.bytes() == model);
    }
}

#[test]
fn a_large_stream_uses_every_socket_and_a_small_one_a_single_one() {
    // Nobody answers: what a lane announces stays in its socket.
    let opened = |len: u64| {
        let mut source = Node::new(options(4), Block::new(false, 1, SIZE));
        let sink = Node::new(options(4), Block::new(false, 2, SIZE));
        source.host.connect(LINK, &sink.host.metadata()).unwrap();
        let far: Vec<TcpStream> = (0..4)
            .map(|_| {
                let (near, far) = sockets();
                source.host.attach(LINK, near).unwrap();
                far.set_nonblocking(true).unwrap();
                far
            })
            .collect();
        let list = vec![Span { src_offset: 0, dst_offset: 0, len, src_region: REGION, dst_region: REGION }];
        source.host.post(job(1, Action::Send { tag: 1 }, list, false)).unwrap();
        while source.round(Duration::ZERO, 1 << 20) {}
        let said = |mut s: &TcpStream| s.read(&mut [0; 100]).unwrap_or(0);
        far.iter().map(said).filter(|n| *n > 0).count()
    };
    assert_eq!(opened(0), 1);
    assert_eq!(opened(64 << 10), 1);
    assert_eq!(opened(SIZE as u64), 4);
}

#[test]
fn a_cancel_in_the_middle_ends_every_lane_on_both_sides() {
    for staged in [false, true] {
        for at_sender in [false, true] {
            let mut pair = pair(4, 64 << 10);
            let id = pair.post(large(3), staged).unwrap();
            to_the_middle(&mut pair);
            let (by, other) = match at_sender {
                true => (&mut pair.source, &mut pair.sink),
                false => (&mut pair.sink, &mut pair.source),
            };
            by.host.cancel(JobId(id), Status::Deadline);
            let frozen = if at_sender { None } else { Some(by.block.bytes().to_vec()) };
            assert!(other.take(id).is_none());
            pair.source.block.bytes_mut().fill(0xEE);
            pair.settle();
            for node in [&mut pair.source, &mut pair.sink] {
                let done = node.take(id).unwrap();
                assert_eq!(done.result.unwrap_err().status(), Status::Deadline);
                assert!(node.done.is_empty(), "it ended more than once");
            }
            match frozen {
                Some(frozen) => assert!(pair.sink.block.bytes() == frozen, "bytes changed after the cancel"),
                // The zeros that fill up a chunk, and what had left, but nothing that was read after the cancel.
                None => assert!(!pair.sink.block.bytes().windows(64).any(|w| w == [0xEE; 64])),
            }
            // All sockets are as good as new.
            let list = large(4);
            let mut model = pair.sink.block.bytes().to_vec();
            apply(&list, pair.source.block.bytes(), &mut model);
            let id = pair.post(list, staged).unwrap();
            pair.finish(id).result.unwrap();
            assert!(pair.sink.block.bytes() == model);
        }
    }
}

/// The receiver ends its job when some lanes have ended and others were not even announced to it.
#[test]
fn a_cancel_reaches_lanes_that_are_still_to_be_announced() {
    let list = large(5);
    let total = bytes(&list);
    let mut by_hand = ByHand::new(&list);
    let half = total / 2;
    by_hand.open(0, 0, half);
    by_hand.data(0, 0, half);
    by_hand.end(0);
    by_hand.node.host.cancel(JobId(1), Status::Cancelled);
    assert_eq!(by_hand.node.finish(1).result.unwrap_err().status(), Status::Cancelled);
    by_hand.node.round(Duration::ZERO, 1 << 20);
    let answers = by_hand.heard();
    assert!(answers.contains(&(5, 1)), "nobody was told: {answers:?}");
}

#[test]
fn deregistering_in_the_middle_ends_every_lane() {
    for at_sender in [false, true] {
        let mut pair = pair(4, 64 << 10);
        let id = pair.post(large(6), false).unwrap();
        to_the_middle(&mut pair);
        let node = if at_sender { &mut pair.source } else { &mut pair.sink };
        node.host.deregister(REGION).unwrap();
        let frozen = pair.sink.block.bytes().to_vec();
        pair.source.block.bytes_mut().fill(0xEE);
        let e = pair.finish(id).result.unwrap_err();
        assert_eq!(e.status(), Status::BadHandle, "{e}");
        pair.settle();
        assert!(pair.sink.done.is_empty() && pair.source.done.is_empty(), "it ended more than once");
        if !at_sender {
            assert!(pair.sink.block.bytes() == frozen);
        }
    }
}

#[test]
fn one_dead_socket_of_several_ends_every_job_once() {
    for hurt in 0..3 {
        let mut source = Node::new(options(3), Block::new(false, 1, SIZE));
        let mut sink = Node::new(options(3), Block::new(false, 2, SIZE));
        sink.host.connect(LINK, &source.host.metadata()).unwrap();
        source.host.connect(LINK, &sink.host.metadata()).unwrap();
        let mut copies = Vec::new();
        for _ in 0..3 {
            let (a, b) = sockets();
            copies.push(b.try_clone().unwrap());
            source.host.attach(LINK, a).unwrap();
            sink.host.attach(LINK, b).unwrap();
        }
        let (list, small) = (large(7), spans(8, 10, 100, 4096, 4096));
        for node in [&mut source, &mut sink] {
            let sends = node.block.bytes()[..8] == pattern(1, 8);
            for (id, list) in [(1, &list), (2, &list), (3, &small)] {
                let action = if sends { Action::Send { tag: id } } else { Action::Receive { tag: id } };
                let _ = node.host.post(job(id, action, list.clone(), false));
            }
        }
        for _ in 0..4 {
            source.round(Duration::ZERO, 100_000);
            sink.round(Duration::ZERO, 100_000);
        }
        copies[hurt].shutdown(std::net::Shutdown::Both).unwrap();
        for node in [&mut source, &mut sink] {
            for id in [1, 2] {
                assert_eq!(node.finish(id).result.unwrap_err().status(), Status::PeerDead);
            }
            node.finish(3);
            let e = node.host.post(job(9, Action::Send { tag: 9 }, vec![], false)).unwrap_err();
            assert_eq!(e.status(), Status::PeerDead);
            node.round(Duration::ZERO, 1 << 20);
            assert!(node.done.is_empty(), "it ended more than once");
        }
    }
}

#[test]
fn the_number_of_sockets_is_the_smaller_wish() {
    for (ours, theirs) in [(1, 4), (4, 1), (3, 2), (64, 64)] {
        let source = Node::new(options(theirs), Block::new(false, 1, 4096));
        let mut sink = Node::new(options(ours), Block::new(false, 2, 4096));
        let link = sink.host.connect(LINK, &source.host.metadata()).unwrap();
        assert_eq!(link.streams, ours.min(theirs));
        for _ in 0..link.streams {
            sink.host.attach(LINK, sockets().0).unwrap();
        }
        let e = sink.host.attach(LINK, sockets().0).unwrap_err();
        assert_eq!(e.status(), Status::Limit);
        assert!(e.message().contains(&format!("{} sockets", link.streams)), "{e}");
    }
    let poller = std::sync::Arc::new(kvlink::transport::Poller::new().unwrap());
    for streams in [0, 65] {
        let e = kvlink::transport::host::Host::new(poller.clone(), 0..9, options(streams)).err().unwrap();
        assert!(e.message().contains(&format!("streams is {streams}, 1 to 64")), "{e}");
    }
}

#[test]
fn sockets_beyond_the_keys_are_refused_and_the_others_work_on() {
    let poller = std::sync::Arc::new(kvlink::transport::Poller::new().unwrap());
    let mut host = kvlink::transport::host::Host::new(poller, 5..7, options(4)).unwrap();
    let peer = Node::new(options(4), Block::new(false, 1, 4096));
    host.connect(LINK, &peer.host.metadata()).unwrap();
    let mut far = Vec::new();
    for _ in 0..2 {
        let (near, other) = sockets();
        host.attach(LINK, near).unwrap();
        far.push(other);
    }
    let e = host.attach(LINK, sockets().0).unwrap_err();
    assert_eq!(e.status(), Status::Limit);
    assert!(e.message().contains("all 2 data sockets"), "{e}");
    host.post(job(1, Action::Send { tag: 1 }, vec![], false)).unwrap();
}

/// A sink that waits for stream 1, and the other ends of its two sockets.
struct ByHand {
    node: Node,
    far: Vec<TcpStream>,
    total: u64,
    digest: u64,
}

fn header(kind: u32, status: i32, words: [u64; 5]) -> Vec<u8> {
    let mut b = (0x4B56_0000 | kind).to_le_bytes().to_vec();
    b.extend(status.to_le_bytes());
    b.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    b
}

impl ByHand {
    fn new(list: &[Span]) -> ByHand {
        // An honest sender says what the digest is.
        let mut honest = Node::new(options(2), Block::new(false, 1, SIZE));
        let mut node = Node::new(options(2), Block::new(false, 2, SIZE));
        let (near, mut probe) = sockets();
        honest.host.connect(LINK, &node.host.metadata()).unwrap();
        honest.host.attach(LINK, near).unwrap();
        honest.host.post(job(1, Action::Send { tag: 1 }, list.to_vec(), false)).unwrap();
        honest.round(Duration::ZERO, 1 << 20);
        let mut open = [0; 48];
        probe.read_exact(&mut open).unwrap();
        let digest = u64::from_le_bytes(open[40..].try_into().unwrap());
        node.host.connect(LINK, &honest.host.metadata()).unwrap();
        let far = (0..2)
            .map(|_| {
                let (far, near) = sockets();
                node.host.attach(LINK, near).unwrap();
                far
            })
            .collect();
        node.host.post(job(1, Action::Receive { tag: 1 }, list.to_vec(), false)).unwrap();
        ByHand { node, far, total: bytes(list), digest }
    }

    /// The node has taken everything that was said so far.
    fn say(&mut self, socket: usize, bytes: &[u8]) {
        for piece in bytes.chunks(32 << 10) {
            self.far[socket].write_all(piece).unwrap();
            within("what was said", || {
                self.node.round(Duration::from_millis(1), 1 << 20);
                unread(&self.far[socket]) == 0
            });
        }
        while self.node.round(Duration::ZERO, 1 << 20) {}
    }

    fn open(&mut self, socket: usize, begin: u64, length: u64) {
        let words = [1, begin, length, self.total, self.digest];
        self.say(socket, &header(1, 0, words));
    }

    fn data(&mut self, socket: usize, offset: u64, length: u64) {
        let bytes = [header(3, 0, [1, offset, length, 0, 0]), vec![9; length as usize]].concat();
        self.say(socket, &bytes);
    }

    fn end(&mut self, socket: usize) {
        self.say(socket, &header(4, 0, [1, 0, 0, 0, 0]));
    }

    /// Kinds and tags of what the node has said on any socket.
    fn heard(&mut self) -> Vec<(u32, u64)> {
        let mut out = Vec::new();
        for s in &mut self.far {
            s.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let mut b = [0; 48];
            while s.read_exact(&mut b).is_ok() {
                let kind = u32::from_le_bytes(b[..4].try_into().unwrap()) & 0xFFFF;
                out.push((kind, u64::from_le_bytes(b[8..16].try_into().unwrap())));
            }
        }
        out
    }

    /// The link is broken for this reason; nothing of the receive but its one end is left.
    fn broken(mut self, says: &str) {
        let e = self.node.finish(1).result.unwrap_err();
        assert_eq!(e.status(), Status::Protocol, "{e}");
        assert!(e.message().contains(says), "{e}");
        let e = self.node.host.post(job(2, Action::Receive { tag: 2 }, vec![], false)).unwrap_err();
        assert_eq!(e.status(), Status::Protocol);
        self.node.round(Duration::ZERO, 1 << 20);
        assert!(self.node.done.is_empty(), "it ended more than once");
    }
}

/// Bytes that were written to a socket and not acknowledged by the other end's kernel.
fn unread(s: &TcpStream) -> i32 {
    use std::os::fd::AsRawFd;
    let mut n: libc::c_int = 0;
    assert_eq!(unsafe { libc::ioctl(s.as_raw_fd(), libc::TIOCOUTQ, &mut n) }, 0);
    n
}

#[test]
fn lanes_in_any_order_and_of_any_length_make_a_stream() {
    let list = large(9);
    let mut h = ByHand::new(&list);
    let total = h.total;
    for (n, (begin, end)) in [(total - 1, total), (1, 2), (2, 70_000), (0, 1), (70_000, total - 1)].iter().enumerate() {
        assert!(h.node.take(1).is_none(), "ended early");
        h.open(n % 2, *begin, end - begin);
        h.data(n % 2, *begin, end - begin);
        h.end(n % 2);
    }
    let done = h.node.finish(1);
    done.result.unwrap();
    assert_eq!(done.bytes, total);
    let mut model = pattern(2, SIZE);
    apply(&list, &vec![9; SIZE], &mut model);
    assert!(h.node.block.bytes() == model);
    assert_eq!(h.heard(), [(2, 1); 5]);
}

#[test]
fn lanes_that_overlap_are_refused_with_both_ranges() {
    for (begin, length, old) in [(0, 10, "0..100"), (99, 1, "0..100"), (50, 100, "0..100"), (100, 101, "200..300")] {
        let mut h = ByHand::new(&large(10));
        h.open(0, 0, 100);
        h.data(0, 0, 100);
        h.end(0);
        h.open(0, 200, 100);
        h.open(1, begin, length);
        h.broken(&format!("stream 1: a lane of bytes {begin}..{} overlaps the one of bytes {old}", begin + length));
    }
    // The whole twice, and a stream without bytes twice.
    let mut h = ByHand::new(&large(10));
    let total = h.total;
    h.open(0, 0, total);
    h.open(1, 0, total);
    h.broken("overlaps");
    let mut h = ByHand::new(&[]);
    h.open(0, 0, 0);
    h.open(1, 0, 0);
    h.broken("a lane of bytes 0..0 overlaps the one of bytes 0..0");
}

#[test]
fn overlapping_lanes_that_wait_for_their_job_break_the_link_when_it_comes() {
    let list = large(11);
    let mut h = ByHand::new(&list);
    let total = h.total;
    h.node.host.cancel(JobId(1), Status::Cancelled);
    h.node.finish(1);
    h.open(0, 0, total);
    h.open(1, total - 1, 1);
    h.node.host.post(job(1, Action::Receive { tag: 1 }, list, false)).unwrap();
    h.broken("overlaps the one of bytes 0..");
}

#[test]
fn lanes_outside_of_their_stream_are_refused_with_both_values() {
    for (begin, length) in [(0, u64::MAX), (u64::MAX, 2), (1, 0), (9 << 20, 9 << 20)] {
        let mut h = ByHand::new(&large(12));
        let total = h.total;
        h.open(1, begin, length);
        h.broken(&format!("a lane of {length} bytes at {begin}, the stream has {total}"));
    }
}

#[test]
fn data_of_a_lane_keeps_to_its_range() {
    let list = large(13);
    for (offset, length, says) in [
        (0, 10, "offset 0 where 500 is next"),
        (500, 101, "101 bytes where 100 are left"),
        (510, 10, "where 500 is next"),
    ] {
        let mut h = ByHand::new(&list);
        h.open(1, 500, 100);
        h.say(1, &header(3, 0, [1, offset, length, 0, 0]));
        h.broken(says);
    }
    let mut h = ByHand::new(&list);
    h.open(1, 500, 100);
    h.data(1, 500, 60);
    h.end(1);
    h.broken("ended after 60 of 100 bytes");
}

/// A sender that ends one lane with a reason has ended the stream, whatever it does with the others.
#[test]
fn one_lane_that_fails_ends_the_stream_once() {
    let mut h = ByHand::new(&large(14));
    h.open(0, 0, 1000);
    h.open(1, 1000, 1000);
    h.data(1, 1000, 10);
    h.say(0, &header(4, Status::LeaseExpired.code(), [1, 0, 0, 0, 0]));
    assert_eq!(h.node.finish(1).result.unwrap_err().status(), Status::LeaseExpired);
    let frozen = h.node.block.bytes().to_vec();
    h.data(1, 1010, 990);
    h.end(1);
    assert!(h.node.block.bytes() == frozen, "bytes changed after the end");
    assert!(h.node.done.is_empty(), "it ended more than once");
    // The link is as good as new.
    h.node.host.post(job(2, Action::Receive { tag: 2 }, vec![], false)).unwrap();
}
