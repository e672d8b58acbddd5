//! Ending the agent that reads: to replace it, and for good.

use super::flight::Flight;
use super::{Report, Running, SHORTEST, Worker};
use crate::error::{Error, Result};
use crate::transport::vendor::Agents;
use crate::transport::{Done, JobId};
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What is left to be ended.
pub(super) struct Closing {
    /// The end of patience with reads that are under way.
    deadline: Instant,
    /// Whether the agent that peers read from has ended.
    server: Result<()>,
    /// Who waits for the end of all use of memory.
    answer: Option<Sender<Result<()>>>,
}

impl<A: Agents, R: Report> Worker<A, R> {
    /// A reader whose reads cannot be proven to have ended is replaced, after the others had time to end.
    pub(super) fn replace_if_due(&mut self) {
        let patience = self.patience;
        let now = Instant::now();
        let stuck =
            |f: &Flight<A>| f.failed || f.unwanted.is_some_and(|t| now.saturating_duration_since(t) >= patience);
        let matters = |f: &&Flight<A>| f.landing.is_none();
        if self.replacing.is_none() && self.flights.iter().filter(matters).any(stuck) {
            self.replacing = Some(now);
        }
        let Some(since) = self.replacing else { return };
        let waits = self.flights.iter().any(|f| !stuck(f)) && now.saturating_duration_since(since) < patience;
        if !waits {
            self.replace();
        }
    }

    fn replace(&mut self) {
        self.replacing = None;
        let ended = self.end_reader();
        if let (Ok(()), Some(agents)) = (&ended, &mut self.agents) {
            let renewed = agents.renew();
            for (id, l) in &mut self.links {
                if l.broken.is_some() || l.gone {
                    continue;
                }
                let again = renewed.clone().and_then(|()| agents.load(&l.peer));
                if let Err(e) = again {
                    l.broken = Some(e.within(format!("link {}", id.0)));
                }
            }
        }
        // What was under way for jobs that are still wanted is read again.
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            let Some(r) = self.jobs.get(&id) else { continue };
            let broken = self.links.get(&r.job.link).and_then(|l| l.broken.clone());
            match r.failure.clone().or(ended.clone().err()).or(broken) {
                Some(e) => self.fail(id, e),
                None if !self.turns.contains(&id) => self.turns.push_back(id),
                None => {}
            }
        }
    }

    /// Ends the reader and all that is under way with it; the reads of jobs that are still wanted are to be done again. Where
    /// its end cannot be proven, jobs whose blocks it was reading into fail for that reason.
    fn end_reader(&mut self) -> Result<()> {
        let Some(agents) = &mut self.agents else { return Ok(()) };
        let mut at_stake = Vec::new();
        for f in self.flights.drain(..) {
            agents.release(f.request);
            match f.landing {
                Some((slot, _)) => agents.retire(slot),
                None => at_stake.extend(f.job),
            }
            if let Some(r) = f.job.and_then(|id| self.jobs.get_mut(&id)).filter(|r| r.failure.is_none()) {
                r.todo.push_back((f.from, f.end));
            }
        }
        let ended = agents.end_reader();
        if let Err(e) = &ended {
            for id in at_stake {
                self.jobs.entry(id).and_modify(|r| r.failure = Some(e.clone()));
            }
        }
        ended
    }

    /// Begins to end everything, unless that was begun before: jobs, and the agent that peers read from. What is under way
    /// is left to [`Worker::close`], so that the peers that it is read from are not harmed.
    pub(in crate::transport::vendor) fn begin_to_close(&mut self, reason: &Error, answer: Option<Sender<Result<()>>>) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(reason.clone());
        self.replacing = None;
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.fail(id, reason.clone());
        }
        let server = self.agents.as_mut().map_or(Ok(()), Agents::end_server);
        self.closing = Some(Closing { deadline: Instant::now() + self.patience, server, answer });
    }

    /// Answers when nothing reads into memory of others any more; ends the reader when nothing is under way at all, or
    /// patience is at its end. Returns whether nothing is left to be done.
    pub(super) fn close(&mut self) -> bool {
        let Some(closing) = &mut self.closing else { return true };
        if self.flights.iter().any(|f| !f.failed) && Instant::now() < closing.deadline {
            if self.flights.iter().all(|f| f.landing.is_some())
                && let Some(answer) = closing.answer.take()
            {
                let _ = answer.send(closing.server.clone());
            }
            return false;
        }
        let ended = self.end_reader();
        self.agents = None;
        for (id, r) in std::mem::take(&mut self.jobs) {
            let Running { job, moved, failure, .. } = r;
            let result = failure.or(self.ended.clone()).map_or(Ok(()), Err);
            self.report(Done { id, result, bytes: moved, held: false, spans: job.spans });
        }
        self.turns.clear();
        if let Some(Closing { server, answer, .. }) = self.closing.take() {
            match (answer, server.and(ended)) {
                (Some(answer), ended) => drop(answer.send(ended)),
                (None, Err(e)) => log::error!("kvlink: {e}"),
                (None, Ok(())) => {}
            }
        }
        true
    }

    /// Closes, and returns when that is done.
    pub(in crate::transport::vendor) fn end(mut self, reason: &Error) {
        self.begin_to_close(reason, None);
        while !self.close() {
            if !self.look() {
                std::thread::sleep(SHORTEST);
            }
        }
    }
}
