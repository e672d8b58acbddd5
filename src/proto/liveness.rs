//! Heartbeats: a session that stays silent is asked, and then given up.

use super::endpoint::{Endpoint, Timer};
use super::id::Id;
use super::output::Output;
use crate::error::{Error, Status};
use crate::wire::Message;
use std::time::Instant;

impl Endpoint {
    pub(super) fn session_timeout(&mut self, now: Instant, conn: Id) {
        let (heartbeat, misses) = (self.config.heartbeat, self.config.heartbeat_misses);
        let Some(s) = self.sessions.get_mut(conn) else { return };
        let silence = now.saturating_duration_since(s.last_heard);
        if silence < heartbeat {
            let next = s.last_heard + heartbeat;
            return self.timer(next, Timer::Session(conn));
        }
        // A session that still waits for the other side to introduce itself has the handshake's time.
        let allowed = if s.is_live() { heartbeat * misses } else { self.config.handshake_timeout };
        if silence >= allowed {
            let text = format!("no sign of life for {} ms", silence.as_millis());
            self.outputs.push_back(Output::Close { conn });
            return self.drop_session(now, conn, Error::new(Status::PeerDead, text));
        }
        if s.is_live() {
            s.asked += 1;
            self.send(conn, Message::Ping);
        }
        self.timer(now + heartbeat, Timer::Session(conn));
    }
}
