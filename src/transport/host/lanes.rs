//! Streams over all sockets of their link: each lane goes to another one, and the end of one is the end of all.

use super::chunk::Chunk;
use super::conn::Conn;
use super::local::Cursor;
use super::stream::{Ending, Half, Receive, Send, Stream};
use super::{Host, no_link};
use crate::error::{Error, Result, Status};
use crate::transport::{Job, LinkId};

impl Host {
    pub(super) fn post_send(&mut self, tag: u64, job: Job) -> Result<()> {
        let link = job.link;
        let mut send = Send::new(job, &self.regions)?;
        let mut slots = self.slots(link)?;
        let peer = self.link(link)?;
        if peer.streams.sends.contains_key(&tag) {
            return Err(duplicate_tag(tag, link));
        }
        slots.sort_by_key(|slot| self.conn(*slot).map_or(u64::MAX, |c| c.outbound.backlog()));
        let lanes = send.split(slots.len());
        let mut cursor = Cursor::default();
        for (lane, slot) in lanes.into_iter().zip(slots) {
            if let Some(conn) = self.conn(slot) {
                conn.outbound.post(tag, lane, cursor);
            }
            cursor.advance(&send.stream.spans, lane.length);
            self.activate(slot);
        }
        self.link(link)?.streams.sends.insert(tag, send);
        Ok(())
    }

    pub(super) fn post_receive(&mut self, tag: u64, job: Job) -> Result<()> {
        let link = job.link;
        let mut receive = Receive::new(job, &self.regions)?;
        let slots = self.slots(link)?;
        if self.link(link)?.streams.receives.contains_key(&tag) {
            return Err(duplicate_tag(tag, link));
        }
        let mut endings = Vec::new();
        let mut result = Ok(());
        for slot in slots {
            let Some(Some(conn)) = self.sockets.get_mut(slot) else { continue };
            result = result.and_then(|()| conn.bind(tag, &mut receive, &mut endings));
            self.activate(slot);
        }
        self.link(link)?.streams.receives.insert(tag, receive);
        self.end_streams(link, endings);
        if let Err(e) = result {
            self.break_link(link, e);
        }
        Ok(())
    }

    /// Ends streams of any link that are chosen; returns whether there were any.
    pub(super) fn end_chosen(&mut self, which: impl Fn(&Stream) -> bool, error: &Error) -> bool {
        let found = |(link, peer): (&LinkId, &super::Peer)| (*link, peer.streams.find(&which));
        let chosen: Vec<(LinkId, Vec<(Half, u64)>)> = self.links.iter().map(found).collect();
        let any = chosen.iter().any(|(_, streams)| !streams.is_empty());
        for (link, streams) in chosen {
            let ending = |(half, tag)| Ending { half, tag, error: error.clone(), told: false };
            self.end_streams(link, streams.into_iter().map(ending).collect());
        }
        any
    }

    /// Ends streams on all sockets of their link. A stream that has ended already is left alone.
    pub(super) fn end_streams(&mut self, link: LinkId, endings: Vec<Ending>) {
        for Ending { half, tag, error, told } in endings {
            let Some(peer) = self.links.get_mut(&link) else { return };
            let slots = peer.sockets.clone();
            let announced = peer.streams.receives.get(&tag).is_some_and(|r| r.announced);
            let status = error.status();
            let Some(done) = peer.streams.end(half, tag, error) else { continue };
            for slot in &slots {
                let Some(conn) = self.conn(*slot) else { continue };
                match half {
                    Half::Send => conn.outbound.end(tag, status),
                    Half::Receive => conn.inbound.end(tag),
                }
                self.activate(*slot);
            }
            // One word ends all lanes, those that are still to be announced too.
            let first = slots.first().filter(|_| half == Half::Receive && announced && !told);
            if let Some(conn) = first.and_then(|slot| self.conn(*slot)) {
                conn.outbound.answer(Chunk::Cancel { tag, status });
            }
            self.ended.push(done);
        }
    }

    pub(super) fn conn(&mut self, slot: usize) -> Option<&mut Conn> {
        self.sockets.get_mut(slot)?.as_mut()
    }

    /// The sockets of a link that has some.
    fn slots(&self, link: LinkId) -> Result<Vec<usize>> {
        let peer = self.links.get(&link).ok_or_else(|| no_link(link))?;
        match peer.sockets.as_slice() {
            [] => Err(Error::new(Status::WrongState, format!("link {} has no data socket", link.0))),
            slots => Ok(slots.to_vec()),
        }
    }
}

fn duplicate_tag(tag: u64, link: LinkId) -> Error {
    Error::new(Status::Duplicate, format!("tag {tag} is in use on link {}", link.0))
}
