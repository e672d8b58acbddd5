//! The NIXL transport by itself, on the real library: what it refuses, what it survives, and what a cancel proves.

mod nixl;

use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::{Layout, LayoutDesc, Region, Span};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, EventKind};
use kvlink::transport::nixl::{Landing, Nixl, NixlOptions};
use kvlink::transport::{Action, Done, Job, JobId, Link, LinkId, Poller, Ready, Transport};
use kvlink::wire::{BOARD_BYTES, BOARD_REGION, LeaseMark};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
const LEN: usize = 64 << 20;
const CHILD: &str = "KVLINK_NIXL_CHILD";

fn options(engine: &str) -> Option<NixlOptions> {
    let parameters = vec![("engine_config".to_string(), engine.to_string())];
    Some(NixlOptions { library: Some(nixl::packages()?), parameters, ..NixlOptions::default() })
}

const TCP: &str = "TLS=tcp,NET_DEVICES=lo";
const AUTO: &str = "NET_DEVICES=lo";

struct Node {
    nixl: Nixl,
    poller: Arc<Poller>,
    memory: Arc<SharedMemory>,
    done: Vec<Done>,
}

impl Node {
    /// A transport with one region that is full of a byte.
    fn new(options: NixlOptions, byte: u8) -> Node {
        let poller = Arc::new(Poller::new().unwrap());
        let mut nixl = Nixl::new(poller.clone(), 0, options).unwrap();
        let memory = Arc::new(SharedMemory::allocate(LEN).unwrap());
        unsafe { std::ptr::write_bytes(memory.addr() as *mut u8, byte, LEN) };
        nixl.register(0, &Memory::shared(memory.clone())).unwrap();
        Node { nixl, poller, memory, done: Vec::new() }
    }

    fn post(&mut self, id: u64, link: u64, spans: Vec<Span>) {
        let job = Job { id: JobId(id), link: LinkId(link), action: Action::Pull, spans, staged: false, mark: None };
        self.nixl.post(job).unwrap();
    }

    /// The end of a job, if it comes in time.
    fn end(&mut self, id: u64, within: Duration) -> Option<Done> {
        let deadline = Instant::now() + within;
        let mut ready: Vec<Ready> = Vec::new();
        loop {
            self.nixl.progress(&ready, 0, &mut self.done);
            if let Some(at) = self.done.iter().position(|d| d.id == JobId(id)) {
                return Some(self.done.remove(at));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.poller.wait(Some(left), &mut ready).unwrap();
        }
    }

    fn good(&mut self, id: u64) -> u64 {
        let done = self.end(id, PATIENCE).expect("the job's end");
        done.result.unwrap();
        done.bytes
    }

    /// How many bytes are not the one that it was filled with.
    fn changed(&self, byte: u8) -> usize {
        let words = |i: usize| unsafe { std::ptr::read_volatile((self.memory.addr() + i) as *const u8) };
        (0..LEN).step_by(512).filter(|i| words(*i) != byte).count()
    }
}

/// All of it, in pieces of 16 KiB, the last first.
fn everything() -> Vec<Span> {
    let n = 16 << 10;
    let one =
        |i: u64| Span { src_offset: i * n, dst_offset: LEN as u64 - (i + 1) * n, len: n, src_region: 0, dst_region: 0 };
    (0..LEN as u64 / n).map(one).collect()
}

fn start(options: Option<NixlOptions>) -> Option<Result<Nixl, String>> {
    let poller = Arc::new(Poller::new().unwrap());
    Some(Nixl::new(poller, 0, options?).map_err(|e| {
        assert_eq!(e.status(), Status::TransportUnavailable, "{e}");
        e.message().to_string()
    }))
}

/// A source in a process of its own.
struct Source {
    process: std::process::Child,
    stdin: ChildStdin,
    lines: BufReader<std::process::ChildStdout>,
}

impl Source {
    fn start(engine: &str, environment: &[(&str, &str)]) -> Source {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, engine)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Source { process, stdin, lines: BufReader::new(stdout) }
    }

    /// `None` if the process has ended.
    fn ask(&mut self, command: &str) -> Option<String> {
        writeln!(self.stdin, "{command}").ok()?;
        self.answer()
    }

    fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(answer) = line.trim_end().strip_prefix('@') {
                return Some(answer.to_string());
            }
        }
    }

    fn metadata(&mut self) -> Vec<u8> {
        let hex = self.ask("metadata").unwrap();
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.process.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().unwrap_or("").starts_with('T')
        };
        let tasks = format!("/proc/{}/task", self.process.id());
        while !std::fs::read_dir(&tasks).unwrap().map(stopped).fold(true, |all, one| all & one) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test of its own: the other process of those that need one.
#[test]
fn child() {
    let Ok(engine) = std::env::var(CHILD) else { return };
    println!();
    let refused = |e: String| {
        println!("@refused {}", e.replace('\n', " "));
        std::process::exit(0);
    };
    if engine == "required" {
        let mut config = AgentConfig::new("a", 0, 1);
        config.require = Require::Named("nixl".into());
        let e = Agent::new(config, layout()).err().unwrap();
        assert_eq!(e.status(), Status::TransportUnavailable);
        return refused(e.message().to_string());
    }
    if engine == "no-agent" {
        start(options(AUTO)).unwrap().map(|_| ()).unwrap_or_else(refused);
        println!("@started");
        return;
    }
    let node = Node::new(options(&engine).unwrap(), 7);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "metadata" => {
                let hex: String = node.nixl.metadata().iter().map(|b| format!("{b:02x}")).collect();
                println!("@{hex}");
            }
            "ping" => println!("@pong"),
            "end" => break,
            other => panic!("{other}"),
        }
    }
    drop(node);
    println!("@ended");
}

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
            sink.post(1, 1, everything());
            assert_eq!(sink.good(1), LEN as u64);
            let (from, to) = (source.memory.addr(), sink.memory.addr());
            let slice = |at: usize| unsafe { std::slice::from_raw_parts(at as *const u8, 16 << 10) };
            for s in everything() {
                let (s, d) = (from + s.src_offset as usize, to + s.dst_offset as usize);
                assert!(slice(s) == slice(d), "{landing:?} {engine}");
            }
        }
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

/// Names are bytes to NIXL; what comes from the network need not be text, nor true.
#[test]
fn metadata_that_lies_is_refused() {
    let Some(o) = options(AUTO) else { return };
    let (source, mut sink) = (Node::new(o.clone(), 1), Node::new(o.clone(), 2));
    let good = source.nixl.metadata();
    let at = good.windows(7).position(|w| w == b"kvlink-").unwrap();
    let mut renamed = good.clone();
    renamed[at + 8] = 0xff;
    let e = sink.nixl.connect(LinkId(1), &renamed).unwrap_err();
    assert_eq!(e.status(), Status::Protocol, "{e}");
    let blob = at + good[at..].windows(7).skip(1).position(|w| w == b"kvlink-").unwrap();
    for change in [blob - 12, blob + 40, good.len() - 60] {
        let mut bad = good.clone();
        bad[change] ^= 0x55;
        if let Ok(link) = sink.nixl.connect(LinkId(9), &bad) {
            assert!(link.pull);
            sink.nixl.disconnect(LinkId(9));
        }
    }
    let mut libfabric = good.clone();
    let name = libfabric.windows(3).position(|w| w == b"UCX").unwrap();
    libfabric[name..name + 3].copy_from_slice(b"OFI");
    let e = sink.nixl.connect(LinkId(1), &libfabric).unwrap_err();
    assert!(e.message().contains("our backend is UCX, the peer's OFI"), "{e}");
    sink.nixl.connect(LinkId(1), &good).unwrap();
    sink.post(1, 1, everything());
    sink.good(1);
}

#[test]
fn no_name_comes_twice() {
    let Some(o) = options(AUTO) else { return };
    let name = || {
        let m = Node::new(o.clone(), 1).nixl.metadata();
        let at = m.windows(7).position(|w| w == b"kvlink-").unwrap();
        m[at..at + 23].to_vec()
    };
    assert_ne!(name(), name());
}

#[test]
fn backends_that_cannot_start_say_what_to_look_at() {
    let Some(o) = options(AUTO) else { return };
    let refused = |o: NixlOptions| start(Some(o)).unwrap().err().expect("a refusal");
    let text = refused(NixlOptions { backend: "CARRIER_PIGEON".into(), ..o.clone() });
    assert!(text.contains("no backend \"CARRIER_PIGEON\"") && text.contains("UCX"), "{text}");
    let only_shared_memory = vec![("engine_config".to_string(), "TLS=posix".to_string())];
    let text = refused(NixlOptions { parameters: only_shared_memory, ..o.clone() });
    for part in ["backend UCX with engine_config=TLS=posix does not start", "UCX_TLS is not set", "notices a dead peer"]
    {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let copy = std::env::temp_dir().join(format!("kvlink-{}-libnixl_capi.so", std::process::id()));
    std::fs::write(&copy, "another").unwrap();
    let text = refused(NixlOptions { library: Some(copy.clone()), ..o.clone() });
    assert!(text.contains("uses") && text.contains("already and cannot load"), "{text}");
    std::fs::remove_file(copy).unwrap();
    // None of this has hurt.
    assert!(start(Some(o)).unwrap().is_ok());
}

#[test]
fn options_that_cannot_be_are_refused() {
    let o = NixlOptions { library: Some(PathBuf::from("/nonexistent")), ..NixlOptions::default() };
    let pair = |k: &str, v: &str| vec![(k.to_string(), v.to_string())];
    for (o, part) in [
        (NixlOptions { backend: String::new(), ..o.clone() }, "backend \"\""),
        (NixlOptions { parameters: pair("", "1"), ..o.clone() }, "parameter \"\"=\"1\""),
        (NixlOptions { parameters: pair("a", "1\0"), ..o.clone() }, "parameter \"a\""),
        (NixlOptions { patience: Duration::ZERO, ..o.clone() }, "patience is 0ns"),
    ] {
        let e = Nixl::new(Arc::new(Poller::new().unwrap()), 0, o).err().unwrap();
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains(part), "{e}");
    }
}

fn exit(source: &mut Source) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = source.process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not exit");
        std::thread::yield_now();
    }
}

/// What the environment of the process does to NIXL, which reads it.
#[test]
fn an_environment_that_nixl_cannot_work_in_is_named() {
    if options(AUTO).is_none() {
        return;
    }
    for (name, value, parts) in [
        ("NIXL_PLUGIN_DIR", "/nonexistent", ["NIXL_PLUGIN_DIR", "/nonexistent"]),
        ("UCX_TLS", "posix", ["UCX_TLS is \"posix\"", "notices a dead peer"]),
        ("UCX_NET_DEVICES", "nothing", ["UCX", "does not start"]),
    ] {
        let mut child = Source::start("no-agent", &[(name, value)]);
        let answer = child.answer().expect("an answer");
        assert!(parts.iter().all(|p| answer.contains(p)), "{name}: {answer}");
        assert!(exit(&mut child).success(), "{name}");
    }
}

/// Loaded, used and ended, NIXL leaves a process that exits as it should.
#[test]
fn a_process_exits_in_peace() {
    for engine in [AUTO, TCP] {
        let Some(o) = options(engine) else { return };
        let mut source = Source::start(engine, &[]);
        let mut sink = Node::new(o, 2);
        sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
        sink.post(1, 1, everything());
        sink.good(1);
        assert_eq!(source.ask("end").as_deref(), Some("ended"));
        let status = exit(&mut source);
        assert!(status.success(), "{status}");
    }
}

/// Addresses, as the kernel prints them, on which this process listens.
fn listening() -> Vec<String> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|e| std::fs::read_link(e.path()).ok());
    let mine: Vec<String> = links.map(|l| l.to_string_lossy().into_owned()).collect();
    let table = ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/self/net/{t}")).unwrap_or_default());
    let rows = table.iter().flat_map(|t| t.lines().skip(1)).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let listens = |row: &Vec<&str>| row[3] == "0A" && mine.contains(&format!("socket:[{}]", row[9]));
    rows.filter(listens).map(|row| row[1].split(':').next().unwrap().to_string()).collect()
}

/// Not allowed to talk to other hosts, an agent and what it loads are not reachable from there.
#[test]
fn an_agent_for_this_host_listens_on_loopback() {
    let Ok(wanted) = std::env::var(CHILD) else {
        let Some(_) = options(AUTO) else { return };
        for remote in ["local", "remote"] {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["an_agent_for_this_host_listens_on_loopback", "--exact", "--test-threads=1"])
                .env(CHILD, remote)
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success(), "{remote}");
        }
        return;
    };
    let mut config = AgentConfig::new("a", 0, 1);
    config.nixl = Some(NixlOptions { library: nixl::packages(), ..NixlOptions::default() });
    config.allow_remote = wanted == "remote";
    let _agent = Agent::new(config, layout()).unwrap();
    let outside = listening().iter().any(|a| a != "0100007F");
    // A machine without a network has nothing to listen on but loopback.
    let network = std::fs::read_dir("/sys/class/net").unwrap().flatten().any(|n| n.file_name() != "lo");
    assert_eq!(outside, wanted == "remote" && network, "{:?}", listening());
}

/// A region and nothing in it.
fn layout() -> Arc<Layout> {
    Arc::new(Layout::new(LayoutDesc { regions: vec![Region { len: 4096 }], ..Default::default() }).unwrap())
}

/// Required and not found, it says so instead of doing without.
#[test]
fn an_agent_that_requires_nixl_does_not_do_without() {
    let mut child = Source::start("required", &[("LD_LIBRARY_PATH", "")]);
    let answer = child.answer().expect("an answer");
    for part in ["libnixl_capi.so cannot be loaded", "pip install"] {
        assert!(answer.contains(part), "{part:?} is not in {answer:?}");
    }
    assert!(exit(&mut child).success());
}

/// A way of this host by which the destination pulls is better than NIXL, and NIXL better than streams.
#[test]
fn nixl_comes_between_the_ways_of_the_host() {
    let Some(o) = options(AUTO) else { return };
    let report = |shm: bool, tcp: bool| {
        let agents = ["a", "b"].map(|name| {
            let mut c = AgentConfig::new(name, 0, 1);
            (c.host.shm, c.host.cma, c.host.tcp) = (shm, false, tcp);
            c.nixl = Some(o.clone());
            let agent = Agent::new(c, layout()).unwrap();
            agent.register(0, Memory::shared(Arc::new(SharedMemory::allocate(4096).unwrap()))).unwrap();
            agent
        });
        let peer = agents[0].handshake(agents[1].address(), Direction::Inbound, 0).unwrap();
        loop {
            let e = agents[0].poll(1, Some(PATIENCE)).pop().expect("an event");
            if e.kind == EventKind::Handshake {
                assert_eq!(e.status, Status::Ok, "{}", e.text);
                return agents[0].effective_transports(peer).unwrap();
            }
        }
    };
    let both = report(true, true);
    assert!(both.starts_with("rank 0: host/shm"), "{both}");
    let streams = report(false, true);
    assert!(streams.starts_with("rank 0: nixl/ucx"), "{streams}");
    assert!(streams.contains("(host/tcp: works, but the source has to send)"), "{streams}");
}
