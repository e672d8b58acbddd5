//! Requests that move nothing.

use crate::common::case::{Ask, instance as layouts};
use crate::flat::*;
use crate::rank::{Rank, connect, instance};
use crate::transport::Transport;
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Element};
use kvlink::proto::{Direction, EventKind, Offer, ReadArgs, WriteArgs};
use kvlink::wire::Range;

pub fn no_tokens(t: Transport) {
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let sink = Rank::alone(t, "decode", SMALL.layout());
    SMALL.fill(&sink, 2);
    let peer = sink.handshake(&source, Direction::Inbound);
    let (_, ticket) = offer(&source, "empty", &[]);
    read(&sink, peer, &ticket, &[]);
    assert_eq!(sink.good(EventKind::Transfer).bytes, 0);
    source.good(EventKind::Released);

    let back = source.handshake(&sink, Direction::Outbound);
    accept(&sink, "nothing", &[]);
    write(&source, back, "nothing", &[]);
    assert_eq!(sink.good(EventKind::Received).bytes, 0);
    assert_eq!(source.good(EventKind::Transfer).bytes, 0);
    assert_eq!(sink.snapshot()[0], SMALL.pattern(2));
    still_works(SMALL, &source, &sink, peer, "something");
}

pub fn a_fully_cached_prefix(t: Transport) {
    let source = Rank::alone(t, "prefill", SMALL.layout());
    let sink = Rank::alone(t, "decode", SMALL.layout());
    SMALL.fill(&sink, 2);
    let ids = SMALL.order(1);
    let n = tokens(&ids);
    let peer = sink.handshake(&source, Direction::Inbound);
    let (_, ticket) = offer(&source, "cached", &ids);
    let args = ReadArgs { token_begin: n, ..read_args(peer, &ticket, &ids, 1) };
    sink.agent.read(args).unwrap();
    assert_eq!(sink.good(EventKind::Transfer).bytes, 0);
    source.good(EventKind::Released);

    let back = source.handshake(&sink, Direction::Outbound);
    sink.agent.accept(kvlink::proto::AcceptArgs { token_begin: n, ..accept_args("cached", &ids) }).unwrap();
    // The source does not know what the sink has, and writes everything.
    let range = Range { token_begin: 0, token_end: n, token_total: n, layer_begin: 0, layer_end: 1 };
    source.agent.write(WriteArgs { range, ..write_args(back, "cached", &ids) }).unwrap();
    assert_eq!(sink.good(EventKind::Received).bytes, 0);
    assert_eq!(source.good(EventKind::Transfer).bytes, 0);
    assert_eq!(sink.snapshot()[0], SMALL.pattern(2));
}

/// A replicated cache: one rank of the source gives, the others only hear that they may let go.
pub fn ranks_with_nothing_to_move(t: Transport) {
    let latent = Cache::Record { role: "mla".into(), element: Element::of(DType::Bf16), elements: 64 };
    let caches = vec![Layers { layers: vec![0, 1], cache: latent }];
    let m = Model { name: "mla".into(), num_layers: 2, caches };
    let tp = |n| layouts(&m, &Placement { tp: n, ..Placement::default() });
    let ask = Ask::whole(80);
    for (s, d) in [(4, 1), (1, 4)] {
        let mut case = crate::common::case::case(tp(s), tp(d), (false, false), &ask);
        let shared = case.src_lists[0].clone();
        case.src_lists.iter_mut().for_each(|l| *l = shared.clone());
        crate::data::read(t, &case);
        crate::data::write(t, &case);
    }
    // Nothing of a request that ends before it begins, for all of them.
    let (src, dst) = (instance(t, "prefill", &tp(4)), instance(t, "decode", &tp(2)));
    let peers = connect(&dst, &src, Direction::Inbound);
    let none = Offer { request: "none".into(), blocks: list(&[]), tokens: 0, lease: None, user_data: 1 };
    let offers: Vec<_> = src.iter().map(|r| r.agent.offer(none.clone()).unwrap()).collect();
    let ticket = src[3].agent.ticket(offers[3]).unwrap();
    for (r, peer) in dst.iter().zip(&peers) {
        read(r, *peer, &ticket, &[]);
    }
    for r in &dst {
        assert_eq!(r.good(EventKind::Transfer).bytes, 0);
    }
    for r in &src {
        r.good(EventKind::Released);
    }
}
