//! One connection of a ZeroMQ socket of type DEALER, from its greeting on.

use crate::error::{Error, Result, Status};
use crate::wire::zmtp::{self, Command, Decoder, Received};
use std::time::Duration;

/// Says what to send ([`Dealer::take_output`]), and is told what came.
pub struct Dealer {
    decoder: Decoder,
    identity: Vec<u8>,
    ready: bool,
    /// The peer knows heartbeats.
    answers: bool,
    /// Pings since anything came.
    unanswered: u32,
    output: Vec<u8>,
}

impl Dealer {
    /// A connection that was made just now. Its peer logs the identity, which must be unique among all connections that
    /// the peer holds: a second one of the same name is ignored.
    pub fn new(identity: &str) -> Dealer {
        let output = zmtp::greeting().to_vec();
        let decoder = Decoder::default();
        Dealer { decoder, identity: identity.into(), ready: false, answers: false, unanswered: 0, output }
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

    /// Asks a peer that knows heartbeats for a sign of life; only when ready. The peer may hang up when it hears nothing
    /// for `ttl`.
    pub fn ping(&mut self, ttl: Duration) {
        debug_assert!(self.ready);
        if self.answers {
            self.unanswered = self.unanswered.saturating_add(1);
            let ttl = u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX);
            self.output.extend(Command::Ping { ttl, context: Vec::new() }.encode());
        }
    }

    /// Pings since anything came.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
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
                Received::Message if self.ready => {}
                Received::Message => return Err(bad("ZeroMQ: a message before READY")),
            }
        }
        Ok(())
    }

    fn greet(&mut self, minor: u8) {
        self.answers = minor > 0;
        let ready = Command::Ready { socket_type: "DEALER".into(), identity: self.identity.clone() };
        self.output.extend(ready.encode());
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Ready { .. } if self.ready => Err(bad("ZeroMQ: a second READY")),
            Command::Ready { socket_type, .. } if socket_type != "ROUTER" => {
                Err(bad(format!("ZeroMQ: a socket of type {socket_type:?}, not \"ROUTER\"")))
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
            Command::Pong { .. } | Command::Other { .. } => Ok(()),
        }
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Status::Protocol, text)
}
