//! Reads: posted in turn, looked at until they end, landed.

use super::{Report, Worker};
use crate::error::{Error, Result, Status};
use crate::transport::vendor::batch::{self, Batch, Cursor, Ends, Place};
use crate::transport::vendor::{Agents, Landing, Peer, Piece, State, Unread};
use crate::transport::{JobId, LinkId};
use crate::wire::{BOARD_REGION, LeaseMark};
use std::time::Instant;

/// Reads of one link that may be under way.
const DEPTH: usize = 4;
/// So many more reads than not must have completed while they were posted before a link's data lands in the blocks. One
/// that does not counts as many.
pub(super) const PROVEN: i32 = 8;
/// Bytes of a mark's word.
const WORD: usize = 8;

/// A read that was posted.
pub(super) struct Flight<A: Agents> {
    pub request: A::Request,
    pub link: LinkId,
    /// `None`: nobody waits for it, and it writes to nobody's memory.
    pub job: Option<JobId>,
    pub from: Cursor,
    pub end: Cursor,
    pub bytes: u64,
    pub landing: Option<(A::Slot, Vec<Place>)>,
    /// It reads the word of a mark, not data.
    pub mark: Option<LeaseMark>,
    /// The library says that it failed, which does not prove that nothing of it writes any more.
    pub failed: bool,
    /// When its job failed.
    pub unwanted: Option<Instant>,
}

/// Libraries hardly tell the reasons apart.
fn unreadable<A: Agents>(peer: &Peer, e: &str) -> Error {
    let text = format!(
        "{}: reading from agent {}: {e}: its process has ended, its memory was taken away, or the network between failed",
        A::NAME,
        peer.agent.to_string_lossy()
    );
    Error::new(Status::Incarnation, text)
}

impl<A: Agents, R: Report> Worker<A, R> {
    /// Gives every job of the thread's a turn while there is room, and leaves others to an engine that loops, if one does;
    /// returns whether anything was posted.
    pub(super) fn post(&mut self, engine: bool) -> bool {
        if self.replacing.is_some() {
            return false;
        }
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else { break };
            if self.is_prompt_id(&id, engine) || !self.has_room(&id) {
                self.turns.push_back(id);
                continue;
            }
            self.post_next(id);
            return true;
        }
        false
    }

    /// A further read of the job's link may be under way.
    pub(super) fn has_room(&self, id: &JobId) -> bool {
        let link = self.jobs.get(id).map(|r| r.job.link);
        self.flights.iter().filter(|f| Some(f.link) == link).count() < DEPTH
    }

    /// Posts a job's next read.
    pub(super) fn post_next(&mut self, id: JobId) {
        match self.post_one(id) {
            Ok(true) => self.turns.push_back(id),
            Ok(false) => self.end_job_if_over(id),
            Err(e) => self.fail(id, e),
        }
    }

    /// Returns whether there is more to post.
    fn post_one(&mut self, id: JobId) -> Result<bool> {
        let (Some(running), Some(agents)) = (self.jobs.get_mut(&id), &mut self.agents) else { return Ok(false) };
        let Some((from, to)) = running.todo.pop_front() else { return Ok(false) };
        let job = &running.job;
        let Some(link) = self.links.get_mut(&job.link) else { return Ok(false) };
        let straight = match self.landing {
            Landing::Direct => true,
            Landing::Staged => false,
            Landing::Auto => link.prompt >= PROVEN && !running.gathers,
        };
        let slot = if straight { None } else { Some(agents.slot()?) };
        let ends = Ends { own: agents.regions(), peer: &link.peer.regions };
        let made = match &slot {
            None => batch::direct(&job.spans, from, to, ends),
            Some(slot) => batch::staged(&job.spans, from, to, ends, A::range(slot), job.staged),
        };
        let batch = match made {
            Ok(b) if b.bytes > 0 => b,
            nothing => {
                slot.into_iter().for_each(|s| agents.give_back(s));
                return nothing.map(|_| !running.todo.is_empty());
            }
        };
        if batch.end != to {
            running.todo.push_front((batch.end, to));
        }
        let more = !running.todo.is_empty();
        self.launch(id, from, batch, slot, None)?;
        Ok(more && self.jobs.get(&id).is_some_and(|r| r.failure.is_none()))
    }

    /// Posts one read of a job. A peer that cannot be read ends its link, and with it the job.
    fn launch(
        &mut self,
        id: JobId,
        from: Cursor,
        batch: Batch,
        slot: Option<A::Slot>,
        mark: Option<LeaseMark>,
    ) -> Result<()> {
        let (Some(running), Some(agents)) = (self.jobs.get(&id), &mut self.agents) else { return Ok(()) };
        let link = running.job.link;
        let Some(to) = self.links.get_mut(&link) else { return Ok(()) };
        let mut request = match agents.read(&to.peer.agent, &batch.pieces) {
            Ok(request) => request,
            Err(e) => {
                slot.into_iter().for_each(|s| agents.give_back(s));
                let e = match e {
                    Unread::Here(e) => return Err(e),
                    Unread::There(e) => e,
                };
                let error = unreadable::<A>(&to.peer, &e);
                self.break_link(link, error);
                return Ok(());
            }
        };
        let state = agents.post(&mut request);
        to.prompt = match state {
            State::Complete => PROVEN.min(to.prompt + 1),
            State::Running | State::Failed(_) => (to.prompt - PROVEN).max(-8 * PROVEN),
        };
        let Batch { places, bytes, end, .. } = batch;
        let landing = slot.map(|s| (s, places));
        let job = Some(id);
        self.flights.push(Flight {
            request,
            link,
            job,
            from,
            end,
            bytes,
            landing,
            mark,
            failed: false,
            unwanted: None,
        });
        self.settle(self.flights.len() - 1, state);
        Ok(())
    }

    /// Reads the word of a job's mark once all its data is here; returns whether the job waits for that. Whoever cannot look
    /// asks.
    pub(super) fn look_at_mark(&mut self, id: JobId) -> bool {
        let Some(r) = self.jobs.get_mut(&id).filter(|r| r.failure.is_none()) else { return false };
        let (Some(mark), Some(agents)) = (r.job.mark.take(), &mut self.agents) else { return false };
        let Some(link) = self.links.get(&r.job.link).filter(|l| l.broken.is_none()) else { return false };
        let ends = Ends { own: agents.regions(), peer: &link.peer.regions };
        let Ok(remote) = ends.source(BOARD_REGION, mark.offset, WORD as u64) else { return false };
        let Ok(slot) = agents.slot() else { return false };
        let end = Cursor { span: r.job.spans.len(), within: 0 };
        let pieces = vec![Piece { local: A::range(&slot).addr(), remote, len: WORD }];
        let word = Batch { pieces, places: Vec::new(), bytes: 0, end };
        self.launch(id, end, word, Some(slot), Some(mark)).is_ok()
    }

    /// Looks at every read that is under way; returns whether one has ended. Failures are left to the thread: what follows
    /// from them may wait.
    pub(super) fn look(&mut self) -> bool {
        let before = self.flights.len();
        for at in (0..before).rev() {
            let (Some(f), Some(agents)) = (self.flights.get_mut(at), &mut self.agents) else { continue };
            if f.failed {
                continue;
            }
            let state = agents.state(&mut f.request);
            if self.in_hand.is_some() && matches!(state, State::Failed(_)) {
                self.failing = true;
            } else {
                self.settle(at, state);
            }
        }
        self.flights.len() < before
    }

    /// A read stands like this.
    fn settle(&mut self, at: usize, state: State) {
        match state {
            State::Running => {}
            State::Complete => self.land(at),
            State::Failed(e) => self.failed(at, e),
        }
    }

    fn land(&mut self, at: usize) {
        let f = self.flights.swap_remove(at);
        let Some(agents) = &mut self.agents else { return };
        if let Some((slot, places)) = f.landing {
            if let (Some(mark), Some(r)) = (f.mark, f.job.and_then(|id| self.jobs.get_mut(&id))) {
                r.held = A::range(&slot).word() == Some(mark.word);
            }
            if f.job.is_some() {
                for p in &places {
                    if let Some(source) = A::range(&slot).part(p.at, p.target.len() as u64) {
                        p.target.copy_from(source);
                    }
                }
            }
            agents.give_back(slot);
        }
        agents.release(f.request);
        if let Some(l) = self.links.get_mut(&f.link) {
            l.answered = true;
        }
        if let Some(r) = f.job.and_then(|id| self.jobs.get_mut(&id)) {
            r.moved += f.bytes;
            let id = r.job.id;
            self.end_job_if_over(id);
        }
    }

    /// The peer's memory cannot be read any more: nothing of this link can.
    fn failed(&mut self, at: usize, e: String) {
        let (Some(f), Some(agents)) = (self.flights.get_mut(at), &mut self.agents) else { return };
        f.failed = true;
        let link = f.link;
        if agents.withdraw(&mut f.request) || f.landing.is_some() {
            // Nobody's memory is at stake: what it lands in is not used again while this reader lives.
            let f = self.flights.swap_remove(at);
            if let Some((slot, _)) = f.landing {
                agents.retire(slot);
            }
            agents.release(f.request);
        }
        if let Some(l) = self.links.get(&link) {
            let error = unreadable::<A>(&l.peer, &e);
            self.break_link(link, error);
        }
    }
}
