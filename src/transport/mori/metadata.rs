//! What a peer needs to know of MoRI's engine and memories.
//!
//! Little-endian: version of MoRI, MoRI's own description of the engine (each a u32 length and the bytes), memory count u32,
//! then per memory: region u32, MoRI's own description of it (u32 length and the bytes).

use crate::error::{Error, Result, Status};
use crate::layout::limit;
use crate::wire::{Reader, Writer};
use std::collections::BTreeMap;

/// More than MoRI's descriptions have: some 80 and 180 bytes, and names.
const LONGEST: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blob {
    pub version: String,
    pub engine: Vec<u8>,
    pub memories: BTreeMap<u32, Vec<u8>>,
}

impl Blob {
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.string(&self.version);
        w.bytes(&self.engine);
        w.u32(self.memories.len() as u32);
        for (region, desc) in &self.memories {
            w.u32(*region);
            w.bytes(desc);
        }
        w.finish()
    }

    pub fn decode(bytes: &[u8]) -> Result<Blob> {
        let mut r = Reader::new(bytes);
        let version = r.string("MoRI's version", 256)?;
        let engine = r.bytes("MoRI's engine", LONGEST)?.to_vec();
        let mut memories = BTreeMap::new();
        for _ in 0..r.count("MoRI's memories", limit::REGIONS, 8)? {
            let region = r.u32("region")?;
            if memories.insert(region, r.bytes("MoRI's memory", LONGEST)?.to_vec()).is_some() {
                return Err(Error::new(Status::Protocol, format!("mori metadata: region {region} is listed twice")));
            }
        }
        r.end("mori metadata")?;
        Ok(Blob { version, engine, memories })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_encodes_and_nothing_else() {
        let memories = BTreeMap::from([(0, vec![1, 2, 3]), (7, vec![0xff])]);
        let blob = Blob { version: "1.2.4".into(), engine: vec![9; 77], memories };
        let bytes = blob.encode();
        assert_eq!(Blob::decode(&bytes).unwrap(), blob);
        for end in 0..bytes.len() {
            assert_eq!(Blob::decode(&bytes[..end]).unwrap_err().status(), Status::Protocol);
        }
    }
}
