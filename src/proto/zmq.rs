//! One connection of a ZeroMQ socket, from its greeting on.

use crate::error::{Error, Result, Status};
use crate::wire::zmtp::{self, Command, Decoder, Received};
use std::collections::VecDeque;
use std::time::Duration;

/// Frames of one message.
const PARTS: usize = 8;

/// The types of sockets that are spoken here, each with the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Dealer,
    Router,
}

impl Socket {
    fn name(self) -> &'static str {
        match self {
            Socket::Dealer => "DEALER",
            Socket::Router => "ROUTER",
        }
    }

    fn other(self) -> Socket {
        match self {
            Socket::Dealer => Socket::Router,
            Socket::Router => Socket::Dealer,
        }
    }
}

/// Says what to send ([`Zmq::take_output`]), and is told what came.
pub struct Zmq {
    socket: Socket,
    decoder: Decoder,
    identity: Vec<u8>,
    ready: bool,
    /// The peer knows heartbeats.
    answers: bool,
    /// Pings since anything came.
    unanswered: u32,
    pongs: u32,
    output: Vec<u8>,
    parts: Vec<Vec<u8>>,
    messages: VecDeque<Vec<Vec<u8>>>,
}

impl Zmq {
    /// A connection of a DEALER socket that was made just now, whose peer sends nothing of interest. The peer logs the
    /// identity, which must be unique among all connections that the peer holds: a second one of the same name is ignored.
    pub fn dealer(identity: &str) -> Zmq {
        Zmq::new(Socket::Dealer, identity, Decoder::default())
    }

    /// The same without a name, for messages of up to `max` bytes.
    pub fn asking(max: u64) -> Zmq {
        Zmq::new(Socket::Dealer, "", Decoder::keeping(max))
    }

    /// A connection of a ROUTER socket that was accepted just now, for messages of up to `max` bytes.
    pub fn router(max: u64) -> Zmq {
        Zmq::new(Socket::Router, "", Decoder::keeping(max))
    }

    fn new(socket: Socket, identity: &str, decoder: Decoder) -> Zmq {
        Zmq {
            socket,
            decoder,
            identity: identity.into(),
            ready: false,
            answers: false,
            unanswered: 0,
            pongs: 0,
            output: zmtp::greeting().to_vec(),
            parts: Vec::new(),
            messages: VecDeque::new(),
        }
    }

    /// The handshake is over: messages can be sent.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Sends a message of one frame; only when ready.
    pub fn send(&mut self, body: &[u8]) {
        debug_assert!(self.ready);
        self.output.extend(zmtp::message(body));
    }

    /// Sends a message of several frames; only when ready.
    pub fn send_parts(&mut self, parts: &[&[u8]]) {
        debug_assert!(self.ready);
        self.output.extend(zmtp::message_of(parts));
    }

    /// Asks a peer that knows heartbeats for a sign of life; only when ready. The peer may hang up when it hears nothing
    /// for `ttl`; zero: it may not. Returns whether an answer will come.
    pub fn ping(&mut self, ttl: Duration) -> bool {
        debug_assert!(self.ready);
        if self.answers {
            self.unanswered = self.unanswered.saturating_add(1);
            let ttl = u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX);
            self.output.extend(Command::Ping { ttl, context: Vec::new() }.encode());
        }
        self.answers
    }

    /// Pings since anything came.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Pings that were answered since the last call; the oldest are answered first.
    pub fn take_pongs(&mut self) -> u32 {
        std::mem::take(&mut self.pongs)
    }

    /// The next message that came.
    pub fn take_message(&mut self) -> Option<Vec<Vec<u8>>> {
        self.messages.pop_front()
    }

    /// Bytes of a message that is not there whole yet.
    pub fn held(&self) -> usize {
        self.decoder.held() + self.parts.iter().map(Vec::len).sum::<usize>()
    }

    /// Bytes to send now.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Bytes came.
    ///
    /// # Errors
    /// [`Status::Protocol`], [`Status::Refused`]: the connection is of no use.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.unanswered = 0;
        self.decoder.extend(bytes);
        while let Some(received) = self.decoder.next_received()? {
            match received {
                Received::Greeting { minor } => self.greet(minor),
                Received::Command(c) => self.on_command(c)?,
                Received::Message | Received::Frame { .. } if !self.ready => {
                    return Err(bad("ZeroMQ: a message before READY"));
                }
                Received::Message => {}
                Received::Frame { more, body } => self.on_frame(more, body)?,
            }
        }
        Ok(())
    }

    fn greet(&mut self, minor: u8) {
        self.answers = minor > 0;
        let ready = Command::Ready { socket_type: self.socket.name().into(), identity: self.identity.clone() };
        self.output.extend(ready.encode());
    }

    fn on_frame(&mut self, more: bool, body: Vec<u8>) -> Result<()> {
        self.parts.push(body);
        if self.parts.len() > PARTS {
            return Err(bad(format!("ZeroMQ: a message of more than {PARTS} frames")));
        }
        if !more {
            self.messages.push_back(std::mem::take(&mut self.parts));
        }
        Ok(())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Ready { .. } if self.ready => Err(bad("ZeroMQ: a second READY")),
            Command::Ready { socket_type, .. } if socket_type != self.socket.other().name() => {
                let wanted = self.socket.other().name();
                let text = format!("a socket of type {socket_type:?}, not {wanted:?}");
                self.output.extend(Command::Error { reason: text.clone() }.encode());
                Err(bad(format!("ZeroMQ: {text}")))
            }
            Command::Ready { .. } => {
                self.ready = true;
                Ok(())
            }
            Command::Error { reason } => Err(Error::new(Status::Refused, format!("ZeroMQ: {reason}"))),
            Command::Ping { context, .. } => {
                self.output.extend(Command::Pong { context }.encode());
                Ok(())
            }
            Command::Pong { .. } => {
                self.pongs = self.pongs.saturating_add(1);
                Ok(())
            }
            Command::Other { .. } => Ok(()),
        }
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Status::Protocol, text)
}
