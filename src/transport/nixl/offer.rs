//! NIXL as a library that reads.

use super::agents::{Agents, Slot};
use super::options::NixlOptions;
use super::sys::{self, Range, Request};
use crate::error::Result;
use crate::transport::vendor::{self, Landing, Peer, Piece, State, Unread, VendorOptions};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

impl VendorOptions for NixlOptions {
    fn check(&self) -> Result<()> {
        NixlOptions::check(self)
    }

    fn report(&self) -> String {
        NixlOptions::report(self)
    }

    fn backend(&self) -> &str {
        &self.backend
    }

    fn landing(&self) -> Landing {
        self.landing
    }

    fn patience(&self) -> Duration {
        self.patience
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
    type Options = NixlOptions;
    type Request = Request;
    type Slot = Slot;

    fn new(options: NixlOptions) -> Result<Agents> {
        Agents::new(options)
    }

    fn name(&self) -> CString {
        Agents::name(self)
    }

    fn register(&mut self, region: u32, memory: Range) -> Result<Vec<u8>> {
        Agents::register(self, region, memory)
    }

    fn regions(&self) -> &HashMap<u32, Range> {
        Agents::regions(self)
    }

    fn slot(&mut self) -> Result<Slot> {
        Agents::slot(self)
    }

    fn range(slot: &Slot) -> Range {
        slot.range()
    }

    fn give_back(&mut self, slot: Slot) {
        Agents::give_back(self, slot);
    }

    fn retire(&mut self, slot: Slot) {
        Agents::retire(self, slot);
    }

    fn load(&mut self, peer: &Peer) -> Result<()> {
        Agents::load(self, &peer.agent, &peer.metadata)
    }

    fn forget(&mut self, name: &CStr) {
        Agents::forget(self, name);
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
        Agents::release(self, request);
    }

    fn end_reader(&mut self) -> Result<()> {
        Agents::end_reader(self)
    }

    fn renew(&mut self) -> Result<()> {
        Agents::renew(self)
    }

    fn end_server(&mut self) -> Result<()> {
        Agents::end_server(self)
    }
}
