//! The plainest cache: blocks of one tensor. Where the amount matters, not the shape.

use crate::common::rng::Rng;
use crate::rank::Rank;
use kvlink::layout::form::{Place, Record};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region};
use kvlink::proto::{AcceptArgs, Id, Offer, ReadArgs, WriteArgs};
use kvlink::wire::{Blocks, Range};
use std::sync::Arc;
use std::time::Duration;

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 16;

/// Blocks, and bytes of each (a multiple of 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flat {
    pub blocks: u32,
    pub bytes: u64,
}

/// Big enough to be caught in the middle.
pub const BIG: Flat = Flat { blocks: 513, bytes: 64 << 10 };
pub const SMALL: Flat = Flat { blocks: 64, bytes: 4096 };

impl Flat {
    pub fn layout(self) -> Arc<Layout> {
        self.layout_of("x", DType::U8)
    }

    pub fn layout_of(self, role: &str, dtype: DType) -> Arc<Layout> {
        let element = Element::of(dtype);
        let record = Record {
            layers: &[0],
            role,
            group: 0,
            place: Place { region: 0, offset: 0, num_blocks: self.blocks, block_stride: 0, layer_stride: 0 },
            block_tokens: BLOCK_TOKENS,
            element,
            elements: self.bytes / u64::from(BLOCK_TOKENS) / u64::from(element.bytes),
            token_stride: 0,
        };
        let (tensors, bytes) = record.tensors().unwrap();
        let group = Group {
            kind: GroupKind::Paged,
            block_tokens: BLOCK_TOKENS,
            num_blocks: self.blocks,
            reach: Reach::Full,
            context: Default::default(),
        };
        let regions = vec![Region { len: bytes }];
        Arc::new(Layout::new(LayoutDesc { model: "flat".into(), regions, groups: vec![group], tensors }).unwrap())
    }

    /// All blocks but the last in an order of the seed's: the last is left for [`still_works`].
    pub fn order(self, seed: u64) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.blocks - 1).collect();
        Rng::new(seed).shuffle(&mut ids);
        ids
    }

    fn len(self) -> usize {
        self.blocks as usize * self.bytes as usize
    }

    /// What a region holds after [`Flat::fill`].
    pub fn pattern(self, seed: u64) -> Vec<u8> {
        let mut out = vec![0; self.len()];
        for (i, chunk) in out.chunks_exact_mut(8).enumerate() {
            let word = (i as u64 ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub fn fill(self, rank: &Rank, seed: u64) {
        rank.store(0, 0, &self.pattern(seed));
    }

    pub fn block(self, bytes: &[u8], id: u32) -> &[u8] {
        let n = self.bytes as usize;
        &bytes[id as usize * n..(id as usize + 1) * n]
    }

    /// Copies blocks from one image to another.
    pub fn copy(self, src: &[u8], src_ids: &[u32], dst: &mut [u8], dst_ids: &[u32]) {
        let n = self.bytes as usize;
        for (s, d) in src_ids.iter().zip(dst_ids) {
            dst[*d as usize * n..][..n].copy_from_slice(self.block(src, *s));
        }
    }
}

pub fn list(ids: &[u32]) -> Vec<Blocks> {
    vec![Blocks { first: 0, ids: ids.to_vec() }]
}

pub fn tokens(ids: &[u32]) -> u64 {
    ids.len() as u64 * u64::from(BLOCK_TOKENS)
}

/// A lease may be so short that it ends before its ticket is asked for.
pub fn offer_for(rank: &Rank, request: &str, ids: &[u32], lease: Option<Duration>) -> (Id, Option<Vec<u8>>) {
    let offer = Offer { request: request.into(), blocks: list(ids), tokens: tokens(ids), lease, user_data: 5 };
    let id = rank.agent.offer(offer).unwrap();
    (id, rank.agent.ticket(id).ok())
}

pub fn offer(rank: &Rank, request: &str, ids: &[u32]) -> (Id, Vec<u8>) {
    let (id, ticket) = offer_for(rank, request, ids, None);
    (id, ticket.unwrap())
}

pub fn read_args<'a>(peer: Id, ticket: &'a [u8], ids: &[u32], user_data: u64) -> ReadArgs<'a> {
    let blocks = list(ids);
    ReadArgs { peer, ticket, blocks, token_begin: 0, token_end: None, layers: (0, u32::MAX), timeout: None, user_data }
}

pub fn read(rank: &Rank, peer: Id, ticket: &[u8], ids: &[u32]) -> Id {
    rank.agent.read(read_args(peer, ticket, ids, 0)).unwrap()
}

pub fn accept_args(request: &str, ids: &[u32]) -> AcceptArgs {
    let request = request.into();
    AcceptArgs { request, blocks: list(ids), token_begin: 0, tokens: tokens(ids), timeout: None, user_data: 6 }
}

pub fn accept(rank: &Rank, request: &str, ids: &[u32]) -> Id {
    rank.agent.accept(accept_args(request, ids)).unwrap()
}

pub fn write_args(peer: Id, request: &str, ids: &[u32]) -> WriteArgs {
    let n = tokens(ids);
    WriteArgs {
        peer,
        request: request.into(),
        blocks: list(ids),
        range: Range { token_begin: 0, token_end: n, token_total: n, layer_begin: 0, layer_end: u32::MAX },
        last: true,
        aux: Vec::new(),
        timeout: None,
        user_data: 8,
    }
}

pub fn write(rank: &Rank, peer: Id, request: &str, ids: &[u32]) -> Id {
    rank.agent.write(write_args(peer, request, ids)).unwrap()
}

/// One read of the last block, checked: whatever else was under way between the two has been dealt with before.
pub fn still_works(flat: Flat, source: &Rank, sink: &Rank, peer: Id, request: &str) {
    use kvlink::error::Status;
    use kvlink::proto::EventKind;
    let last = flat.blocks - 1;
    let at = last as usize * flat.bytes as usize;
    let stamp: Vec<u8> = request.bytes().cycle().take(flat.bytes as usize).collect();
    source.store(0, at, &stamp);
    let (lent, ticket) = offer(source, request, &[last]);
    let id = read(sink, peer, &ticket, &[last]);
    let e = sink.wait("a further read", |e| e.kind == EventKind::Transfer && e.id == id.0);
    assert_eq!((e.status, e.bytes), (Status::Ok, flat.bytes), "{}", e.text);
    assert_eq!(crate::rank::bytes(&sink.memory[0], at, flat.bytes as usize), stamp);
    let e = source.wait("its release", |e| e.kind == EventKind::Released && e.id == lent.0);
    assert_eq!(e.status, Status::Ok, "{}", e.text);
}
