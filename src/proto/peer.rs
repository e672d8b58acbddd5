//! Peers: another instance, the plans with it, and the sessions that the plans need.

use super::directory::Directory;
use super::endpoint::{Endpoint, Timer, Transfer, later};
use super::event::{Event, EventKind};
use super::id::Id;
use super::output::{ConnId, Output};
use super::session::{Remote, Session};
use crate::error::{Error, Result, Status};
use crate::layout::{Inbound, Plan, compile};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Which way a handshake prepares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// We take data from the peer (read) or accept its writes.
    Inbound,
    /// We give data to the peer (write) or offer it.
    Outbound,
    /// Both.
    Both,
}

impl Direction {
    fn inbound(self) -> bool {
        self != Direction::Outbound
    }

    fn outbound(self) -> bool {
        self != Direction::Inbound
    }
}

/// A handshake that we began.
pub(super) struct Handshake {
    user_data: u64,
    deadline: Instant,
    address: String,
    started: bool,
    /// Ranks that must be linked; known once the directory is there.
    needed: Option<Vec<u32>>,
}

/// What we give to another instance.
#[derive(Debug)]
pub(super) struct Outbound {
    /// One plan for each of its ranks that takes bytes from us.
    pub plans: Vec<Arc<Plan>>,
    /// How many of its ranks acknowledge us.
    pub consumers: u32,
}

/// Another instance.
pub(super) struct Peer {
    pub directory: Option<Arc<Directory>>,
    pub instance: String,
    direction: Direction,
    handshake: Option<Handshake>,
    /// We asked for it; it stays until the engine lets it go.
    ours: bool,
    /// The engine has seen its id.
    pub told: bool,
    pub dead: Option<Error>,
    pub sessions: BTreeMap<u32, ConnId>,
    inbound: Option<Result<Arc<Inbound>>>,
    outbound: Option<Result<Arc<Outbound>>>,
}

impl Peer {
    fn new(ours: bool, direction: Direction) -> Peer {
        Peer {
            directory: None,
            instance: String::new(),
            direction,
            handshake: None,
            ours,
            told: false,
            dead: None,
            sessions: BTreeMap::new(),
            inbound: None,
            outbound: None,
        }
    }
}

impl Endpoint {
    /// Begins a handshake with the instance at this address (any of its ranks). Ends with one
    /// [`EventKind::Handshake`] event.
    ///
    /// # Errors
    /// [`Status::Limit`]; [`Status::WrongState`]: the own instance will never be complete.
    pub fn handshake(&mut self, now: Instant, address: &str, direction: Direction, user_data: u64) -> Result<Id> {
        self.check_formed()?;
        self.limit("peers", self.peers.len(), self.config.max_peers)?;
        self.limit("sessions", self.sessions.len(), self.config.max_sessions)?;
        let deadline = later(now, self.config.handshake_timeout);
        let mut peer = Peer::new(true, direction);
        peer.handshake =
            Some(Handshake { user_data, deadline, address: address.to_string(), started: false, needed: None });
        let id = self.peers.insert(peer);
        self.timer(deadline, Timer::Handshake(id));
        self.start_handshakes(now);
        Ok(id)
    }

    /// Starts what waited for our own instance to be complete.
    pub(super) fn start_handshakes(&mut self, now: Instant) {
        if self.directory.is_none() {
            return;
        }
        for id in self.peers.ids() {
            let Some(h) = self.peers.get_mut(id).and_then(|p| p.handshake.as_mut()) else { continue };
            if !std::mem::replace(&mut h.started, true) {
                let address = h.address.clone();
                if let Err(e) = self.connect(now, id, &address, 0) {
                    self.fail_handshake(now, id, e);
                }
            }
        }
    }

    pub(super) fn handshake_timeout(&mut self, now: Instant, id: Id) {
        let Some(h) = self.peers.get(id).and_then(|p| p.handshake.as_ref()) else { return };
        if h.deadline > now {
            return;
        }
        let seconds = self.config.handshake_timeout.as_secs_f64();
        let waits = match (&h.needed, self.directory.is_some()) {
            (_, false) => "its own instance is not complete".to_string(),
            (None, _) => format!("{} did not send its directory", h.address),
            (Some(_), _) => {
                let missing = self.missing_ranks(id);
                format!("ranks {missing:?} of the peer are not linked")
            }
        };
        let text = format!("handshake not finished after {seconds} s: {waits}");
        self.fail_handshake(now, id, Error::new(Status::Deadline, text));
    }

    /// A peer introduced all its ranks over a session.
    pub(super) fn on_peer_directory(
        &mut self,
        now: Instant,
        conn: ConnId,
        remote: Remote,
        directory: Directory,
    ) -> Result<()> {
        let ours = self.sessions.get(conn).and_then(|s| s.peer);
        let peer = match ours {
            Some(peer) => peer,
            None => self.passive_peer(&remote, &directory)?,
        };
        if let Some(s) = self.sessions.get_mut(conn) {
            s.peer = Some(peer);
        }
        let Some(p) = self.peers.get_mut(peer) else { return Ok(()) };
        p.instance = remote.instance;
        p.sessions.entry(remote.rank).or_insert(conn);
        match &p.directory {
            None => {
                p.directory = Some(Arc::new(directory));
                if p.handshake.is_some() {
                    self.plan_handshake(now, peer)?;
                }
            }
            Some(known) if known.incarnations() != directory.incarnations() => {
                let text = format!(
                    "instance {:?} has processes {:x?}, it had {:x?}",
                    p.instance,
                    directory.incarnations(),
                    known.incarnations()
                );
                return Err(Error::new(Status::Incarnation, text));
            }
            Some(_) => {}
        }
        self.link_if_needed(peer, conn, remote.rank)
    }

    fn link_if_needed(&mut self, peer: Id, conn: ConnId, rank: u32) -> Result<()> {
        let needed =
            self.peers.get(peer).and_then(|p| p.handshake.as_ref()?.needed.as_ref().map(|n| n.contains(&rank)));
        if needed == Some(true) {
            self.begin_link(conn, None)?;
        }
        self.check_handshake(peer);
        Ok(())
    }

    /// The peer that a foreign session belongs to: one for every life of an instance.
    fn passive_peer(&mut self, remote: &Remote, directory: &Directory) -> Result<Id> {
        let same = |p: &Peer| {
            !p.ours
                && p.dead.is_none()
                && p.instance == remote.instance
                && p.directory.as_ref().is_some_and(|d| d.incarnations() == directory.incarnations())
        };
        if let Some((id, _)) = self.peers.iter().find(|(_, p)| same(p)) {
            return Ok(id);
        }
        self.limit("peers", self.peers.len(), self.config.max_peers)?;
        Ok(self.peers.insert(Peer::new(false, Direction::Both)))
    }

    /// Compiles the plans and connects to the ranks that they need.
    fn plan_handshake(&mut self, now: Instant, peer: Id) -> Result<()> {
        let Some(direction) = self.peers.get(peer).map(|p| p.direction) else { return Ok(()) };
        let mut needed: Vec<u32> = Vec::new();
        if direction.inbound() {
            let inbound = self.inbound(peer)?;
            needed.extend(inbound.plans.iter().map(|p| p.source()));
            needed.extend(inbound.acknowledges.iter().map(|(rank, _)| *rank));
        }
        if direction.outbound() {
            needed.extend(self.outbound(peer)?.plans.iter().map(|p| p.destination()));
        }
        needed.sort_unstable();
        needed.dedup();
        let Some(p) = self.peers.get_mut(peer) else { return Ok(()) };
        let Some(directory) = p.directory.clone() else { return Ok(()) };
        let open: Vec<u32> = p.sessions.keys().copied().collect();
        if let Some(h) = &mut p.handshake {
            h.needed = Some(needed.clone());
        }
        for rank in needed.into_iter().filter(|r| !open.contains(r)) {
            if let Some(e) = directory.entry(rank) {
                self.connect(now, peer, &e.address, e.incarnation)?;
            }
        }
        Ok(())
    }

    /// What we take from a peer; compiled on first use.
    pub(super) fn inbound(&mut self, peer: Id) -> Result<Arc<Inbound>> {
        let (own, theirs) = self.both_directories(peer)?;
        let rank = self.me.rank as usize;
        let stale = || Error::new(Status::BadHandle, "no such peer");
        let p = self.peers.get_mut(peer).ok_or_else(stale)?;
        let compiled = p.inbound.get_or_insert_with(|| {
            compile(theirs.layouts(), own.layouts(), rank)
                .map(Arc::new)
                .map_err(|v| Error::new(Status::Incompatible, v.to_string()))
        });
        compiled.clone()
    }

    /// What we give to each rank of a peer; compiled on first use.
    pub(super) fn outbound(&mut self, peer: Id) -> Result<Arc<Outbound>> {
        let (own, theirs) = self.both_directories(peer)?;
        let rank = self.me.rank;
        let stale = || Error::new(Status::BadHandle, "no such peer");
        let p = self.peers.get_mut(peer).ok_or_else(stale)?;
        let compiled = p.outbound.get_or_insert_with(|| {
            let mut out = Outbound { plans: Vec::new(), consumers: 0 };
            for destination in 0..theirs.layouts().len() {
                let inbound = compile(own.layouts(), theirs.layouts(), destination)
                    .map_err(|v| Error::new(Status::Incompatible, v.to_string()))?;
                out.plans.extend(inbound.plans.into_iter().filter(|p| p.source() == rank));
                out.consumers += u32::from(inbound.acknowledges.iter().any(|(s, _)| *s == rank));
            }
            Ok(Arc::new(out))
        });
        compiled.clone()
    }

    fn both_directories(&self, peer: Id) -> Result<(Arc<Directory>, Arc<Directory>)> {
        let p = self.peers.get(peer).ok_or_else(|| bad_peer(peer))?;
        let wrong = |what: &str| Error::new(Status::WrongState, format!("{what} is not known yet"));
        let own = self.directory.clone().ok_or_else(|| wrong("the own instance"))?;
        Ok((own, p.directory.clone().ok_or_else(|| wrong("the peer's directory"))?))
    }

    pub(super) fn session_linked(&mut self, conn: ConnId) {
        let Some(s) = self.sessions.get(conn) else { return };
        let (Some(peer), Some(rank)) = (s.peer, s.remote.as_ref().map(|r| r.rank)) else { return };
        let first = self.peers.get(peer).and_then(|p| p.sessions.get(&rank).copied());
        if !first.and_then(|c| self.sessions.get(c)).is_some_and(Session::is_linked)
            && let Some(p) = self.peers.get_mut(peer)
        {
            p.sessions.insert(rank, conn);
        }
        self.check_handshake(peer);
    }

    fn missing_ranks(&self, peer: Id) -> Vec<u32> {
        let Some(p) = self.peers.get(peer) else { return Vec::new() };
        let needed = p.handshake.as_ref().and_then(|h| h.needed.clone()).unwrap_or_default();
        needed
            .into_iter()
            .filter(|r| !p.sessions.get(r).and_then(|c| self.sessions.get(*c)).is_some_and(Session::is_linked))
            .collect()
    }

    fn check_handshake(&mut self, peer: Id) {
        let Some(p) = self.peers.get(peer) else { return };
        if p.handshake.as_ref().is_none_or(|h| h.needed.is_none()) || !self.missing_ranks(peer).is_empty() {
            return;
        }
        let text = self.transports(peer);
        let Some(h) = self.peers.get_mut(peer).and_then(|p| p.handshake.take()) else { return };
        self.untimer(h.deadline, Timer::Handshake(peer));
        self.emit(Event { text, user_data: h.user_data, peer: peer.0, ..Event::new(EventKind::Handshake, Status::Ok) });
    }

    /// The transports in effect, one line per rank, with why others were rejected.
    fn transports(&self, peer: Id) -> String {
        let Some(p) = self.peers.get(peer) else { return String::new() };
        let mut lines = Vec::new();
        for (rank, conn) in &p.sessions {
            let Some(link) = self.sessions.get(*conn).and_then(|s| s.link.as_ref()) else { continue };
            let mut line = format!("rank {rank}: {}", link.report);
            for r in &link.rejected {
                line.push_str(&format!(" ({r})"));
            }
            lines.push(line);
        }
        lines.join("\n")
    }

    /// The transports in effect with a peer; see [`EventKind::Handshake`].
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn effective_transports(&self, peer: Id) -> Result<String> {
        self.peers.get(peer).map(|_| self.transports(peer)).ok_or_else(|| bad_peer(peer))
    }

    /// Fails all handshakes that have not ended.
    pub(super) fn fail_handshakes(&mut self, now: Instant, error: Error) {
        self.peers.ids().into_iter().for_each(|id| self.fail_handshake(now, id, error.clone()));
    }

    fn fail_handshake(&mut self, now: Instant, id: Id, error: Error) {
        let Some(p) = self.peers.get_mut(id) else { return };
        let Some(h) = p.handshake.take() else { return };
        self.untimer(h.deadline, Timer::Handshake(id));
        let event = Event {
            text: error.message().to_string(),
            user_data: h.user_data,
            peer: id.0,
            ..Event::new(EventKind::Handshake, error.status())
        };
        self.emit(event);
        self.remove_peer(now, id, error);
    }

    /// Lets a peer go: its transfers fail, its sessions close.
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn disconnect(&mut self, now: Instant, peer: Id) -> Result<()> {
        self.peers.get(peer).ok_or_else(|| bad_peer(peer))?;
        self.fail_handshake(now, peer, Error::new(Status::Cancelled, "disconnected by the caller"));
        self.remove_peer(now, peer, Error::new(Status::PeerDead, "disconnected by the caller"));
        Ok(())
    }

    fn remove_peer(&mut self, now: Instant, id: Id, error: Error) {
        let Some(p) = self.peers.get_mut(id) else { return };
        p.ours = false;
        p.dead = Some(error.clone());
        let conns: Vec<ConnId> =
            self.sessions.iter().filter(|(_, s)| s.peer == Some(id)).map(|(conn, _)| conn).collect();
        for conn in conns {
            self.outputs.push_back(Output::Close { conn });
            self.drop_session(now, conn, error.clone());
        }
        self.peers.remove(id);
    }

    /// A session of a peer is gone: what ran over it fails.
    pub(super) fn session_lost(&mut self, now: Instant, conn: ConnId, session: Session, error: Error) {
        self.drop_served(conn);
        if let (Some(peer), Some(remote)) = (session.peer, &session.remote) {
            self.drop_sink_session(conn, peer, remote.rank, &error);
        }
        let ids: Vec<Id> = self.transfers.iter().filter(|(_, t)| uses(t, conn)).map(|(id, _)| id).collect();
        for id in ids {
            self.transfer_session_lost(now, id, conn, &error);
        }
        let Some(peer) = session.peer else { return };
        let Some(p) = self.peers.get_mut(peer) else { return };
        p.sessions.retain(|_, c| *c != conn);
        // A rank may have connected more than once.
        let others = self.sessions.iter().filter(|(_, s)| s.peer == Some(peer));
        let mut others: Vec<(bool, u32, ConnId)> =
            others.filter_map(|(c, s)| Some((!s.is_linked(), s.remote.as_ref()?.rank, c))).collect();
        others.sort_unstable();
        let idle = others.is_empty();
        for (_, rank, other) in others {
            p.sessions.entry(rank).or_insert(other);
        }
        if p.handshake.is_some() {
            return self.fail_handshake(now, peer, error);
        }
        // A peer of ours is of no use without any one of its ranks; one that came to us stays while a rank of it does.
        let down = (p.ours || idle && p.told) && p.dead.is_none();
        if p.ours && down {
            p.dead = Some(error.clone());
        }
        if !p.ours && idle {
            self.peers.remove(peer);
        }
        if down {
            let rank = session.remote.as_ref().map_or(u32::MAX, |r| r.rank);
            let text = error.message().to_string();
            self.emit(Event { text, peer: peer.0, rank, ..Event::new(EventKind::PeerDown, error.status()) });
        }
    }

    fn transfer_session_lost(&mut self, now: Instant, id: Id, conn: ConnId, error: &Error) {
        match self.transfers.get_mut(id) {
            Some(Transfer::Read(r)) => r.session_lost(conn),
            Some(Transfer::Write(w)) => w.session_lost(conn),
            None => return,
        }
        self.fail_transfer(now, id, error.clone());
    }

    /// The linked session with one rank of a peer.
    pub(super) fn session_with(&self, peer: Id, rank: u32) -> Result<ConnId> {
        let p = self.peers.get(peer).ok_or_else(|| bad_peer(peer))?;
        if let Some(e) = &p.dead {
            return Err(Error::new(Status::PeerDead, format!("the peer is dead: {}", e.message())));
        }
        let conn = p.sessions.get(&rank).copied();
        match conn.filter(|c| self.sessions.get(*c).is_some_and(Session::is_linked)) {
            Some(conn) => Ok(conn),
            None if p.handshake.is_some() => Err(Error::new(Status::WrongState, "the handshake has not finished")),
            None => {
                Err(Error::new(Status::WrongState, format!("no link with rank {rank}: the handshake did not need it")))
            }
        }
    }

    /// Linked sessions with one rank, or with all.
    pub(super) fn linked(&self, peer: Id, rank: Option<u32>) -> Result<Vec<ConnId>> {
        if let Some(rank) = rank {
            return Ok(vec![self.session_with(peer, rank)?]);
        }
        let p = self.peers.get(peer).ok_or_else(|| bad_peer(peer))?;
        let all: Vec<ConnId> =
            p.sessions.values().copied().filter(|c| self.sessions.get(*c).is_some_and(Session::is_linked)).collect();
        if all.is_empty() {
            return Err(Error::new(Status::PeerDead, "no rank of the peer is linked"));
        }
        Ok(all)
    }
}

fn uses(t: &Transfer, conn: ConnId) -> bool {
    match t {
        Transfer::Read(r) => r.uses(conn),
        Transfer::Write(w) => w.uses(conn),
    }
}

pub(super) fn bad_peer(peer: Id) -> Error {
    Error::new(Status::BadHandle, format!("peer id {:#x} is stale or foreign", peer.0))
}
