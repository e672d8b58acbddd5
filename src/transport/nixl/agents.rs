//! The two NIXL agents of a kvlink agent.
//!
//! The *server* is what peers read from; its metadata is in the handshake, so it stays as long as the kvlink agent. The
//! *reader* is what we read with; nobody knows it, so it can be replaced: NIXL cannot cancel, and only the end of an agent
//! proves that its reads have ended.

use super::batch::STAGED_BYTES;
use super::library;
use super::options::NixlOptions;
use super::reasons;
use super::sys::{self, Agent, Failure, Library, Range, Request};
use crate::error::{Error, Result, Status};
use crate::memory::SharedMemory;
use crate::transport::vendor::{self, Peer, Piece, State, Unread, unique_name};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// How long the server's progress thread sleeps at most; what arrives wakes it. 0, NIXL's default, keeps a core busy. The
/// reader has none: it would fight with those who post and look for UCX's locks, and its reads are looked at anyway.
const PROGRESS_DELAY_US: u64 = 10_000;

/// Memory of ours that reads land in.
pub struct Slot {
    memory: SharedMemory,
}

pub struct Agents {
    library: &'static Library,
    options: NixlOptions,
    /// Random: no other process, and no other agent of this one, has had this name.
    name: String,
    /// `None`: it was ended.
    server: Option<Agent>,
    /// `None`: it is being replaced, or could not be.
    reader: Option<Agent>,
    generation: u64,
    regions: BTreeMap<u32, Range>,
    /// Staging memory that no read uses.
    free: Vec<Slot>,
    /// Staging memory that the reader may still write to.
    retired: Vec<Slot>,
}

fn backend(e: Failure) -> Error {
    Error::new(Status::Backend, format!("nixl: {e}; NIXL writes its reason to the standard error output"))
}

impl Agents {
    /// The reader; an error where it could not be made again.
    fn reader(&mut self) -> Result<&mut Agent> {
        let text = "nixl: the agent that reads could not be replaced";
        self.reader.as_mut().ok_or_else(|| Error::new(Status::Backend, text))
    }
}

fn state(s: sys::State) -> State {
    match s {
        sys::State::Running => State::Running,
        sys::State::Complete => State::Complete,
        sys::State::Failed(e) => State::Failed(e.to_string()),
    }
}

impl vendor::Agents for Agents {
    const NAME: &'static str = "nixl";
    const MAGIC: u32 = 0x4E4C_564B;
    const REPLACING: Duration = Duration::from_secs(5);
    const SWIFT: bool = true;
    const TENDED: Option<Duration> = Some(Duration::from_secs(1));
    type Options = NixlOptions;
    type Request = Request;
    type Slot = Slot;

    fn new(options: NixlOptions) -> Result<Agents> {
        let library = library::load(options.library.as_deref())?;
        let name = unique_name()?;
        let server = Some(start(library, &options, &name, Some(PROGRESS_DELAY_US))?);
        let regions = BTreeMap::new();
        let (free, retired) = (Vec::new(), Vec::new());
        let mut agents = Agents { library, options, name, server, reader: None, generation: 0, regions, free, retired };
        match agents.renew() {
            Ok(()) => Ok(agents),
            Err(e) => agents.end_server().and(Err(e)),
        }
    }

    fn name(&self) -> CString {
        c_string(&self.name)
    }

    fn register(&mut self, region: u32, memory: Range) -> Result<Vec<u8>> {
        let locked = |e| reasons::not_registered(region, memory, e);
        let ended = || Error::new(Status::Internal, "nixl: the agent that peers read from was ended");
        self.server.as_mut().ok_or_else(ended)?.register(memory.addr(), memory.len()).map_err(locked)?;
        if let Some(reader) = &mut self.reader {
            reader.register(memory.addr(), memory.len()).map_err(locked)?;
        }
        self.regions.insert(region, memory);
        self.server.as_mut().ok_or_else(ended)?.metadata().map_err(backend)
    }

    fn regions(&self) -> &BTreeMap<u32, Range> {
        &self.regions
    }

    fn slot(&mut self) -> Result<Slot> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = Slot { memory: SharedMemory::allocate(STAGED_BYTES as usize)? };
        let range = Self::range(&slot);
        self.reader()?.register(range.addr(), range.len()).map_err(backend)?;
        Ok(slot)
    }

    fn range(slot: &Slot) -> Range {
        Range::new(slot.memory.addr(), slot.memory.len())
    }

    fn give_back(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    fn retire(&mut self, slot: Slot) {
        self.retired.push(slot);
    }

    fn load(&mut self, peer: &Peer) -> Result<()> {
        let whose = peer.agent.to_string_lossy().into_owned();
        let found = self.reader()?.load(&peer.metadata).map_err(|e| {
            let text = format!(
                "nixl: the metadata of agent {whose} cannot be used: {e}; the two sides' backends have no way in common \
                 (same UCX_TLS or engine_config, same version of NIXL?)"
            );
            Error::new(Status::TransportUnavailable, text)
        })?;
        if found != peer.agent.to_bytes() {
            let text = format!("nixl: metadata of agent {:?}, announced as {whose:?}", String::from_utf8_lossy(&found));
            self.forget(&CString::new(found).unwrap_or_default());
            return Err(Error::new(Status::Protocol, text));
        }
        Ok(())
    }

    fn forget(&mut self, name: &CStr) {
        if let Some(Err(e)) = self.reader.as_mut().map(|r| r.forget(name)) {
            log::debug!("kvlink: nixl: forgetting {}: {e}", name.to_string_lossy());
        }
    }

    fn tend(&mut self) {
        if let Some(Err(e)) = self.reader.as_mut().map(Agent::go_on) {
            log::debug!("kvlink: nixl: {e}");
        }
    }

    fn read(&mut self, peer: &CStr, pieces: &[Piece]) -> std::result::Result<Request, Unread> {
        self.reader().map_err(Unread::Here)?.read(peer, pieces).map_err(|e| Unread::There(e.to_string()))
    }

    fn post(&mut self, request: &mut Request) -> State {
        self.reader().map_or_else(|e| State::Failed(e.message().into()), |r| state(r.post(request)))
    }

    fn state(&mut self, request: &mut Request) -> State {
        self.reader().map_or_else(|e| State::Failed(e.message().into()), |r| state(r.state(request)))
    }

    fn release(&mut self, request: Request) {
        if let Some(Err(e)) = self.reader.as_mut().map(|r| r.release(request)) {
            log::warn!("kvlink: nixl: {e}");
        }
    }

    fn end_reader(&mut self) -> Result<()> {
        let ended = self.reader.take().map_or(Ok(()), Agent::destroy);
        self.free.clear();
        let retired = std::mem::take(&mut self.retired);
        if ended.is_err() {
            // It may still write to them.
            std::mem::forget(retired);
        }
        ended.map_err(|e| {
            let text = format!("nixl: the agent that reads could not be ended: {e}");
            Error::new(Status::Quarantined, text)
        })
    }

    fn renew(&mut self) -> Result<()> {
        self.generation += 1;
        let name = format!("{}-{}", self.name, self.generation);
        let mut reader = start(self.library, &self.options, &name, None)?;
        for r in self.regions.values() {
            reader.register(r.addr(), r.len()).map_err(backend)?;
        }
        self.reader = Some(reader);
        Ok(())
    }

    fn end_server(&mut self) -> Result<()> {
        let text = |e: Failure| Error::new(Status::Quarantined, format!("nixl: the agent could not be ended: {e}"));
        self.server.take().map_or(Ok(()), Agent::destroy).map_err(text)
    }
}

/// Text without zero bytes: names are ours, options were checked.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn start(library: &'static Library, options: &NixlOptions, name: &str, delay_us: Option<u64>) -> Result<Agent> {
    reasons::check_copies(library, &options.backend)?;
    let parameters: Vec<(CString, CString)> =
        options.in_long_segments().parameters.iter().map(|(k, v)| (c_string(k), c_string(v))).collect();
    Agent::new(library, &c_string(name), &c_string(&options.backend), &parameters, delay_us)
        .map_err(|e| reasons::not_started(library, options, e))
}
