//! The host transport, every way: bytes, bounds, ends of jobs.

mod host;

use host::*;
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::memory::Memory;
use kvlink::transport::host::HostOptions;
use kvlink::transport::{Action, JobId, LinkId, Transport};
use std::time::Duration;

const SIZE: usize = 24 << 20;

/// Span counts and longest spans of random jobs.
const SHAPES: [(usize, u64); 7] =
    [(0, 1), (1, 1), (1, 1 << 20), (100_000, 200), (20_000, 1500), (1000, 40_000), (30, 1 << 20)];

#[test]
fn every_byte_of_every_way() {
    for way in WAYS {
        let mut pair = Pair::new(way, SIZE);
        assert_eq!(pair.link.name, way.name());
        let mut model = pair.sink.block.bytes().to_vec();
        for (n, (count, longest)) in SHAPES.into_iter().enumerate() {
            for staged in [false, true] {
                let list = spans(n as u64 * 2 + u64::from(staged), count, longest, SIZE as u64, SIZE as u64);
                let bytes: u64 = list.iter().map(|s| s.len).sum();
                apply(&list, pair.source.block.bytes(), &mut model);
                let id = pair.post(list.clone(), staged).unwrap();
                let done = pair.finish(id);
                done.result.unwrap();
                assert_eq!(done.bytes, bytes);
                assert_eq!(done.spans, list);
                assert!(pair.sink.block.bytes() == model, "{way:?} {count} x {longest} staged {staged}");
            }
        }
        assert!(pair.source.block.bytes() == pattern(1, SIZE), "the source changed");
    }
}

/// Runs that ascend in the source with small gaps, as when heads are cut out of blocks, and land anywhere.
#[test]
fn short_runs_that_lie_close_together() {
    for way in WAYS {
        let mut pair = Pair::new(way, SIZE);
        let mut model = pair.sink.block.bytes().to_vec();
        for (seed, longest, gap) in [(1, 40, 1), (2, 300, 200), (3, 300, 1), (4, 900, 1500), (5, 5000, 100)] {
            let mut rng = Rng(seed);
            let mut list = Vec::new();
            let (mut from, mut to) = (rng.below(100), rng.below(100));
            for _ in 0..60_000 {
                let len = rng.below(longest);
                if from + len > SIZE as u64 || to + len > SIZE as u64 {
                    break;
                }
                list.push(Span { src_offset: from, dst_offset: to, len, src_region: REGION, dst_region: REGION });
                from += len + rng.below(gap);
                to += len + rng.below(3);
            }
            // Destinations change places, so that unpacking has to look each one up.
            for i in (2..list.len()).step_by(3) {
                if list[i].len == list[i - 1].len {
                    let (a, b) = (list[i].dst_offset, list[i - 1].dst_offset);
                    (list[i].dst_offset, list[i - 1].dst_offset) = (b, a);
                }
            }
            // The last bytes of the region: a cover must not go beyond them.
            if let Some(last) = list.last_mut() {
                last.len = 1;
                last.src_offset = SIZE as u64 - 1;
            }
            apply(&list, pair.source.block.bytes(), &mut model);
            let id = pair.post(list, true).unwrap();
            pair.finish(id).result.unwrap();
            assert!(pair.sink.block.bytes() == model, "{way:?} runs below {longest}, gaps below {gap}");
        }
    }
}

#[test]
fn jobs_take_turns_over_several_sockets() {
    let options = HostOptions { chunk_bytes: 4096, ..Way::Tcp.options() };
    let source = Node::new(options.clone(), Block::new(false, 1, SIZE));
    let sink = Node::new(options, Block::new(false, 2, SIZE));
    let mut pair = Pair::link(Way::Tcp, source, sink, 3);
    let list = spans(5, 3000, 8000, SIZE as u64, SIZE as u64);
    let mut model = pair.sink.block.bytes().to_vec();
    apply(&list, pair.source.block.bytes(), &mut model);
    let parts: Vec<Vec<Span>> = (0..16).map(|i| list.iter().skip(i).step_by(16).copied().collect()).collect();
    // The receiver posts late and in the opposite order: no stream holds up another.
    for (i, p) in parts.iter().enumerate() {
        pair.source.host.post(job(i as u64, Action::Send { tag: i as u64 }, p.clone(), i % 2 == 0)).unwrap();
    }
    pair.settle();
    for (i, p) in parts.iter().enumerate().rev() {
        pair.sink.host.post(job(i as u64, Action::Receive { tag: i as u64 }, p.clone(), i % 3 == 0)).unwrap();
        if i % 4 == 0 {
            pair.round(100_000);
        }
    }
    for i in 0..16 {
        pair.finish(i).result.unwrap();
    }
    assert!(pair.sink.block.bytes() == model);
}

#[test]
fn a_stream_without_a_job_holds_up_nobody() {
    let mut pair = Pair::new(Way::Tcp, SIZE);
    let list = spans(6, 100, 50_000, SIZE as u64, SIZE as u64);
    pair.source.host.post(job(900, Action::Send { tag: 900 }, list.clone(), false)).unwrap();
    let id = pair.post(list, false).unwrap();
    pair.finish(id).result.unwrap();
    assert!(pair.source.take(900).is_none());
    pair.source.host.cancel(JobId(900), Status::Deadline);
    pair.settle();
    assert_eq!(pair.source.take(900).unwrap().result.unwrap_err().status(), Status::Deadline);
}

#[test]
fn nothing_changes_after_a_cancel() {
    for way in WAYS {
        for staged in [false, true] {
            let mut pair = Pair::new(way, SIZE);
            let list = spans(11, 1200, 20_000, SIZE as u64, SIZE as u64);
            let id = pair.post(list.clone(), staged).unwrap();
            let before = pair.sink.block.bytes().to_vec();
            within("the first bytes", || {
                pair.round(300_000);
                pair.sink.block.bytes() != before
            });
            assert!(pair.sink.take(id).is_none(), "too fast to cancel");
            pair.sink.host.cancel(JobId(id), Status::Cancelled);
            let frozen = pair.sink.block.bytes().to_vec();
            pair.source.block.bytes_mut().fill(0xEE);
            pair.settle();
            let done = pair.sink.take(id).unwrap();
            assert_eq!(done.result.unwrap_err().status(), Status::Cancelled);
            assert!(pair.sink.block.bytes() == frozen, "{way:?}: bytes changed after the cancel");
            if way == Way::Tcp {
                assert_eq!(pair.source.take(id).unwrap().result.unwrap_err().status(), Status::Cancelled);
            }
            // The link is as good as new.
            let id = pair.post(list, staged).unwrap();
            pair.finish(id).result.unwrap();
        }
    }
}

#[test]
fn a_cancelled_sender_reads_nothing_more() {
    for staged in [false, true] {
        let mut pair = Pair::new(Way::Tcp, SIZE);
        let list = spans(12, 1200, 20_000, SIZE as u64, SIZE as u64);
        let id = pair.post(list.clone(), staged).unwrap();
        let before = pair.sink.block.bytes().to_vec();
        within("the first bytes", || {
            pair.round(300_000);
            pair.sink.block.bytes() != before
        });
        pair.source.host.cancel(JobId(id), Status::LeaseExpired);
        let done = pair.finish(id);
        assert_eq!(done.result.unwrap_err().status(), Status::LeaseExpired);
        let id = pair.post(list, staged).unwrap();
        pair.finish(id).result.unwrap();
    }
}

#[test]
fn deregistering_ends_the_jobs_of_the_region_first() {
    for way in WAYS {
        let mut pair = Pair::new(way, SIZE);
        let other = Block::new(false, 3, SIZE);
        pair.sink.host.register(REGION + 1, &other.memory).unwrap();
        let list = spans(13, 1200, 20_000, SIZE as u64, SIZE as u64);
        let elsewhere: Vec<Span> = list.iter().map(|s| Span { dst_region: REGION + 1, ..*s }).collect();
        let hit = pair.post(list.clone(), false).unwrap();
        let spared = pair.post(elsewhere.clone(), false).unwrap();
        let before = pair.sink.block.bytes().to_vec();
        within("the first bytes", || {
            pair.round(300_000);
            pair.sink.block.bytes() != before
        });
        pair.sink.host.deregister(REGION).unwrap();
        let frozen = pair.sink.block.bytes().to_vec();
        let mut model = pattern(3, SIZE);
        apply(&elsewhere, pair.source.block.bytes(), &mut model);
        pair.finish(spared).result.unwrap();
        let e = pair.finish(hit).result.unwrap_err();
        assert_eq!(e.status(), Status::BadHandle);
        assert!(e.message().contains("region 3"), "{e}");
        assert!(pair.sink.block.bytes() == frozen, "{way:?}");
        assert!(other.bytes() == model, "{way:?}");
        assert_eq!(pair.sink.host.deregister(REGION).unwrap_err().status(), Status::BadHandle);
        assert_eq!(pair.post(list, false).unwrap_err().status(), Status::BadHandle);
    }
}

#[test]
fn deregistering_at_the_sender_tells_the_receiver() {
    let mut pair = Pair::new(Way::Tcp, SIZE);
    let id = pair.post(spans(14, 1200, 20_000, SIZE as u64, SIZE as u64), false).unwrap();
    for _ in 0..8 {
        pair.round(200_000);
    }
    pair.source.host.deregister(REGION).unwrap();
    assert_eq!(pair.finish(id).result.unwrap_err().status(), Status::BadHandle);
}

#[test]
fn spans_outside_a_region_are_refused_by_name() {
    for way in WAYS {
        let mut pair = Pair::new(way, 4096);
        let good = Span { src_offset: 0, dst_offset: 0, len: 4096, src_region: REGION, dst_region: REGION };
        let mut refuse = |s: Span, status: Status, says: &str| {
            let e = pair.post(vec![good, s], false).unwrap_err();
            assert_eq!(e.status(), status);
            assert!(e.message().contains(says), "{e}");
        };
        refuse(Span { src_offset: 1, ..good }, Status::InvalidArgument, "source region 3, offset 1, length 4096");
        refuse(Span { src_offset: u64::MAX, ..good }, Status::InvalidArgument, "has 4096 bytes");
        refuse(Span { len: u64::MAX, ..good }, Status::InvalidArgument, "has 4096 bytes");
        refuse(Span { src_region: 9, ..good }, Status::BadHandle, "source region 9");
        if way != Way::Tcp {
            refuse(Span { dst_offset: 4095, ..good }, Status::InvalidArgument, "destination region 3, offset 4095");
            refuse(Span { dst_region: 9, ..good }, Status::BadHandle, "destination region 9");
        }
    }
}

#[test]
fn a_pull_over_streams_is_refused_and_so_are_duplicates_and_strangers() {
    let mut pair = Pair::new(Way::Tcp, 4096);
    let refuse = |r: Result<(), kvlink::error::Error>| r.unwrap_err().status();
    assert_eq!(refuse(pair.sink.host.post(job(1, Action::Pull, vec![], false))), Status::TransportUnavailable);
    pair.sink.host.post(job(1, Action::Receive { tag: 5 }, vec![], false)).unwrap();
    assert_eq!(refuse(pair.sink.host.post(job(1, Action::Receive { tag: 6 }, vec![], false))), Status::Duplicate);
    assert_eq!(refuse(pair.sink.host.post(job(2, Action::Receive { tag: 5 }, vec![], false))), Status::Duplicate);
    let mut stranger = job(3, Action::Pull, vec![], false);
    stranger.link = LinkId(99);
    assert_eq!(refuse(pair.sink.host.post(stranger)), Status::BadHandle);
    let metadata = pair.source.host.metadata();
    assert_eq!(pair.sink.host.connect(LINK, &metadata).unwrap_err().status(), Status::Duplicate);
    let memory = pair.sink.block.memory.clone();
    assert_eq!(refuse(pair.sink.host.register(REGION, &memory)), Status::Duplicate);
    pair.sink.host.cancel(JobId(12345), Status::Cancelled);
}

#[test]
fn different_lists_are_noticed_on_both_sides() {
    let mut pair = Pair::new(Way::Tcp, SIZE);
    let list = spans(15, 100, 5000, SIZE as u64, SIZE as u64);
    let mut swapped = list.clone();
    swapped.swap(3, 4);
    let mut shorter = list.clone();
    shorter.pop();
    let before = pair.sink.block.bytes().to_vec();
    for (id, other) in [(800, swapped), (801, shorter)] {
        pair.source.host.post(job(id, Action::Send { tag: id }, list.clone(), false)).unwrap();
        pair.sink.host.post(job(id, Action::Receive { tag: id }, other, false)).unwrap();
        pair.settle();
        for node in [&mut pair.source, &mut pair.sink] {
            assert_eq!(node.take(id).unwrap().result.unwrap_err().status(), Status::Protocol);
        }
    }
    assert!(pair.sink.block.bytes() == before);
    let id = pair.post(list, false).unwrap();
    pair.finish(id).result.unwrap();
}

#[test]
fn disconnecting_ends_everything() {
    for way in WAYS {
        let mut pair = Pair::new(way, SIZE);
        let list = spans(16, 1200, 20_000, SIZE as u64, SIZE as u64);
        let id = pair.post(list.clone(), false).unwrap();
        pair.round(100_000);
        pair.sink.host.disconnect(LINK);
        let frozen = pair.sink.block.bytes().to_vec();
        pair.settle();
        assert_eq!(pair.sink.take(id).unwrap().result.unwrap_err().status(), Status::PeerDead);
        assert!(pair.sink.block.bytes() == frozen);
        if way == Way::Tcp {
            assert_eq!(pair.source.take(id).unwrap().result.unwrap_err().status(), Status::PeerDead);
            let e = pair.source.host.post(job(77, Action::Send { tag: 77 }, list, false)).unwrap_err();
            assert_eq!(e.status(), Status::PeerDead);
        }
        assert_eq!(
            pair.post(vec![], false).unwrap_err().status(),
            if way == Way::Tcp { Status::PeerDead } else { Status::BadHandle }
        );
    }
}

#[test]
fn an_idle_link_wakes_nobody() {
    let mut pair = Pair::new(Way::Tcp, SIZE);
    let id = pair.post(spans(17, 1000, 20_000, SIZE as u64, SIZE as u64), false).unwrap();
    pair.finish(id).result.unwrap();
    pair.settle();
    let mut ready = Vec::new();
    for node in [&pair.source, &pair.sink] {
        node.poller.wait(Some(Duration::from_millis(30)), &mut ready).unwrap();
        assert!(ready.is_empty(), "{ready:?}");
    }
}

#[test]
fn a_region_that_cannot_be_mapped_is_read_across_processes() {
    let options = HostOptions { tcp: false, ..HostOptions::default() };
    let mut source = Node::new(options.clone(), Block::new(true, 1, SIZE));
    let plain = Block::new(false, 4, SIZE);
    source.host.register(REGION + 1, &plain.memory).unwrap();
    let sink = Node::new(options, Block::new(false, 2, SIZE));
    let mut pair = Pair::link(Way::Cma, source, sink, 0);
    assert_eq!(pair.link.name, "host/cma");
    assert_eq!(pair.link.rejected[0], "host/shm: region 4 is not shareable memory");
    let list: Vec<Span> = spans(18, 3000, 9000, SIZE as u64, SIZE as u64)
        .into_iter()
        .enumerate()
        .map(|(i, s)| Span { src_region: REGION + (i / 7 % 2) as u32, ..s })
        .collect();
    let mut model = pair.sink.block.bytes().to_vec();
    for s in &list {
        let from = if s.src_region == REGION { pair.source.block.bytes() } else { plain.bytes() };
        apply(&[*s], from, &mut model);
    }
    for staged in [false, true] {
        pair.sink.block.bytes_mut().copy_from_slice(&pattern(2, SIZE));
        let id = pair.post(list.clone(), staged).unwrap();
        pair.finish(id).result.unwrap();
        assert!(pair.sink.block.bytes() == model);
    }
}

#[test]
fn unmapped_memory_of_the_peer_is_an_error_that_names_it() {
    let source = Node::new(Way::Cma.options(), Block::new(false, 1, SIZE));
    let mut sink = Node::new(Way::Cma.options(), Block::new(false, 2, SIZE));
    let mut meta = source.host.metadata();
    // The region's address, the third field of the only region, moved to where nothing is.
    let at = meta.len() - 32;
    meta[at..at + 8].copy_from_slice(&0x10_000u64.to_le_bytes());
    sink.host.connect(LINK, &meta).unwrap();
    sink.host.post(job(1, Action::Pull, spans(1, 10, 1000, SIZE as u64, SIZE as u64), false)).unwrap();
    let e = sink.finish(1).result.unwrap_err();
    assert_eq!(e.status(), Status::Incarnation);
    assert!(e.message().contains("region 3 at offset"), "{e}");
}

#[test]
fn another_process_under_the_same_number_is_noticed() {
    let source = Node::new(HostOptions::default(), Block::new(false, 1, 4096));
    let good = source.host.metadata();
    let connect = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut sink = Node::new(HostOptions::default(), Block::new(false, 2, 4096));
        let mut meta = good.clone();
        edit(&mut meta);
        sink.host.connect(LINK, &meta).unwrap()
    };
    let link = connect(&|_| {});
    assert_eq!((link.name.as_str(), link.pull, link.streams), ("host/cma", true, 4));
    for (at, says) in [(8, "another host"), (24, "pid namespace"), (36, "reused"), (44, "nonce differs")] {
        let link = connect(&|m| m[at] ^= 0x55);
        assert_eq!((link.name.as_str(), link.pull), ("host/tcp", false));
        assert!(link.rejected.iter().any(|r| r.contains(says)), "{:?}", link.rejected);
    }
    // And after connecting: the transport that we linked to is gone, its process is not.
    let mut sink = Node::new(HostOptions::default(), Block::new(false, 2, 4096));
    sink.host.connect(LINK, &good).unwrap();
    let Node { host, block, .. } = source;
    drop(host);
    let list = vec![Span { src_offset: 0, dst_offset: 0, len: 64, src_region: REGION, dst_region: REGION }];
    sink.host.post(job(1, Action::Pull, list, false)).unwrap();
    assert_eq!(sink.finish(1).result.unwrap_err().status(), Status::Incarnation);
    drop(block);
}

#[test]
fn hostile_metadata_is_refused_or_harmless() {
    let source = Node::new(HostOptions::default(), Block::new(true, 1, 1 << 16));
    let good = source.host.metadata();
    let mut rng = Rng(99);
    for _ in 0..2000 {
        let mut meta = good.clone();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(meta.len() as u64) as usize;
            meta[at] = rng.next() as u8;
        }
        meta.truncate(if rng.below(4) == 0 { rng.below(good.len() as u64) as usize } else { good.len() });
        let mut sink = Node::new(HostOptions::default(), Block::new(false, 2, 1 << 16));
        if let Ok(link) = sink.host.connect(LINK, &meta) {
            let list = spans(1, 10, 1000, 1 << 16, 1 << 16);
            if link.pull && sink.host.post(job(1, Action::Pull, list, false)).is_ok() {
                let _ = sink.finish(1).result;
            }
        }
    }
}

#[test]
fn options_say_why_a_way_is_not_taken() {
    let source = Node::new(HostOptions { cma: false, ..HostOptions::default() }, Block::new(true, 1, 4096));
    let mut sink = Node::new(HostOptions { shm: false, ..HostOptions::default() }, Block::new(false, 2, 4096));
    let link = sink.host.connect(LINK, &source.host.metadata()).unwrap();
    assert_eq!(link.name, "host/tcp");
    assert_eq!(
        link.rejected,
        ["host/shm: switched off by our options", "host/cma: switched off by the peer's options"]
    );
    let mut deaf =
        Node::new(HostOptions { shm: false, tcp: false, ..HostOptions::default() }, Block::new(false, 2, 64));
    let e = deaf.host.connect(LINK, &source.host.metadata()).unwrap_err();
    assert_eq!(e.status(), Status::TransportUnavailable);
    assert!(e.message().contains("host/tcp: switched off by our options"), "{e}");
    let poller = std::sync::Arc::new(kvlink::transport::Poller::new().unwrap());
    let none = HostOptions { shm: false, cma: false, tcp: false, ..HostOptions::default() };
    assert!(kvlink::transport::host::Host::new(poller, 0..1, none).is_err());
}

#[test]
fn sockets_beyond_the_limits_are_refused() {
    let mut pair = Pair::new(Way::Tcp, 4096);
    for _ in 1..Way::Tcp.options().streams {
        pair.sink.host.attach(LINK, sockets().0).unwrap();
    }
    assert_eq!(pair.sink.host.attach(LINK, sockets().0).unwrap_err().status(), Status::Limit);
    assert_eq!(pair.sink.host.attach(LinkId(1), sockets().0).unwrap_err().status(), Status::BadHandle);
    let memory = Memory::new(pair.sink.block.memory.addr(), 16).unwrap();
    pair.sink.host.register(50, &memory).unwrap();
}
