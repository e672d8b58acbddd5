//! What NIXL does to the process that it is loaded into.

use crate::nixl::packages;
use crate::node::*;
use crate::refused::layout;
use crate::source::{CHILD, Source, exit};
use kvlink::agent::{Agent, AgentConfig};
use kvlink::transport::nixl::NixlOptions;
use kvlink::transport::{LinkId, Transport};
use std::process::{Command, Stdio};

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
                .args(["process::an_agent_for_this_host_listens_on_loopback", "--exact", "--test-threads=1"])
                .env(CHILD, remote)
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success(), "{remote}");
        }
        return;
    };
    let mut config = AgentConfig::new("a", 0, 1);
    config.nixl = Some(NixlOptions { library: packages(), ..NixlOptions::default() });
    config.allow_remote = wanted == "remote";
    let _agent = Agent::new(config, layout()).unwrap();
    let outside = listening().iter().any(|a| a != "0100007F");
    // A machine without a network has nothing to listen on but loopback.
    let network = std::fs::read_dir("/sys/class/net").unwrap().flatten().any(|n| n.file_name() != "lo");
    assert_eq!(outside, wanted == "remote" && network, "{:?}", listening());
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
