//! ZMTP 3.1, the protocol of ZeroMQ sockets (https://rfc.zeromq.org/spec/23 and 37): greeting, frames, commands.
//!
//! What sockets of the types DEALER and ROUTER with the NULL mechanism need.

use crate::error::{Error, Result, Status};

/// Bytes of a greeting.
pub const GREETING: usize = 64;
/// Bytes of a command.
const COMMAND_MAX: u64 = 64 << 10;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What each side sends first: signature, version 3.1, mechanism NULL, client.
pub fn greeting() -> [u8; GREETING] {
    let mut g = [0; GREETING];
    g[0] = 0xff;
    g[9] = 0x7f;
    g[10] = 3;
    g[11] = 1;
    g[12..16].copy_from_slice(b"NULL");
    g
}

/// A command frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ends the handshake: the peer's socket type and name.
    Ready {
        /// "ROUTER".
        socket_type: String,
        /// Names the connection towards its peer; empty: the peer chooses.
        identity: Vec<u8>,
    },
    /// The peer refuses.
    Error {
        /// Why.
        reason: String,
    },
    /// Asks for a [`Command::Pong`].
    Ping {
        /// Tenths of a second after which the peer gives up without traffic; 0: never.
        ttl: u16,
        /// Comes back in the answer; at most 16 bytes.
        context: Vec<u8>,
    },
    /// Answers a ping.
    Pong {
        /// Of the ping.
        context: Vec<u8>,
    },
    /// Something of a later version, or of another socket type.
    Other {
        /// Its name.
        name: String,
    },
}

impl Command {
    /// Its frame. Identities and contexts longer than the protocol's limits are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (name, data): (&str, Vec<u8>) = match self {
            Command::Ready { socket_type, identity } => {
                let mut data = Vec::new();
                property(&mut data, "Socket-Type", socket_type.as_bytes());
                property(&mut data, "Identity", cut(identity, 255));
                ("READY", data)
            }
            Command::Error { reason } => {
                let reason = cut(reason.as_bytes(), 255);
                ("ERROR", [&[reason.len() as u8], reason].concat())
            }
            Command::Ping { ttl, context } => ("PING", [&ttl.to_be_bytes(), cut(context, 16)].concat()),
            Command::Pong { context } => ("PONG", cut(context, 16).to_vec()),
            Command::Other { name } => (name, Vec::new()),
        };
        let name = cut(name.as_bytes(), 255);
        body.push(name.len() as u8);
        body.extend_from_slice(name);
        body.extend_from_slice(&data);
        frame(COMMAND, &body)
    }

    /// From the body of a frame.
    fn decode(body: &[u8]) -> Result<Command> {
        let (len, rest) = body.split_first().ok_or_else(|| bad("an empty command".into()))?;
        let (name, data) = rest
            .split_at_checked(usize::from(*len))
            .ok_or_else(|| bad(format!("a command's name of {len} bytes, {} are there", rest.len())))?;
        match name {
            b"READY" => ready(data),
            b"ERROR" => {
                let reason = data.split_first().and_then(|(n, r)| r.get(..usize::from(*n)));
                let reason = reason.ok_or_else(|| bad("an ERROR without its reason".into()))?;
                Ok(Command::Error { reason: String::from_utf8_lossy(reason).into_owned() })
            }
            b"PING" => match data.split_at_checked(2) {
                Some((ttl, context)) if context.len() <= 16 => {
                    let ttl = ttl.iter().fold(0, |t, b| t << 8 | u16::from(*b));
                    Ok(Command::Ping { ttl, context: context.to_vec() })
                }
                _ => Err(bad(format!("a PING of {} bytes, must have 2..=18", data.len()))),
            },
            b"PONG" if data.len() <= 16 => Ok(Command::Pong { context: data.to_vec() }),
            b"PONG" => Err(bad(format!("a PONG of {} bytes, at most 16", data.len()))),
            other => Ok(Command::Other { name: String::from_utf8_lossy(other).into_owned() }),
        }
    }
}

fn property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

fn ready(mut data: &[u8]) -> Result<Command> {
    let (mut socket_type, mut identity) = (String::new(), Vec::new());
    let short = |n: usize| bad(format!("a READY's property is cut off, {n} bytes are left"));
    while let Some((len, rest)) = data.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*len)).ok_or_else(|| short(rest.len()))?;
        let (size, rest) = rest.split_at_checked(4).ok_or_else(|| short(rest.len()))?;
        let size = size.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        let (value, rest) = rest.split_at_checked(size).ok_or_else(|| short(rest.len()))?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = String::from_utf8_lossy(value).into_owned();
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = cut(value, 255).to_vec();
        }
        data = rest;
    }
    Ok(Command::Ready { socket_type, identity })
}

/// A message of one frame.
pub fn message(body: &[u8]) -> Vec<u8> {
    frame(0, body)
}

/// A message of several frames.
pub fn message_of(parts: &[&[u8]]) -> Vec<u8> {
    let last = parts.len().saturating_sub(1);
    parts.iter().enumerate().flat_map(|(i, part)| frame(if i < last { MORE } else { 0 }, part)).collect()
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = match u8::try_from(body.len()) {
        Ok(n) => vec![flags, n],
        Err(_) => [&[flags | LONG][..], &(body.len() as u64).to_be_bytes()].concat(),
    };
    out.extend_from_slice(body);
    out
}

/// Something that a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The greeting: its version and mechanism fit.
    Greeting {
        /// The minor version: 3.1 and later have heartbeats.
        minor: u8,
    },
    /// A command.
    Command(Command),
    /// A frame of a message, which is not kept.
    Message,
    /// A frame of a message.
    Frame {
        /// The message goes on.
        more: bool,
        /// What it holds.
        body: Vec<u8>,
    },
}

/// Cuts a byte stream into what it holds.
#[derive(Default)]
pub struct Decoder {
    greeted: bool,
    buffer: Vec<u8>,
    /// Bytes of a message's frame that are still to come.
    skip: u64,
    /// Messages' frames of up to so many bytes are kept.
    keep: Option<u64>,
}

impl Decoder {
    /// One that keeps messages, whose frames have up to `max` bytes.
    pub fn keeping(max: u64) -> Decoder {
        Decoder { keep: Some(max), ..Decoder::default() }
    }

    /// Adds received bytes. What is only counted takes no memory.
    pub fn extend(&mut self, bytes: &[u8]) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        self.buffer.extend_from_slice(bytes.get(skipped..).unwrap_or(&[]));
    }

    /// Bytes of what is not there whole yet.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// The next thing that is there whole; of messages' frames the beginning is enough.
    ///
    /// # Errors
    /// [`Status::Protocol`]: the connection cannot be used any more.
    pub fn next_received(&mut self) -> Result<Option<Received>> {
        if !self.greeted {
            return self.greeting();
        }
        let Some(flags) = self.buffer.first().copied() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
            return Err(bad(format!("a frame with the flags {flags:#04x}")));
        }
        let width = if flags & LONG == 0 { 1 } else { 8 };
        let Some(size) = self.buffer.get(1..1 + width) else { return Ok(None) };
        let size = size.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if size >> 63 != 0 {
            return Err(bad(format!("a frame of {size} bytes")));
        }
        if flags & COMMAND == 0
            && let Some(max) = self.keep
        {
            if size > max {
                return Err(bad(format!("a frame of {size} bytes, at most {max}")));
            }
            let end = 1 + width + size as usize;
            let Some(body) = self.buffer.get(1 + width..end) else { return Ok(None) };
            let received = Received::Frame { more: flags & MORE != 0, body: body.to_vec() };
            self.take(end);
            return Ok(Some(received));
        }
        if flags & COMMAND == 0 {
            let have = (self.buffer.len() - 1 - width) as u64;
            self.skip = size.saturating_sub(have);
            self.take(1 + width + size.min(have) as usize);
            return Ok(Some(Received::Message));
        }
        if size > COMMAND_MAX {
            return Err(bad(format!("a command of {size} bytes, at most {COMMAND_MAX}")));
        }
        let end = 1 + width + size as usize;
        let Some(body) = self.buffer.get(1 + width..end) else { return Ok(None) };
        let command = Command::decode(body)?;
        self.take(end);
        Ok(Some(Received::Command(command)))
    }

    /// As early as it is clear: a peer that is no ZeroMQ socket may wait for us for ever.
    fn greeting(&mut self) -> Result<Option<Received>> {
        let b = &self.buffer;
        let at = |i: usize| b.get(i).copied();
        if at(0).is_some_and(|x| x != 0xff) || at(9).is_some_and(|x| x & 1 == 0) {
            let begin = b.get(..b.len().min(10)).unwrap_or(b);
            return Err(bad(format!("it begins with {begin:02x?}: not a ZeroMQ socket of version 3")));
        }
        if let Some(major) = at(10).filter(|major| *major < 3) {
            return Err(bad(format!("it speaks ZMTP {major}, we speak 3.1")));
        }
        let Some(mechanism) = b.get(12..32) else { return Ok(None) };
        if mechanism != &greeting()[12..32] {
            let name = String::from_utf8_lossy(mechanism).trim_end_matches('\0').to_string();
            return Err(bad(format!("its security mechanism is {name:?}, ours is \"NULL\"")));
        }
        if b.len() < GREETING {
            return Ok(None);
        }
        let minor = at(11).unwrap_or(0);
        self.take(GREETING);
        self.greeted = true;
        Ok(Some(Received::Greeting { minor }))
    }

    fn take(&mut self, n: usize) {
        self.buffer.drain(..n.min(self.buffer.len()));
    }
}

fn cut(bytes: &[u8], max: usize) -> &[u8] {
    bytes.get(..max).unwrap_or(bytes)
}

fn bad(text: String) -> Error {
    Error::new(Status::Protocol, format!("ZeroMQ: {text}"))
}
