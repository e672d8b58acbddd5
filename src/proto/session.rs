//! Sessions: one control connection with one rank, from hello to linked.

use super::directory::Directory;
use super::endpoint::{Endpoint, Timer, told};
use super::id::Id;
use super::output::{ConnId, LinkInfo, Output};
use super::peer::Peer;
use crate::error::{Error, Result, Status};
use crate::wire::{self, Entry, Message, Purpose};
use std::time::Instant;

/// Messages that are kept for the moment at which the link is complete.
const DEFERRED: usize = 1024;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// We connect.
    Connecting,
    /// We said hello.
    Greeted,
    /// They connected; nothing was said yet.
    Accepted,
    /// They said hello before our own instance was complete.
    Waiting,
    /// Both have said who they are.
    Introduced,
    /// The transport is being linked.
    Linking,
    /// Both have linked; our data connections are being made. The other side takes the link for complete already.
    Attaching,
    /// Requests may pass.
    Linked,
}

/// Who the other side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub instance: String,
    pub incarnation: u64,
    pub rank: u32,
}

/// One control connection.
pub(super) struct Session {
    state: State,
    pub ours: bool,
    pub purpose: Purpose,
    pub remote: Option<Remote>,
    pub peer: Option<Id>,
    /// What the other side says that it can do.
    pub they_pull: bool,
    pub link: Option<LinkInfo>,
    pub address: String,
    expected: u64,
    token: u64,
    /// The wire version that both speak.
    version: u16,
    pub last_heard: Instant,
    pub asked: u32,
    /// When its timer rings.
    pub due: Option<Instant>,
    deferred: Vec<Message>,
}

impl Session {
    fn new(now: Instant, ours: bool, purpose: Purpose, peer: Option<Id>) -> Session {
        Session {
            state: if ours { State::Connecting } else { State::Accepted },
            ours,
            purpose,
            remote: None,
            peer,
            they_pull: false,
            link: None,
            address: String::new(),
            expected: 0,
            token: 0,
            version: 0,
            last_heard: now,
            asked: 0,
            due: None,
            deferred: Vec::new(),
        }
    }

    /// With the first rank of our own instance.
    pub fn joining(now: Instant, leader: String) -> Session {
        Session { address: leader, ..Session::new(now, true, Purpose::Join, None) }
    }

    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.asked = 0;
    }

    /// The other side waits until our own instance is complete.
    pub fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }

    pub fn is_linked(&self) -> bool {
        self.state == State::Linked
    }

    /// We can fetch from the other side without its help.
    pub fn we_pull(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.pull)
    }

    /// Messages may be exchanged: the other side has said who it is.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Introduced | State::Linking | State::Attaching | State::Linked)
    }

    /// Keeps a request of a side that takes the link for complete before we can.
    pub fn defer(&mut self, message: Message) -> Result<()> {
        if self.state == State::Attaching && self.deferred.len() < DEFERRED {
            self.deferred.push(message);
            return Ok(());
        }
        let text = format!("message type {} while the session is {:?}", message.type_code(), self.state);
        Err(Error::new(Status::Protocol, text))
    }
}

impl Endpoint {
    /// Opens a session of a peer's.
    pub(super) fn connect(&mut self, now: Instant, peer: Id, address: &str, expected: u64) -> Result<ConnId> {
        self.limit("sessions", self.sessions.len(), self.config.max_sessions)?;
        let mut session = Session::new(now, true, Purpose::Peer, Some(peer));
        session.expected = expected;
        session.address = address.to_string();
        let conn = self.sessions.insert(session);
        self.watch(now, conn);
        self.outputs.push_back(Output::Connect { conn, address: address.to_string() });
        Ok(conn)
    }

    /// Our connection is established. Returns whether anybody still wants it.
    pub fn handle_connected(&mut self, now: Instant, conn: ConnId) -> bool {
        let Some(s) = self.sessions.get_mut(conn) else { return false };
        s.state = State::Greeted;
        s.heard(now);
        let (purpose, expected) = (s.purpose, s.expected);
        let hello = Message::Hello {
            versions: (wire::VERSION_MIN, wire::VERSION_MAX),
            purpose,
            instance: self.me.instance.clone(),
            incarnation: self.me.incarnation,
            rank: self.me.rank,
            expected,
        };
        self.send(conn, hello);
        true
    }

    /// Somebody connected to us.
    ///
    /// # Errors
    /// [`Status::Limit`]: the connection should be closed.
    pub fn handle_accepted(&mut self, now: Instant) -> Result<ConnId> {
        self.limit("sessions", self.sessions.len(), self.config.max_sessions)?;
        let conn = self.sessions.insert(Session::new(now, false, Purpose::Peer, None));
        self.watch(now, conn);
        Ok(conn)
    }

    /// A connection is gone, or could not be made.
    pub fn handle_closed(&mut self, now: Instant, conn: ConnId, error: Error) {
        self.drop_session(now, conn, error);
    }

    /// Tells the other side why, and closes.
    pub(super) fn refuse(&mut self, now: Instant, conn: ConnId, error: Error) {
        let text = error.message().to_string();
        self.send(conn, Message::Refuse { status: error.status().code(), text });
        self.outputs.push_back(Output::Close { conn });
        self.drop_session(now, conn, error);
    }

    /// Forgets a session; everything that depended on it fails.
    pub(super) fn drop_session(&mut self, now: Instant, conn: ConnId, error: Error) {
        let Some(session) = self.sessions.remove(conn) else { return };
        if let Some(due) = session.due {
            self.untimer(due, Timer::Session(conn));
        }
        if matches!(session.state, State::Linking | State::Attaching | State::Linked) {
            self.outputs.push_back(Output::Unlink { conn });
        }
        if session.purpose == Purpose::Join {
            return self.join_lost(now, &session, error);
        }
        self.session_lost(now, conn, session, error);
    }

    pub(super) fn on_session_message(&mut self, now: Instant, conn: ConnId, message: Message) -> Result<()> {
        let Some(s) = self.sessions.get(conn) else { return Ok(()) };
        match (s.state, message) {
            (State::Accepted, Message::Hello { versions, purpose, instance, incarnation, rank, expected }) => {
                let remote = Remote { instance, incarnation, rank };
                self.on_hello(now, conn, versions, purpose, remote, expected)
            }
            (State::Greeted, Message::Welcome { version, instance, incarnation, rank, token }) => {
                wire::negotiate((wire::VERSION_MIN, wire::VERSION_MAX), (version, version))?;
                self.on_welcome(now, conn, Remote { instance, incarnation, rank }, token)
            }
            (_, Message::Refuse { status, text }) => {
                let status = told(status, Status::Refused);
                self.outputs.push_back(Output::Close { conn });
                self.drop_session(now, conn, Error::new(status, format!("the peer refused: {text}")));
                Ok(())
            }
            (State::Introduced, Message::Join(entry)) => self.on_join(now, conn, entry),
            (State::Introduced, Message::Directory(entries)) => self.on_directory(now, conn, entries),
            (State::Introduced | State::Linking, Message::Link { transport, pull }) => {
                self.on_link(now, conn, transport, pull)
            }
            (state, other) => Err(Error::new(
                Status::Protocol,
                format!("message type {} while the session is {state:?}", other.type_code()),
            )),
        }
    }

    fn on_hello(
        &mut self,
        now: Instant,
        conn: ConnId,
        versions: (u16, u16),
        purpose: Purpose,
        remote: Remote,
        expected: u64,
    ) -> Result<()> {
        let version = wire::negotiate((wire::VERSION_MIN, wire::VERSION_MAX), versions)?;
        if expected != 0 && expected != self.me.incarnation {
            let text = format!("this is process {:#x}, the peer expects {expected:#x}", self.me.incarnation);
            return Err(Error::new(Status::Incarnation, text));
        }
        self.check_formed()?;
        if purpose == Purpose::Join {
            self.check_join(&remote)?;
        }
        let Some(s) = self.sessions.get_mut(conn) else { return Ok(()) };
        s.purpose = purpose;
        s.remote = Some(remote);
        s.version = version;
        if purpose == Purpose::Peer && self.directory.is_none() {
            s.state = State::Waiting;
            return Ok(());
        }
        self.welcome(now, conn);
        Ok(())
    }

    pub(super) fn welcome(&mut self, now: Instant, conn: ConnId) {
        let token = self.me.incarnation.rotate_left(17) ^ self.fresh().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ conn.0;
        let Some(s) = self.sessions.get_mut(conn) else { return };
        s.state = State::Introduced;
        s.token = token;
        let (purpose, version) = (s.purpose, s.version);
        self.watch(now, conn);
        let welcome = Message::Welcome {
            version,
            instance: self.me.instance.clone(),
            incarnation: self.me.incarnation,
            rank: self.me.rank,
            token,
        };
        self.send(conn, welcome);
        if purpose == Purpose::Peer {
            self.outputs.push_back(Output::ExpectStream { conn, token });
            self.send_directory(conn);
        }
    }

    pub(super) fn send_directory(&mut self, conn: ConnId) {
        if let Some(d) = &self.directory {
            let entries = d.entries().to_vec();
            self.send(conn, Message::Directory(entries));
        }
    }

    fn on_welcome(&mut self, now: Instant, conn: ConnId, remote: Remote, token: u64) -> Result<()> {
        let Some(s) = self.sessions.get_mut(conn) else { return Ok(()) };
        if s.expected != 0 && s.expected != remote.incarnation {
            let text = format!("expected process {:#x}, process {:#x} answered", s.expected, remote.incarnation);
            return Err(Error::new(Status::Incarnation, text));
        }
        s.state = State::Introduced;
        s.remote = Some(remote);
        s.token = token;
        let purpose = s.purpose;
        self.watch(now, conn);
        match (purpose, self.entry.clone()) {
            (Purpose::Join, Some(entry)) => self.send(conn, Message::Join(entry)),
            (Purpose::Peer, _) => self.send_directory(conn),
            (Purpose::Join, None) => {}
        }
        Ok(())
    }

    fn on_directory(&mut self, now: Instant, conn: ConnId, entries: Vec<Entry>) -> Result<()> {
        let directory = Directory::parse(entries)?;
        let Some(s) = self.sessions.get(conn) else { return Ok(()) };
        let remote = s.remote.clone().ok_or_else(|| Error::new(Status::Protocol, "directory before hello"))?;
        if directory.entry(remote.rank).map(|e| e.incarnation) != Some(remote.incarnation) {
            let text = format!("directory does not list rank {} as process {:#x}", remote.rank, remote.incarnation);
            return Err(Error::new(Status::Protocol, text));
        }
        if s.purpose == Purpose::Join {
            return self.on_own_directory(now, conn, directory);
        }
        self.on_peer_directory(now, conn, remote, directory)
    }

    /// Asks for a link with the rank at the other end.
    pub(super) fn begin_link(&mut self, conn: ConnId, only: Option<&str>) -> Result<()> {
        let Some(s) = self.sessions.get_mut(conn) else { return Ok(()) };
        let (Some(peer), Some(remote)) = (s.peer, &s.remote) else { return Ok(()) };
        let rank = remote.rank;
        let Some(entry) = self.peers.get(peer).and_then(|p| p.directory.as_ref()?.entry(rank).cloned()) else {
            return Err(Error::new(Status::Protocol, format!("rank {rank} is not in the peer's directory")));
        };
        let mut offers = entry.transports;
        if let Some(name) = only {
            offers.retain(|(n, _)| n == name);
            if offers.is_empty() {
                return Err(Error::new(
                    Status::Protocol,
                    format!("the peer chose transport {name:?} that it does not list"),
                ));
            }
        }
        s.state = State::Linking;
        self.outputs.push_back(Output::Link { conn, offers });
        Ok(())
    }

    /// The transport is linked, or cannot be.
    pub fn handle_linked(&mut self, now: Instant, conn: ConnId, link: Result<LinkInfo>) {
        let link = match link {
            Ok(link) => link,
            Err(e) => return self.refuse(now, conn, e),
        };
        let Some(s) = self.sessions.get_mut(conn) else { return };
        let message = Message::Link { transport: link.transport.clone(), pull: link.pull };
        s.link = Some(link);
        let ours = s.ours;
        if !ours {
            s.state = State::Linked;
        }
        self.send(conn, message);
        if !ours {
            self.session_linked(conn);
        }
    }

    fn on_link(&mut self, now: Instant, conn: ConnId, transport: String, pull: bool) -> Result<()> {
        let Some(s) = self.sessions.get_mut(conn) else { return Ok(()) };
        s.they_pull = pull;
        if !s.ours {
            if s.state != State::Introduced || s.peer.is_none() {
                return Err(Error::new(Status::Protocol, format!("link while the session is {:?}", s.state)));
            }
            return self.begin_link(conn, Some(&transport));
        }
        if s.link.as_ref().is_none_or(|l| l.transport != transport) {
            let text =
                format!("we chose transport {:?}, the peer {transport:?}", s.link.as_ref().map(|l| &l.transport));
            return Err(Error::new(Status::Protocol, text));
        }
        if s.we_pull() && pull {
            self.complete_link(now, conn);
        } else {
            s.state = State::Attaching;
            let (address, token) = (s.address.clone(), s.token);
            self.outputs.push_back(Output::OpenStream { conn, address, token });
        }
        Ok(())
    }

    /// The data connections that we opened are attached to the link, or one could not be.
    pub fn handle_stream(&mut self, now: Instant, conn: ConnId, result: Result<()>) {
        if let Err(e) = result {
            return self.refuse(now, conn, e);
        }
        self.complete_link(now, conn);
    }

    fn complete_link(&mut self, now: Instant, conn: ConnId) {
        let Some(s) = self.sessions.get_mut(conn) else { return };
        s.state = State::Linked;
        let early = std::mem::take(&mut s.deferred);
        self.session_linked(conn);
        for message in early {
            if let Err(e) = self.on_request_message(now, conn, message) {
                return self.refuse(now, conn, e);
            }
        }
    }

    /// (peer id, rank) for events.
    pub(super) fn peer_of(&self, conn: ConnId) -> (u64, u32) {
        let s = self.sessions.get(conn);
        (s.and_then(|s| s.peer).map_or(0, |p| p.0), s.and_then(|s| s.remote.as_ref()).map_or(u32::MAX, |r| r.rank))
    }

    pub(super) fn peer_for(&self, conn: ConnId) -> Option<(Id, &Peer, u32)> {
        let s = self.sessions.get(conn)?;
        let peer = s.peer?;
        Some((peer, self.peers.get(peer)?, s.remote.as_ref()?.rank))
    }
}
