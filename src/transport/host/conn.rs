//! A data socket: both halves, and what the poller should wait for.

use super::chunk::Chunk;
use super::inbound::Inbound;
use super::local::Regions;
use super::outbound::Outbound;
use super::scratch::Scratch;
use super::stream::{Ending, Half, Receive, Streams};
use crate::error::{Error, Result, Status};
use crate::transport::{Done, Interest, LinkId, Poller};
use std::net::TcpStream;
use std::os::fd::AsFd;

/// What work on a socket needs from its owner.
pub(super) struct Context<'a> {
    pub own: &'a Regions,
    pub io: &'a mut Scratch,
    /// All streams of the link.
    pub streams: &'a mut Streams,
    /// Streams that must end on the link's other sockets too.
    pub endings: &'a mut Vec<Ending>,
    pub ended: &'a mut Vec<Done>,
}

/// A socket of a link. Closed when dropped.
#[derive(Debug)]
pub(super) struct Conn {
    pub link: LinkId,
    pub inbound: Inbound,
    pub outbound: Outbound,
    /// It is in the list of sockets to work on.
    pub queued: bool,
    socket: TcpStream,
    key: u64,
    readable: bool,
    writable: bool,
    interest: Interest,
}

impl Conn {
    pub fn new(link: LinkId, socket: TcpStream, key: u64, chunk: u64, poller: &Poller) -> Result<Conn> {
        let interest = Interest { read: true, write: false };
        poller.add(&socket, key, interest)?;
        Ok(Conn {
            link,
            inbound: Inbound::new(),
            outbound: Outbound::new(chunk),
            queued: false,
            socket,
            key,
            readable: false,
            writable: true,
            interest,
        })
    }

    /// The poller's news.
    pub fn ready(&mut self, read: bool, write: bool) {
        self.readable |= read;
        self.writable |= write;
    }

    /// It would go on at once.
    pub fn active(&self) -> bool {
        self.readable || (self.writable && self.outbound.pending())
    }

    /// Gives the stream's lane on this socket, if one was announced, its job.
    pub fn bind(&mut self, tag: u64, job: &mut Receive, endings: &mut Vec<Ending>) -> Result<()> {
        let Some(opening) = self.inbound.pending(tag) else { return Ok(()) };
        if let Err(error) = job.check(tag, &opening) {
            self.inbound.refuse(tag);
            endings.push(Ending { half: Half::Receive, tag, error, told: false });
            return Ok(());
        }
        let cursor = job.take(tag, opening.lane)?;
        self.inbound.start(tag, opening.lane, cursor);
        self.outbound.answer(Chunk::Accept { tag });
        Ok(())
    }

    /// Reads, then writes, for about `budget` bytes each; returns what it cost.
    pub fn work(&mut self, cx: &mut Context<'_>, budget: u64) -> Result<u64> {
        let mut cost = 0;
        while self.readable && cost < budget {
            let step = self.inbound.work(self.socket.as_fd(), cx)?;
            cost += step.cost;
            self.readable = !step.drained;
            match step.chunk {
                Some(Chunk::Open { tag, .. }) => {
                    if let Some(job) = cx.streams.receives.get_mut(&tag) {
                        self.bind(tag, job, cx.endings)?;
                    }
                }
                Some(Chunk::Accept { tag }) => self.outbound.accepted(tag)?,
                Some(Chunk::Cancel { tag, status }) => {
                    let error = Error::new(status, format!("the receiver ended stream {tag}"));
                    cx.endings.push(Ending { half: Half::Send, tag, error, told: true });
                }
                _ => {}
            }
        }
        if self.writable && self.outbound.pending() {
            let step = match self.outbound.work(self.socket.as_fd(), cx, budget) {
                // What the peer sent before it went away still counts: the end is found after the last byte.
                Err(e) if e.status() == Status::PeerDead && self.readable => {
                    self.writable = false;
                    return Ok(cost);
                }
                other => other?,
            };
            cost += step.cost;
            self.writable = !step.blocked;
        }
        Ok(cost)
    }

    /// Waits for room to write exactly while there is something to write and no room.
    pub fn update(&mut self, poller: &Poller) -> Result<()> {
        let pending = self.outbound.pending();
        let write = if self.writable { self.interest.write && pending } else { pending };
        if write != self.interest.write {
            self.interest.write = write;
            poller.modify(&self.socket, self.key, self.interest)?;
        }
        Ok(())
    }

    /// Closes it.
    pub fn close(self, poller: &Poller) {
        poller.remove(&self.socket);
    }
}
