//! A source and a sink with so much under way that whatever is done to them happens in the middle of it.

use crate::flat::*;
use crate::rank::{PATIENCE, Rank, within, word};
use crate::transport::Transport;
use kvlink::error::Status;
use kvlink::proto::{Direction, Event, EventKind, Id};
use std::collections::HashSet;
use std::time::Instant;

/// A region is dealt to so many requests.
pub const PIECES: usize = 16;
/// Requests that keep two agents busy for a while: 640 MiB.
pub const MANY: usize = 320;

/// Blocks of the `i`-th request.
pub fn piece(ids: &[u32], i: usize) -> &[u32] {
    let n = ids.len() / PIECES;
    &ids[i % PIECES * n..][..n]
}

/// The source's region has pattern 1, the sink's pattern 2; what is written over the source later is pattern 3.
pub struct Pair {
    pub source: Rank,
    pub sink: Rank,
    /// The source, for the sink.
    pub inbound: Id,
    /// The sink, for the source.
    pub outbound: Id,
    pub images: Images,
}

/// What the sink's memory may look like.
pub struct Images {
    pub from: Vec<u32>,
    pub to: Vec<u32>,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    pub reused: Vec<u8>,
}

impl Images {
    pub fn new() -> Images {
        let (from, to, before) = (BIG.order(3), BIG.order(4), BIG.pattern(2));
        let mut after = before.clone();
        BIG.copy(&BIG.pattern(1), &from, &mut after, &to);
        Images { from, to, before, after, reused: BIG.pattern(3) }
    }

    /// Every byte is from before or what was sent, nothing else ever.
    pub fn mixed(&self, have: &[u8]) {
        let end = have.len() - BIG.bytes as usize;
        let bytes = have[..end].iter().zip(&self.before).zip(&self.after);
        let wrong = bytes.filter(|((h, b), a)| h != b && h != a).count();
        assert_eq!(wrong, 0, "bytes that are neither from before nor what was sent");
    }

    /// A request's blocks are all there.
    pub fn landed(&self, have: &[u8], i: usize) {
        for id in piece(&self.to, i) {
            assert!(BIG.block(have, *id) == BIG.block(&self.after, *id), "block {id} of request {i} is not valid");
        }
    }
}

/// Equal but for the last block, which [`still_works`] uses.
pub fn same(a: &[u8], b: &[u8]) {
    let end = a.len() - BIG.bytes as usize;
    let changed = a[..end].iter().zip(&b[..end]).filter(|(x, y)| x != y).count();
    assert_eq!(changed, 0, "bytes that changed afterwards");
}

impl Pair {
    pub fn new(t: Transport) -> Pair {
        let images = Images::new();
        let (source, sink) = (Rank::alone(t, "prefill", BIG.layout()), Rank::alone(t, "decode", BIG.layout()));
        BIG.fill(&source, 1);
        sink.store(0, 0, &images.before);
        let inbound = sink.handshake(&source, Direction::Inbound);
        let outbound = source.handshake(&sink, Direction::Outbound);
        Pair { source, sink, inbound, outbound, images }
    }

    /// Offers and reads.
    pub fn reads(&self, prefix: &str, n: usize) -> (Vec<Id>, Vec<Id>) {
        let Images { from, to, .. } = &self.images;
        let one = |i: usize| offer(&self.source, &format!("{prefix}{i}"), piece(from, i));
        let (offers, tickets): (Vec<Id>, Vec<Vec<u8>>) = (0..n).map(one).unzip();
        let one = |(i, ticket): (usize, &Vec<u8>)| read(&self.sink, self.inbound, ticket, piece(to, i));
        (offers, tickets.iter().enumerate().map(one).collect())
    }

    /// Accepts and writes; returns when every write has been announced.
    pub fn writes(&self, n: usize) -> (Vec<Id>, Vec<Id>) {
        let Images { from, to, .. } = &self.images;
        let name = |i: usize| format!("w{i}");
        let accepts = (0..n).map(|i| accept(&self.sink, &name(i), piece(to, i))).collect();
        let writes = (0..n).map(|i| write(&self.source, self.outbound, &name(i), piece(from, i))).collect();
        self.source.agent.notify(self.outbound, None, b"announced", None).unwrap();
        self.sink.good(EventKind::Notification);
        (accepts, writes)
    }

    pub fn reuse_source(&self) {
        self.source.store(0, 0, &self.images.reused);
    }

    pub fn started(&self) {
        started(&self.sink, &self.images);
    }
}

/// The first bytes have arrived.
pub fn started(sink: &Rank, images: &Images) {
    let at = |i: usize| piece(&images.to, i)[0] as usize * BIG.bytes as usize;
    let old: Vec<u64> =
        (0..PIECES).map(|i| u64::from_le_bytes(images.before[at(i)..at(i) + 8].try_into().unwrap())).collect();
    within("the first bytes", || (0..PIECES).any(|i| word(&sink.memory[0], at(i)) != old[i]));
}

/// One event of this kind for each id, with one of these statuses. Returns them in the order of the ids.
pub fn once_each(rank: &Rank, kind: EventKind, ids: &[Id], allowed: &[Status]) -> Vec<Event> {
    let mut events = rank.several(kind, ids.len(), Instant::now() + PATIENCE);
    let seen: HashSet<u64> = events.iter().map(|e| e.id).collect();
    assert!(seen == ids.iter().map(|id| id.0).collect(), "not one {kind:?} for each");
    for e in &events {
        assert!(allowed.contains(&e.status), "{kind:?} {:?}: {}", e.status, e.text);
    }
    let at = |e: &Event| ids.iter().position(|id| id.0 == e.id);
    events.sort_by_key(at);
    events
}

/// No event of these kinds is left.
pub fn no_more(rank: &Rank, kinds: &[EventKind]) {
    let late: Vec<Event> = rank.rest().into_iter().filter(|e| kinds.contains(&e.kind)).collect();
    assert_eq!(late, vec![]);
}
