//! The NIXL transport over a library that hangs, sticks or cannot be ended: every job ends, and its end says what is
//! certain.

mod nixl;
mod tools;

use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::nixl::{Landing, Nixl, NixlOptions};
use kvlink::transport::{Action, Done, Job, JobId, LinkId, Poller, Slice, Transport};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(200);

fn build(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nixl-fake");
    std::fs::create_dir_all(&dir).unwrap();
    let out = dir.join(format!("{}-{name}.so", std::process::id()));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"])
        .args(flags)
        .args([&root.join("tests/nixl/fake.c"), Path::new("-o"), &out])
        .status();
    assert!(status.unwrap().success());
    out
}

fn fake() -> PathBuf {
    static FAKE: OnceLock<PathBuf> = OnceLock::new();
    FAKE.get_or_init(|| build("fake", &[])).clone()
}

struct Node {
    poller: Arc<Poller>,
    nixl: Nixl,
    memory: Arc<SharedMemory>,
}

impl Node {
    fn new(mode: &str, landing: Landing) -> Node {
        let options = NixlOptions {
            library: Some(fake()),
            backend: "FAKE".into(),
            parameters: vec![("mode".into(), mode.into())],
            landing,
            patience: PATIENCE,
        };
        let poller = Arc::new(Poller::new().unwrap());
        let mut nixl = Nixl::new(poller.clone(), 0, options).unwrap();
        let memory = Arc::new(SharedMemory::allocate(LEN).unwrap());
        nixl.register(0, &Memory::shared(memory.clone())).unwrap();
        Node { poller, nixl, memory }
    }

    fn post(&mut self, id: u64, link: u64, spans: Vec<Span>) {
        let (id, link) = (JobId(id), LinkId(link));
        self.nixl.post(Job { id, link, action: Action::Pull, spans, staged: false, mark: None }).unwrap();
    }

    fn read(&mut self, id: u64, from: &Node) {
        if id == 1 {
            self.nixl.connect(LinkId(1), &from.nixl.metadata()).unwrap();
        }
        self.post(id, 1, all());
    }

    fn end(&mut self) -> Done {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(Instant::now() < deadline, "no end");
            self.nixl.progress(&[], Slice::of(0), &mut done);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(done.len(), 1);
        done.remove(0)
    }
}

fn source() -> Node {
    let node = Node::new("good", Landing::Auto);
    unsafe { std::ptr::write_bytes(node.memory.addr() as *mut u8, 7, LEN) };
    node
}

#[test]
fn a_good_library_moves_bytes() {
    let (source, mut sink) = (source(), Node::new("good", Landing::Auto));
    for id in 1..20 {
        sink.read(id, &source);
        assert_eq!(sink.end().bytes, LEN as u64);
    }
    let have = unsafe { std::slice::from_raw_parts(sink.memory.addr() as *const u8, LEN) };
    assert!(have.iter().all(|b| *b == 7));
}

/// The transport's thread has other things to do meanwhile: a read that it took over would cost the engine that polls more.
#[test]
fn reads_that_are_copied_while_they_are_posted_are_left_to_the_reactor() {
    let (source, mut sink) = (source(), Node::new("good", Landing::Auto));
    for id in 1..20 {
        sink.read(id, &source);
        sink.end();
    }
    unsafe { std::ptr::write_bytes(sink.memory.addr() as *mut u8, 0, LEN) };
    sink.read(20, &source);
    for link in 2..10 {
        sink.nixl.connect(LinkId(link), &source.nixl.metadata()).unwrap();
    }
    let have = unsafe { std::slice::from_raw_parts(sink.memory.addr() as *const u8, LEN) };
    assert!(have.iter().all(|b| *b == 0));
    assert_eq!(sink.end().bytes, LEN as u64);
    assert!(have.iter().all(|b| *b == 7));
}

fn all() -> Vec<Span> {
    vec![Span { src_offset: 0, dst_offset: 0, len: LEN as u64, src_region: 0, dst_region: 0 }]
}

/// More reads than one: pieces that are not adjacent.
fn pieces() -> Vec<Span> {
    let span = |i| Span { src_offset: i * 1024, dst_offset: i * 1024, len: 512, src_region: 0, dst_region: 0 };
    (0..LEN as u64 / 1024).map(span).collect()
}

#[test]
fn what_an_engine_that_loops_leaves_the_thread_goes_on_with() {
    let (source, mut sink) = (source(), Node::new("late", Landing::Auto));
    sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for (id, turns) in (1..).zip([usize::MAX, 1, 2, 5, usize::MAX]) {
        let spans = pieces();
        let bytes: u64 = spans.iter().map(|s| s.len).sum();
        sink.post(id, 1, spans);
        let mut done = Vec::new();
        let mut left = turns;
        while left > 0 && done.is_empty() {
            sink.nixl.progress(&[], Slice { bytes: 0, loops: true }, &mut done);
            left -= 1;
            assert!(Instant::now() < deadline, "no end while it loops");
        }
        let mut ready = Vec::new();
        while done.is_empty() {
            sink.nixl.progress(&ready, Slice::of(0), &mut done);
            if done.is_empty() {
                sink.poller.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
                assert!(!ready.is_empty(), "no end after {turns} turns");
            }
        }
        assert_eq!(done.remove(0).bytes, bytes);
    }
}

#[test]
fn a_read_that_never_ends_ends_with_the_agent_that_reads() {
    let (source, mut sink) = (source(), Node::new("stuck", Landing::Direct));
    sink.read(1, &source);
    sink.nixl.cancel(JobId(1), Status::Deadline);
    assert_eq!(sink.end().result.unwrap_err().status(), Status::Deadline);
    // The next agent sticks as well, and is ended as well.
    sink.read(2, &source);
    sink.nixl.disconnect(LinkId(1));
    assert_eq!(sink.end().result.unwrap_err().status(), Status::PeerDead);
}

#[test]
fn an_agent_that_cannot_be_ended_leaves_its_blocks_quarantined() {
    let (source, mut sink) = (source(), Node::new("undying", Landing::Direct));
    sink.read(1, &source);
    sink.nixl.cancel(JobId(1), Status::Cancelled);
    let e = sink.end().result.unwrap_err();
    assert_eq!(e.status(), Status::Quarantined);
    assert!(e.message().contains("could not be ended"), "{e}");
    assert_eq!(sink.nixl.deregister(0).unwrap_err().status(), Status::Quarantined);
}

/// Another link to the same process is a fresh start, also before the broken one was let go.
#[test]
fn a_broken_link_does_not_spoil_the_next() {
    let (source, mut sink) = (source(), Node::new("drop", Landing::Auto));
    sink.read(1, &source);
    assert_eq!(sink.end().result.unwrap_err().status(), Status::Incarnation);
    sink.nixl.connect(LinkId(2), &source.nixl.metadata()).unwrap();
    sink.post(2, 2, all());
    sink.end().result.unwrap();
}

/// In staging memory even that costs the blocks nothing.
#[test]
fn staged_reads_are_never_quarantined() {
    let (source, mut sink) = (source(), Node::new("undying", Landing::Staged));
    sink.read(1, &source);
    sink.nixl.cancel(JobId(1), Status::Cancelled);
    assert_eq!(sink.end().result.unwrap_err().status(), Status::Cancelled);
}

#[test]
fn a_call_that_never_returns_holds_nobody_for_ever() {
    let (source, mut sink) = (source(), Node::new("hang", Landing::Auto));
    sink.read(1, &source);
    sink.nixl.cancel(JobId(1), Status::Cancelled);
    let e = sink.end().result.unwrap_err();
    assert_eq!(e.status(), Status::Quarantined);
    assert!(e.message().contains("has not returned for"), "{e}");
    let e = sink.nixl.connect(LinkId(2), &source.nixl.metadata()).unwrap_err();
    assert!(e.message().contains("has not returned for"), "{e}");
    let Node { nixl, memory, .. } = sink;
    drop(nixl);
    // Whatever the call does when it returns, it does to memory that is there.
    assert!(Arc::strong_count(&memory) > 1);
}

/// Runs a test of this file in a process of its own; `false`: this is that process.
fn elsewhere(test: &str, prepare: impl FnOnce(&mut Command) -> &mut Command) -> bool {
    if std::env::var_os("KVLINK_NIXL_ELSEWHERE").is_some() {
        return false;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.args([test, "--exact"]).env("KVLINK_NIXL_ELSEWHERE", "1");
    let output = prepare(command).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    true
}

/// Another copy is loaded here.
#[test]
fn libraries_that_cannot_be_used_say_why() {
    if elsewhere("libraries_that_cannot_be_used_say_why", |c| c) {
        return;
    }
    let refused = |library: PathBuf| {
        let options = NixlOptions { library: Some(library), ..NixlOptions::default() };
        let e = Nixl::new(Arc::new(Poller::new().unwrap()), 0, options).err().unwrap();
        assert_eq!(e.status(), Status::TransportUnavailable);
        e.message().to_string()
    };
    let stub = refused(build("stub", &["-DSTUB"]));
    assert!(stub.contains("placeholder") && stub.contains("pip install"), "{stub}");
    let old = refused(build("old", &["-Dnixl_capi_create_configured_agent=nixl_capi_create_old_agent"]));
    for part in
        ["old.so lacks 1 of 33 functions (nixl_capi_create_configured_agent)", "another NIXL than", "pip install"]
    {
        assert!(old.contains(part), "{part:?} is not in {old:?}");
    }
}

#[test]
fn memory_that_may_not_be_locked_is_reported_with_the_limit() {
    if elsewhere("memory_that_may_not_be_locked_is_reported_with_the_limit", nixl::lock_nothing) {
        return;
    }
    let options = NixlOptions {
        library: Some(fake()),
        backend: "FAKE".into(),
        parameters: vec![("mode".into(), "lock".into())],
        ..NixlOptions::default()
    };
    let mut nixl = Nixl::new(Arc::new(Poller::new().unwrap()), 0, options).unwrap();
    let memory = Arc::new(SharedMemory::allocate(LEN).unwrap());
    let e = nixl.register(0, &Memory::shared(memory)).unwrap_err();
    assert_eq!(e.status(), Status::Backend);
    for part in ["region 0 of 1048576 bytes", "RLIMIT_MEMLOCK is 65536 bytes", "ulimit -l", "CAP_IPC_LOCK"] {
        assert!(e.message().contains(part), "{part:?} is not in {e}");
    }
}
