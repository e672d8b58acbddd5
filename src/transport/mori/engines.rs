//! The two MoRI engines of a kvlink agent.
//!
//! An engine costs a thread that polls without a pause, so the one that reads is made for the first read. What connects it with
//! a peer's memory is made for the first read, too, by a thread of its own: MoRI waits for the peer meanwhile.

use super::library::{self, unavailable};
use super::metadata::Blob;
use super::options::{Backend, MoriOptions, PollMode};
use super::request::{Ends, Request};
use super::sys::{Config, Engine, Library, Session};
use crate::error::{Error, Result, Status};
use crate::transport::vendor::{Agents, Peer, Piece, Range, State, Unread, unique_name};
use crate::wire::BOARD_REGION;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A peer's engine, and its memories.
struct Known {
    blob: Blob,
    /// Address and length.
    regions: BTreeMap<u32, (u64, u64)>,
}

enum Connection {
    Opening(JoinHandle<std::result::Result<Session, String>>),
    Open(Session),
    Failed(String),
}

struct Reader {
    engine: Arc<Engine>,
    /// The numbers of our regions.
    numbers: HashMap<u32, u32>,
    connections: HashMap<Ends, Connection>,
}

/// See the module's documentation.
pub struct Engines {
    library: &'static Library,
    options: MoriOptions,
    /// Random: no other process, and no other agent of this one, has had this name.
    name: String,
    /// `None`: it was ended.
    server: Option<Arc<Engine>>,
    reader: Option<Reader>,
    /// Readers that there have been.
    generation: u64,
    regions: BTreeMap<u32, Range>,
    blob: Blob,
    peers: HashMap<CString, Known>,
}

fn backend(text: String) -> Error {
    Error::new(Status::Backend, format!("mori: {text}"))
}

fn config(o: &MoriOptions, port: u16) -> Config {
    Config {
        host: o.host(),
        port,
        xgmi: o.backend == Backend::Xgmi,
        qp_per_transfer: o.qp_per_transfer,
        post_batch_size: o.post_batch_size.map_or(-1, |n| n as i32),
        num_workers: o.num_workers,
        poll_event: o.poll_mode == PollMode::Event,
        devices: o.devices.clone(),
    }
}

impl Engines {
    fn server(&self) -> Result<&Arc<Engine>> {
        let ended = || Error::new(Status::Internal, "mori: the engine that peers read from was ended");
        self.server.as_ref().ok_or_else(ended)
    }

    fn reader(&mut self) -> std::result::Result<&mut Reader, String> {
        if self.reader.is_none() {
            self.generation += 1;
            let name = format!("{}-{}", self.name, self.generation);
            let engine = Engine::new(self.library, &name, &config(&self.options, 0))?;
            let mut numbers = HashMap::new();
            for (region, memory) in &self.regions {
                let made = engine.register(memory.addr(), memory.len(), false)?;
                numbers.insert(*region, made.number);
            }
            self.reader = Some(Reader { engine, numbers, connections: HashMap::new() });
        }
        self.reader.as_mut().ok_or_else(|| "no reader".into())
    }

    /// Starts what of a request can be started.
    fn start(&mut self, request: &mut Request) {
        let (Some(reader), peers) = (&mut self.reader, &self.peers) else {
            return request.fail("the engine that reads is gone".into());
        };
        let Reader { engine, numbers, connections } = reader;
        let mut opened: Vec<(Ends, Connection)> = Vec::new();
        for part in &request.waiting {
            let ends = &part.ends;
            match connections.entry(ends.clone()) {
                Entry::Vacant(v) => {
                    v.insert(open(engine, numbers, peers, ends));
                }
                Entry::Occupied(o) if matches!(o.get(), Connection::Opening(h) if h.is_finished()) => {
                    let (ends, Connection::Opening(h)) = o.remove_entry() else { continue };
                    let made = h.join().unwrap_or_else(|_| Err("the thread that connects has panicked".into()));
                    opened.push((ends, made.map_or_else(Connection::Failed, Connection::Open)));
                }
                Entry::Occupied(_) => {}
            }
        }
        connections.extend(opened);
        request.start(|ends| match connections.get(ends) {
            Some(Connection::Open(session)) => Ok(Some(session)),
            Some(Connection::Failed(e)) => Err(e.clone()),
            Some(Connection::Opening(_)) | None => Ok(None),
        });
        // The next read tries again.
        connections.retain(|_, c| !matches!(c, Connection::Failed(_)));
    }
}

/// Begins to connect.
fn open(engine: &Arc<Engine>, numbers: &HashMap<u32, u32>, peers: &HashMap<CString, Known>, ends: &Ends) -> Connection {
    let known = peers.get(&ends.peer);
    let memory = known.and_then(|k| Some((k.blob.memories.get(&ends.theirs)?.clone(), k.regions.get(&ends.theirs)?.1)));
    let (Some(number), Some((desc, len)), Some(known)) = (numbers.get(&ends.own).copied(), memory, known) else {
        return Connection::Failed(format!("region {} of ours or {} of the peer's is gone", ends.own, ends.theirs));
    };
    let (engine, peer, whom) = (engine.clone(), ends.peer.clone(), known.blob.engine.clone());
    let work = move || {
        engine.add_peer(&peer, &whom)?;
        Session::open(engine, number, &peer, &desc, len)
    };
    match std::thread::Builder::new().name("kvlink-mori".into()).spawn(work) {
        Ok(handle) => Connection::Opening(handle),
        Err(e) => Connection::Failed(format!("starting a thread to connect: {e}")),
    }
}

/// The region that an address lies in, and how far.
fn within<'a>(regions: impl IntoIterator<Item = (&'a u32, (u64, u64))>, at: u64) -> Option<(u32, u64)> {
    let holds = |(region, (addr, len)): (&u32, (u64, u64))| {
        let offset = at.checked_sub(addr)?;
        (offset < len).then_some((*region, offset))
    };
    regions.into_iter().find_map(holds)
}

impl Agents for Engines {
    const NAME: &'static str = "mori";
    const MAGIC: u32 = 0x524D_564B;
    /// MoRI waits for peers' control ports for up to 5 s a message, and cannot be told otherwise.
    const REPLACING: Duration = Duration::from_secs(20);
    /// It waits for up to 5 s for room in a send queue.
    const SWIFT: bool = false;
    type Options = MoriOptions;
    type Request = Request;
    type Slot = std::convert::Infallible;

    fn new(options: MoriOptions) -> Result<Engines> {
        let library = library::load(&options)?;
        let name = unique_name()?;
        let refused = |e: String| unavailable(format!("mori: {e}"));
        let server = Engine::new(library, &name, &config(&options, options.port)).map_err(refused)?;
        let engine = server.desc().map_err(refused)?;
        let blob = Blob { version: library.version.clone(), engine, ..Blob::default() };
        let (regions, peers) = (BTreeMap::new(), HashMap::new());
        let server = Some(server);
        Ok(Engines { library, options, name, server, reader: None, generation: 0, regions, blob, peers })
    }

    fn name(&self) -> CString {
        CString::new(self.name.as_str()).unwrap_or_default()
    }

    /// The board is left out: MoRI has to connect to every memory by itself, and asking is as fast.
    fn register(&mut self, region: u32, memory: Range) -> Result<Vec<u8>> {
        if region == BOARD_REGION {
            return Ok(self.blob.encode());
        }
        let refused = |e: String| backend(format!("registering region {region} of {} bytes: {e}", memory.len()));
        let made = self.server()?.register(memory.addr(), memory.len(), true).map_err(refused)?;
        if let Some(reader) = &mut self.reader {
            let made = reader.engine.register(memory.addr(), memory.len(), false).map_err(refused)?;
            reader.numbers.insert(region, made.number);
        }
        self.regions.insert(region, memory);
        self.blob.memories.insert(region, made.desc);
        Ok(self.blob.encode())
    }

    fn regions(&self) -> &BTreeMap<u32, Range> {
        &self.regions
    }

    fn slot(&mut self) -> Result<Self::Slot> {
        Err(backend("reads land in the blocks".into()))
    }

    fn range(slot: &Self::Slot) -> Range {
        match *slot {}
    }

    fn give_back(&mut self, slot: Self::Slot) {
        match slot {}
    }

    fn retire(&mut self, slot: Self::Slot) {
        match slot {}
    }

    fn vet(peer: &Peer) -> Option<Result<()>> {
        let library = library::loaded()?;
        let vetted = Blob::decode(&peer.metadata).and_then(|blob| {
            if blob.version != library.version {
                let text = format!("our MoRI is {}, the peer's {}", library.version, blob.version);
                return Err(Error::new(Status::TransportUnavailable, text));
            }
            let whom = library.check_peer(&peer.agent, &blob.engine);
            whom.map_err(|e| Error::new(Status::Protocol, format!("mori: {e}")))
        });
        Some(vetted)
    }

    fn load(&mut self, peer: &Peer) -> Result<()> {
        let blob = Blob::decode(&peer.metadata)?;
        self.peers.insert(peer.agent.clone(), Known { blob, regions: peer.regions.clone() });
        Ok(())
    }

    /// MoRI keeps what it knows of a peer until its engine ends.
    fn forget(&mut self, name: &CStr) {
        self.peers.remove(name);
        if let Some(r) = &mut self.reader {
            // One that is being opened is waited for when the reader ends.
            r.connections.retain(|e, c| e.peer.as_c_str() != name || matches!(c, Connection::Opening(_)));
        }
    }

    fn read(&mut self, peer: &CStr, pieces: &[Piece]) -> std::result::Result<Request, Unread> {
        self.reader().map_err(|e| Unread::Here(backend(e)))?;
        let known = self.peers.get(peer).ok_or_else(|| Unread::There("it is not known".into()))?;
        let mut request = Request::default();
        for p in pieces {
            let own = self.regions.iter().map(|(i, r)| (i, (r.addr() as u64, r.len() as u64)));
            let own = within(own, p.local as u64);
            let theirs = within(known.regions.iter().map(|(i, r)| (i, *r)), p.remote as u64);
            let (Some((own, local)), Some((theirs, remote))) = (own, theirs) else {
                return Err(Unread::There(format!("{} bytes are outside of what is registered", p.len)));
            };
            request.add(&Ends { peer: peer.into(), own, theirs }, local, remote, p.len as u64);
        }
        Ok(request)
    }

    fn post(&mut self, request: &mut Request) -> State {
        self.start(request);
        request.state()
    }

    fn state(&mut self, request: &mut Request) -> State {
        if !request.waiting.is_empty() {
            self.start(request);
        }
        request.state()
    }

    fn withdraw(&mut self, request: &mut Request) -> bool {
        request.withdraw()
    }

    fn release(&mut self, request: Request) {
        drop(request);
    }

    fn end_reader(&mut self) -> Result<()> {
        let Some(Reader { engine, connections, .. }) = self.reader.take() else { return Ok(()) };
        for connection in connections.into_values() {
            if let Connection::Opening(handle) = connection {
                drop(handle.join());
            }
        }
        let text = |e| Error::new(Status::Quarantined, format!("mori: the engine that reads could not be ended: {e}"));
        engine.end().map_err(text)
    }

    /// It is made when it is needed.
    fn renew(&mut self) -> Result<()> {
        Ok(())
    }

    fn end_server(&mut self) -> Result<()> {
        let text = |e| Error::new(Status::Quarantined, format!("mori: the engine could not be ended: {e}"));
        self.server.take().map_or(Ok(()), Engine::end).map_err(text)
    }
}
