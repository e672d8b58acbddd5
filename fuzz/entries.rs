//! What the fuzz targets call, and tests/fuzz_short.rs too: untrusted bytes in, no panic out, and what decodes is the
//! same after another journey.

use kvlink::error::{Error, Status};
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Layout, layout_from_json, layout_to_json};
use kvlink::proto::{
    AcceptArgs, Config, Counts, Direction, Endpoint, Identity, JobEnd, LinkInfo, Moriio, MoriioArgs, MoriioPort, Offer,
    Output, ReadArgs, WriteArgs, Zmq,
};
use kvlink::wire::moriio::{Handshake, Notify, Params, RequestRoute, Role, ZmqAddress, check_http_address};
use kvlink::wire::zmtp::{self, Command, Decoder, Received};
use kvlink::wire::{Blocks, Entry, FrameDecoder, Message, Preamble, Purpose, Range, StreamKind, Ticket, encode_frame};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A stream of frames, in pieces whose sizes the first bytes choose.
pub fn frames(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let mut decoder = FrameDecoder::new();
    let mut whole = FrameDecoder::new();
    whole.extend(stream);
    for piece in stream.chunks(usize::from(*cut).max(1)) {
        decoder.extend(piece);
        loop {
            let (a, b) = (decoder.next_message(), whole.next_message());
            match (a, b) {
                (Ok(Some(a)), b) => {
                    assert_eq!(b.as_ref(), Ok(&Some(a.clone())), "pieces change what is decoded");
                    let again = Message::decode(a.type_code(), &encode_frame(&a)[8..]);
                    assert_eq!(again, Ok(a));
                }
                (Err(_), _) => return,
                // The stream in one piece is ahead: begin again where the other stands.
                (Ok(None), Ok(Some(ahead))) => {
                    let mut rest = FrameDecoder::new();
                    rest.extend(&encode_frame(&ahead));
                    assert_eq!(rest.next_message(), Ok(Some(ahead)));
                    return;
                }
                (Ok(None), _) => break,
            }
        }
    }
}

/// One message: the first byte is its type.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match Message::decode(u16::from(*kind), body) {
        Ok(m) => {
            let frame = encode_frame(&m);
            assert_eq!(&frame[8..], body, "the encoding is not unique");
            assert_eq!(Message::decode(m.type_code(), &frame[8..]), Ok(m));
        }
        Err(e) => assert_eq!(e.status(), Status::Protocol, "{e}"),
    }
}

/// A preamble.
pub fn preamble(data: &[u8]) {
    match Preamble::decode(data) {
        Ok(p) => {
            assert_eq!(Preamble::decode(&p.encode()), Ok(p));
            assert!(matches!(p.0, StreamKind::Control | StreamKind::Data { .. }));
        }
        Err(e) => assert_eq!(e.status(), Status::Protocol),
    }
}

/// A ticket, as it is and with its checksum put right.
pub fn ticket(data: &[u8]) {
    let sum = |b: &[u8]| {
        b.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let mut right = data.to_vec();
    right.extend_from_slice(&sum(data).to_le_bytes());
    for bytes in [data, &right] {
        match Ticket::decode(bytes) {
            Ok(t) => assert_eq!(t.encode(), bytes),
            Err(e) => assert_eq!(e.status(), Status::InvalidTicket),
        }
    }
}

/// What a ZeroMQ peer says, in pieces whose sizes the first byte chooses, with and without a greeting of its own.
pub fn zmtp(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    for greeting in [&[][..], &zmtp::greeting()] {
        let stream = [greeting, stream].concat();
        let all = |piece: usize| {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                decoder.extend(bytes);
                loop {
                    match decoder.next_received() {
                        Ok(Some(r)) => found.push(r),
                        Ok(None) => break,
                        Err(e) => {
                            assert_eq!(e.status(), Status::Protocol, "{e}");
                            return (found, true);
                        }
                    }
                }
            }
            (found, false)
        };
        let (found, failed) = all(usize::from(*cut).max(1));
        assert_eq!(all(stream.len().max(1)), (found.clone(), failed), "pieces change what is decoded");
        for r in found {
            if let Received::Command(c) = r
                && !matches!(c, Command::Other { .. })
            {
                let mut again = Decoder::default();
                again.extend(&zmtp::greeting());
                again.extend(&c.encode());
                assert_eq!(again.next_received(), Ok(Some(Received::Greeting { minor: 1 })));
                match (again.next_received(), c) {
                    // Texts that were no UTF-8 have become longer, and are cut.
                    (Ok(Some(Received::Command(Command::Error { .. }))), Command::Error { .. }) => {}
                    (other, c) => assert_eq!(other, Ok(Some(Received::Command(c)))),
                }
            }
        }
        let mut dealer = Zmq::dealer("fuzz");
        let _ = dealer.handle_bytes(&stream);
        assert!(dealer.take_output().len() <= 256 + 16 * stream.len(), "answers outgrow questions");
    }
}

/// Request ids, addresses and parameters as a router hands them on.
pub fn moriio(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(r) = RequestRoute::parse(text) {
            assert_eq!(RequestRoute::parse(&r.to_string()), Ok(r.clone()));
            assert!(text.contains(&r.to_string()));
        }
        if let Ok(a) = ZmqAddress::parse(text) {
            assert_eq!(a.to_string(), text);
        }
        let _ = check_http_address(text);
    }
    if let Err(e) = Params::from_json(data) {
        assert_eq!(e.status(), Status::InvalidArgument);
    }
}

/// What workers of vLLM's MoRIIOConnector say, as messages and as what comes to a worker's ports.
pub fn worker(data: &[u8]) {
    for role in [Role::Prefill, Role::Decode] {
        match Notify::decode(data, role) {
            Ok(m) => {
                assert_eq!(Notify::decode(&m.encode(), role), Ok(m.clone()));
                assert_eq!(Notify::from_json(m.to_json().as_bytes()), Ok(m));
            }
            Err(e) => assert_eq!(e.status(), Status::Protocol, "{e}"),
        }
    }
    let Some((cut, rest)) = data.split_first() else { return };
    let (meta, layers) = rest.split_at(usize::from(*cut).min(rest.len()));
    match Handshake::decode(meta, layers) {
        Ok(h) => {
            let [meta, layers] = h.encode();
            assert_eq!(Handshake::decode(&meta, &layers), Ok(h.clone()));
            assert_eq!(Handshake::from_json(h.to_json().as_bytes()), Ok(h));
        }
        Err(e) => assert_eq!(e.status(), Status::Protocol, "{e}"),
    }
    let now = Instant::now();
    for port in [MoriioPort::Handshake, MoriioPort::Notify] {
        let args = MoriioArgs { role: Role::Prefill, handshake: None, user_data: 0 };
        let mut it = Moriio::new(args, 1);
        let link = it.handle_accepted(now, port).expect("the first connection is taken");
        let ready = Command::Ready { socket_type: "DEALER".into(), identity: vec![] };
        it.handle_bytes(now, link, &[zmtp::greeting().to_vec(), ready.encode()].concat());
        for piece in rest.chunks(usize::from(*cut).max(1)) {
            it.handle_bytes(now, link, piece);
        }
        it.handle_timeout(now + Duration::from_secs(60));
        let outputs = std::iter::from_fn(|| it.poll_output()).count();
        assert!(outputs <= 8 + 2 * data.len(), "{outputs} outputs from {} bytes", data.len());
    }
}

/// A layout's description.
pub fn layout(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match layout_from_json(text) {
        Ok(l) => {
            let again = layout_from_json(&layout_to_json(&l)).expect("a valid layout describes itself");
            assert_eq!(again, l);
        }
        Err(e) => assert!(e.status().code() > -200, "{e}"),
    }
}

fn layouts() -> &'static [Arc<Layout>] {
    static ALL: OnceLock<Vec<Arc<Layout>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let cache = Cache::Attention { heads: 2, dims: (2, 2), dtype: DType::Bf16, reach: Default::default() };
        let model = Model { name: "m".into(), num_layers: 1, caches: vec![Layers { layers: vec![0], cache }] };
        let place = Placement { tp: 2, block_tokens: 4, num_blocks: 8, ..Placement::default() };
        let one = |r| Layout::new(model.describe(&place.at(r)).expect("a placement")).map(Arc::new);
        (0..2).map(|r| one(r).expect("a layout")).collect()
    })
}

fn peer_entry(rank: u32) -> Entry {
    static JSON: OnceLock<Vec<String>> = OnceLock::new();
    let json = JSON.get_or_init(|| layouts().iter().map(|l| layout_to_json(l)).collect());
    Entry {
        rank,
        address: format!("p-{rank}:1"),
        incarnation: 90 + u64::from(rank),
        layout: json[rank as usize].clone(),
        transports: vec![("sim".into(), vec![])],
    }
}

/// Small values, so that what is made up fits what exists now and then.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((b, rest)) => {
                self.0 = rest;
                *b
            }
            None => 0,
        }
    }

    fn number(&mut self) -> u64 {
        match self.next() {
            255 => u64::MAX,
            254 => 1 << 63,
            b => u64::from(b % 12),
        }
    }

    fn range(&mut self) -> Range {
        if !self.next().is_multiple_of(4) {
            return Range { token_begin: 0, token_end: 8, token_total: 8, layer_begin: 0, layer_end: 1 };
        }
        Range {
            token_begin: self.number(),
            token_end: self.number(),
            token_total: self.number(),
            layer_begin: self.number() as u32,
            layer_end: self.number() as u32,
        }
    }

    fn blocks(&mut self) -> Vec<Blocks> {
        match self.next() % 8 {
            0 => vec![],
            1 => vec![Blocks { first: self.number(), ids: vec![self.number() as u32, self.number() as u32] }],
            _ => vec![Blocks { first: 0, ids: vec![0, 1] }],
        }
    }

    fn request(&mut self) -> String {
        ["a", "b", ""][usize::from(self.next() % 3)].to_string()
    }

    fn status(&mut self) -> i32 {
        match self.next() % 3 {
            0 => 0,
            1 => Status::ALL[usize::from(self.next()) % Status::ALL.len()].code(),
            _ => i32::from(self.next()) - 400,
        }
    }

    fn message(&mut self) -> Message {
        use kvlink::wire::{ReadRequest, WriteRequest};
        match self.next() % 20 {
            0 => Message::Hello {
                versions: (1, 1 + u16::from(self.next() % 2)),
                purpose: if self.next().is_multiple_of(4) { Purpose::Join } else { Purpose::Peer },
                instance: ["p", "me"][usize::from(self.next() % 2)].into(),
                incarnation: 90 + self.number() % 2,
                rank: self.number() as u32,
                expected: 0,
            },
            1 => Message::Welcome {
                version: 1,
                instance: "p".into(),
                incarnation: 90 + self.number() % 2,
                rank: self.number() as u32,
                token: self.number(),
            },
            2 => Message::Refuse { status: self.status(), text: String::new() },
            3 => Message::Join(peer_entry(1)),
            4 => Message::Directory(vec![peer_entry(0), peer_entry(1)]),
            5 => Message::Directory(vec![peer_entry(1)]),
            6 => Message::Link { transport: "sim".into(), pull: self.next().is_multiple_of(2) },
            7 => Message::Read(ReadRequest {
                op: self.number(),
                request: self.request(),
                round: self.number() as u32,
                range: self.range(),
                blocks: self.blocks(),
            }),
            8 => Message::ReadFailed { op: self.number(), status: self.status(), text: String::new() },
            9 => Message::ReadCancel { op: self.number() },
            10 => Message::Done {
                op: self.number(),
                request: self.request(),
                round: self.number() as u32,
                consumers: self.number() as u32,
            },
            11 => Message::Ack { op: self.number(), status: self.status() },
            12 => Message::Write(WriteRequest {
                op: self.number(),
                request: self.request(),
                range: self.range(),
                blocks: self.blocks(),
                last: self.next().is_multiple_of(2),
                aux: vec![self.next()],
            }),
            13 => Message::WriteGo { op: self.number(), range: self.range(), blocks: self.blocks() },
            14 => Message::WriteDone { op: self.number(), status: self.status(), text: String::new(), bytes: 5 },
            15 => Message::WriteCancel { op: self.number() },
            16 => Message::WriteAck { op: self.number(), status: self.status() },
            17 => Message::Notify(vec![self.next()]),
            18 => Message::Ping,
            _ => Message::Pong,
        }
    }
}

/// Arbitrary messages and calls into one endpoint: it never panics, and in the end holds nothing. Returns how many jobs
/// it started.
pub fn endpoint(data: &[u8]) -> usize {
    let mut b = Bytes(data);
    let mut now = Instant::now();
    let me = Identity { instance: "me".into(), incarnation: 7, rank: 0, ranks: 1, leader: String::new() };
    let config = Config { max_sessions: 16, max_peers: 8, max_parked: 4, ..Config::default() };
    let model_full = {
        let cache = Cache::Attention { heads: 2, dims: (2, 2), dtype: DType::Bf16, reach: Default::default() };
        let model = Model { name: "m".into(), num_layers: 1, caches: vec![Layers { layers: vec![0], cache }] };
        let place = Placement { block_tokens: 4, num_blocks: 8, ..Placement::default() };
        Layout::new(model.describe(&place).expect("a placement")).expect("a layout")
    };
    let mut e = Endpoint::new(config, me, Arc::new(model_full));
    e.bind(now, "me:1".into(), vec![("sim".into(), vec![])]);
    let (mut conns, mut peers, mut ids, mut jobs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut tickets: Vec<Vec<u8>> = Vec::new();
    let (mut begun, mut ended, mut posted) = (0usize, 0usize, 0usize);
    while !b.0.is_empty() {
        match b.next() % 16 {
            0 => conns.extend(e.handle_accepted(now)),
            1 => peers.extend(e.handshake(now, "p-0:1", Direction::Both, 0)),
            2 => {
                let blocks = b.blocks();
                let offer = Offer { request: b.request(), blocks, tokens: 8, lease: None, user_data: 1 };
                if let Ok(id) = e.offer(now, offer) {
                    begun += 1;
                    ids.push(id);
                    tickets.extend(e.ticket(id));
                }
            }
            3 => {
                let (request, blocks) = (b.request(), b.blocks());
                let args = AcceptArgs { request, blocks, token_begin: 0, tokens: 8, timeout: None, user_data: 1 };
                if let Ok(id) = e.accept(now, args) {
                    begun += 1;
                    ids.push(id);
                }
            }
            4 if !peers.is_empty() => {
                let made = Ticket {
                    instance: "p".into(),
                    address: String::new(),
                    rank: 0,
                    incarnation: 90,
                    request: b.request(),
                    round: 1,
                    tokens: 8,
                    blocks: b.blocks(),
                };
                let peer = peers[usize::from(b.next()) % peers.len()];
                let args = ReadArgs {
                    peer,
                    ticket: &made.encode(),
                    blocks: b.blocks(),
                    token_begin: 0,
                    token_end: None,
                    layers: (0, 1),
                    timeout: None,
                    user_data: 1,
                };
                if let Ok(id) = e.read(now, args) {
                    begun += 1;
                    ids.push(id);
                }
            }
            5 if !peers.is_empty() => {
                let peer = peers[usize::from(b.next()) % peers.len()];
                let args = WriteArgs {
                    peer,
                    request: b.request(),
                    blocks: b.blocks(),
                    range: b.range(),
                    last: true,
                    aux: vec![1],
                    timeout: None,
                    user_data: 1,
                };
                if let Ok(id) = e.write(now, args) {
                    begun += 1;
                    ids.push(id);
                }
            }
            6 if !ids.is_empty() => {
                let _ = e.cancel(now, ids[usize::from(b.next()) % ids.len()]);
            }
            7 => {
                now += Duration::from_millis(u64::from(b.next()) * 20);
                e.handle_timeout(now);
            }
            8 if !conns.is_empty() => {
                let c = conns[usize::from(b.next()) % conns.len()];
                e.handle_closed(now, c, Error::new(Status::PeerDead, "closed"));
            }
            9 if !jobs.is_empty() => {
                let job = jobs.swap_remove(usize::from(b.next()) % jobs.len());
                let result = if b.next() % 3 == 0 { Err(Error::new(Status::System, "a job")) } else { Ok(()) };
                e.handle_job(now, job, JobEnd { result, bytes: 4, spans: 0, quiescent: true, held: false });
            }
            10 if !peers.is_empty() => {
                let _ = e.disconnect(now, peers[usize::from(b.next()) % peers.len()]);
            }
            _ if !conns.is_empty() => {
                let c = conns[usize::from(b.next()) % conns.len()];
                let m = b.message();
                e.handle_message(now, c, m);
            }
            _ => {}
        }
        while let Some(o) = e.poll_output() {
            match o {
                Output::Connect { conn, .. } => {
                    conns.push(conn);
                    e.handle_connected(now, conn);
                }
                Output::Link { conn, .. } => {
                    let pull = b.next() % 2 == 0;
                    let link = LinkInfo { transport: "sim".into(), pull, ..LinkInfo::default() };
                    e.handle_linked(now, conn, Ok(link));
                }
                Output::OpenStream { conn, .. } => e.handle_stream(now, conn, Ok(())),
                Output::Post { job, .. } => {
                    posted += 1;
                    jobs.push(job);
                }
                Output::CancelJob { job, reason } => {
                    if let Some(at) = jobs.iter().position(|j| *j == job) {
                        jobs.swap_remove(at);
                        let result = Err(Error::new(reason, "cancelled"));
                        e.handle_job(now, job, JobEnd { result, bytes: 0, spans: 0, quiescent: true, held: false });
                    }
                }
                Output::Send { message, .. } => {
                    let frame = encode_frame(&message);
                    assert_eq!(Message::decode(message.type_code(), &frame[8..]), Ok(message));
                }
                Output::Event(x) => ended += usize::from(x.user_data == 1),
                _ => {}
            }
        }
        assert!(ended <= begun, "more ends than operations");
    }
    for c in conns {
        e.handle_closed(now, c, Error::new(Status::PeerDead, "closed"));
    }
    e.close(now, Error::new(Status::Cancelled, "the end"));
    for p in peers {
        let _ = e.disconnect(now, p);
    }
    for job in jobs {
        let result = Err(Error::new(Status::PeerDead, "unlinked"));
        e.handle_job(now, job, JobEnd { result, bytes: 0, spans: 0, quiescent: true, held: false });
    }
    now += Duration::from_secs(60);
    e.handle_timeout(now);
    while let Some(o) = e.poll_output() {
        if let Output::Event(x) = o {
            ended += usize::from(x.user_data == 1);
        }
    }
    assert_eq!(e.counts(), Counts::default());
    assert_eq!(ended, begun, "every operation ends once");
    posted
}
