//! What a peer needs to read from us, as bytes.
//!
//! Little-endian: magic u32, version u16, backend, agent name and the library's own metadata (each a u32 length and the
//! bytes), region count u32, then per region: index u32, address u64, length u64.

use crate::error::{Error, Result, Status};
use crate::layout::limit;
use crate::wire::{Reader, Writer};
use std::ffi::CString;

const VERSION: u16 = 1;

/// A region of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub index: u32,
    pub addr: u64,
    pub len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub backend: String,
    /// Unique: a restarted process has another one.
    pub agent: CString,
    pub blob: Vec<u8>,
    pub regions: Vec<Region>,
}

impl Metadata {
    pub fn encode(&self, magic: u32) -> Vec<u8> {
        let mut w = Writer::new();
        w.u32(magic);
        w.u16(VERSION);
        w.string(&self.backend);
        w.bytes(self.agent.as_bytes());
        w.bytes(&self.blob);
        w.u32(self.regions.len() as u32);
        for r in &self.regions {
            w.u32(r.index);
            w.u64(r.addr);
            w.u64(r.len);
        }
        w.finish()
    }

    /// From bytes of the transport of this name and magic.
    pub fn decode(name: &str, ours: u32, bytes: &[u8]) -> Result<Metadata> {
        let bad = |text: String| Error::new(Status::Protocol, format!("{name} metadata: {text}"));
        let mut r = Reader::new(bytes);
        let (magic, version) = (r.u32("metadata magic")?, r.u16("metadata version")?);
        if magic != ours || version != VERSION {
            return Err(bad(format!("magic {magic:#x} version {version}, expected {ours:#x} version {VERSION}")));
        }
        let backend = r.string("backend", 64)?;
        let agent = r.bytes("agent", 256)?.to_vec();
        let agent = CString::new(agent).map_err(|_| bad("the agent's name contains a zero byte".into()))?;
        let blob = r.bytes("metadata blob", bytes.len())?.to_vec();
        let n = r.u32("region count")?;
        if n as usize > limit::REGIONS {
            return Err(bad(format!("{n} regions, at most {}", limit::REGIONS)));
        }
        let mut regions: Vec<Region> = Vec::new();
        for _ in 0..n {
            let (index, addr, len) = (r.u32("region index")?, r.u64("region address")?, r.u64("region length")?);
            if addr == 0 || len == 0 || addr.checked_add(len).is_none() || usize::try_from(addr + len).is_err() {
                return Err(bad(format!("region {index} at {addr:#x} of {len} bytes")));
            }
            if regions.iter().any(|r| r.index == index) {
                return Err(bad(format!("region {index} is listed twice")));
            }
            regions.push(Region { index, addr, len });
        }
        r.end("metadata")?;
        Ok(Metadata { backend, agent, blob, regions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: u32 = 0x4E4C_564B;

    fn decode(bytes: &[u8]) -> Result<Metadata> {
        Metadata::decode("nixl", MAGIC, bytes)
    }

    fn metadata() -> Metadata {
        Metadata {
            backend: "UCX".into(),
            agent: CString::new(b"a name \xff".to_vec()).unwrap(),
            blob: vec![0, 1, 0xff],
            regions: vec![Region { index: 0, addr: 4096, len: 1 }, Region { index: 7, addr: 1 << 40, len: 1 << 30 }],
        }
    }

    #[test]
    fn decodes_what_it_encodes() {
        assert_eq!(decode(&metadata().encode(MAGIC)).unwrap(), metadata());
    }

    #[test]
    fn refuses_what_it_did_not_encode() {
        let good = metadata().encode(MAGIC);
        for end in 0..good.len() {
            assert_eq!(decode(&good[..end]).unwrap_err().status(), Status::Protocol);
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        let mut m = metadata();
        m.regions[1].index = 0;
        assert!(decode(&m.encode(MAGIC)).unwrap_err().message().contains("twice"));
        m.regions[1] = Region { index: 1, addr: u64::MAX, len: 2 };
        assert!(decode(&m.encode(MAGIC)).unwrap_err().message().contains("region 1"));
    }
}
