//! Streamed jobs whose data connections are still on their way.
//!
//! The rank that opens the data connections goes on as soon as its own ends are attached; what it then asks for over the
//! control connection can overtake them. Such jobs wait here until all are there, so that each finds the link as it is to
//! be: connections are due, since they are opened unless both sides pull.

use crate::error::{Error, Status};
use crate::layout::Span;
use crate::transport::{Action, Done, Job, JobId, LinkId};
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Parked {
    /// Data connections that a link still lacks.
    missing: HashMap<LinkId, usize>,
    jobs: Vec<Job>,
    ended: Vec<Done>,
}

impl Parked {
    /// A link was made, which is to have so many data connections.
    pub fn linked(&mut self, link: LinkId, streams: usize) {
        self.missing.insert(link, streams);
    }

    /// Data connections that a link still lacks.
    pub fn missing(&self, link: LinkId) -> usize {
        self.missing.get(&link).copied().unwrap_or(0)
    }

    /// Whether a job has to wait for its link's data connections.
    pub fn must_wait(&self, job: &Job) -> bool {
        job.action != Action::Pull && self.missing(job.link) > 0
    }

    pub fn wait(&mut self, job: Job) {
        self.jobs.push(job);
    }

    /// A link got a data connection. If it was the last: the jobs that waited for it, in order.
    pub fn attached(&mut self, link: LinkId) -> Vec<Job> {
        let Some(missing) = self.missing.get_mut(&link) else { return Vec::new() };
        *missing = missing.saturating_sub(1);
        if *missing > 0 {
            return Vec::new();
        }
        let (mine, others) = std::mem::take(&mut self.jobs).into_iter().partition(|j| j.link == link);
        self.jobs = others;
        mine
    }

    /// Ends a job that waits; returns whether it did.
    pub fn cancel(&mut self, job: JobId, reason: Status) -> bool {
        let Some(at) = self.jobs.iter().position(|j| j.id == job) else { return false };
        let job = self.jobs.remove(at);
        let error = Error::new(reason, format!("job {} was ended before its data connections came", job.id.0));
        self.fail(job.id, job.spans, error);
        true
    }

    /// The link is gone, and what waited for it with it.
    pub fn disconnect(&mut self, link: LinkId) {
        self.missing.remove(&link);
        let (mine, others): (Vec<_>, _) = std::mem::take(&mut self.jobs).into_iter().partition(|j| j.link == link);
        self.jobs = others;
        for job in mine {
            let error = Error::new(Status::PeerDead, format!("link {} ended before its data connections came", link.0));
            self.fail(job.id, job.spans, error);
        }
    }

    pub fn fail(&mut self, id: JobId, spans: Vec<Span>, error: Error) {
        self.ended.push(Done { id, result: Err(error), bytes: 0, held: false, spans });
    }

    /// Jobs that ended without having begun.
    pub fn take_ended(&mut self) -> impl Iterator<Item = Done> + '_ {
        self.ended.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, link: u64, action: Action) -> Job {
        Job { id: JobId(id), link: LinkId(link), action, spans: Vec::new(), staged: false, mark: None }
    }

    #[test]
    fn streamed_jobs_wait_for_their_own_link() {
        let mut p = Parked::default();
        p.linked(LinkId(1), 2);
        p.linked(LinkId(2), 1);
        assert!(!p.must_wait(&job(1, 1, Action::Pull)));
        for (id, link) in [(2, 1), (3, 2), (4, 1)] {
            let j = job(id, link, Action::Send { tag: id });
            assert!(p.must_wait(&j));
            p.wait(j);
        }
        assert!(p.attached(LinkId(1)).is_empty());
        assert!(p.must_wait(&job(5, 1, Action::Receive { tag: 5 })));
        let ids: Vec<u64> = p.attached(LinkId(1)).iter().map(|j| j.id.0).collect();
        assert_eq!(ids, [2, 4]);
        assert!(!p.must_wait(&job(5, 1, Action::Receive { tag: 5 })));
        assert!(p.must_wait(&job(6, 2, Action::Receive { tag: 6 })));
    }

    #[test]
    fn every_job_that_waits_ends_once() {
        let mut p = Parked::default();
        p.linked(LinkId(1), 1);
        for id in 1..=3 {
            p.wait(job(id, 1, Action::Receive { tag: id }));
        }
        assert!(p.cancel(JobId(2), Status::Cancelled));
        assert!(!p.cancel(JobId(2), Status::Cancelled));
        p.disconnect(LinkId(1));
        let ended: Vec<(u64, Status)> = p.take_ended().map(|d| (d.id.0, d.result.unwrap_err().status())).collect();
        assert_eq!(ended, [(2, Status::Cancelled), (1, Status::PeerDead), (3, Status::PeerDead)]);
        assert_eq!(p.take_ended().count(), 0);
    }
}
