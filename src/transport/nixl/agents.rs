//! The two NIXL agents of a kvlink agent.
//!
//! The *server* is what peers read from; its metadata is in the handshake, so it stays as long as the kvlink agent. The
//! *reader* is what we read with; nobody knows it, so it can be replaced: NIXL cannot cancel, and only the end of an agent
//! proves that its reads have ended.

use super::batch::BATCH_BYTES;
use super::library;
use super::options::NixlOptions;
use super::reasons;
use super::sys::{Agent, Failure, Library, Range, Request};
use crate::error::{Error, Result, Status};
use crate::memory::SharedMemory;
use crate::transport::vendor::unique_name;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

/// How long a progress thread sleeps at most; what arrives wakes it. 0, NIXL's default, keeps a core busy.
const PROGRESS_DELAY_US: u64 = 10_000;

/// Memory of ours that reads land in.
pub struct Slot {
    memory: SharedMemory,
}

impl Slot {
    pub fn range(&self) -> Range {
        Range::new(self.memory.addr(), self.memory.len())
    }
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
    regions: HashMap<u32, Range>,
    /// Staging memory that no read uses.
    free: Vec<Slot>,
    /// Staging memory that the reader may still write to.
    retired: Vec<Slot>,
}

fn backend(e: Failure) -> Error {
    Error::new(Status::Backend, format!("nixl: {e}; NIXL writes its reason to the standard error output"))
}

impl Agents {
    pub fn new(options: NixlOptions) -> Result<Agents> {
        let library = library::load(options.library.as_deref())?;
        let name = unique_name()?;
        let server = Some(start(library, &options, &name)?);
        let regions = HashMap::new();
        let (free, retired) = (Vec::new(), Vec::new());
        let mut agents = Agents { library, options, name, server, reader: None, generation: 0, regions, free, retired };
        match agents.renew() {
            Ok(()) => Ok(agents),
            Err(e) => agents.end_server().and(Err(e)),
        }
    }

    /// Name of the server.
    pub fn name(&self) -> CString {
        c_string(&self.name)
    }

    pub fn regions(&self) -> &HashMap<u32, Range> {
        &self.regions
    }

    /// Makes a region readable by peers and usable by reads; returns what peers have to know now.
    pub fn register(&mut self, region: u32, memory: Range) -> Result<Vec<u8>> {
        let locked = |e| reasons::not_registered(region, memory, e);
        let ended = || Error::new(Status::Internal, "nixl: the agent that peers read from was ended");
        self.server.as_mut().ok_or_else(ended)?.register(memory.addr(), memory.len()).map_err(locked)?;
        if let Some(reader) = &mut self.reader {
            reader.register(memory.addr(), memory.len()).map_err(locked)?;
        }
        self.regions.insert(region, memory);
        self.server.as_mut().ok_or_else(ended)?.metadata().map_err(backend)
    }

    /// The reader; an error where it could not be made again.
    pub(super) fn reader(&mut self) -> Result<&mut Agent> {
        let text = "nixl: the agent that reads could not be replaced";
        self.reader.as_mut().ok_or_else(|| Error::new(Status::Backend, text))
    }

    /// Staging memory for one read.
    pub fn slot(&mut self) -> Result<Slot> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = Slot { memory: SharedMemory::allocate(BATCH_BYTES as usize)? };
        let range = slot.range();
        self.reader()?.register(range.addr(), range.len()).map_err(backend)?;
        Ok(slot)
    }

    /// Nothing reads into it any more.
    pub fn give_back(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// Something may still read into it, as long as this reader lives.
    pub fn retire(&mut self, slot: Slot) {
        self.retired.push(slot);
    }

    /// Gives a request of the reader's back.
    pub fn release(&mut self, request: Request) {
        if let Some(Err(e)) = self.reader.as_mut().map(|r| r.release(request)) {
            log::warn!("kvlink: nixl: {e}");
        }
    }

    pub fn load(&mut self, name: &CStr, metadata: &[u8]) -> Result<()> {
        let whose = name.to_string_lossy().into_owned();
        let found = self.reader()?.load(metadata).map_err(|e| {
            let text = format!(
                "nixl: the metadata of agent {whose} cannot be used: {e}; the two sides' backends have no way in common \
                 (same UCX_TLS or engine_config, same version of NIXL?)"
            );
            Error::new(Status::TransportUnavailable, text)
        })?;
        if found != name.to_bytes() {
            let text = format!("nixl: metadata of agent {:?}, announced as {whose:?}", String::from_utf8_lossy(&found));
            self.forget(&CString::new(found).unwrap_or_default());
            return Err(Error::new(Status::Protocol, text));
        }
        Ok(())
    }

    pub fn forget(&mut self, name: &CStr) {
        if let Some(Err(e)) = self.reader.as_mut().map(|r| r.forget(name)) {
            log::debug!("kvlink: nixl: forgetting {}: {e}", name.to_string_lossy());
        }
    }

    /// Ends the reader: afterwards none of its reads writes any more.
    pub fn end_reader(&mut self) -> Result<()> {
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

    /// Makes a new reader after [`Agents::end_reader`]. Peers have to be loaded again.
    pub fn renew(&mut self) -> Result<()> {
        self.generation += 1;
        let name = format!("{}-{}", self.name, self.generation);
        let mut reader = start(self.library, &self.options, &name)?;
        for r in self.regions.values() {
            reader.register(r.addr(), r.len()).map_err(backend)?;
        }
        self.reader = Some(reader);
        Ok(())
    }

    /// Ends the server: afterwards no peer is served by this process any more.
    pub fn end_server(&mut self) -> Result<()> {
        let text = |e: Failure| Error::new(Status::Quarantined, format!("nixl: the agent could not be ended: {e}"));
        self.server.take().map_or(Ok(()), Agent::destroy).map_err(text)
    }
}

/// Text without zero bytes: names are ours, options were checked.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn start(library: &'static Library, options: &NixlOptions, name: &str) -> Result<Agent> {
    reasons::check_copies(library, &options.backend)?;
    let parameters: Vec<(CString, CString)> =
        options.parameters.iter().map(|(k, v)| (c_string(k), c_string(v))).collect();
    Agent::new(library, &c_string(name), &c_string(&options.backend), &parameters, PROGRESS_DELAY_US)
        .map_err(|e| reasons::not_started(library, options, e))
}
