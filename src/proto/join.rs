//! How an instance forms: every rank joins at the first one, which hands out the directory of all.

use super::directory::Directory;
use super::endpoint::{Endpoint, Timer, later};
use super::event::{Event, EventKind};
use super::output::{ConnId, Output};
use super::session::{Remote, Session};
use crate::error::{Error, Result, Status};
use crate::wire::{Entry, Message, Purpose};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two attempts to reach the first rank.
const RETRY: Duration = Duration::from_millis(100);

/// What is known of the own instance until it is complete.
#[derive(Default)]
pub(super) struct Forming {
    /// When it is given up.
    deadline: Option<Instant>,
    /// On the first rank: who has joined.
    members: BTreeMap<u32, Entry>,
    /// On the others: why the last attempt failed.
    last: Option<Error>,
    /// It will never be complete.
    failure: Option<Error>,
}

impl Endpoint {
    /// Binds the endpoint to its address and transports; afterwards it joins its instance. Emits one
    /// [`EventKind::Ready`] when the instance is complete, or will never be.
    pub fn bind(&mut self, now: Instant, address: String, transports: Vec<(String, Vec<u8>)>) {
        let entry = Entry {
            rank: self.me.rank,
            address,
            incarnation: self.me.incarnation,
            layout: crate::layout::layout_to_json(&self.layout),
            transports,
        };
        self.entry = Some(entry.clone());
        let deadline = later(now, self.config.join_timeout);
        self.forming.deadline = Some(deadline);
        self.timer(deadline, Timer::Forming);
        if self.me.rank == 0 {
            self.forming.members.insert(0, entry);
            self.complete_instance(now);
        } else {
            self.join(now);
        }
    }

    fn join(&mut self, now: Instant) {
        let conn = self.sessions.insert(Session::joining(now, self.me.leader.clone()));
        self.watch(now, conn);
        self.outputs.push_back(Output::Connect { conn, address: self.me.leader.clone() });
    }

    pub(super) fn join_again(&mut self, now: Instant) {
        let trying = self.sessions.iter().any(|(_, s)| s.ours && s.purpose == Purpose::Join);
        if self.is_forming() && !trying {
            self.join(now);
        }
    }

    fn is_forming(&self) -> bool {
        self.directory.is_none() && self.forming.failure.is_none()
    }

    /// # Errors
    /// Why the own instance will never be complete.
    pub(super) fn check_formed(&self) -> Result<()> {
        match &self.forming.failure {
            Some(e) => {
                let text = format!("instance {:?} never became complete: {}", self.me.instance, e.message());
                Err(Error::new(Status::WrongState, text))
            }
            None => Ok(()),
        }
    }

    pub(super) fn forming_timeout(&mut self, now: Instant) {
        if !self.is_forming() {
            return;
        }
        let seconds = self.config.join_timeout.as_secs_f64();
        let text = if self.me.rank == 0 {
            let missing: Vec<u32> = (0..self.me.ranks).filter(|r| !self.forming.members.contains_key(r)).collect();
            format!("ranks {missing:?} of instance {:?} have not joined after {seconds} s", self.me.instance)
        } else {
            let last = self.forming.last.as_ref().map_or("not all ranks have joined it", |e| e.message());
            format!("rank 0 at {:?} has sent no directory after {seconds} s: {last}", self.me.leader)
        };
        self.fail_instance(now, Error::new(Status::Deadline, text));
    }

    /// The instance will never be complete: whoever waits for it is told.
    fn fail_instance(&mut self, now: Instant, error: Error) {
        self.formed(Event { text: error.message().into(), ..Event::new(EventKind::Ready, error.status()) });
        self.forming.failure = Some(error.clone());
        let conns: Vec<ConnId> = self.sessions.iter().map(|(conn, _)| conn).collect();
        conns.into_iter().for_each(|c| self.refuse(now, c, error.clone()));
        self.fail_handshakes(now, error);
    }

    fn formed(&mut self, ready: Event) {
        if let Some(deadline) = self.forming.deadline.take() {
            self.untimer(deadline, Timer::Forming);
        }
        self.emit(ready);
    }

    /// The first rank: publishes the directory once every rank has joined.
    fn complete_instance(&mut self, now: Instant) {
        if self.directory.is_some() || self.forming.members.len() < self.me.ranks as usize {
            return;
        }
        let entries: Vec<Entry> = self.forming.members.values().cloned().collect();
        let directory = match Directory::parse(entries.clone()) {
            Ok(directory) => directory,
            Err(e) => return self.fail_instance(now, e),
        };
        let joined = |s: &Session| !s.ours && s.purpose == Purpose::Join && s.is_live();
        let joined: Vec<ConnId> = self.sessions.iter().filter(|(_, s)| joined(s)).map(|(id, _)| id).collect();
        for conn in joined {
            self.send(conn, Message::Directory(entries.clone()));
        }
        self.instance_complete(now, directory);
    }

    fn instance_complete(&mut self, now: Instant, directory: Directory) {
        self.directory = Some(Arc::new(directory));
        self.formed(Event::new(EventKind::Ready, Status::Ok));
        let waiting: Vec<ConnId> = self.sessions.iter().filter(|(_, s)| s.is_waiting()).map(|(c, _)| c).collect();
        waiting.into_iter().for_each(|conn| self.welcome(now, conn));
        self.start_handshakes(now);
    }

    /// A connection over which a rank joined is gone.
    pub(super) fn join_lost(&mut self, now: Instant, session: &Session, error: Error) {
        if !self.is_forming() {
            return;
        }
        match (&session.remote, session.ours) {
            (_, true) if matches!(error.status(), Status::Unreachable | Status::PeerDead) => {
                self.forming.last = Some(error);
                self.timer(later(now, RETRY), Timer::Join);
            }
            (_, true) => self.fail_instance(now, error),
            (Some(remote), false) => self.forget_member(remote),
            (None, false) => {}
        }
    }

    /// A rank that died while the instance was forming may come again, as another process even. One that has joined over
    /// another connection stays.
    fn forget_member(&mut self, remote: &Remote) {
        let joined = self.forming.members.get(&remote.rank).is_some_and(|e| e.incarnation == remote.incarnation);
        let again = |s: &Session| !s.ours && s.purpose == Purpose::Join && s.remote.as_ref() == Some(remote);
        if joined && !self.sessions.iter().any(|(_, s)| again(s)) {
            self.forming.members.remove(&remote.rank);
        }
    }

    pub(super) fn check_join(&self, remote: &Remote) -> Result<()> {
        let text = if self.me.rank != 0 {
            format!("rank {} was asked to join; ranks join at rank 0", self.me.rank)
        } else if remote.instance != self.me.instance {
            format!("rank of instance {:?} joins instance {:?}", remote.instance, self.me.instance)
        } else if remote.rank == 0 || remote.rank >= self.me.ranks {
            format!("rank {} joins an instance of {} ranks", remote.rank, self.me.ranks)
        } else if self.forming.members.get(&remote.rank).is_some_and(|e| e.incarnation != remote.incarnation) {
            format!("rank {} of instance {:?} has joined already", remote.rank, self.me.instance)
        } else {
            return Ok(());
        };
        Err(Error::new(Status::Refused, text))
    }

    pub(super) fn on_join(&mut self, now: Instant, conn: ConnId, entry: Entry) -> Result<()> {
        let remote = self.sessions.get(conn).and_then(|s| s.remote.clone());
        let fits = remote.as_ref().is_some_and(|r| (r.rank, r.incarnation) == (entry.rank, entry.incarnation));
        let joins = self.sessions.get(conn).is_some_and(|s| !s.ours && s.purpose == Purpose::Join);
        if !fits || !joins {
            return Err(Error::new(Status::Protocol, format!("entry of rank {} from {remote:?}", entry.rank)));
        }
        if let Some(remote) = &remote {
            self.check_join(remote)?;
        }
        if self.directory.is_some() {
            // It has joined before, and lost its connection before the directory reached it.
            self.send_directory(conn);
            return Ok(());
        }
        self.forming.members.insert(entry.rank, entry);
        self.complete_instance(now);
        Ok(())
    }

    /// The first rank says who belongs to the instance.
    pub(super) fn on_own_directory(&mut self, now: Instant, conn: ConnId, directory: Directory) -> Result<()> {
        let ours = self.sessions.get(conn).is_some_and(|s| s.ours);
        let listed = directory.entry(self.me.rank).map(|e| e.incarnation);
        if !ours || listed != Some(self.me.incarnation) {
            let text = format!("a directory for rank {} that lists {listed:x?} there", self.me.rank);
            return Err(Error::new(Status::Protocol, text));
        }
        if self.is_forming() {
            self.instance_complete(now, directory);
        }
        Ok(())
    }
}
