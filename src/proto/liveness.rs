//! Heartbeats: a session that stays silent is asked, and then given up.

use super::endpoint::{Endpoint, Timer, later};
use super::id::Id;
use super::output::Output;
use crate::error::{Error, Status};
use crate::wire::Message;
use std::time::{Duration, Instant};

impl Endpoint {
    fn heartbeat(&self) -> Duration {
        self.config.heartbeat.max(Duration::from_millis(1))
    }

    /// Time without any sign of life after which a peer is dead.
    pub(super) fn patience(&self) -> Duration {
        self.heartbeat().saturating_mul(self.config.heartbeat_misses.max(1))
    }

    /// Begins to watch a session, or watches it by the rules of its new state.
    pub(super) fn watch(&mut self, now: Instant, conn: Id) {
        let live = self.sessions.get(conn).is_some_and(|s| s.is_live());
        // Before both have said who they are, a session has the handshake's time; the handshake itself ends first.
        let wait = self.heartbeat();
        let wait = if live { wait } else { self.config.handshake_timeout.saturating_add(wait) };
        self.watch_at(later(now, wait), conn);
    }

    fn watch_at(&mut self, at: Instant, conn: Id) {
        let Some(s) = self.sessions.get_mut(conn) else { return };
        if let Some(old) = s.due.replace(at) {
            self.untimer(old, Timer::Session(conn));
        }
        self.timer(at, Timer::Session(conn));
    }

    pub(super) fn session_timeout(&mut self, now: Instant, conn: Id) {
        let (heartbeat, patience) = (self.heartbeat(), self.patience());
        let misses = self.config.heartbeat_misses;
        let Some(s) = self.sessions.get_mut(conn) else { return };
        s.due = None;
        let silence = now.saturating_duration_since(s.last_heard);
        if s.is_live() && silence < heartbeat {
            let next = later(s.last_heard, heartbeat);
            return self.watch_at(next, conn);
        }
        // Only unanswered questions count: after a stall of our own the answers may lie in the socket.
        let asked = s.asked >= misses.saturating_sub(1).max(1) && silence >= patience;
        if asked || !s.is_live() {
            let text = format!("no sign of life for {} ms", silence.as_millis());
            self.outputs.push_back(Output::Close { conn });
            return self.drop_session(now, conn, Error::new(Status::PeerDead, text));
        }
        s.asked += 1;
        self.send(conn, Message::Ping);
        self.watch_at(later(now, heartbeat), conn);
    }
}
