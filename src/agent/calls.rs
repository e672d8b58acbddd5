//! The calls of an engine.

use super::net::Order;
use super::{Agent, Shared};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use crate::proto::{AcceptArgs, Direction, Endpoint, Id, Kind, Offer, ReadArgs, WriteArgs};
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Shared {
    /// Hands an order to the reactor and waits for its answer.
    fn order(&self, order: Order) -> Result<()> {
        let mut inbox = self.inbox.lock();
        inbox.next += 1;
        let ticket = inbox.next;
        inbox.orders.push((ticket, order));
        drop(inbox);
        self.wake();
        let mut inbox = self.inbox.lock();
        loop {
            if let Some(at) = inbox.answers.iter().position(|(t, _)| *t == ticket) {
                return inbox.answers.swap_remove(at).1;
            }
            self.alive()?;
            self.answered.wait(&mut inbox);
        }
    }
}

/// A call that panicked has left the endpoint in a state that nobody knows: the agent ends.
pub(super) struct PoisonOnUnwind<'a>(pub &'a Shared);

impl Drop for PoisonOnUnwind<'_> {
    fn drop(&mut self) {
        self.0.poisoned.store(true, Ordering::SeqCst);
        self.0.wake();
    }
}

#[cfg(feature = "test-hooks")]
impl Agent {
    /// Panics while it holds the state.
    pub fn panic_in_call(&self) -> Result<()> {
        self.call(|_, _| panic!("a panic on purpose in a call"))
    }

    /// Makes the reactor panic.
    pub fn panic_in_reactor(&self) -> Result<()> {
        self.check()?;
        self.shared.order(Order::Panic)
    }
}

impl Agent {
    /// Binds memory to a region of the layout. When the last region is bound, the agent joins its instance and can be
    /// reached by peers ([`EventKind::Ready`](crate::proto::EventKind::Ready) follows).
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if the region does not exist or its size is not the layout's; [`Status::WrongState`] if
    /// it is bound already.
    pub fn register(&self, region: u32, memory: Memory) -> Result<()> {
        self.check()?;
        let mut regions = self.regions.lock();
        let Some(described) = self.layout.regions().get(region as usize) else {
            let text = format!("region {region} of a layout of {} regions", self.layout.regions().len());
            return Err(Error::new(Status::InvalidArgument, text));
        };
        if (memory.len() as u64) < described.len {
            let text =
                format!("region {region} has {} bytes in the layout, the memory {}", described.len, memory.len());
            return Err(Error::new(Status::InvalidArgument, text));
        }
        if regions.closed || regions.memory[region as usize].is_some() {
            return Err(Error::new(Status::WrongState, format!("region {region} was registered already")));
        }
        let missing = regions.memory.iter().filter(|m| m.is_none()).count();
        self.shared.order(Order::Register { region, memory: memory.clone(), publish: missing == 1 })?;
        regions.memory[region as usize] = Some(memory);
        regions.bound = missing == 1;
        Ok(())
    }

    /// Takes a region away. Everything that is under way ends with an event, offers are withdrawn; after this call has
    /// returned, no byte of the region is read as valid data or written. The agent moves nothing any more.
    ///
    /// # Errors
    /// [`Status::WrongState`] if it is not registered.
    pub fn deregister(&self, region: u32) -> Result<()> {
        self.check()?;
        let mut regions = self.regions.lock();
        if regions.memory.get(region as usize).is_none_or(Option::is_none) {
            return Err(Error::new(Status::WrongState, format!("region {region} is not registered")));
        }
        regions.closed = true;
        self.shared.order(Order::Deregister { region })?;
        regions.memory[region as usize] = None;
        Ok(())
    }

    fn call<T>(&self, f: impl FnOnce(&mut Endpoint, Instant) -> Result<T>) -> Result<T> {
        self.check()?;
        let poison = PoisonOnUnwind(&self.shared);
        let out = f(&mut self.shared.endpoint.lock(), Instant::now());
        std::mem::forget(poison);
        self.shared.wake();
        out
    }

    /// The same, for calls that move data.
    fn moving<T>(&self, f: impl FnOnce(&mut Endpoint, Instant) -> Result<T>) -> Result<T> {
        self.check()?;
        // Held during the call: what is submitted after a deregistration is refused, never half way in between.
        let regions = self.regions.lock();
        if !regions.bound || regions.closed {
            let missing: Vec<usize> =
                regions.memory.iter().enumerate().filter(|(_, m)| m.is_none()).map(|(i, _)| i).collect();
            return Err(Error::new(Status::WrongState, format!("regions {missing:?} are not registered")));
        }
        self.call(f)
    }

    /// Begins a handshake; see [`Endpoint::handshake`].
    ///
    /// # Errors
    /// Those of [`Endpoint::handshake`].
    pub fn handshake(&self, address: &str, direction: Direction, user_data: u64) -> Result<Id> {
        if address.is_empty() || address.len() > crate::wire::limit::NAME {
            return Err(Error::new(Status::InvalidArgument, format!("an address of {} bytes", address.len())));
        }
        self.call(|e, now| e.handshake(now, address, direction, user_data))
    }

    /// Lets a peer go; see [`Endpoint::disconnect`].
    ///
    /// # Errors
    /// Those of [`Endpoint::disconnect`].
    pub fn disconnect(&self, peer: Id) -> Result<()> {
        self.call(|e, now| e.disconnect(now, peer))
    }

    /// The transports in effect with a peer, one line per rank.
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn effective_transports(&self, peer: Id) -> Result<String> {
        self.call(|e, _| e.effective_transports(peer))
    }

    /// Offers a request; see [`Endpoint::offer`].
    ///
    /// # Errors
    /// Those of [`Endpoint::offer`]; [`Status::WrongState`] while regions are missing.
    pub fn offer(&self, offer: Offer) -> Result<Id> {
        self.moving(|e, now| e.offer(now, offer))
    }

    /// The ticket of an offer.
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn ticket(&self, offer: Id) -> Result<Vec<u8>> {
        self.call(|e, _| e.ticket(offer))
    }

    /// Reads an offered request; see [`Endpoint::read`].
    ///
    /// # Errors
    /// Those of [`Endpoint::read`]; [`Status::WrongState`] while regions are missing.
    pub fn read(&self, args: ReadArgs<'_>) -> Result<Id> {
        self.moving(|e, now| e.read(now, args))
    }

    /// Accepts a request's data; see [`Endpoint::accept`].
    ///
    /// # Errors
    /// Those of [`Endpoint::accept`]; [`Status::WrongState`] while regions are missing.
    pub fn accept(&self, args: AcceptArgs) -> Result<Id> {
        self.moving(|e, now| e.accept(now, args))
    }

    /// Writes to an accepted request; see [`Endpoint::write`].
    ///
    /// # Errors
    /// Those of [`Endpoint::write`]; [`Status::WrongState`] while regions are missing.
    pub fn write(&self, args: WriteArgs) -> Result<Id> {
        self.moving(|e, now| e.write(now, args))
    }

    /// Sends a message to a peer's engine; see [`Endpoint::notify`].
    ///
    /// # Errors
    /// Those of [`Endpoint::notify`].
    pub fn notify(&self, peer: Id, rank: Option<u32>, payload: &[u8], after: Option<Id>) -> Result<()> {
        self.call(|e, _| e.notify(peer, rank, payload, after))
    }

    /// Ends a transfer, an offer, an accept or an exchange early; see [`Endpoint::cancel`].
    ///
    /// # Errors
    /// [`Status::BadHandle`].
    pub fn cancel(&self, id: Id) -> Result<()> {
        if id.kind() == Some(Kind::Exchange) {
            return self.cancel_moriio(id);
        }
        self.call(|e, now| e.cancel(now, id))
    }

    /// Blocks that a failed read left without valid data, by group.
    ///
    /// # Errors
    /// [`Status::BadHandle`] if the transfer did not fail, or too long ago.
    pub fn failed_blocks(&self, transfer: Id) -> Result<Vec<(u32, Vec<u32>)>> {
        self.call(|e, _| match e.failed_blocks(transfer) {
            Some(b) => Ok(b.to_vec()),
            None => {
                Err(Error::new(Status::BadHandle, format!("transfer {:#x} is not known to have failed", transfer.0)))
            }
        })
    }
}
