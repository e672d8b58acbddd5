//! The source's side of a streamed read.

use super::endpoint::{Endpoint, JobOwner};
use super::output::{Action, ConnId, JobEnd, JobId, Output, check_op, read_tag};
use crate::error::{Error, Result, Status};
use crate::wire::{Message, ReadRequest};
use std::sync::Arc;

/// A stream that we send for a reader.
pub(super) struct Served {
    job: JobId,
    request: String,
}

impl Endpoint {
    pub(super) fn on_read(&mut self, conn: ConnId, r: ReadRequest) -> Result<()> {
        let op = r.op;
        check_op(op)?;
        if self.served.contains_key(&(conn, op)) {
            return Err(Error::new(Status::Protocol, format!("read {op} is running already")));
        }
        if let Err(e) = self.serve(conn, r) {
            let text = e.message().to_string();
            self.send(conn, Message::ReadFailed { op, status: e.status().code(), text });
        }
        Ok(())
    }

    fn serve(&mut self, conn: ConnId, r: ReadRequest) -> Result<()> {
        let Some((peer, _, rank)) = self.peer_for(conn) else {
            return Err(Error::new(Status::Protocol, "read before the directory"));
        };
        self.limit("streams", self.served.len(), self.config.max_transfers)?;
        let (_, lease) = self.leases.find(&r.request, r.round)?;
        let (blocks, tokens) = (lease.offer.blocks.clone(), lease.offer.tokens);
        if r.range.token_total != tokens {
            let text = format!("request {:?} has {tokens} tokens, the reader says {}", r.request, r.range.token_total);
            return Err(Error::new(Status::InvalidBlocks, text));
        }
        let outbound = self.outbound(peer)?;
        let Some(plan) = outbound.plans.iter().find(|p| p.destination() == rank) else {
            return Err(Error::new(Status::Protocol, format!("rank {rank} has nothing to read here")));
        };
        let work = self.work(plan, &Arc::new(blocks), &Arc::new(r.blocks), &r.range)?;
        let job = self.new_job(JobOwner::Serve { conn, op: r.op });
        self.served.insert((conn, r.op), Served { job, request: r.request });
        let action = Action::Send { tag: read_tag(r.op) };
        self.outputs.push_back(Output::Post { job, conn, action, work, mark: None });
        Ok(())
    }

    pub(super) fn on_read_cancel(&mut self, conn: ConnId, op: u64) -> Result<()> {
        if let Some(job) = self.served.get(&(conn, op)).map(|s| s.job) {
            self.cancel_job(job, Status::Cancelled);
        }
        Ok(())
    }

    pub(super) fn served_job_ended(&mut self, conn: ConnId, op: u64, end: JobEnd) {
        self.served.remove(&(conn, op));
        // A stream that never began cannot tell its reader; one that did has, and this is ignored there.
        if let Err(e) = end.result {
            let text = e.message().to_string();
            self.send(conn, Message::ReadFailed { op, status: e.status().code(), text });
        }
    }

    /// The lease of a request ended: nobody is sent its blocks any more.
    pub(super) fn stop_serving(&mut self, request: &str, reason: Status) {
        let mine = self.served.iter().filter(|(_, s)| s.request == request);
        let mine: Vec<(ConnId, u64, JobId)> = mine.map(|((conn, op), s)| (*conn, *op, s.job)).collect();
        for (conn, op, job) in mine {
            let text = format!("the lease of request {request:?} has ended");
            self.send(conn, Message::ReadFailed { op, status: reason.code(), text });
            self.cancel_job(job, reason);
        }
    }

    /// The session is gone; unlinking ends its jobs.
    pub(super) fn drop_served(&mut self, conn: ConnId) {
        self.served.retain(|(c, _), _| *c != conn);
    }
}
