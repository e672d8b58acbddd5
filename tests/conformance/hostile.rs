//! Peers that misbehave on the real sockets: the agent survives, memory outside accepted blocks stays as it is, and good
//! peers are not concerned.

use crate::common::rng::Rng;
use crate::flat::*;
use crate::rank::{Rank, config};
use crate::raw::{Liar, Raw, closes, open};
use crate::transport::Transport;
use kvlink::agent::Require;
use kvlink::error::Status;
use kvlink::proto::{Direction, EventKind, Id};
use kvlink::wire::{
    Blocks, Message, Preamble, Purpose, Range, ReadRequest, StreamKind, WriteRequest, encode_frame, limit,
};
use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

struct Scene {
    victim: Rank,
    good: Rank,
    peer: Id,
    before: Vec<u8>,
    round: u32,
}

impl Scene {
    fn new(t: Transport) -> Scene {
        let mut c = config(t, "victim", 0, 1);
        c.require = Require::Any;
        let victim = Rank::start(t, c, SMALL.layout());
        let good = Rank::alone(t, "good", SMALL.layout());
        SMALL.fill(&victim, 1);
        let peer = good.handshake(&victim, Direction::Inbound);
        Scene { victim, good, peer, before: SMALL.pattern(1), round: 0 }
    }

    /// Nothing has changed but the block that [`still_works`] uses, and that still works.
    fn unharmed(&mut self) {
        self.round += 1;
        still_works(SMALL, &self.victim, &self.good, self.peer, &format!("good {}", self.round));
        let n = self.before.len() - SMALL.bytes as usize;
        assert!(self.victim.snapshot()[0][..n] == self.before[..n], "memory of the victim has changed");
        self.victim.agent.check().unwrap();
    }
}

pub fn garbage(t: Transport) {
    let mut scene = Scene::new(t);
    let address = scene.victim.address().to_string();
    let mut rng = Rng::new(9);
    let mut noise = |n: usize| (0..n).map(|_| rng.next() as u8).collect::<Vec<u8>>();

    // Instead of a preamble.
    for bytes in [noise(64), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), vec![0; 16]] {
        let mut s = open(&address);
        s.write_all(&bytes).unwrap();
        closes(s);
    }
    let mut wrong = Preamble(StreamKind::Control).encode();
    wrong[4] = 9;
    let mut s = open(&address);
    s.write_all(&wrong).unwrap();
    closes(s);
    // More data connections than any link has, before there is one: those beyond are closed, the others stay.
    let (mut early, token) = Liar::new(t, 8).greet(&address);
    let connect = |_| {
        let mut s = open(&address);
        s.write_all(&Preamble(StreamKind::Data { token }).encode()).unwrap();
        s
    };
    let stay: Vec<_> = (0..64).map(connect).collect();
    early.alive();
    (0..6).map(connect).for_each(closes);
    early.alive();
    drop((early, stay));
    // A data connection that nobody expects.
    let mut s = open(&address);
    s.write_all(&Preamble(StreamKind::Data { token: 0x1234 }).encode()).unwrap();
    closes(s);
    scene.unharmed();

    // Instead of frames.
    let frame = |len: u32, kind: u16, reserved: u16| {
        [&len.to_le_bytes()[..], &kind.to_le_bytes()[..], &reserved.to_le_bytes()[..]].concat()
    };
    let ping = encode_frame(&Message::Ping);
    for bytes in [
        noise(300),
        frame(u32::MAX, 1, 0),
        frame(limit::FRAME as u32 + 1, 1, 0),
        frame(8, 9999, 0).into_iter().chain([0; 8]).collect(),
        frame(0, 17, 1),
        frame(3, 1, 0).into_iter().chain([1, 0, 1]).collect(),
        ping,
    ] {
        let mut raw = Raw::connect(&address);
        raw.send_bytes(&bytes);
        raw.ended();
    }
    // Frames that are cut off, at every length.
    let whole = encode_frame(&Liar::new(t, 5).hello);
    for n in 0..whole.len() {
        let mut raw = Raw::connect(&address);
        raw.send_bytes(&whole[..n]);
    }
    // A large frame of which only the beginning comes.
    let mut raw = Raw::connect(&address);
    raw.send_bytes(&frame(limit::FRAME as u32, 5, 0));
    raw.send_bytes(&vec![0; 1 << 20]);
    scene.unharmed();
    drop(raw);

    // Bits of a good conversation, changed.
    let liar = Liar::new(t, 6);
    for message in [&liar.hello, &Message::Directory(vec![liar.entry.clone()])] {
        let good = encode_frame(message);
        for _ in 0..40 {
            let mut bad = good.clone();
            let at = rng.below(bad.len() as u64 - 8) as usize + 8;
            bad[at] ^= 1 << rng.below(8);
            let mut raw = Raw::connect(&address);
            if let Message::Directory(_) = message {
                raw.send(&liar.hello);
            }
            raw.send_bytes(&bad);
            raw.send(&Message::Link { transport: "host".into(), pull: true });
        }
    }
    scene.unharmed();
}

/// More connections than may wait to introduce themselves: who comes after them and speaks is heard.
pub fn half_open_connections(t: Transport) {
    let mut scene = Scene::new(t);
    let address = scene.victim.address().to_string();
    let silent: Vec<_> = (0..300).map(|_| open(&address)).collect();
    let late = Rank::alone(t, "late", SMALL.layout());
    let peer = late.handshake(&scene.victim, Direction::Inbound);
    still_works(SMALL, &scene.victim, &late, peer, "late");
    scene.unharmed();
    drop(silent);
    scene.unharmed();
}

fn whole(tokens: u64) -> Range {
    Range { token_begin: 0, token_end: tokens, token_total: tokens, layer_begin: 0, layer_end: u32::MAX }
}

/// The handshake is right, what follows is not.
pub fn lies(t: Transport) {
    let mut scene = Scene::new(t);
    let address = scene.victim.address().to_string();
    let liar = Liar::new(t, 7);
    let ids: Vec<u32> = SMALL.order(3)[..4].to_vec();
    let (n, blocks) = (tokens(&ids), list(&ids));

    let (mut raw, token) = liar.link(&address);
    let (kept, _) = offer(&scene.victim, "kept", &ids);
    reads(&mut raw, n, &blocks);
    done(&mut raw);
    strangers(&mut raw, &blocks);
    raw.alive();
    scene.unharmed();

    // A writer whose lists lie outside of its memory, or of the request.
    let outside = list(&[u32::MAX - 1, 1 << 30, 7, 8]);
    for (i, (blocks, range)) in [
        (outside, whole(n)),
        (list(&ids[..2]), whole(n)),
        (blocks.clone(), whole(n + 16)),
        (blocks.clone(), Range { token_begin: u64::MAX, ..whole(n) }),
        (blocks.clone(), Range { token_end: n + 1, ..whole(n) }),
        (vec![], whole(n)),
        (vec![Blocks { first: u64::MAX, ids: ids.clone() }], whole(n)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("w{i}");
        let accepted = accept(&scene.victim, &name, &[60, 61, 62, 59]);
        let op = 50 + i as u64;
        raw.send(&Message::Write(WriteRequest { op, request: name, range, blocks, last: true, aux: vec![] }));
        let answer = raw.until("the refusal", |m| matches!(m, Message::WriteDone { .. } | Message::WriteGo { .. }));
        assert!(matches!(answer, Message::WriteDone { status, .. } if status != 0), "write {i}: {answer:?}");
        let _ = scene.victim.agent.cancel(accepted);
        assert_ne!(scene.victim.wait("its end", |e| e.id == accepted.0).status, Status::Ok);
    }
    scene.unharmed();

    // Garbage on its data connection ends what it had, nothing else.
    let mut data = open(&address);
    data.write_all(&Preamble(StreamKind::Data { token }).encode()).unwrap();
    data.write_all(&[0xAA; 4096]).unwrap();
    drop(data);
    scene.unharmed();

    // What is not allowed in the state that the session is in.
    let again = Message::Directory(vec![liar.entry.clone()]);
    let mut other = liar.entry.clone();
    other.incarnation = 99;
    let join = Message::Hello {
        versions: (1, 1),
        purpose: Purpose::Join,
        instance: "victim".into(),
        incarnation: 3,
        rank: 0,
        expected: 0,
    };
    for m in [
        again,
        liar.hello.clone(),
        Message::Join(other),
        join,
        Message::Done { op: 1, request: "kept".into(), round: 1, consumers: 0 },
        Message::Done { op: 1, request: "kept".into(), round: 1, consumers: 2 },
        Message::Done { op: 1, request: "kept".into(), round: 1, consumers: u32::MAX },
        Message::Read(ReadRequest {
            op: u64::MAX,
            request: "kept".into(),
            round: 1,
            range: whole(n),
            blocks: blocks.clone(),
        }),
    ] {
        let (mut raw, _) = liar.link(&address);
        raw.send(&m);
        raw.refused("out of place");
    }
    // Transports that are not there, or not its own.
    let mut bad = Liar::new(t, 8);
    bad.entry.transports[0].1.iter_mut().for_each(|b| *b ^= 0x55);
    let mut nobody = Liar::new(t, 9);
    nobody.entry.transports[0].0 = "nobody".into();
    for liar in [bad, nobody] {
        let mut raw = Raw::connect(&address);
        raw.send(&liar.hello);
        raw.send(&Message::Directory(vec![liar.entry.clone()]));
        raw.send(&Message::Link { transport: liar.entry.transports[0].0.clone(), pull: true });
        raw.refused("a transport that does not work");
    }
    scene.unharmed();
    // The offer is still there: none of this has taken it.
    scene.victim.agent.cancel(kept).unwrap();
    assert_eq!(scene.victim.wait("its release", |e| e.id == kept.0).status, Status::Cancelled);
    assert!(scene.good.rest().iter().all(|e| e.kind != EventKind::PeerDown));
}

/// Who is called may be anything: the handshake fails in time, and says with whom.
pub fn listeners(t: Transport) {
    let mut c = config(t, "caller", 0, 1);
    c.endpoint.handshake_timeout = Duration::from_millis(400);
    let caller = Rank::start(t, c, SMALL.layout());
    let hello = Liar::new(t, 7).hello;
    let welcome = |version| Message::Welcome { version, instance: "liar".into(), incarnation: 7, rank: 0, token: 1 };
    let answers: Vec<Option<Vec<u8>>> = vec![
        None,
        Some(vec![]),
        Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Some(encode_frame(&hello)),
        Some(encode_frame(&welcome(99))),
        Some(encode_frame(&Message::Refuse { status: 0, text: "no".into() })),
        Some([encode_frame(&welcome(1)), encode_frame(&Message::Directory(vec![]))].concat()),
    ];
    for (i, answer) in answers.into_iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peer = caller.agent.handshake(&address, Direction::Inbound, i as u64).unwrap();
        let mut kept = None;
        if let Some(answer) = answer {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&answer).unwrap();
            // Without a word, it hangs up.
            kept = (!answer.is_empty()).then_some(stream);
        }
        let e = caller.wait("the handshake's end", |e| e.kind == EventKind::Handshake && e.peer == peer.0);
        assert_ne!(e.status, Status::Ok, "answer {i}");
        assert!(!e.text.is_empty(), "answer {i}");
        drop(kept);
    }
    let other = Rank::alone(t, "other", SMALL.layout());
    let again = (0..20).any(|_| {
        let peer = caller.agent.handshake(other.address(), Direction::Inbound, 0).unwrap();
        caller.wait("the handshake", |e| e.kind == EventKind::Handshake && e.peer == peer.0).status == Status::Ok
    });
    assert!(again);
}

/// Control and data go separate ways: what is asked for over one waits until the other is there.
pub fn a_request_before_its_data_connection(t: Transport) {
    if t.pulls {
        return;
    }
    let mut scene = Scene::new(t);
    let address = scene.victim.address().to_string();
    let (mut raw, token) = Liar::new(t, 7).link(&address);
    let ids = SMALL.order(3)[..4].to_vec();
    offer(&scene.victim, "r", &ids);
    let (range, blocks) = (whole(tokens(&ids)), list(&ids));
    raw.send(&Message::Read(ReadRequest { op: 1, request: "r".into(), round: 1, range, blocks }));
    raw.send(&Message::Ping);
    match raw.next() {
        Some(Message::Pong) => {}
        other => panic!("{other:?}"),
    }
    let mut data = open(&address);
    data.write_all(&Preamble(StreamKind::Data { token }).encode()).unwrap();
    // The stream opens.
    std::io::Read::read_exact(&mut data, &mut [0; 16]).unwrap();
    scene.unharmed();
}

/// Reads of what is not offered, and of more than is.
fn reads(raw: &mut Raw, n: u64, blocks: &[Blocks]) {
    let read = |op, request: &str, round, range| {
        Message::Read(ReadRequest { op, request: request.into(), round, range, blocks: blocks.to_vec() })
    };
    for m in [
        read(1, "never offered", 1, whole(n)),
        read(2, "kept", 77, whole(n)),
        read(3, "kept", 1, whole(n + 1)),
        read(4, "kept", 1, Range { token_begin: 9, token_end: 3, ..whole(n) }),
        read(5, "kept", 1, Range { token_end: u64::MAX, ..whole(n) }),
        Message::Read(ReadRequest { op: 6, request: "kept".into(), round: 1, range: whole(n), blocks: vec![] }),
    ] {
        raw.send(&m);
        let answer = raw.until("the refusal", |m| matches!(m, Message::ReadFailed { .. }));
        let Message::ReadFailed { status, .. } = answer else { unreachable!() };
        assert_ne!(status, 0, "{m:?}");
    }
}

fn done(raw: &mut Raw) {
    for (request, round) in [("never offered", 1), ("kept", 2)] {
        raw.send(&Message::Done { op: 9, request: request.into(), round, consumers: 1 });
        let answer = raw.until("the answer", |m| matches!(m, Message::Ack { .. }));
        let Message::Ack { status, .. } = answer else { unreachable!() };
        assert_ne!(status, 0);
    }
}

/// About operations of others.
fn strangers(raw: &mut Raw, blocks: &[Blocks]) {
    for op in [0, 1, 2, 1000, u64::MAX >> 1] {
        raw.send(&Message::ReadFailed { op, status: -1, text: "lie".into() });
        raw.send(&Message::ReadCancel { op });
        raw.send(&Message::Ack { op, status: 0 });
        raw.send(&Message::WriteGo { op, range: whole(64), blocks: blocks.to_vec() });
        raw.send(&Message::WriteDone { op, status: 0, text: String::new(), bytes: u64::MAX });
        raw.send(&Message::WriteAck { op, status: 0 });
        raw.send(&Message::WriteCancel { op });
    }
    // To a request that nobody has accepted: it waits, and can be taken back.
    let write = WriteRequest {
        op: 40,
        request: "never accepted".into(),
        range: whole(64),
        blocks: blocks.to_vec(),
        last: true,
        aux: vec![],
    };
    raw.send(&Message::Write(write));
    raw.send(&Message::WriteCancel { op: 40 });
    raw.until("the end of the write", |m| matches!(m, Message::WriteDone { op: 40, status, .. } if *status != 0));
}
