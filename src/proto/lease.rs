//! Offers: a source lends the blocks of a request until every consumer has them, or the lease ends.

use super::endpoint::{Endpoint, Timer};
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::output::{ConnId, Output};
use crate::error::{Error, Result, Status};
use crate::wire::{Blocks, LeaseMark, Message, Ticket};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How many ended leases are remembered, so that a late consumer learns what happened to its data.
const REMEMBERED: usize = 16_384;

/// What a source offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Names the request; unique among the source's offers.
    pub request: String,
    /// Its blocks, by group.
    pub blocks: Vec<Blocks>,
    /// Its tokens.
    pub tokens: u64,
    /// How long; `None`: the configured default.
    pub lease: Option<Duration>,
    /// Returned in the [`EventKind::Released`] event.
    pub user_data: u64,
}

pub(super) struct Lease {
    pub offer: Offer,
    deadline: Instant,
    /// Consumers that have acknowledged: (process, rank).
    done: Vec<(u64, u32)>,
    consumers: Option<u32>,
}

pub(super) struct Leases {
    slab: Slab<Lease>,
    by_request: HashMap<String, Id>,
    ended: VecDeque<(String, Status)>,
    ended_by_request: HashMap<String, Status>,
}

impl Leases {
    pub fn new(seed: u64) -> Leases {
        Leases {
            slab: Slab::new(Kind::Offer, seed),
            by_request: HashMap::new(),
            ended: VecDeque::new(),
            ended_by_request: HashMap::new(),
        }
    }

    pub fn ids(&self) -> Vec<Id> {
        self.slab.ids()
    }

    pub fn find(&self, request: &str) -> Option<(Id, &Lease)> {
        let id = *self.by_request.get(request)?;
        self.slab.get(id).map(|l| (id, l))
    }

    /// Why a request that has no lease has none.
    pub fn why_not(&self, request: &str) -> Error {
        match self.ended_by_request.get(request) {
            Some(status) => Error::new(*status, format!("the lease of request {request:?} has ended")),
            None => Error::new(Status::UnknownRequest, format!("request {request:?} is not offered")),
        }
    }

    fn remember(&mut self, request: String, status: Status) {
        if self.ended.len() >= REMEMBERED {
            if let Some((old, _)) = self.ended.pop_front() {
                self.ended_by_request.remove(&old);
            }
        }
        self.ended_by_request.insert(request.clone(), status);
        self.ended.push_back((request, status));
    }
}

impl Endpoint {
    /// Offers the blocks of a request. Ends with one [`EventKind::Released`] event, after which nobody reads them as valid
    /// data any more.
    ///
    /// # Errors
    /// [`Status::Limit`], [`Status::Duplicate`], [`Status::InvalidBlocks`], [`Status::InvalidArgument`].
    pub fn offer(&mut self, now: Instant, offer: Offer) -> Result<Id> {
        self.limit("offers", self.leases.slab.len(), self.config.max_offers)?;
        check_request(&offer.request)?;
        self.check_blocks(&offer.blocks)?;
        if self.leases.by_request.contains_key(&offer.request) {
            return Err(Error::new(Status::Duplicate, format!("request {:?} is offered already", offer.request)));
        }
        let deadline = now + offer.lease.unwrap_or(self.config.lease);
        let request = offer.request.clone();
        self.leases.ended_by_request.remove(&request);
        let id = self.leases.slab.insert(Lease { offer, deadline, done: Vec::new(), consumers: None });
        let mark = LeaseMark::new(self.me.incarnation, &request);
        self.outputs.push_back(Output::Board { offset: mark.offset, word: mark.word });
        self.leases.by_request.insert(request, id);
        self.timer(deadline, Timer::Lease(id));
        Ok(id)
    }

    /// The ticket of an offer.
    ///
    /// # Errors
    /// [`Status::BadHandle`]; [`Status::WrongState`] before the endpoint is bound.
    pub fn ticket(&self, offer: Id) -> Result<Vec<u8>> {
        let stale = || Error::new(Status::BadHandle, format!("offer id {:#x} is stale or foreign", offer.0));
        let lease = self.leases.slab.get(offer).ok_or_else(stale)?;
        let Some(entry) = &self.entry else {
            return Err(Error::new(Status::WrongState, "the agent has no address yet: regions are missing"));
        };
        let leader = if self.me.rank == 0 { entry.address.clone() } else { self.me.leader.clone() };
        let ticket = Ticket {
            instance: self.me.instance.clone(),
            address: leader,
            rank: self.me.rank,
            incarnation: self.me.incarnation,
            request: lease.offer.request.clone(),
            tokens: lease.offer.tokens,
            blocks: lease.offer.blocks.clone(),
        };
        Ok(ticket.encode())
    }

    pub(super) fn check_blocks(&self, blocks: &[Blocks]) -> Result<()> {
        let groups = self.layout.groups();
        if blocks.len() != groups.len() {
            let text = format!("{} block lists for a layout of {} groups", blocks.len(), groups.len());
            return Err(Error::new(Status::InvalidBlocks, text));
        }
        for (g, (list, group)) in blocks.iter().zip(groups).enumerate() {
            let bad = |id: &&u32| **id >= group.num_blocks && **id != crate::layout::NO_BLOCK;
            if let Some(id) = list.ids.iter().find(bad) {
                let text = format!("group {g}: block id {id} is not below {}", group.num_blocks);
                return Err(Error::new(Status::InvalidBlocks, text));
            }
        }
        Ok(())
    }

    /// A consumer has what it wants: tells it whether the lease still held, and counts it.
    pub(super) fn on_done(&mut self, now: Instant, conn: ConnId, op: u64, request: &str, consumers: u32) -> Result<()> {
        let who = self.sessions.get(conn).and_then(|s| s.remote.as_ref()).map(|r| (r.incarnation, r.rank));
        let ranks = self.peer_for(conn).and_then(|(_, p, _)| p.directory.as_ref().map(|d| d.entries().len()));
        let (Some(who), Some(ranks)) = (who, ranks) else { return Ok(()) };
        if consumers == 0 || consumers as usize > ranks {
            let text = format!("{consumers} consumers of request {request:?} in an instance of {ranks} ranks");
            return Err(Error::new(Status::Protocol, text));
        }
        let id = self.leases.by_request.get(request).copied();
        let Some(lease) = id.and_then(|id| self.leases.slab.get_mut(id)) else {
            let status = self.leases.why_not(request).status();
            self.send(conn, Message::Ack { op, status: status.code() });
            return Ok(());
        };
        if lease.deadline <= now {
            self.send(conn, Message::Ack { op, status: Status::LeaseExpired.code() });
            return Ok(());
        }
        if *lease.consumers.get_or_insert(consumers) != consumers {
            let text = format!("{consumers} consumers of request {request:?}, another rank said {:?}", lease.consumers);
            return Err(Error::new(Status::Protocol, text));
        }
        if !lease.done.contains(&who) {
            lease.done.push(who);
        }
        let finished = lease.done.len() >= consumers as usize;
        self.send(conn, Message::Ack { op, status: 0 });
        if let (true, Some(id)) = (finished, id) {
            self.end_lease(id, Status::Ok);
        }
        Ok(())
    }

    pub(super) fn lease_timeout(&mut self, now: Instant, id: Id) {
        if self.leases.slab.get(id).is_some_and(|l| l.deadline <= now) {
            self.end_lease(id, Status::LeaseExpired);
        }
    }

    pub(super) fn withdraw(&mut self, id: Id) -> Option<()> {
        self.leases.slab.get(id)?;
        self.end_lease(id, Status::Cancelled);
        Some(())
    }

    /// Ends a lease. From here on every consumer that has not been acknowledged learns that its data is stale.
    fn end_lease(&mut self, id: Id, status: Status) {
        let Some(lease) = self.leases.slab.remove(id) else { return };
        let request = lease.offer.request;
        // Before the event: whoever still finds the word afterwards has read before the blocks could change.
        let mark = LeaseMark::new(self.me.incarnation, &request);
        self.outputs.push_back(Output::Board { offset: mark.offset, word: 0 });
        self.leases.by_request.remove(&request);
        let told = if status == Status::Ok { Status::UnknownRequest } else { Status::LeaseExpired };
        self.leases.remember(request.clone(), told);
        self.stop_serving(&request, Status::LeaseExpired);
        let text = match status {
            Status::Ok => String::new(),
            _ => {
                format!("{} of {:?} consumers had acknowledged request {request:?}", lease.done.len(), lease.consumers)
            }
        };
        let user_data = lease.offer.user_data;
        self.emit(Event { id: id.0, user_data, text, ..Event::new(EventKind::Released, status) });
    }
}

pub(super) fn check_request(request: &str) -> Result<()> {
    if request.is_empty() || request.len() > crate::wire::limit::NAME {
        let text = format!("request id of {} bytes, must have 1..={}", request.len(), crate::wire::limit::NAME);
        return Err(Error::new(Status::InvalidArgument, text));
    }
    Ok(())
}
