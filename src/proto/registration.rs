//! A registration with a router: connects, beats, and begins again when the connection is lost.
//!
//! Sans IO, like the endpoint. The discovery protocol never answers: what can be known is whether a ZeroMQ ROUTER socket
//! takes the beats, not whether the router likes what they say.

use super::endpoint::later;
use super::event::{Event, EventKind};
use super::zmq::Zmq;
use crate::error::{Error, Result, Status};
use crate::wire::moriio::Register;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The router forgets who was silent for so long.
const TIME_TO_LIVE: Duration = Duration::from_secs(5);
/// Wait before the second attempt to connect; it doubles from there up to the time between beats.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Pings that may stay unanswered, and the time that they take at least: then the router stands still, or its host is gone.
const MISSES: u32 = 3;
const SILENCE: Duration = Duration::from_secs(1);
/// Time for the handshake of a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What an instance registers, and where.
#[derive(Clone, Debug)]
pub struct RouterArgs {
    /// The router's discovery address, "host:port" or "tcp://host:port".
    pub discovery: String,
    /// The instance.
    pub register: Register,
    /// Time between beats.
    pub beat: Duration,
    /// Comes with the events.
    pub user_data: u64,
}

impl RouterArgs {
    /// Time between beats unless said otherwise.
    pub const BEAT: Duration = Duration::from_secs(1);

    /// The discovery address as "host:port".
    pub fn address(&self) -> &str {
        self.discovery.strip_prefix("tcp://").unwrap_or(&self.discovery)
    }

    /// Unanswered pings that say that the router is not there: of rapid beats more.
    fn misses(&self) -> u32 {
        MISSES.max(SILENCE.div_duration_f64(self.beat) as u32)
    }

    fn check(&self) -> Result<()> {
        let bad = |text: String| Err(Error::new(Status::InvalidArgument, text));
        let port = self.address().rsplit_once(':').and_then(|(host, p)| Some((host, p.parse::<u16>().ok()?)));
        if !port.is_some_and(|(host, p)| !host.is_empty() && p != 0) {
            return bad(format!("discovery address {:?} is not host:port", self.discovery));
        }
        if self.beat < Duration::from_millis(10) || self.beat * 2 > TIME_TO_LIVE {
            let (ms, ttl) = (self.beat.as_millis(), TIME_TO_LIVE.as_millis());
            return bad(format!("a beat every {ms} ms: must be 10..={}, the router forgets after {ttl} ms", ttl / 2));
        }
        self.register.check()
    }
}

/// What a registration wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationOutput {
    /// Connect to the discovery address, then [`Registration::handle_connected`] or [`Registration::handle_failed`].
    Connect,
    /// Send over the connection.
    Send(Vec<u8>),
    /// Close the connection, or forget the one that is being made.
    Close,
    /// Tell the engine.
    Event(Event),
}

enum State {
    /// Not connected.
    Waiting { until: Instant },
    /// The connection is being made.
    Connecting,
    /// ZeroMQ's handshake until the dealer is ready, then beats; due is the end of the one, or the next of the others.
    Connected { dealer: Zmq, due: Instant },
}

/// One registration.
pub struct Registration {
    args: RouterArgs,
    /// Tells this agent's connections from all others.
    name: String,
    connections: u32,
    state: State,
    wait: Duration,
    /// The status of the last event.
    told: Option<Status>,
    outputs: VecDeque<RegistrationOutput>,
}

impl Registration {
    /// Begins at once. `name` is unique among all that register.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn new(now: Instant, args: RouterArgs, name: String) -> Result<Registration> {
        args.check()?;
        let state = State::Waiting { until: now };
        Ok(Registration { args, name, connections: 0, state, wait: FIRST_WAIT, told: None, outputs: VecDeque::new() })
    }

    /// What it registers.
    pub fn args(&self) -> &RouterArgs {
        &self.args
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<RegistrationOutput> {
        self.outputs.pop_front()
    }

    /// When [`Registration::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until: due } | State::Connected { due, .. } => Some(*due),
            State::Connecting => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        match &mut self.state {
            State::Waiting { .. } => {
                self.state = State::Connecting;
                self.outputs.push_back(RegistrationOutput::Connect);
            }
            State::Connected { dealer, .. } if !dealer.is_ready() => {
                let text = format!("no ZeroMQ handshake within {} ms", HANDSHAKE.as_millis());
                self.handle_failed(now, Error::new(Status::Unreachable, text));
            }
            State::Connected { dealer, .. } if dealer.unanswered() >= self.args.misses() => {
                let text = format!("no sign of life to {} pings", dealer.unanswered());
                self.handle_failed(now, Error::new(Status::Unreachable, text));
            }
            State::Connected { .. } => {
                // It has held for a beat.
                self.wait = FIRST_WAIT;
                self.beat(now);
            }
            State::Connecting => {}
        }
    }

    /// The connection was made.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.state, State::Connecting) {
            return self.outputs.push_back(RegistrationOutput::Close);
        }
        self.connections = self.connections.wrapping_add(1);
        let dealer = Zmq::dealer(&format!("{}.{}", self.name, self.connections));
        self.state = State::Connected { dealer, due: later(now, HANDSHAKE) };
        self.flush();
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        let State::Connected { dealer, .. } = &mut self.state else { return };
        let was_ready = dealer.is_ready();
        if let Err(e) = dealer.handle_bytes(bytes) {
            return self.handle_failed(now, e);
        }
        let attached = !was_ready && dealer.is_ready();
        self.flush();
        if attached {
            self.beat(now);
            self.tell(Status::Ok, format!("registered at {}", self.args.address()));
        }
    }

    /// The connection could not be made, or was lost.
    pub fn handle_failed(&mut self, now: Instant, error: Error) {
        let was = std::mem::replace(&mut self.state, State::Waiting { until: now });
        if matches!(was, State::Waiting { .. }) {
            self.state = was;
            return;
        }
        self.outputs.push_back(RegistrationOutput::Close);
        // A router that was there is asked again at once: it may have been restarted.
        let attached = matches!(&was, State::Connected { dealer, .. } if dealer.is_ready());
        if !attached || self.wait != FIRST_WAIT {
            self.state = State::Waiting { until: later(now, self.wait) };
        }
        self.wait = self.wait.saturating_mul(2).min(self.args.beat.max(FIRST_WAIT));
        self.tell(error.status(), format!("router {}: {}", self.args.address(), error.message()));
    }

    /// Once for every change.
    fn tell(&mut self, status: Status, text: String) {
        if self.told == Some(status) {
            return;
        }
        self.told = Some(status);
        let user_data = self.args.user_data;
        self.outputs.push_back(RegistrationOutput::Event(Event {
            text,
            user_data,
            ..Event::new(EventKind::Router, status)
        }));
    }

    /// After a stall one beat is enough.
    fn beat(&mut self, now: Instant) {
        if let State::Connected { dealer, due } = &mut self.state {
            *due = later(now, self.args.beat);
            dealer.send(&self.args.register.encode());
            dealer.ping(TIME_TO_LIVE);
        }
        self.flush();
    }

    fn flush(&mut self) {
        let State::Connected { dealer, .. } = &mut self.state else { return };
        let bytes = dealer.take_output();
        if !bytes.is_empty() {
            self.outputs.push_back(RegistrationOutput::Send(bytes));
        }
    }
}
