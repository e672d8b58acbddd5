//! Reads: what arrives, what a cancel proves, what becomes of those whose peer is gone.

use crate::node::*;
use crate::source::Source;
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::nixl::{Landing, NixlOptions};
use kvlink::transport::{Action, Job, JobId, Link, LinkId, Transport};
use kvlink::wire::{BOARD_BYTES, BOARD_REGION, LeaseMark};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn moves_bytes_whatever_it_lands_in() {
    for landing in [Landing::Auto, Landing::Direct, Landing::Staged] {
        for engine in [AUTO, TCP] {
            let Some(o) = options(engine) else { return };
            let o = NixlOptions { landing, ..o };
            let (source, mut sink) = (Node::new(o.clone(), 1), Node::new(o, 2));
            let words = source.memory.addr() as *mut u32;
            (0..LEN / 4).for_each(|i| unsafe { words.add(i).write(i as u32) });
            let made: Link = sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap();
            assert_eq!((made.name.as_str(), made.pull, made.streams), ("nixl/ucx", true, 0));
            let (from, to) = (source.memory.addr(), sink.memory.addr());
            let slice = |at: usize, len: u64| unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) };
            for (id, spans) in [(1, everything()), (2, backwards())] {
                sink.post(id, 1, spans.clone());
                assert_eq!(sink.good(id), LEN as u64);
                for s in spans {
                    let (at, lands) = (from + s.src_offset as usize, to + s.dst_offset as usize);
                    assert!(slice(at, s.len) == slice(lands, s.len), "{landing:?} {engine} {id}");
                }
            }
        }
    }
}

/// UCX sends no longer segments than it takes itself, which the user may have limited; between two that differ it finds its way.
#[test]
fn segments_over_tcp_may_be_limited_on_one_side() {
    let Some(o) = options(TCP) else { return };
    let mut sink = Node::new(o, 2);
    for limited in [("UCX_TCP_RX_SEG_SIZE", "16k"), ("UCX_TCP_TX_SEG_SIZE", "4k")] {
        let mut source = Source::start(TCP, &[limited]);
        sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
        sink.post(1, 1, everything());
        sink.good(1);
        assert_eq!(sink.changed(7), 0);
        sink.nixl.disconnect(LinkId(1));
    }
}

/// In staging memory nothing of the blocks is at stake: the end comes at once, and late data changes nothing.
#[test]
fn a_cancelled_read_from_a_source_that_stands_still_ends_at_once() {
    let Some(o) = options(TCP) else { return };
    let patience = Duration::from_secs(600);
    let mut sink = Node::new(NixlOptions { landing: Landing::Staged, patience, ..o }, 2);
    let mut source = Source::start(TCP, &[]);
    sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    source.stop();
    sink.post(2, 1, everything());
    assert!(sink.end(2, Duration::from_millis(100)).is_none(), "it stands still");
    sink.nixl.cancel(JobId(2), Status::Cancelled);
    let done = sink.end(2, PATIENCE).expect("the end of a cancelled read");
    assert_eq!(done.result.unwrap_err().status(), Status::Cancelled);
    let before = sink.changed(2);
    source.signal(rustix::process::Signal::CONT);
    // It is not harmed, has sent all that was asked for, and can be read from.
    assert_eq!(source.ask("ping").as_deref(), Some("pong"));
    sink.post(3, 1, everything()[..1].to_vec());
    sink.good(3);
    assert_eq!(sink.changed(2), before);
    sink.nixl.disconnect(LinkId(1));
    drop(sink);
    assert_eq!(source.ask("ping").as_deref(), Some("pong"));
}

/// Where reads land in the blocks, the end is proven by the end of the NIXL agent that reads. Others go on.
#[test]
fn a_read_that_cannot_be_ended_costs_the_agent_that_reads() {
    let Some(o) = options(TCP) else { return };
    let mut sink =
        Node::new(NixlOptions { landing: Landing::Direct, patience: Duration::from_secs(3), ..o.clone() }, 2);
    let other = Node::new(o, 9);
    let mut source = Source::start(TCP, &[]);
    sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
    sink.nixl.connect(LinkId(2), &other.nixl.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    source.stop();
    sink.post(2, 1, everything());
    assert!(sink.end(2, Duration::from_millis(100)).is_none(), "it stands still");
    sink.nixl.cancel(JobId(2), Status::Deadline);
    assert!(sink.end(2, Duration::from_millis(100)).is_none(), "reported before it is proven");
    let done = sink.end(2, PATIENCE).expect("the end of a cancelled read");
    assert_eq!(done.result.unwrap_err().status(), Status::Deadline);
    let before = sink.changed(2);
    source.signal(rustix::process::Signal::CONT);
    // UCX may end the source now: it cannot answer reads whose reader is gone. Before that it would have answered them, in
    // less time than further reads of the lower half take; they went to the upper one.
    let _ = source.ask("ping");
    let lower = || everything().into_iter().filter(|s| s.dst_offset < LEN as u64 / 2).collect::<Vec<_>>();
    for id in 3..7 {
        sink.post(id, 2, lower());
        assert_eq!(sink.good(id), LEN as u64 / 2);
    }
    assert_eq!(sink.changed(2), before + LEN / 512 / 2);
}

#[test]
fn what_is_deregistered_is_left_alone_and_so_is_the_peer() {
    for engine in [AUTO, TCP] {
        let Some(o) = options(engine) else { return };
        let (mut source, mut sink) = (Node::new(o.clone(), 1), Node::new(o.clone(), 2));
        sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap();
        sink.post(1, 1, everything());
        source.nixl.deregister(0).unwrap();
        let Node { memory, nixl, .. } = source;
        drop(nixl);
        assert_eq!(Arc::strong_count(&memory), 1, "the transport still holds the memory");
        drop(memory);
        let end = sink.end(1, PATIENCE).expect("an end");
        if let Err(e) = end.result {
            assert_eq!(e.status(), Status::Incarnation, "{e}");
            assert!(e.message().contains("kvlink-"), "{e}");
        }
        let refused = sink.end(2, Duration::ZERO);
        assert!(refused.is_none());
        // The sink goes on with others.
        let third = Node::new(o, 3);
        sink.nixl.connect(LinkId(2), &third.nixl.metadata()).unwrap();
        sink.post(2, 2, everything());
        assert_eq!(sink.good(2), LEN as u64);
        sink.nixl.deregister(0).unwrap();
        let e = sink.nixl.connect(LinkId(3), &third.nixl.metadata()).unwrap_err();
        assert!(e.message().contains("region 0 was deregistered"), "{e}");
    }
}

/// Whoever takes memory away does not wait for a source that stands still, and does not harm it.
#[test]
fn memory_that_nothing_reads_into_is_deregistered_at_once() {
    let Some(o) = options(TCP) else { return };
    let mut sink = Node::new(NixlOptions { patience: Duration::from_secs(600), ..o }, 2);
    let mut source = Source::start(TCP, &[]);
    sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    source.stop();
    sink.post(2, 1, everything());
    assert!(sink.end(2, Duration::from_millis(100)).is_none(), "it stands still");
    let (told, heard) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        sink.nixl.deregister(0).unwrap();
        told.send(()).unwrap();
        sink
    });
    heard.recv_timeout(PATIENCE).expect("an answer before patience is at its end");
    let mut sink = thread.join().unwrap();
    let e = sink.end(2, PATIENCE).expect("an end").result.unwrap_err();
    assert!(e.message().contains("region 0 was deregistered"), "{e}");
    let before = sink.changed(2);
    source.signal(rustix::process::Signal::CONT);
    drop(sink.nixl);
    assert_eq!(Arc::strong_count(&sink.memory), 1, "the transport still holds the memory");
    assert_eq!(source.ask("ping").as_deref(), Some("pong"));
    assert_eq!(changed(&sink.memory, 2), before);
}

#[test]
fn a_link_whose_peer_is_gone_is_broken_and_names_the_agent() {
    let Some(o) = options(AUTO) else { return };
    let mut sink = Node::new(o, 2);
    let mut source = Source::start(AUTO, &[]);
    sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
    sink.post(1, 1, everything());
    sink.good(1);
    source.process.kill().unwrap();
    source.process.wait().unwrap();
    for id in [2, 3] {
        sink.post(id, 1, everything());
        let e = sink.end(id, PATIENCE).expect("an end").result.unwrap_err();
        assert_eq!(e.status(), Status::Incarnation, "{e}");
        assert!(e.message().contains("reading from agent kvlink-"), "{e}");
    }
}

#[test]
fn a_job_sees_whether_its_lease_held_after_the_last_byte() {
    for engine in [AUTO, TCP] {
        let Some(o) = options(engine) else { return };
        let (mut source, mut sink) = (Node::new(o.clone(), 7), Node::new(o, 0));
        let board = Arc::new(SharedMemory::allocate(BOARD_BYTES).unwrap());
        source.nixl.register(BOARD_REGION, &Memory::shared(board.clone())).unwrap();
        sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap();
        let mark = LeaseMark::new(1, "r", 1);
        let other = LeaseMark { offset: mark.offset, word: mark.word ^ 2 };
        for (id, shown, expected, held) in
            [(1, mark.word, mark, true), (2, mark.word, other, false), (3, 0, mark, false), (4, mark.word, mark, true)]
        {
            board.store_word(mark.offset as usize, shown).unwrap();
            let (link, action, spans) = (LinkId(1), Action::Pull, everything());
            sink.nixl.post(Job { id: JobId(id), link, action, spans, staged: false, mark: Some(expected) }).unwrap();
            let done = sink.end(id, PATIENCE).expect("the job's end");
            assert_eq!((done.result.is_ok(), done.bytes, done.held), (true, LEN as u64, held), "job {id}, {engine}");
        }
    }
}

#[test]
fn jobs_that_cannot_be_are_refused() {
    let Some(o) = options(AUTO) else { return };
    let (source, mut sink) = (Node::new(o.clone(), 1), Node::new(o, 2));
    sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap();
    let duplicate = sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap_err();
    assert_eq!(duplicate.status(), Status::Duplicate);
    let job = |id, link, action| Job {
        id: JobId(id),
        link: LinkId(link),
        action,
        spans: everything(),
        staged: false,
        mark: None,
    };
    for (j, status) in [
        (job(1, 9, Action::Pull), Status::PeerDead),
        (job(1, 1, Action::Send { tag: 1 }), Status::TransportUnavailable),
    ] {
        assert_eq!(sink.nixl.post(j).unwrap_err().status(), status);
    }
    let outside = Span { src_offset: LEN as u64 - 1, dst_offset: 0, len: 2, src_region: 0, dst_region: 0 };
    sink.post(1, 1, vec![outside]);
    let e = sink.end(1, PATIENCE).unwrap().result.unwrap_err();
    assert!(e.message().contains("2 bytes at 67108863 of the peer's region 0"), "{e}");
    assert_eq!(sink.changed(2), 0);
}
