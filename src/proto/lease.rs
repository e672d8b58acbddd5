//! Offers: a source lends the blocks of a request until every consumer has them, or the lease ends.

use super::endpoint::{Endpoint, Timer, later};
use super::event::{Event, EventKind};
use super::id::{Id, Kind, Slab};
use super::output::{ConnId, Output};
use crate::error::{Error, Result, Status};
use crate::wire::{Blocks, LeaseMark, Message, Ticket, limit};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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
    pub round: u32,
    deadline: Instant,
    /// By instance, named by the process of its first rank: any of them that has all it wants releases the blocks.
    consumers: BTreeMap<u64, Consumers>,
}

/// The ranks of one instance that read an offer.
struct Consumers {
    expected: u32,
    done: BTreeSet<u32>,
}

/// What is remembered of a request's last offer.
struct Ended {
    status: Status,
    round: u32,
    /// Which entry of the queue is the current one.
    serial: u64,
}

pub(super) struct Leases {
    slab: Slab<Lease>,
    by_request: HashMap<String, Id>,
    ended: VecDeque<(String, u64)>,
    ended_by_request: HashMap<String, Ended>,
    serial: u64,
}

impl Leases {
    pub fn new(seed: u64) -> Leases {
        Leases {
            slab: Slab::new(Kind::Offer, seed),
            by_request: HashMap::new(),
            ended: VecDeque::new(),
            ended_by_request: HashMap::new(),
            serial: 0,
        }
    }

    pub fn ids(&self) -> Vec<Id> {
        self.slab.ids()
    }

    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// The offer that a ticket of this request and round means, or why there is none.
    pub fn find(&self, request: &str, round: u32) -> Result<(Id, &Lease)> {
        let id = self.by_request.get(request).copied();
        let held = id.and_then(|id| self.slab.get(id).map(|l| (id, l)));
        match (held, self.ended_by_request.get(request)) {
            (Some((id, l)), _) if l.round == round => Ok((id, l)),
            (Some((_, l)), _) => {
                let text = format!("request {request:?} was offered anew: round {}, the ticket's is {round}", l.round);
                Err(Error::new(Status::LeaseExpired, text))
            }
            (None, Some(e)) => Err(Error::new(e.status, format!("the lease of request {request:?} has ended"))),
            (None, None) => Err(Error::new(Status::UnknownRequest, format!("request {request:?} is not offered"))),
        }
    }

    fn remember(&mut self, request: String, status: Status, round: u32) {
        if self.ended.len() >= REMEMBERED
            && let Some((old, serial)) = self.ended.pop_front()
            && self.ended_by_request.get(&old).is_some_and(|e| e.serial == serial)
        {
            self.ended_by_request.remove(&old);
        }
        self.serial += 1;
        let serial = self.serial;
        self.ended_by_request.insert(request.clone(), Ended { status, round, serial });
        self.ended.push_back((request, serial));
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
        let deadline = later(now, offer.lease.unwrap_or(self.config.lease));
        let request = offer.request.clone();
        // The ranks of an instance offer the same requests in the same order, so that they count alike.
        let round = self.leases.ended_by_request.get(&request).map_or(0, |e| e.round).wrapping_add(1);
        let mark = LeaseMark::new(self.me.incarnation, &request, round);
        self.outputs.push_back(Output::Board { offset: mark.offset, word: mark.word });
        let id = self.leases.slab.insert(Lease { offer, round, deadline, consumers: BTreeMap::new() });
        self.leases.by_request.insert(request, id);
        self.timer(deadline, Timer::Lease(id));
        Ok(id)
    }

    /// The ticket of an offer; of id 0: a ticket of no request, from which [`Ticket::like`] makes others.
    ///
    /// # Errors
    /// [`Status::BadHandle`]; [`Status::WrongState`] before the endpoint is bound.
    pub fn ticket(&self, offer: Id) -> Result<Vec<u8>> {
        let stale = || Error::new(Status::BadHandle, format!("offer id {:#x} is stale or foreign", offer.0));
        let lease = if offer == Id(0) { None } else { Some(self.leases.slab.get(offer).ok_or_else(stale)?) };
        let Some(entry) = &self.entry else {
            return Err(Error::new(Status::WrongState, "the agent has no address yet: regions are missing"));
        };
        let leader = if self.me.rank == 0 { entry.address.clone() } else { self.me.leader.clone() };
        let ticket = Ticket {
            instance: self.me.instance.clone(),
            address: leader,
            rank: self.me.rank,
            incarnation: self.me.incarnation,
            request: lease.map_or_else(String::new, |l| l.offer.request.clone()),
            round: lease.map_or(0, |l| l.round),
            tokens: lease.map_or(0, |l| l.offer.tokens),
            blocks: lease.map_or_else(Vec::new, |l| l.offer.blocks.clone()),
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
            if list.ids.len() > limit::BLOCKS {
                let text = format!("group {g}: {} block ids, at most {}", list.ids.len(), limit::BLOCKS);
                return Err(Error::new(Status::Limit, text));
            }
            if let Some((_, id)) = group.outside(&list.ids) {
                let text = format!("group {g}: block id {id} is not below {}", group.num_blocks);
                return Err(Error::new(Status::InvalidBlocks, text));
            }
        }
        // They travel in one frame, with up to half of it for everything else.
        let (total, max) = (blocks.iter().map(|b| b.ids.len()).sum::<usize>(), limit::FRAME / 8);
        if total > max {
            return Err(Error::new(Status::Limit, format!("{total} block ids in all groups, at most {max}")));
        }
        Ok(())
    }

    /// A consumer has what it wants: tells it whether the lease still held, and counts it.
    pub(super) fn on_done(
        &mut self,
        now: Instant,
        conn: ConnId,
        op: u64,
        (request, round): (&str, u32),
        expected: u32,
    ) -> Result<()> {
        let found = self.peer_for(conn).and_then(|(id, p, rank)| Some((id, p.directory.clone()?, rank)));
        let Some((peer, directory, rank)) = found else { return Ok(()) };
        let instance = directory.entry(0).map_or(0, |e| e.incarnation);
        let known = self.outbound(peer)?.consumers;
        if expected != known {
            let text = format!("{expected} consumers of request {request:?}, by the layouts there are {known}");
            return Err(Error::new(Status::Protocol, text));
        }
        let held = match self.leases.find(request, round) {
            Ok((id, l)) if l.deadline > now => Ok(id),
            Ok(_) => Err(Status::LeaseExpired),
            Err(e) => Err(e.status()),
        };
        let status = held.err().map_or(0, Status::code);
        let Some(lease) = held.ok().and_then(|id| self.leases.slab.get_mut(id)) else {
            self.send(conn, Message::Ack { op, status });
            return Ok(());
        };
        let c = lease.consumers.entry(instance).or_insert(Consumers { expected, done: BTreeSet::new() });
        c.done.insert(rank);
        let finished = c.done.len() >= c.expected as usize;
        self.send(conn, Message::Ack { op, status: 0 });
        if let (true, Ok(id)) = (finished, held) {
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
        let mark = LeaseMark::new(self.me.incarnation, &request, lease.round);
        self.outputs.push_back(Output::Board { offset: mark.offset, word: 0 });
        self.leases.by_request.remove(&request);
        self.untimer(lease.deadline, Timer::Lease(id));
        let told = if status == Status::Ok { Status::UnknownRequest } else { Status::LeaseExpired };
        self.leases.remember(request.clone(), told, lease.round);
        self.stop_serving(&request, Status::LeaseExpired);
        let text = match status {
            Status::Ok => String::new(),
            _ => {
                let of = |c: &Consumers| format!("{} of {}", c.done.len(), c.expected);
                let done: Vec<String> = lease.consumers.values().map(of).collect();
                let done = if done.is_empty() { "none".to_string() } else { done.join(", ") };
                format!("request {request:?}: consumers that had acknowledged: {done}")
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
