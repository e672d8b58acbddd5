//! What travels in the handshake, and which way it leads to.

use crate::node::*;
use crate::refused::layout;
use kvlink::agent::{Agent, AgentConfig};
use kvlink::error::Status;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, EventKind};
use kvlink::transport::{LinkId, Transport};
use std::sync::Arc;

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

/// What one side's UCX may use, the other's must not lack.
#[test]
fn peers_without_a_way_in_common_say_so() {
    let (Some(o), Some(mut shared)) = (options(TCP), options("TLS=posix,NET_DEVICES=lo")) else { return };
    shared.parameters.push(("ucx_error_handling_mode".into(), "none".into()));
    let (source, mut sink) = (Node::new(o, 1), Node::new(shared, 2));
    let e = sink.nixl.connect(LinkId(1), &source.nixl.metadata()).unwrap_err();
    assert_eq!(e.status(), Status::TransportUnavailable);
    assert!(e.message().contains("no way in common") && e.message().contains("UCX_TLS"), "{e}");
}
