//! Ending the agent that reads: to replace it, and for good.

use super::flight::Flight;
use super::{Report, Running, SHORTEST, Worker};
use crate::error::{Error, Result};
use crate::transport::vendor::Agents;
use crate::transport::{Done, JobId};
use std::time::Instant;

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
        self.forget_links();
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

    /// Ends everything: jobs, then, when nothing is under way or patience is at its end, both agents.
    pub(in crate::transport::vendor) fn end(&mut self, reason: &Error) -> Result<()> {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.fail(id, reason.clone());
        }
        let deadline = Instant::now() + self.patience;
        while self.flights.iter().any(|f| !f.failed) && Instant::now() < deadline {
            if !self.look() {
                std::thread::sleep(SHORTEST);
            }
        }
        let mut ended = self.end_reader();
        if let Some(agents) = self.agents.take() {
            ended = ended.and(agents.end());
        }
        self.ended.get_or_insert(reason.clone());
        for (id, r) in std::mem::take(&mut self.jobs) {
            let Running { job, moved, failure, .. } = r;
            let error = failure.unwrap_or_else(|| reason.clone());
            self.report(Done { id, result: Err(error), bytes: moved, held: false, spans: job.spans });
        }
        self.turns.clear();
        ended
    }
}
