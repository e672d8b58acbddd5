//! The source's side of a streamed read.

use super::endpoint::{Endpoint, JobOwner};
use super::output::{Action, ConnId, JobEnd, JobId, Output};
use crate::error::{Error, Result, Status};
use crate::layout::Form;
use crate::wire::{Message, ReadRequest};
use std::time::Instant;

/// A stream that we send for a reader.
pub(super) struct Served {
    job: JobId,
    request: String,
}

impl Endpoint {
    pub(super) fn on_read(&mut self, now: Instant, conn: ConnId, r: ReadRequest) -> Result<()> {
        let op = r.op;
        if self.served.contains_key(&(conn, op)) {
            return Err(Error::new(Status::Protocol, format!("read {op} is running already")));
        }
        if let Err(e) = self.serve(now, conn, r) {
            let text = e.message().to_string();
            self.send(conn, Message::ReadFailed { op, status: e.status().code(), text });
        }
        Ok(())
    }

    fn serve(&mut self, _now: Instant, conn: ConnId, r: ReadRequest) -> Result<()> {
        let Some((peer, _, rank)) = self.peer_for(conn) else {
            return Err(Error::new(Status::Protocol, "read before the directory"));
        };
        let Some((_, lease)) = self.leases.find(&r.request) else { return Err(self.leases.why_not(&r.request)) };
        let (blocks, tokens) = (lease.offer.blocks.clone(), lease.offer.tokens);
        if r.range.token_total != tokens {
            let text = format!("request {:?} has {tokens} tokens, the reader says {}", r.request, r.range.token_total);
            return Err(Error::new(Status::InvalidBlocks, text));
        }
        let plans = self.outbound(peer)?;
        let Some(plan) = plans.iter().find(|p| p.destination() == rank) else {
            return Err(Error::new(Status::Protocol, format!("rank {rank} has nothing to read here")));
        };
        let (spans, _) = self.expand(plan, &blocks, &r.blocks, &r.range)?;
        let staged = matches!(plan.form(), Form::Staged { .. });
        let job = self.new_job(JobOwner::Serve { conn, op: r.op });
        self.served.insert((conn, r.op), Served { job, request: r.request });
        self.outputs.push_back(Output::Post {
            job,
            conn,
            action: Action::Send { tag: r.op },
            spans,
            staged,
            mark: None,
        });
        Ok(())
    }

    pub(super) fn on_read_cancel(&mut self, conn: ConnId, op: u64) -> Result<()> {
        if let Some(job) = self.served.get(&(conn, op)).map(|s| s.job) {
            self.cancel_job(job, Status::Cancelled);
        }
        Ok(())
    }

    pub(super) fn served_job_ended(&mut self, conn: ConnId, op: u64, _end: JobEnd) {
        // The reader learns the end from the stream itself.
        self.served.remove(&(conn, op));
    }

    /// The lease of a request ended: nobody is sent its blocks any more.
    pub(super) fn stop_serving(&mut self, request: &str, reason: Status) {
        let jobs: Vec<JobId> = self.served.values().filter(|s| s.request == request).map(|s| s.job).collect();
        for job in jobs {
            self.cancel_job(job, reason);
        }
    }

    /// The session is gone; unlinking ends its jobs.
    pub(super) fn drop_served(&mut self, conn: ConnId) {
        self.served.retain(|(c, _), _| *c != conn);
    }
}
