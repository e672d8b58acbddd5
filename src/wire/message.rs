//! The messages of control connections.

use super::codec::{Reader, Writer};
use super::limit;
use crate::error::{Error, Result, Status};

/// The blocks of one group of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Local block position of the first id.
    pub first: u64,
    /// Block ids; `u32::MAX` is a hole.
    pub ids: Vec<u32>,
}

/// Which part of a request is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First token.
    pub token_begin: u64,
    /// One past the last token.
    pub token_end: u64,
    /// Tokens of the whole request.
    pub token_total: u64,
    /// First layer.
    pub layer_begin: u32,
    /// One past the last layer.
    pub layer_end: u32,
}

impl Range {
    /// That it begins before it ends, within the request; fails with `status`.
    pub fn check(&self, status: Status) -> Result<()> {
        let Range { token_begin, token_end, token_total, layer_begin, layer_end } = *self;
        if token_begin <= token_end && token_end <= token_total && layer_begin <= layer_end {
            return Ok(());
        }
        let tokens = format!("tokens [{token_begin}, {token_end}) of {token_total}");
        Err(Error::new(status, format!("{tokens}, layers [{layer_begin}, {layer_end})")))
    }
}

/// Why a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A rank joins its instance at the first rank.
    Join,
    /// A rank of another instance.
    Peer,
}

/// One rank in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Rank.
    pub rank: u32,
    /// Address of its listener, "host:port".
    pub address: String,
    /// Its process.
    pub incarnation: u64,
    /// Its layout, JSON.
    pub layout: String,
    /// Name and metadata of each transport it offers, best first.
    pub transports: Vec<(String, Vec<u8>)>,
}

/// A sink asks the source to stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Chosen by the sink; tag of the stream.
    pub op: u64,
    /// The request.
    pub request: String,
    /// Which offer of the request; from the ticket.
    pub round: u32,
    /// What of it.
    pub range: Range,
    /// The sink's block lists: both sides expand the same request.
    pub blocks: Vec<Blocks>,
}

/// A source announces data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// Chosen by the source; tag of the stream.
    pub op: u64,
    /// The request.
    pub request: String,
    /// What of it.
    pub range: Range,
    /// The source's block lists.
    pub blocks: Vec<Blocks>,
    /// The source's last write of this request.
    pub last: bool,
    /// Side payload, with the last write only.
    pub aux: Vec<u8>,
}

impl WriteRequest {
    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let ids: usize = self.blocks.iter().map(|b| size_of_val(&b.ids[..])).sum();
        size_of::<WriteRequest>() + self.request.len() + size_of_val(&self.blocks[..]) + ids + self.aux.len()
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message of the connecting side.
    Hello {
        /// Wire versions spoken.
        versions: (u16, u16),
        /// Why.
        purpose: Purpose,
        /// Name of the sender's instance.
        instance: String,
        /// The sender's process.
        incarnation: u64,
        /// The sender's rank.
        rank: u32,
        /// The process that is expected to answer; 0: any.
        expected: u64,
    },
    /// Answer to a hello.
    Welcome {
        /// The chosen wire version.
        version: u16,
        /// Name of the sender's instance.
        instance: String,
        /// The sender's process.
        incarnation: u64,
        /// The sender's rank.
        rank: u32,
        /// Names this session in the preamble of its data connections.
        token: u64,
    },
    /// The sender will not go on; it closes.
    Refuse {
        /// Why ([`Status`] code).
        status: i32,
        /// Why, for people.
        text: String,
    },
    /// A rank's own entry, to the first rank of its instance.
    Join(Entry),
    /// All ranks of the sender's instance.
    Directory(Vec<Entry>),
    /// What the sender can do over this link.
    Link {
        /// Transport that the sender chose.
        transport: String,
        /// The sender can pull from the receiver.
        pull: bool,
    },
    /// A sink wants a stream.
    Read(ReadRequest),
    /// The source cannot serve a read (any more).
    ReadFailed {
        /// Which.
        op: u64,
        /// Why.
        status: i32,
        /// Why, for people.
        text: String,
    },
    /// The sink has no more use for a read.
    ReadCancel {
        /// Which.
        op: u64,
    },
    /// A sink has all it wants of a request; validates and acknowledges at once.
    Done {
        /// Chosen by the sink.
        op: u64,
        /// The request.
        request: String,
        /// Which offer of the request; from the ticket.
        round: u32,
        /// How many ranks of the sink's instance acknowledge this source rank.
        consumers: u32,
    },
    /// Whether the lease still held when [`Message::Done`] arrived.
    Ack {
        /// Which.
        op: u64,
        /// 0, or why the data must not be used.
        status: i32,
    },
    /// A source announces data.
    Write(WriteRequest),
    /// The sink is ready to receive the stream.
    WriteGo {
        /// Which.
        op: u64,
        /// What of the write the sink still wants.
        range: Range,
        /// The sink's block lists: both sides expand the same request.
        blocks: Vec<Blocks>,
    },
    /// The sink is done with a write. A success of a pulled write counts once the source has confirmed it.
    WriteDone {
        /// Which.
        op: u64,
        /// 0, or why it failed.
        status: i32,
        /// Why, for people.
        text: String,
        /// Bytes taken.
        bytes: u64,
    },
    /// The source has no more use for a write; answered by [`Message::WriteDone`].
    WriteCancel {
        /// Which.
        op: u64,
    },
    /// An engine's message.
    Notify(Vec<u8>),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// Whether the source still held what the sink pulled when [`Message::WriteDone`] arrived.
    WriteAck {
        /// Which.
        op: u64,
        /// 0, or why the data must not be used.
        status: i32,
    },
}

impl Message {
    /// The type field of its frame.
    pub fn type_code(&self) -> u16 {
        match self {
            Message::Hello { .. } => 1,
            Message::Welcome { .. } => 2,
            Message::Refuse { .. } => 3,
            Message::Join(_) => 4,
            Message::Directory(_) => 5,
            Message::Link { .. } => 6,
            Message::Read(_) => 7,
            Message::ReadFailed { .. } => 8,
            Message::ReadCancel { .. } => 9,
            Message::Done { .. } => 10,
            Message::Ack { .. } => 11,
            Message::Write(_) => 12,
            Message::WriteGo { .. } => 13,
            Message::WriteDone { .. } => 14,
            Message::WriteCancel { .. } => 15,
            Message::Notify(_) => 16,
            Message::Ping => 17,
            Message::Pong => 18,
            Message::WriteAck { .. } => 19,
        }
    }

    /// Appends the body.
    pub fn encode(&self, w: &mut Writer) {
        match self {
            Message::Hello { versions, purpose, instance, incarnation, rank, expected } => {
                w.u16(versions.0);
                w.u16(versions.1);
                w.u8(match purpose {
                    Purpose::Join => 1,
                    Purpose::Peer => 2,
                });
                w.string(instance);
                w.u64(*incarnation);
                w.u32(*rank);
                w.u64(*expected);
            }
            Message::Welcome { version, instance, incarnation, rank, token } => {
                w.u16(*version);
                w.string(instance);
                w.u64(*incarnation);
                w.u32(*rank);
                w.u64(*token);
            }
            Message::Refuse { status, text } => {
                w.i32(*status);
                w.string(clip(text));
            }
            Message::Join(entry) => put_entry(w, entry),
            Message::Directory(entries) => {
                w.u32(entries.len() as u32);
                for e in entries {
                    put_entry(w, e);
                }
            }
            Message::Link { transport, pull } => {
                w.string(transport);
                w.u8(u8::from(*pull));
            }
            Message::Read(r) => {
                w.u64(r.op);
                w.string(&r.request);
                w.u32(r.round);
                put_range(w, &r.range);
                put_blocks(w, &r.blocks);
            }
            Message::ReadFailed { op, status, text } => {
                w.u64(*op);
                w.i32(*status);
                w.string(clip(text));
            }
            Message::ReadCancel { op } | Message::WriteCancel { op } => w.u64(*op),
            Message::WriteGo { op, range, blocks } => {
                w.u64(*op);
                put_range(w, range);
                put_blocks(w, blocks);
            }
            Message::Done { op, request, round, consumers } => {
                w.u64(*op);
                w.string(request);
                w.u32(*round);
                w.u32(*consumers);
            }
            Message::Ack { op, status } | Message::WriteAck { op, status } => {
                w.u64(*op);
                w.i32(*status);
            }
            Message::Write(r) => {
                w.u64(r.op);
                w.string(&r.request);
                put_range(w, &r.range);
                put_blocks(w, &r.blocks);
                w.u8(u8::from(r.last));
                w.bytes(&r.aux);
            }
            Message::WriteDone { op, status, text, bytes } => {
                w.u64(*op);
                w.i32(*status);
                w.string(clip(text));
                w.u64(*bytes);
            }
            Message::Notify(payload) => w.bytes(payload),
            Message::Ping | Message::Pong => {}
        }
    }

    /// From the type and body of a frame.
    ///
    /// # Errors
    /// [`Status::Protocol`] names the field and both values.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Message> {
        let mut r = Reader::new(body);
        let message = match kind {
            1 => Message::Hello {
                versions: (r.u16("hello oldest version")?, r.u16("hello newest version")?),
                purpose: match r.u8("hello purpose")? {
                    1 => Purpose::Join,
                    2 => Purpose::Peer,
                    n => return Err(unknown("hello purpose", n.into(), "1..=2")),
                },
                instance: r.string("hello instance", limit::NAME)?,
                incarnation: r.u64("hello incarnation")?,
                rank: r.u32("hello rank")?,
                expected: r.u64("hello expected incarnation")?,
            },
            2 => Message::Welcome {
                version: r.u16("welcome version")?,
                instance: r.string("welcome instance", limit::NAME)?,
                incarnation: r.u64("welcome incarnation")?,
                rank: r.u32("welcome rank")?,
                token: r.u64("welcome token")?,
            },
            3 => Message::Refuse { status: r.i32("refuse status")?, text: r.string("refuse text", limit::TEXT)? },
            4 => Message::Join(take_entry(&mut r)?),
            5 => {
                let n = r.count("directory ranks", limit::RANKS, ENTRY_MIN)?;
                Message::Directory((0..n).map(|_| take_entry(&mut r)).collect::<Result<_>>()?)
            }
            6 => Message::Link { transport: r.string("link transport", limit::NAME)?, pull: r.flag("link pull")? },
            7 => Message::Read(ReadRequest {
                op: r.u64("read op")?,
                request: r.string("read request", limit::NAME)?,
                round: r.u32("read round")?,
                range: take_range(&mut r)?,
                blocks: take_blocks(&mut r)?,
            }),
            8 => Message::ReadFailed {
                op: r.u64("read op")?,
                status: r.i32("read status")?,
                text: r.string("read text", limit::TEXT)?,
            },
            9 => Message::ReadCancel { op: r.u64("read op")? },
            10 => Message::Done {
                op: r.u64("done op")?,
                request: r.string("done request", limit::NAME)?,
                round: r.u32("done round")?,
                consumers: r.u32("done consumers")?,
            },
            11 => Message::Ack { op: r.u64("ack op")?, status: r.i32("ack status")? },
            12 => Message::Write(WriteRequest {
                op: r.u64("write op")?,
                request: r.string("write request", limit::NAME)?,
                range: take_range(&mut r)?,
                blocks: take_blocks(&mut r)?,
                last: r.flag("write last")?,
                aux: r.bytes("write aux", limit::PAYLOAD)?.to_vec(),
            }),
            13 => Message::WriteGo { op: r.u64("write op")?, range: take_range(&mut r)?, blocks: take_blocks(&mut r)? },
            14 => Message::WriteDone {
                op: r.u64("write op")?,
                status: r.i32("write status")?,
                text: r.string("write text", limit::TEXT)?,
                bytes: r.u64("write bytes")?,
            },
            15 => Message::WriteCancel { op: r.u64("write op")? },
            16 => Message::Notify(r.bytes("notify payload", limit::PAYLOAD)?.to_vec()),
            17 => Message::Ping,
            18 => Message::Pong,
            19 => Message::WriteAck { op: r.u64("write op")?, status: r.i32("write status")? },
            n => return Err(unknown("frame type", n.into(), "1..=19")),
        };
        r.end("message")?;
        Ok(message)
    }
}

/// Bytes of the shortest entry.
const ENTRY_MIN: usize = 24;

fn unknown(field: &str, value: u64, known: &str) -> Error {
    Error::new(Status::Protocol, format!("{field} {value}, known are {known}"))
}

/// Texts that would be too long for the receiver are cut at a character boundary.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(limit::TEXT);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or("")
}

fn put_range(w: &mut Writer, r: &Range) {
    w.u64(r.token_begin);
    w.u64(r.token_end);
    w.u64(r.token_total);
    w.u32(r.layer_begin);
    w.u32(r.layer_end);
}

fn take_range(r: &mut Reader<'_>) -> Result<Range> {
    Ok(Range {
        token_begin: r.u64("first token")?,
        token_end: r.u64("token end")?,
        token_total: r.u64("token total")?,
        layer_begin: r.u32("first layer")?,
        layer_end: r.u32("layer end")?,
    })
}

pub(super) fn put_blocks(w: &mut Writer, blocks: &[Blocks]) {
    w.u32(blocks.len() as u32);
    for b in blocks {
        w.u64(b.first);
        w.u32s(&b.ids);
    }
}

pub(super) fn take_blocks(r: &mut Reader<'_>) -> Result<Vec<Blocks>> {
    let n = r.count("groups", limit::GROUPS, 12)?;
    let one = |_| Ok(Blocks { first: r.u64("first block position")?, ids: r.u32s("block ids", limit::BLOCKS)? });
    (0..n).map(one).collect()
}

fn put_entry(w: &mut Writer, e: &Entry) {
    w.u32(e.rank);
    w.string(&e.address);
    w.u64(e.incarnation);
    w.string(&e.layout);
    w.u32(e.transports.len() as u32);
    for (name, metadata) in &e.transports {
        w.string(name);
        w.bytes(metadata);
    }
}

fn take_entry(r: &mut Reader<'_>) -> Result<Entry> {
    let rank = r.u32("entry rank")?;
    let address = r.string("entry address", limit::NAME)?;
    let incarnation = r.u64("entry incarnation")?;
    let layout = r.string("entry layout", limit::FRAME)?;
    let n = r.count("entry transports", limit::TRANSPORTS, 8)?;
    let one = |_| {
        let name = r.string("transport name", limit::NAME)?;
        Ok((name, r.bytes("transport metadata", limit::FRAME)?.to_vec()))
    };
    let transports = (0..n).map(one).collect::<Result<_>>()?;
    Ok(Entry { rank, address, incarnation, layout, transports })
}
