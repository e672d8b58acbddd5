//! What an engine does with an agent.

use kvlink::agent::Agent;
use kvlink::error::Status;
use kvlink::layout::form::{Place, Record};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region};
use kvlink::proto::{EventKind, Id, Offer, ReadArgs};
use kvlink::wire::Blocks;
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a block.
pub const TOKENS: u32 = 16;

/// So many layers one behind the other, each of so many blocks of one size.
pub fn layout(layers: u32, blocks: u32, block: u32) -> Arc<Layout> {
    let record = Record {
        layers: &(0..layers).collect::<Vec<_>>(),
        role: "x",
        group: 0,
        place: Place { region: 0, offset: 0, num_blocks: blocks, block_stride: 0, layer_stride: 0 },
        block_tokens: TOKENS,
        element: Element::of(DType::U8),
        elements: u64::from(block / TOKENS),
        token_stride: 0,
    };
    let (tensors, bytes) = record.tensors().unwrap();
    let (kind, reach, context) = (GroupKind::Paged, Reach::Full, Default::default());
    let group = Group { kind, block_tokens: TOKENS, num_blocks: blocks, reach, context };
    let regions = vec![Region { len: bytes }];
    Arc::new(Layout::new(LayoutDesc { model: "bench".into(), regions, groups: vec![group], tensors }).unwrap())
}

pub fn blocks(ids: &[u32]) -> Vec<Blocks> {
    vec![Blocks { first: 0, ids: ids.to_vec() }]
}

/// Offers blocks; returns the ticket.
pub fn offer(agent: &Agent, request: &str, ids: &[u32]) -> Vec<u8> {
    let tokens = ids.len() as u64 * u64::from(TOKENS);
    let offer = Offer { request: request.into(), blocks: blocks(ids), tokens, lease: None, user_data: 0 };
    agent.ticket(agent.offer(offer).unwrap()).unwrap()
}

/// Begins to read so many layers of what was offered into these blocks; returns how long the call took.
pub fn begin_read(agent: &Agent, peer: Id, ticket: &[u8], ids: &[u32], layers: u32) -> Duration {
    let args = ReadArgs {
        peer,
        ticket,
        blocks: blocks(ids),
        token_begin: 0,
        token_end: None,
        layers: (0, layers),
        timeout: None,
        user_data: 0,
    };
    let begin = Instant::now();
    agent.read(args).unwrap();
    begin.elapsed()
}

/// The same, and sleeps until it has ended.
pub fn read(agent: &Agent, peer: Id, ticket: &[u8], ids: &[u32], layers: u32) -> Duration {
    let call = begin_read(agent, peer, ticket, ids, layers);
    wait(agent, EventKind::Transfer);
    call
}

/// Reads, and polls in a loop until it has ended.
pub fn read_polling(agent: &Agent, peer: Id, ticket: &[u8], ids: &[u32], layers: u32) -> Duration {
    let call = begin_read(agent, peer, ticket, ids, layers);
    loop {
        match agent.poll(1, Some(Duration::ZERO)).pop() {
            Some(e) => {
                assert_eq!((e.status, e.kind), (Status::Ok, EventKind::Transfer), "{}", e.text);
                return call;
            }
            None => std::thread::yield_now(),
        }
    }
}

pub fn wait(agent: &Agent, kind: EventKind) {
    loop {
        poll(&mut [PollFd::new(&agent.events().fd(), PollFlags::IN)], None).unwrap();
        let e = agent.poll(1, Some(Duration::ZERO)).pop().expect("an event");
        assert_eq!(e.status, Status::Ok, "{kind:?}: {}", e.text);
        if e.kind == kind {
            return;
        }
    }
}
