//! Tickets: what an engine carries from the source of a request to its sinks, by whatever route it likes.

use super::codec::{Reader, Writer};
use super::message::{put_blocks, take_blocks};
use super::{Blocks, limit};
use crate::error::{Error, Result, Status};

const MAGIC: u32 = u32::from_le_bytes(*b"KVT1");

/// Everything a sink needs to read an offered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Name of the source's instance.
    pub instance: String,
    /// Address of the source's instance, for a handshake.
    pub address: String,
    /// The rank that issued the ticket.
    pub rank: u32,
    /// The process that issued it.
    pub incarnation: u64,
    /// The request.
    pub request: String,
    /// Which offer of this request it is, counted by the source: tells a new offer of the same name apart.
    pub round: u32,
    /// Tokens offered.
    pub tokens: u64,
    /// The source's blocks, by group; the same on all ranks of the instance.
    pub blocks: Vec<Blocks>,
}

impl Ticket {
    /// The ticket of another offer of the same process: the first one of this request.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`]: a request id that cannot be. [`Status::Limit`]: more blocks than can be offered.
    pub fn like(self, request: String, tokens: u64, blocks: Vec<Blocks>) -> Result<Ticket> {
        if request.is_empty() || request.len() > limit::NAME {
            let text = format!("request id of {} bytes, must have 1..={}", request.len(), limit::NAME);
            return Err(Error::new(Status::InvalidArgument, text));
        }
        let (total, max) = (blocks.iter().map(|b| b.ids.len()).sum::<usize>(), limit::FRAME / 8);
        if total > max {
            return Err(Error::new(Status::Limit, format!("{total} block ids in all groups, at most {max}")));
        }
        Ok(Ticket { request, round: 1, tokens, blocks, ..self })
    }

    /// Its bytes: opaque to engines.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u32(MAGIC);
        w.string(&self.instance);
        w.string(&self.address);
        w.u32(self.rank);
        w.u64(self.incarnation);
        w.string(&self.request);
        w.u32(self.round);
        w.u64(self.tokens);
        put_blocks(&mut w, &self.blocks);
        let mut out = w.finish();
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// From its bytes.
    ///
    /// # Errors
    /// [`Status::InvalidTicket`]: truncated, corrupted, or not a ticket.
    pub fn decode(bytes: &[u8]) -> Result<Ticket> {
        let bad =
            |e: Error| Error::new(Status::InvalidTicket, format!("ticket of {} bytes: {}", bytes.len(), e.message()));
        let split = bytes.len().checked_sub(8).and_then(|n| bytes.split_at_checked(n));
        let Some((body, sum)) = split else {
            return Err(Error::new(Status::InvalidTicket, format!("a ticket of {} bytes is too short", bytes.len())));
        };
        let stored = Reader::new(sum).u64("checksum").map_err(bad)?;
        let mut r = Reader::new(body);
        let magic = r.u32("magic").map_err(bad)?;
        if magic != MAGIC {
            return Err(bad(Error::new(Status::InvalidTicket, format!("magic {magic:#x}, not {MAGIC:#x}"))));
        }
        if stored != checksum(body) {
            let text = format!("checksum {stored:#x}, its bytes give {:#x}", checksum(body));
            return Err(bad(Error::new(Status::InvalidTicket, text)));
        }
        let mut take = || -> Result<Ticket> {
            Ok(Ticket {
                instance: r.string("instance", limit::NAME)?,
                address: r.string("address", limit::NAME)?,
                rank: r.u32("rank")?,
                incarnation: r.u64("incarnation")?,
                request: r.string("request", limit::NAME)?,
                round: r.u32("round")?,
                tokens: r.u64("tokens")?,
                blocks: take_blocks(&mut r)?,
            })
        };
        let ticket = take().map_err(bad)?;
        r.end("ticket").map_err(bad)?;
        Ok(ticket)
    }
}

/// FNV-1a, 64 bits: against accidents on the way, not against forgers.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            instance: "prefill-0".into(),
            address: "127.0.0.1:7000".into(),
            rank: 2,
            incarnation: 77,
            request: "cmpl-1".into(),
            round: 3,
            tokens: 8192,
            blocks: vec![Blocks { first: 0, ids: vec![1, 2, u32::MAX] }, Blocks { first: 7, ids: vec![] }],
        }
    }

    #[test]
    fn a_ticket_survives_the_journey() {
        assert_eq!(Ticket::decode(&ticket().encode()), Ok(ticket()));
    }

    #[test]
    fn a_ticket_like_another_differs_in_the_request_only() {
        let made = Ticket { request: String::new(), round: 0, tokens: 0, blocks: vec![], ..ticket() };
        let made = Ticket::decode(&made.encode()).unwrap().like("cmpl-1".into(), 8192, ticket().blocks).unwrap();
        assert_eq!(made, Ticket { round: 1, ..ticket() });
    }

    #[test]
    fn requests_that_cannot_be_offered_have_no_ticket() {
        let long = "x".repeat(limit::NAME + 1);
        for request in [String::new(), long] {
            assert_eq!(ticket().like(request, 1, vec![]).unwrap_err().status(), Status::InvalidArgument);
        }
        let blocks = vec![Blocks { first: 0, ids: vec![0; limit::FRAME / 8 + 1] }];
        assert_eq!(ticket().like("x".into(), 1, blocks).unwrap_err().status(), Status::Limit);
    }

    #[test]
    fn truncation_and_every_single_bit_flip_are_detected() {
        let bytes = ticket().encode();
        for n in 0..bytes.len() {
            let err = Ticket::decode(&bytes[..n]).unwrap_err();
            assert_eq!(err.status(), Status::InvalidTicket);
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Ticket::decode(&bad).unwrap_err().status(), Status::InvalidTicket);
        }
    }
}
