//! Agents with nothing to do.

use crate::flat::BIG;
use crate::process::Child;
use crate::rank::Rank;
use crate::transport::Transport;
use std::time::Duration;

/// Linked, with a standing offer, nothing under way: a second costs less than a twentieth of a second. That is processor
/// time, which other load does not change. Threads of a library that polls without a pause are left out.
pub fn agents_use_no_time(t: Transport) {
    let sink = Rank::alone(t, "decode", BIG.layout());
    let mut source = Child::start(t, "prefill", "127.0.0.1:0", Duration::from_millis(250), 1);
    source.ask(&format!("handshake {} out", sink.address()));
    source.offers(1);
    let micros: u64 = source.ask(&format!("idle 1000 {}", t.polls)).parse().unwrap();
    assert!(micros < 50_000, "an idle agent used {micros} us in a second");
}
