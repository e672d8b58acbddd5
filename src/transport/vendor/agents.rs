//! What a vendor's library has to offer.

use super::{Piece, Range};
use crate::error::{Error, Result, Status};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Where a library puts what it reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landing {
    /// Straight into the blocks where reads turn out to complete while they are posted, otherwise like `Staged`.
    #[default]
    Auto,
    /// Always straight into the blocks: nothing is copied twice, and a cancel lasts until the library has ended the read.
    Direct,
    /// Always into memory of kvlink's own, copied to the blocks when it is there: a cancel ends at once.
    Staged,
}

/// Where a read stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Under way.
    Running,
    /// All of it is here, and nothing of it writes any more.
    Complete,
    /// With the library's reason. Something of it may still write.
    Failed(String),
}

/// Why nothing was read.
#[derive(Debug)]
pub enum Unread {
    /// There is nothing to read with.
    Here(Error),
    /// The peer cannot be read from.
    There(String),
}

/// A peer's server.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub agent: CString,
    /// The library's own metadata of it.
    pub metadata: Vec<u8>,
    /// Address and length.
    pub regions: BTreeMap<u32, (u64, u64)>,
}

/// What options of every such transport say.
pub trait VendorOptions: Clone + Send + 'static {
    /// They are possible.
    fn check(&self) -> Result<()>;
    /// How links are reported: "nixl/ucx".
    fn report(&self) -> String;
    /// The library's backend, which has to be the same on both sides.
    fn backend(&self) -> &str;
    /// Where data lands.
    fn landing(&self) -> Landing;
    /// How long a read that is no longer wanted may go on before what runs it is replaced.
    fn patience(&self) -> Duration;
}

/// A library's two agents of a kvlink agent: the *server* is what peers read from; its metadata is in the handshake, so it
/// stays. The *reader* is what we read with; nobody knows it, so it can be replaced, and its end proves that its reads have
/// ended. Used by one thread at a time.
pub trait Agents: Sized + Send + 'static {
    /// The transport's name.
    const NAME: &'static str;
    /// Its metadata begins with this.
    const MAGIC: u32;
    /// More than it takes to end an agent and to make another.
    const REPLACING: Duration;
    /// Posting a read waits for nothing but the copying of its bytes: the reactor may do it.
    const SWIFT: bool;
    /// How seldom the reader may be tended while nothing is under way; more often after something was.
    const TENDED: Option<Duration> = None;
    /// How it is set up.
    type Options: VendorOptions;
    /// A read.
    type Request: Send;
    /// Memory of our own that a read lands in.
    type Slot: Send;

    /// Loads the library and starts both.
    fn new(options: Self::Options) -> Result<Self>;
    /// Name of the server; no other process, and no other agent of this one, has it.
    fn name(&self) -> CString;
    /// Makes a region readable by peers and usable by reads; returns what peers have to know now.
    fn register(&mut self, region: u32, memory: Range) -> Result<Vec<u8>>;
    /// What is registered.
    fn regions(&self) -> &BTreeMap<u32, Range>;

    /// Staging memory for one read.
    fn slot(&mut self) -> Result<Self::Slot>;
    /// Where it is.
    fn range(slot: &Self::Slot) -> Range;
    /// Nothing reads into it any more.
    fn give_back(&mut self, slot: Self::Slot);
    /// Something may still read into it, as long as this reader lives.
    fn retire(&mut self, slot: Self::Slot);

    /// Whether a peer can be loaded, where that can be told on any thread: it is then loaded without anybody waiting for it.
    /// `None`: only loading tells.
    fn vet(peer: &Peer) -> Option<Result<()>> {
        let _ = peer;
        None
    }
    /// Takes a peer's metadata. Does not wait for the peer.
    fn load(&mut self, peer: &Peer) -> Result<()>;
    /// Forgets a peer, so that its connections go.
    fn forget(&mut self, name: &CStr);

    /// Lets the reader do what it does besides reads: connections are made, and end.
    fn tend(&mut self) {}

    /// Prepares a read from a peer that was loaded.
    fn read(&mut self, peer: &CStr, pieces: &[Piece]) -> std::result::Result<Self::Request, Unread>;
    /// Starts it; may do all of the copying before it returns.
    fn post(&mut self, request: &mut Self::Request) -> State;
    /// Looks at it.
    fn state(&mut self, request: &mut Self::Request) -> State;
    /// Gives a read up; returns whether it is certain that nothing of it writes, now or later.
    fn withdraw(&mut self, request: &mut Self::Request) -> bool {
        let _ = request;
        false
    }
    /// Gives a request back. One that is still running goes on writing until it ends or the reader is ended.
    fn release(&mut self, request: Self::Request);

    /// Ends the reader: afterwards none of its reads writes any more.
    fn end_reader(&mut self) -> Result<()>;
    /// Makes a new reader after [`Agents::end_reader`]. Peers have to be loaded again.
    fn renew(&mut self) -> Result<()>;
    /// Ends the server: afterwards this process serves no peer any more, and nothing is registered.
    fn end_server(&mut self) -> Result<()>;
}

/// A name for a server: random, so that no other process, and no other agent of this one, has it.
pub(in crate::transport) fn unique_name() -> Result<String> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
    Ok(format!("kvlink-{:016x}", u64::from_ne_bytes(random)))
}
