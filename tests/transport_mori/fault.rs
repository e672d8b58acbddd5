//! Over a shim whose reads fail and go on, never end, or never return: a job's end says what is certain. And over the real one
//! with a card that has stopped.

use crate::node::{LEN, Node, everything, options};
use crate::process::is_alone;
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::transport::mori::{Mori, MoriOptions};
use kvlink::transport::{JobId, LinkId, Poller, Transport};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(120);

/// A directory with a shim that is compiled with these flags, and a program that is content with every machine.
fn fake(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mori-fake-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"])
        .args(flags)
        .args([&root.join("tests/mori/fake.c"), Path::new("-o"), &dir.join("libkvlink_mori.so")])
        .status();
    assert!(status.unwrap().success());
    let program = dir.join("kvlink-mori-check");
    std::fs::write(&program, "#!/bin/sh\necho passed\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Two transports over the fake; the one that reads misbehaves.
fn pair(name: &str, mode: &str) -> (Node, Node) {
    let library = Some(fake(name, &[]));
    let o = MoriOptions { library, patience: PATIENCE, ..MoriOptions::default() };
    let (source, mut sink) = (Node::new(o.clone(), 7), Node::new(MoriOptions { devices: mode.into(), ..o }, 2));
    sink.mori.connect(LinkId(1), &source.mori.metadata()).unwrap();
    (source, sink)
}

#[test]
fn a_good_shim_moves_bytes() {
    if !is_alone(&[]) {
        return;
    }
    let (_source, mut sink) = pair("good", "good");
    sink.post(1, 1, everything());
    assert_eq!(sink.good(1), LEN as u64);
    assert_eq!(sink.changed(7), 0);
}

/// What MoRI calls failed may write until its engine is gone, so the job has not ended before.
#[test]
fn a_failed_read_has_ended_when_its_engine_is_gone() {
    if !is_alone(&[]) {
        return;
    }
    let (_source, mut sink) = pair("late", "late");
    sink.post(1, 1, everything()[..1].to_vec());
    let e = sink.end(1, LONG).expect("an end").result.unwrap_err();
    assert_eq!(e.status(), Status::Incarnation);
    assert!(e.message().contains("a reason of the fake"), "{e}");
    // This was written when the engine ended.
    assert_eq!(sink.byte(LEN - (16 << 10)), 0xEE);
}

#[test]
fn a_read_that_never_ends_ends_with_its_engine() {
    if !is_alone(&[]) {
        return;
    }
    let (_source, mut sink) = pair("stuck", "stuck");
    sink.post(1, 1, everything()[..1].to_vec());
    assert!(sink.end(1, PATIENCE).is_none());
    sink.mori.cancel(JobId(1), Status::Deadline);
    assert!(sink.end(1, PATIENCE / 4).is_none(), "reported before it is proven");
    assert_eq!(sink.end(1, LONG).expect("an end").result.unwrap_err().status(), Status::Deadline);
    assert_eq!(sink.byte(LEN - (16 << 10)), 0xEE);
}

#[test]
fn a_call_that_never_returns_holds_nobody_for_ever() {
    if !is_alone(&[]) {
        return;
    }
    let (_source, mut sink) = pair("hang", "hang");
    sink.post(1, 1, everything()[..1].to_vec());
    let deadline = Instant::now() + LONG;
    while sink.byte(LEN - (16 << 10)) != 0xEE {
        assert!(Instant::now() < deadline, "the call has not begun");
        std::thread::yield_now();
    }
    sink.mori.cancel(JobId(1), Status::Cancelled);
    let e = sink.end(1, LONG).expect("an end").result.unwrap_err();
    assert_eq!(e.status(), Status::Quarantined);
    assert!(e.message().contains("has not returned for"), "{e}");
    // Its memory must stay, and so does the thread.
    std::mem::forget(sink);
}

#[test]
fn another_interface_is_refused() {
    if !is_alone(&[]) {
        return;
    }
    let library = Some(fake("other", &["-DOTHER"]));
    let o = MoriOptions { library, ..MoriOptions::default() };
    let e = Mori::new(Arc::new(Poller::new().unwrap()), 0, o).err().unwrap();
    assert_eq!(e.status(), Status::TransportUnavailable);
    assert!(e.message().contains("it has interface 2, this kvlink needs 1"), "{e}");
}

/// A card that has stopped: the read is given up, and its engine with it. Nothing arrives later.
#[test]
fn a_card_that_has_stopped_costs_the_engine_that_reads() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mori-stall-{}", std::process::id()));
    let Some(o) = options().filter(|_| is_alone(&[("STANDIN_VERBS_STALL", file.to_str().unwrap())])) else { return };
    let file = PathBuf::from(std::env::var_os("STANDIN_VERBS_STALL").unwrap());
    let o = MoriOptions { patience: PATIENCE, qp_per_transfer: 4, ..o };
    let (source, other, mut sink) = (Node::new(o.clone(), 7), Node::new(o.clone(), 9), Node::new(o, 2));
    sink.mori.connect(LinkId(1), &source.mori.metadata()).unwrap();
    sink.mori.connect(LinkId(2), &other.mori.metadata()).unwrap();
    sink.post(1, 1, everything()[..1].to_vec());
    sink.good(1);
    std::fs::write(&file, "").unwrap();
    sink.post(2, 1, everything());
    sink.post(3, 2, everything()[..1].to_vec());
    assert!(sink.end(2, PATIENCE).is_none());
    sink.mori.cancel(JobId(2), Status::Cancelled);
    let e = sink.end(2, LONG).expect("an end").result.unwrap_err();
    assert_eq!(e.status(), Status::Cancelled);
    let before = sink.changed(2);
    std::fs::remove_file(&file).unwrap();
    // The read that is still wanted is done again, by another engine, and so are later ones.
    assert_eq!(sink.good(3), 16 << 10);
    assert_eq!(sink.changed(2), before);
    sink.post(4, 1, everything());
    assert_eq!(sink.good(4), LEN as u64);
    assert_eq!(sink.changed(7), 0);
}

/// An agent that is read from and reads locks its memory twice. Where that is too much, MoRI would abort the process.
#[test]
fn memory_that_cannot_be_locked_twice() {
    let limit = (LEN + LEN / 2).to_string();
    let Some(o) = options().filter(|_| is_alone(&[("STANDIN_VERBS_MEMORY", &limit)])) else { return };
    let (mut large, mut small) = (Node::new(o.clone(), 1), Node::sized(o, 2, 1 << 20));
    let span = Span { src_offset: 0, dst_offset: 0, len: 4096, src_region: 0, dst_region: 0 };
    small.mori.connect(LinkId(1), &large.mori.metadata()).unwrap();
    large.mori.connect(LinkId(1), &small.mori.metadata()).unwrap();
    small.post(1, 1, vec![span]);
    assert_eq!(small.good(1), 4096);
    large.post(2, 1, vec![span]);
    let e = large.end(2, LONG).expect("an end").result.unwrap_err();
    assert!(e.message().contains("standin0 cannot register 16777216 bytes"), "{e}");
    // Nobody else is harmed.
    small.post(3, 1, vec![span]);
    assert_eq!(small.good(3), 4096);
}
