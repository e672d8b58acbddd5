//! The fuzz targets for a short time: made-up bytes, and valid inputs with mutations. `fuzz/` runs the same for longer.

#[path = "../fuzz/entries.rs"]
mod entries;

use kvlink::wire::*;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::char::any(), 0..20).prop_map(|v| v.into_iter().collect())
}

fn blocks() -> impl Strategy<Value = Vec<Blocks>> {
    let one = (any::<u64>(), proptest::collection::vec(any::<u32>(), 0..20));
    proptest::collection::vec(one.prop_map(|(first, ids)| Blocks { first, ids }), 0..5)
}

fn range() -> impl Strategy<Value = Range> {
    any::<(u64, u64, u64, u32, u32)>().prop_map(|(a, b, c, d, e)| Range {
        token_begin: a,
        token_end: b,
        token_total: c,
        layer_begin: d,
        layer_end: e,
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

fn entry() -> impl Strategy<Value = Entry> {
    let transports = proptest::collection::vec((name(), bytes()), 0..4);
    (any::<u32>(), name(), any::<u64>(), name(), transports).prop_map(
        |(rank, address, incarnation, layout, transports)| Entry { rank, address, incarnation, layout, transports },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let text = || (any::<u64>(), any::<i32>(), name());
    prop_oneof![
        (any::<(u16, u16)>(), any::<bool>(), name(), any::<(u64, u32, u64)>()).prop_map(
            |(versions, join, instance, (incarnation, rank, expected))| {
                let purpose = if join { Purpose::Join } else { Purpose::Peer };
                Message::Hello { versions, purpose, instance, incarnation, rank, expected }
            }
        ),
        (any::<u16>(), name(), any::<(u64, u32, u64)>()).prop_map(|(version, instance, (incarnation, rank, token))| {
            Message::Welcome { version, instance, incarnation, rank, token }
        }),
        text().prop_map(|(_, status, text)| Message::Refuse { status, text }),
        entry().prop_map(Message::Join),
        proptest::collection::vec(entry(), 0..4).prop_map(Message::Directory),
        (name(), any::<bool>()).prop_map(|(transport, pull)| Message::Link { transport, pull }),
        (any::<(u64, u32)>(), name(), range(), blocks()).prop_map(|((op, round), request, range, blocks)| {
            Message::Read(ReadRequest { op, request, round, range, blocks })
        }),
        text().prop_map(|(op, status, text)| Message::ReadFailed { op, status, text }),
        any::<u64>().prop_map(|op| Message::ReadCancel { op }),
        (any::<(u64, u32, u32)>(), name()).prop_map(|((op, round, consumers), request)| Message::Done {
            op,
            request,
            round,
            consumers
        }),
        any::<(u64, i32)>().prop_map(|(op, status)| Message::Ack { op, status }),
        (any::<(u64, bool)>(), name(), range(), blocks(), bytes()).prop_map(
            |((op, last), request, range, blocks, aux)| {
                Message::Write(WriteRequest { op, request, range, blocks, last, aux })
            }
        ),
        (any::<u64>(), range(), blocks()).prop_map(|(op, range, blocks)| Message::WriteGo { op, range, blocks }),
        (text(), any::<u64>()).prop_map(|((op, status, text), bytes)| Message::WriteDone { op, status, text, bytes }),
        any::<u64>().prop_map(|op| Message::WriteCancel { op }),
        any::<(u64, i32)>().prop_map(|(op, status)| Message::WriteAck { op, status }),
        bytes().prop_map(Message::Notify),
        Just(Message::Ping),
        Just(Message::Pong),
    ]
}

/// Changes to valid bytes: (position, new byte), a cut, an appendix.
fn mutations() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, prop::sample::Index, Vec<u8>)> {
    (proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4), any::<prop::sample::Index>(), bytes())
}

fn mutate(mut b: Vec<u8>, m: &(Vec<(prop::sample::Index, u8)>, prop::sample::Index, Vec<u8>)) -> Vec<u8> {
    for (at, v) in &m.0 {
        if !b.is_empty() {
            let i = at.index(b.len());
            b[i] = *v;
        }
    }
    if m.2.len().is_multiple_of(3) {
        b.truncate(m.1.index(b.len() + 1));
    }
    if m.2.len().is_multiple_of(4) {
        b.extend_from_slice(&m.2);
    }
    b
}

const ROUTE: &str = "cmpl-___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005___decode_addr_host:10.0.0.2,handshake:7301,\
notify:7501_00112233445566778899aabbccddeeff-0-abcdef12";
const PARAMS: &str = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_dp_size":1,"remote_dp_rank":0,"tp_size":4,
"transfer_id":"tx-00112233","remote_engine_id":"kvlink:AAECA_8"}"#;

const LAYOUT: &str = r#"{"geometry":{"name":"m","num_layers":2,"caches":[{"layers":[0,1],"cache":{"kind":"attention",
"heads":4,"dims":[4,4],"dtype":"bf16","reach":{"window":8}}}]},"placement":{"tp":2,"tp_rank":1,"block_tokens":4}}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_survives_the_journey_in_any_pieces(list in proptest::collection::vec(message(), 1..6), n in 1usize..64) {
        let stream: Vec<u8> = list.iter().flat_map(encode_frame).collect();
        let mut decoder = FrameDecoder::new();
        let mut out = Vec::new();
        for piece in stream.chunks(n) {
            decoder.extend(piece);
            while let Some(m) = decoder.next_message().unwrap() {
                out.push(m);
            }
        }
        prop_assert_eq!(out, list);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        entries::frames(&data);
        entries::message(&data);
        entries::preamble(&data);
        entries::ticket(&data);
        entries::layout(&data);
        entries::zmtp(&data);
        entries::moriio(&data);
        entries::worker(&data);
    }

    #[test]
    fn no_mutated_zeromq_peer_breaks_a_dealer(kind in name(), context in bytes(), big: u16, cut: u8, m in mutations()) {
        use kvlink::wire::zmtp::{Command, message};
        let mut stream = vec![cut];
        stream.extend(Command::Ready { socket_type: kind, identity: context.clone() }.encode());
        stream.extend(message(&vec![7; usize::from(big) % 700]));
        stream.extend(Command::Ping { ttl: big, context }.encode());
        entries::zmtp(&stream);
        entries::zmtp(&mutate(stream, &m));
    }

    #[test]
    fn no_mutated_request_id_or_parameter_makes_a_parser_panic(m in mutations()) {
        for text in [ROUTE, PARAMS, &ROUTE[16..60]] {
            entries::moriio(text.as_bytes());
            entries::moriio(&mutate(text.as_bytes().to_vec(), &m));
        }
    }

    #[test]
    fn no_mutated_worker_breaks_another(
        req_id in name(), transfer_id in name(), lists in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 0..9), 1..4),
        number: u32, m in mutations(),
    ) {
        use kvlink::wire::moriio::{Blob, GET_META, Handshake, LayerMemory, Notify};
        use kvlink::wire::zmtp::{message, message_of};
        let handshake = Handshake {
            engine_id: req_id.clone(),
            agent_metadata: Blob(m.2.clone()),
            kv_caches_base_addr: vec![u64::from(number)],
            num_blocks: 1,
            block_len: number.into(),
            attn_backend_name: transfer_id.clone(),
            kv_head_layouts: [("a".into(), vec![1, 2])].into(),
            mamba_state_layouts: [].into(),
            attention_block_sizes: [("a".into(), 16)].into(),
            layers: vec![LayerMemory { layer: "a".into(), regions: vec![Blob(m.2.clone())] }],
        };
        let [meta, layers] = handshake.encode();
        let both = [&[meta.len().min(255) as u8][..], &meta, &layers].concat();
        entries::worker(&both);
        entries::worker(&mutate(both, &m));
        for one in [
            Notify::RemoteBlocks { req_id, transfer_id: transfer_id.clone(), block_notify_list: lists, decode_rank: number },
            Notify::WriteDone { transfer_id: transfer_id.clone(), num_writers: number % 5 },
            Notify::WriteFailed { transfer_id: transfer_id.clone() },
            Notify::Release { transfer_id, consumer_tp_size: number % 5 },
        ] {
            let frame = one.encode();
            entries::worker(&frame);
            entries::worker(&mutate(frame.clone(), &m));
            let said = [&[number as u8][..], &message(&frame), &message_of(&[b"", &frame]), &message(GET_META)].concat();
            entries::worker(&said);
            entries::worker(&mutate(said, &m));
        }
    }

    #[test]
    fn no_mutated_message_makes_a_decoder_panic(list in proptest::collection::vec(message(), 1..4), m in mutations()) {
        let mut stream = vec![m.2.len() as u8];
        stream.extend(list.iter().flat_map(encode_frame));
        entries::frames(&mutate(stream, &m));
        let one = &list[0];
        let mut body = vec![one.type_code() as u8];
        body.extend_from_slice(&encode_frame(one)[8..]);
        entries::message(&body);
        entries::message(&mutate(body, &m));
    }

    #[test]
    fn no_mutated_preamble_or_ticket_makes_a_decoder_panic(token: u64, request in name(), blocks in blocks(), m in mutations()) {
        entries::preamble(&mutate(Preamble(StreamKind::Data { token }).encode(), &m));
        let t = Ticket {
            instance: "p".into(), address: "a:1".into(), rank: 1, incarnation: token, request, round: 1, tokens: 7, blocks,
        };
        let bytes = t.encode();
        entries::ticket(&bytes[..bytes.len() - 8]);
        entries::ticket(&mutate(bytes, &m));
    }

    #[test]
    fn no_mutated_layout_makes_the_parser_panic(m in mutations()) {
        entries::layout(LAYOUT.as_bytes());
        entries::layout(&mutate(LAYOUT.as_bytes().to_vec(), &m));
    }

    #[test]
    fn no_sequence_of_messages_and_calls_breaks_an_endpoint(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = entries::endpoint(&data);
    }
}

#[test]
fn a_complete_conversation_is_among_what_the_endpoint_target_can_say() {
    // Accepts a connection, says hello, sends the directory, links; then accepts, writes and offers.
    let start: &[u8] = &[0, 11, 0, 0, 0, 1, 0, 0, 0, 11, 0, 4, 11, 0, 6, 0, 0];
    let mut jobs = 0;
    for tail in 0..=255u8 {
        for more in 0..=255u8 {
            let mut data = start.to_vec();
            data.extend_from_slice(&[3, 0, 2, 2, 2, 0, 11, 0, 12, tail, 0, 1, 2, 0, more, 11, 0, more % 20, tail]);
            jobs += entries::endpoint(&data);
        }
    }
    assert!(jobs > 1000, "{jobs} jobs");
}
