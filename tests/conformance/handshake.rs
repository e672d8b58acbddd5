//! Handshakes that fail say why, and leave both sides usable.

use crate::flat::*;
use crate::rank::{Rank, config};
use crate::transport::Transport;
use kvlink::agent::{Agent, Require};
use kvlink::error::Status;
use kvlink::layout::DType;
use kvlink::proto::{Direction, Event, EventKind};

fn failed(from: &Rank, to: &Rank, direction: Direction) -> Event {
    let peer = from.agent.handshake(to.address(), direction, 1).unwrap();
    let e = from.wait("the handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
    assert_ne!(e.status, Status::Ok);
    assert_eq!(from.agent.effective_transports(peer).unwrap_err().status(), Status::BadHandle);
    e
}

fn both_still_work(t: Transport, a: &Rank, a_flat: Flat, b: &Rank) {
    for (i, rank) in [a, b].into_iter().enumerate() {
        let other = Rank::alone(t, "other", rank.agent.layout().clone());
        let peer = rank.handshake(&other, Direction::Inbound);
        let report = rank.agent.effective_transports(peer).unwrap();
        assert!(report.starts_with(&format!("rank 0: {}", t.name)), "{report}");
        still_works(a_flat, &other, rank, peer, &format!("r{i}"));
    }
}

pub fn incompatible_layouts(t: Transport) {
    let narrow = Rank::alone(t, "prefill", SMALL.layout_of("kv", DType::Bf16));
    let wide = Rank::alone(t, "decode", SMALL.layout_of("kv", DType::F32));
    for (direction, ours, theirs) in [(Direction::Inbound, "F32", "Bf16"), (Direction::Outbound, "F32", "Bf16")] {
        let e = failed(&wide, &narrow, direction);
        assert_eq!(e.status, Status::Incompatible, "{}", e.text);
        let text = e.text.to_lowercase();
        for part in ["layer 0 kv", &ours.to_lowercase(), &theirs.to_lowercase()] {
            assert!(text.contains(part), "{part:?} is not in {:?}", e.text);
        }
    }
    let other = Rank::alone(t, "absent", SMALL.layout_of("indexer", DType::F32));
    let e = failed(&wide, &other, Direction::Inbound);
    assert!(
        e.status == Status::Incompatible && e.text.contains("layer 0 kv") && e.text.contains("absent"),
        "{}",
        e.text
    );
    both_still_work(t, &narrow, SMALL, &wide);
}

/// We require it, the other side does not have it.
pub fn require_not_satisfied(t: Transport) {
    let mut without = config(t, "prefill", 0, 1);
    t.exclude(&mut without);
    let source = Rank::start(t, without.clone(), SMALL.layout());
    let sink = Rank::alone(t, "decode", SMALL.layout());
    let e = failed(&sink, &source, Direction::Inbound);
    assert_eq!(e.status, Status::TransportUnavailable, "{}", e.text);
    assert!(e.text.contains(t.name) && e.text.len() > t.name.len() + 20, "{}", e.text);
    both_still_work(t, &sink, SMALL, &Rank::alone(t, "third", SMALL.layout()));

    let mut nonsense = config(t, "decode", 0, 1);
    nonsense.require = Require::Named("carrier-pigeon".into());
    let e = Agent::new(nonsense, SMALL.layout()).err().unwrap();
    assert_eq!(e.status(), Status::TransportUnavailable);
    assert!(e.message().contains("carrier-pigeon") && e.message().contains("host"), "{e}");
    // The one that it was refused for is not hurt.
    without.instance = "third".into();
    let like = Rank::start(t, without, SMALL.layout());
    let peer = like.handshake(&source, Direction::Inbound);
    let report = like.agent.effective_transports(peer).unwrap();
    assert!(!report.contains(&format!("rank 0: {}", t.name)), "{report}");
    still_works(SMALL, &source, &like, peer, "r");
}

/// The other side requires it, we do not have it.
pub fn require_not_satisfied_by_the_other(t: Transport) {
    let mut without = config(t, "decode", 0, 1);
    t.exclude(&mut without);
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let sink = Rank::start(t, without, SMALL.layout());
    let e = failed(&sink, &source, Direction::Inbound);
    assert_eq!(e.status, Status::TransportUnavailable, "{}", e.text);
    assert!(e.text.contains(t.name), "{}", e.text);
    both_still_work(t, &source, SMALL, &Rank::alone(t, "third", SMALL.layout()));
}
