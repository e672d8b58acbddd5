//! A peer that speaks the wire format by hand, and not always the truth.

use crate::flat::SMALL;
use crate::rank::PATIENCE;
use crate::transport::Transport;
use kvlink::layout::layout_to_json;
use kvlink::memory::{Memory, SharedMemory};
use kvlink::wire::{
    BOARD_BYTES, BOARD_REGION, Entry, FrameDecoder, Message, Preamble, Purpose, StreamKind, VERSION_MAX, VERSION_MIN,
    encode_frame,
};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// A connection.
pub struct Raw {
    stream: TcpStream,
    decoder: FrameDecoder,
}

pub fn open(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The other side ends the connection, by itself and in time.
pub fn closes(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(e) => panic!("the connection stays open: {e}"),
        }
    }
}

impl Raw {
    pub fn connect(address: &str) -> Raw {
        let mut stream = open(address);
        stream.write_all(&Preamble(StreamKind::Control).encode()).unwrap();
        Raw { stream, decoder: FrameDecoder::new() }
    }

    /// The other side may have closed already.
    pub fn send(&mut self, message: &Message) {
        let _ = self.stream.write_all(&encode_frame(message));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// `None`: the connection has ended.
    pub fn next(&mut self) -> Option<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(m) = self.decoder.next_message().unwrap() {
                return Some(m);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.decoder.extend(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no answer: {e}"),
            }
        }
    }

    /// The first message that fits.
    pub fn until(&mut self, what: &str, fits: impl Fn(&Message) -> bool) -> Message {
        loop {
            match self.next() {
                Some(m) if fits(&m) => return m,
                Some(_) => {}
                None => panic!("the connection ended before {what}"),
            }
        }
    }

    /// It is closed.
    pub fn ended(mut self) {
        while self.next().is_some() {}
    }

    /// It is refused, by name, and closed.
    pub fn refused(mut self, why: &str) {
        let mut refusal = None;
        while let Some(m) = self.next() {
            if let Message::Refuse { status, text } = m {
                refusal = Some((status, text));
            }
        }
        assert!(refusal.is_some(), "{why}: closed without a word");
    }

    /// Everything sent so far has been dealt with, and the session lives.
    pub fn alive(&mut self) {
        self.send(&Message::Ping);
        self.until("the answer to a ping", |m| matches!(m, Message::Pong));
    }
}

/// What the peer says that it is.
pub struct Liar {
    pub hello: Message,
    pub entry: Entry,
    pub pull: bool,
    _memory: Arc<SharedMemory>,
    name: &'static str,
    _transport: Box<dyn kvlink::transport::Transport>,
}

impl Liar {
    pub fn new(t: Transport, incarnation: u64) -> Liar {
        let mut transport = t.alone();
        let name = transport.name();
        let layout = SMALL.layout();
        let memory = Arc::new(SharedMemory::allocate(layout.regions()[0].len as usize).unwrap());
        let board = Arc::new(SharedMemory::allocate(BOARD_BYTES).unwrap());
        transport.register(BOARD_REGION, &Memory::shared(board)).unwrap();
        transport.register(0, &Memory::shared(memory.clone())).unwrap();
        let hello = Message::Hello {
            versions: (VERSION_MIN, VERSION_MAX),
            purpose: Purpose::Peer,
            instance: "liar".into(),
            incarnation,
            rank: 0,
            expected: 0,
        };
        let entry = Entry {
            rank: 0,
            address: "127.0.0.1:1".into(),
            incarnation,
            layout: layout_to_json(&layout),
            transports: vec![(name.into(), transport.metadata())],
        };
        Liar { hello, entry, pull: t.pulls, _memory: memory, name, _transport: transport }
    }

    /// Up to the welcome, with the token for data connections.
    pub fn greet(&self, address: &str) -> (Raw, u64) {
        let mut raw = Raw::connect(address);
        raw.send(&self.hello);
        let welcome = raw.until("the welcome", |m| matches!(m, Message::Welcome { .. }));
        let Message::Welcome { token, .. } = welcome else { unreachable!() };
        (raw, token)
    }

    /// Up to the link, with the token for data connections.
    pub fn link(&self, address: &str) -> (Raw, u64) {
        let (mut raw, token) = self.greet(address);
        raw.until("the directory", |m| matches!(m, Message::Directory(_)));
        raw.send(&Message::Directory(vec![self.entry.clone()]));
        raw.send(&Message::Link { transport: self.name.into(), pull: self.pull });
        raw.until("the link", |m| matches!(m, Message::Link { .. }));
        (raw, token)
    }
}
