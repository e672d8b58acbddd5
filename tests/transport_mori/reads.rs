//! Reads: their bytes, and what their ends prove.

use crate::node::*;
use crate::process::Source;
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::transport::mori::{MoriOptions, PollMode};
use kvlink::transport::{JobId, LinkId, Transport};
use std::time::Duration;

#[test]
fn every_option_moves_the_same_bytes() {
    let Some(o) = options() else { return };
    for o in [
        o.clone(),
        MoriOptions { qp_per_transfer: 4, ..o.clone() },
        MoriOptions { qp_per_transfer: 4, num_workers: 4, ..o.clone() },
        MoriOptions { qp_per_transfer: 2, post_batch_size: Some(3), ..o.clone() },
        MoriOptions { poll_mode: PollMode::Event, ..o.clone() },
        MoriOptions { devices: "standin0".into(), ..o.clone() },
    ] {
        let (mut source, mut sink) = (Node::new(o.clone(), 1), Node::new(o.clone(), 2));
        source.number();
        let made = sink.mori.connect(LinkId(1), &source.mori.metadata()).unwrap();
        assert_eq!((made.name.as_str(), made.pull, made.streams), ("mori/rdma", true, 0));
        sink.post(1, 1, everything());
        assert_eq!(sink.good(1), LEN as u64);
        assert!(sink.has(&source, &everything()), "{o:?}");
        // Short runs, and a part.
        let short: Vec<Span> = (0..2000)
            .map(|i| Span { src_offset: i * 1000, dst_offset: i * 700, len: 96, src_region: 0, dst_region: 0 })
            .collect();
        sink.post(2, 1, short.clone());
        assert_eq!(sink.good(2), 2000 * 96);
        assert!(sink.has(&source, &short), "{o:?}");
    }
}

/// MoRI 1.2.4 closes descriptor 0 of the process when an engine that waits for events ends.
#[test]
fn an_engine_that_waits_for_events_leaves_the_standard_input_alone() {
    let Some(o) = options().filter(|_| crate::process::is_alone(&[])) else { return };
    let before = std::fs::read_link("/proc/self/fd/0").unwrap();
    drop(Node::new(MoriOptions { poll_mode: PollMode::Event, ..o }, 1));
    assert_eq!(std::fs::read_link("/proc/self/fd/0").unwrap(), before);
}

/// A card goes on when its process stands still: what is connected can be read, what is not waits, and is given up at once.
#[test]
fn a_source_that_stands_still() {
    let Some(o) = options() else { return };
    let mut sink = Node::new(o, 2);
    let (mut source, mut unmet) = (Source::start(), Source::start());
    sink.mori.connect(LinkId(1), &source.metadata()).unwrap();
    sink.mori.connect(LinkId(2), &unmet.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    source.stop();
    unmet.stop();
    sink.post(2, 2, everything());
    sink.post(3, 1, everything()[1..2].to_vec());
    assert_eq!(sink.good(3), 16 << 10);
    assert!(sink.end(2, Duration::from_millis(100)).is_none(), "it stands still");
    sink.mori.cancel(JobId(2), Status::Deadline);
    let done = sink.end(2, Duration::from_secs(3)).expect("the end of a read that was never started");
    assert_eq!((done.result.unwrap_err().status(), done.bytes), (Status::Deadline, 0));
    assert_eq!(sink.changed(2), 2 * (16 << 10) / 512);
    // The other one is connected in the end.
    unmet.signal(rustix::process::Signal::CONT);
    sink.post(4, 2, everything());
    assert_eq!(sink.good(4), LEN as u64);
    assert_eq!(sink.changed(7), 0);
}

#[test]
fn a_source_that_dies_breaks_its_link_and_no_other() {
    let Some(o) = options() else { return };
    let mut sink = Node::new(o.clone(), 2);
    let (mut source, mut other) = (Source::start(), Source::start());
    sink.mori.connect(LinkId(1), &source.metadata()).unwrap();
    sink.mori.connect(LinkId(2), &other.metadata()).unwrap();
    for link in [1, 2] {
        sink.post(link, link, everything()[..1].to_vec());
        sink.good(link);
    }
    source.kill();
    sink.post(3, 1, everything());
    sink.post(4, 2, everything());
    let e = sink.end(3, PATIENCE).expect("an end").result.unwrap_err();
    assert_eq!(e.status(), Status::Incarnation);
    assert!(e.message().contains("mori: reading from agent kvlink-"), "{e}");
    assert_eq!(sink.good(4), LEN as u64);
    sink.post(5, 1, everything());
    assert_eq!(sink.end(5, PATIENCE).expect("an end").result.unwrap_err().status(), Status::Incarnation);
    sink.post(6, 2, everything());
    assert_eq!(sink.good(6), LEN as u64);
}

#[test]
fn what_is_deregistered_is_left_alone() {
    let Some(o) = options() else { return };
    let (mut source, mut sink) = (Node::new(o.clone(), 1), Node::new(o.clone(), 2));
    sink.mori.connect(LinkId(1), &source.mori.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    sink.post(2, 1, everything());
    source.mori.deregister(0).unwrap();
    let end = sink.end(2, PATIENCE).expect("an end");
    if let Err(e) = end.result {
        assert_eq!(e.status(), Status::Incarnation, "{e}");
    }
    let before = sink.changed(2);
    sink.post(3, 1, everything());
    let e = sink.end(3, PATIENCE).expect("an end").result.unwrap_err();
    assert_eq!(e.status(), Status::Incarnation, "memory that is gone was read: {e}");
    assert_eq!(sink.changed(2), before);
    let other = Node::new(o, 9);
    sink.mori.connect(LinkId(2), &other.mori.metadata()).unwrap();
    sink.post(4, 2, everything());
    sink.mori.deregister(0).unwrap();
    let _ = sink.end(4, PATIENCE).expect("an end");
    let before = sink.changed(9);
    assert_eq!(sink.mori.connect(LinkId(3), &other.mori.metadata()).unwrap_err().status(), Status::BadHandle);
    drop(other);
    assert_eq!(sink.changed(9), before);
}

#[test]
fn spans_outside_and_peers_that_are_not_are_refused() {
    let Some(o) = options() else { return };
    let (source, mut sink) = (Node::new(o.clone(), 1), Node::new(o, 2));
    let good = source.mori.metadata();
    for end in 0..good.len() {
        assert!(sink.mori.connect(LinkId(1), &good[..end]).is_err());
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        // Some bytes matter only to whoever connects: nothing of it may harm us.
        if sink.mori.connect(LinkId(100 + at as u64), &bad).is_ok() {
            sink.mori.disconnect(LinkId(100 + at as u64));
        }
    }
    sink.mori.connect(LinkId(1), &good).unwrap();
    let outside = Span { src_offset: LEN as u64 - 8, dst_offset: 0, len: 16, src_region: 0, dst_region: 0 };
    sink.post(1, 1, vec![outside]);
    let e = sink.end(1, PATIENCE).unwrap().result.unwrap_err();
    assert_eq!(e.status(), Status::InvalidArgument, "{e}");
    sink.post(2, 1, everything());
    assert_eq!(sink.good(2), LEN as u64);
}
