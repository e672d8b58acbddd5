//! One read: what it copies between which memories, and how far it is.

use super::sys::{Session, Transfer};
use crate::transport::vendor::State;
use std::ffi::CString;

/// Which memories a session connects: of which peer, which region of ours, which of its.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub peer: CString,
    pub own: u32,
    pub theirs: u32,
}

/// The part of a read between one memory of ours and one of the peer's.
#[derive(Debug)]
pub(super) struct Part {
    pub ends: Ends,
    /// Offsets in both memories, and lengths.
    local: Vec<u64>,
    remote: Vec<u64>,
    len: Vec<u64>,
}

/// A read.
#[derive(Default)]
pub struct Request {
    /// Parts whose sessions are not open yet.
    pub(super) waiting: Vec<Part>,
    started: Vec<Transfer>,
    failure: Option<String>,
}

impl Request {
    /// Adds bytes to copy.
    pub(super) fn add(&mut self, ends: &Ends, local: u64, remote: u64, len: u64) {
        let at = match self.waiting.iter().position(|p| p.ends == *ends) {
            Some(at) => at,
            None => {
                let (local, remote, len) = (Vec::new(), Vec::new(), Vec::new());
                self.waiting.push(Part { ends: ends.clone(), local, remote, len });
                self.waiting.len() - 1
            }
        };
        let part = &mut self.waiting[at];
        part.local.push(local);
        part.remote.push(remote);
        part.len.push(len);
    }

    /// Starts the parts for which a session is open; `None`: it is being opened.
    pub(super) fn start<'s>(&mut self, mut session: impl FnMut(&Ends) -> Result<Option<&'s Session>, String>) {
        if self.failure.is_some() {
            return;
        }
        let mut later = Vec::new();
        for part in std::mem::take(&mut self.waiting) {
            match session(&part.ends) {
                Ok(None) => later.push(part),
                Ok(Some(open)) => match open.read(&part.local, &part.remote, &part.len) {
                    Ok(transfer) => self.started.push(transfer),
                    Err(e) => self.fail(e),
                },
                Err(e) => self.fail(e),
            }
        }
        self.waiting = later;
    }

    /// Nothing more is started.
    pub(super) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
        self.waiting.clear();
    }

    /// How far it is.
    pub(super) fn state(&mut self) -> State {
        let mut running = !self.waiting.is_empty();
        for t in &self.started {
            match t.is_complete() {
                Ok(complete) => running |= !complete,
                Err(e) => {
                    self.failure.get_or_insert(e);
                }
            }
        }
        match &self.failure {
            Some(e) => State::Failed(e.clone()),
            None if running => State::Running,
            None => State::Complete,
        }
    }

    /// Starts nothing more; returns whether MoRI has never heard of it.
    pub(super) fn withdraw(&mut self) -> bool {
        self.waiting.clear();
        self.started.is_empty()
    }
}
