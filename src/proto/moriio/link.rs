//! The connections of a worker, and what is under way on them.

use super::super::endpoint::later;
use super::super::id::Id;
use super::super::zmq::Zmq;
use super::MoriioPort;
use crate::error::{Error, Status};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Wait before the second attempt to connect, and the longest.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Something that was begun and ends with one event.
pub(super) struct Exchange {
    pub id: Id,
    pub user_data: u64,
    pub until: Instant,
    /// "release of tx-1 to 10.0.0.1:61005".
    pub what: String,
}

/// A connection that we make, as often as needed.
pub(super) struct Call {
    pub address: String,
    /// Where it stands; `None`: it is being made, or waited with.
    pub zmq: Option<Zmq>,
    /// When it is made next.
    pub again: Option<Instant>,
    wait: Duration,
    /// Why it failed last.
    why: String,
}

pub(super) enum Link {
    Caller { zmq: Zmq, port: MoriioPort, greeted_by: Instant },
    Meeting { call: Call, exchange: Exchange, asked: bool, meta: Option<Vec<u8>> },
    Line { call: Call, waiting: VecDeque<(Exchange, Vec<u8>)>, unconfirmed: VecDeque<Exchange> },
}

impl Link {
    pub fn zmq(&mut self) -> Option<&mut Zmq> {
        match self {
            Link::Caller { zmq, .. } => Some(zmq),
            Link::Meeting { call, .. } | Link::Line { call, .. } => call.zmq.as_mut(),
        }
    }

    pub fn due(&self) -> Option<Instant> {
        match self {
            Link::Caller { zmq, greeted_by, .. } => Some(*greeted_by).filter(|_| !zmq.is_ready()),
            Link::Meeting { call, exchange, .. } => Some(call.again.map_or(exchange.until, |a| a.min(exchange.until))),
            Link::Line { call, waiting, unconfirmed } => {
                let ends = waiting.iter().map(|(e, _)| e.until).chain(unconfirmed.iter().map(|e| e.until));
                ends.chain(call.again).min()
            }
        }
    }
}

impl Call {
    pub fn new(address: &str, now: Instant) -> Call {
        Call { address: address.to_string(), zmq: None, again: Some(now), wait: WAIT.0, why: String::new() }
    }

    pub fn fail(&mut self, now: Instant, error: &Error) {
        self.zmq = None;
        self.again = Some(later(now, self.wait));
        self.wait = self.wait.saturating_mul(2).min(WAIT.1);
        self.why = error.message().to_string();
    }

    /// The peer answers: the next time begins with a short wait.
    pub fn holds(&mut self) {
        self.wait = WAIT.0;
    }

    /// Time is over.
    pub fn late(&self) -> Error {
        if self.zmq.as_ref().is_some_and(Zmq::is_ready) {
            return Error::new(Status::Deadline, "no answer in time");
        }
        let why = if self.why.is_empty() { "no connection in time" } else { &self.why };
        Error::new(Status::Unreachable, why)
    }
}
