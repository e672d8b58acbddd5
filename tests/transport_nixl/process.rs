//! What NIXL does to the process that it is loaded into.

use crate::nixl::packages;
use crate::node::*;
use crate::refused::layout;
use crate::source::{CHILD, Source, exit};
use kvlink::agent::{Agent, AgentConfig};
use kvlink::transport::nixl::NixlOptions;
use kvlink::transport::{LinkId, Transport};
use std::process::{Command, Stdio};
use std::time::Instant;

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

/// The kernel's state of a socket that listens.
const LISTENS: &str = "0A";

/// States and addresses of this process's TCP sockets, as the kernel prints them.
fn sockets() -> Vec<(String, String)> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|e| std::fs::read_link(e.path()).ok());
    let mine: Vec<String> = links.map(|l| l.to_string_lossy().into_owned()).collect();
    let table = ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/self/net/{t}")).unwrap_or_default());
    let rows = table.iter().flat_map(|t| t.lines().skip(1)).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| mine.contains(&format!("socket:[{}]", row[9])));
    ours.map(|row| (row[3].to_string(), row[1].split(':').next().unwrap().to_string())).collect()
}

/// Runs a test of this file by itself in a process.
fn alone(test: &str, as_what: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([&format!("process::{test}"), "--exact", "--test-threads=1"])
        .env(CHILD, as_what)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{as_what}");
}

/// The connections of peers that are gone end, although nothing is read any more.
#[test]
fn peers_that_are_gone_leave_no_connections() {
    if std::env::var_os(CHILD).is_none() {
        let Some(_) = options(TCP) else { return };
        return alone("peers_that_are_gone_leave_no_connections", "sink");
    }
    let mut sink = Node::new(options(TCP).unwrap(), 2);
    let before = sockets().len();
    for id in 1..4 {
        let mut source = Source::start(TCP, &[]);
        sink.nixl.connect(LinkId(id), &source.metadata()).unwrap();
        sink.post(id, id, everything());
        sink.good(id);
        assert!(sockets().len() > before);
        sink.nixl.disconnect(LinkId(id));
        assert_eq!(source.ask("end").as_deref(), Some("ended"));
        exit(&mut source);
        let deadline = Instant::now() + PATIENCE;
        while sockets().len() > before {
            assert!(Instant::now() < deadline, "{:?}", sockets());
            std::thread::yield_now();
        }
    }
}

/// Not allowed to talk to other hosts, an agent and what it loads are not reachable from there.
#[test]
fn an_agent_for_this_host_listens_on_loopback() {
    let Ok(wanted) = std::env::var(CHILD) else {
        let Some(_) = options(AUTO) else { return };
        return ["local", "remote"].iter().for_each(|w| alone("an_agent_for_this_host_listens_on_loopback", w));
    };
    let mut config = AgentConfig::new("a", 0, 1);
    config.nixl = Some(NixlOptions { library: packages(), ..NixlOptions::default() });
    config.allow_remote = wanted == "remote";
    let _agent = Agent::new(config, layout()).unwrap();
    let listening: Vec<(String, String)> = sockets().into_iter().filter(|s| s.0 == LISTENS).collect();
    let outside = listening.iter().any(|s| s.1 != "0100007F");
    // A machine without a network has nothing to listen on but loopback.
    let network = std::fs::read_dir("/sys/class/net").unwrap().flatten().any(|n| n.file_name() != "lo");
    assert_eq!(outside, wanted == "remote" && network, "{listening:?}");
}

/// Without network cards NIXL locks no memory: a low limit is no reason to refuse.
#[test]
fn a_process_that_may_not_lock_memory_is_read_from() {
    let Some(o) = options(AUTO) else { return };
    let mut source = Source::that_locks_nothing(AUTO);
    let mut sink = Node::new(o, 2);
    sink.nixl.connect(LinkId(1), &source.metadata()).unwrap();
    sink.post(1, 1, everything());
    sink.good(1);
    assert_eq!(sink.changed(7), 0);
}
