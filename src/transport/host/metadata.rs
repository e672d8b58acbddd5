//! What a peer needs to know of us, as bytes.
//!
//! Little-endian: magic u32, version u16, ways u16, boot id 16 B, pid namespace u64, pid u32, start time u64,
//! nonce 16 B, nonce address u64, streams u32, region count u32, then per region: index u32, descriptor i32 (-1: not shareable),
//! address u64, length u64, device u64, inode u64.

use super::options::MOST_STREAMS;
use crate::error::{Error, Result, Status};
use crate::layout::limit;

const MAGIC: u32 = 0x484C_564B;
const VERSION: u16 = 1;
const REGION_BYTES: usize = 40;

/// Ways that a side allows, as bits.
pub(super) mod way {
    pub const SHM: u16 = 1;
    pub const CMA: u16 = 2;
    pub const TCP: u16 = 4;
}

/// Which process on which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Random per boot of a host.
    pub boot: [u8; 16],
    /// Inode of the pid namespace.
    pub namespace: u64,
    pub pid: u32,
    /// Clock ticks after boot.
    pub start: u64,
}

/// A file behind a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Its descriptor in the peer.
    pub fd: i32,
    pub device: u64,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub index: u32,
    pub addr: u64,
    pub len: u64,
    pub file: Option<File>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub ways: u16,
    pub identity: Identity,
    /// Random per transport, to be found at `nonce_addr`.
    pub nonce: [u8; 16],
    pub nonce_addr: u64,
    /// Data sockets that it wants for a link.
    pub streams: u32,
    pub regions: Vec<Region>,
}

impl Metadata {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(80 + self.regions.len() * REGION_BYTES);
        b.extend(MAGIC.to_le_bytes());
        b.extend(VERSION.to_le_bytes());
        b.extend(self.ways.to_le_bytes());
        b.extend(self.identity.boot);
        b.extend(self.identity.namespace.to_le_bytes());
        b.extend(self.identity.pid.to_le_bytes());
        b.extend(self.identity.start.to_le_bytes());
        b.extend(self.nonce);
        b.extend(self.nonce_addr.to_le_bytes());
        b.extend(self.streams.to_le_bytes());
        b.extend((self.regions.len() as u32).to_le_bytes());
        for r in &self.regions {
            let f = r.file.unwrap_or(File { fd: -1, device: 0, inode: 0 });
            b.extend(r.index.to_le_bytes());
            b.extend(f.fd.to_le_bytes());
            for v in [r.addr, r.len, f.device, f.inode] {
                b.extend(v.to_le_bytes());
            }
        }
        b
    }

    /// # Errors
    /// [`Status::Protocol`] for anything that [`encode`](Self::encode) does not make, [`Status::Version`] for another version.
    pub fn decode(bytes: &[u8]) -> Result<Metadata> {
        let mut r = Reader { rest: bytes, total: bytes.len() };
        let magic = r.u32("magic")?;
        if magic != MAGIC {
            return Err(protocol(format!("magic {magic:#x} where {MAGIC:#x} is expected")));
        }
        let version = r.u16("version")?;
        if version != VERSION {
            return Err(Error::new(
                Status::Version,
                format!("host metadata: version {version}, this side knows {VERSION}"),
            ));
        }
        let ways = r.u16("ways")?;
        let identity = Identity {
            boot: r.array("boot id")?,
            namespace: r.u64("pid namespace")?,
            pid: r.u32("pid")?,
            start: r.u64("start time")?,
        };
        if identity.pid == 0 || i32::try_from(identity.pid).is_err() {
            return Err(protocol(format!("pid {} is none", identity.pid)));
        }
        let (nonce, nonce_addr) = (r.array("nonce")?, r.u64("nonce address")?);
        let streams = r.u32("number of streams")?;
        if !(1..=MOST_STREAMS as u32).contains(&streams) {
            return Err(protocol(format!("{streams} streams, 1 to {MOST_STREAMS} are allowed")));
        }
        let count = r.u32("region count")? as usize;
        if count > limit::REGIONS {
            return Err(protocol(format!("{count} regions, at most {} are allowed", limit::REGIONS)));
        }
        let needed = count * REGION_BYTES;
        if r.rest.len() != needed {
            return Err(protocol(format!("{} bytes of regions where {count} regions take {needed}", r.rest.len())));
        }
        let mut regions: Vec<Region> = Vec::with_capacity(count);
        for _ in 0..count {
            let (index, fd) = (r.u32("region index")?, r.u32("descriptor")? as i32);
            let (addr, len) = (r.u64("region address")?, r.u64("region length")?);
            let (device, inode) = (r.u64("device")?, r.u64("inode")?);
            if len == 0 || addr.checked_add(len).is_none() {
                return Err(protocol(format!("region {index} of {len} bytes at {addr:#x}")));
            }
            let file = (fd >= 0).then_some(File { fd, device, inode });
            regions.push(Region { index, addr, len, file });
        }
        let mut indices: Vec<u32> = regions.iter().map(|r| r.index).collect();
        indices.sort_unstable();
        if let Some(twice) = indices.windows(2).find(|w| w[0] == w[1]) {
            return Err(protocol(format!("region {} twice", twice[0])));
        }
        Ok(Metadata { ways, identity, nonce, nonce_addr, streams, regions })
    }
}

fn protocol(what: String) -> Error {
    Error::new(Status::Protocol, format!("host metadata: {what}"))
}

struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(protocol(format!("{} bytes end within the {what}", self.total))),
        }
    }

    fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(regions: usize) -> Metadata {
        let region = |i: usize| Region {
            index: i as u32 * 3,
            addr: 0x7000_0000 + i as u64 * 4096,
            len: 4096,
            file: i.is_multiple_of(2).then_some(File { fd: i as i32, device: 1, inode: 77 + i as u64 }),
        };
        Metadata {
            ways: way::SHM | way::CMA | way::TCP,
            identity: Identity { boot: [7; 16], namespace: 4_026_531_836, pid: 4242, start: 99 },
            nonce: [9; 16],
            nonce_addr: 0x5555_0000,
            streams: 4,
            regions: (0..regions).map(region).collect(),
        }
    }

    #[test]
    fn survives_the_wire() {
        for n in [0, 1, 17] {
            assert_eq!(Metadata::decode(&sample(n).encode()).unwrap(), sample(n));
        }
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let b = sample(2).encode();
        for n in 0..b.len() {
            assert_eq!(Metadata::decode(&b[..n]).unwrap_err().status(), Status::Protocol, "{n} bytes");
        }
        assert_eq!(Metadata::decode(&[&b[..], &[0]].concat()).unwrap_err().status(), Status::Protocol);
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_name() {
        let refuse = |edit: &dyn Fn(&mut Metadata), says: &str| {
            let mut m = sample(2);
            edit(&mut m);
            let e = Metadata::decode(&m.encode()).unwrap_err();
            assert_eq!(e.status(), Status::Protocol);
            assert!(e.message().contains(says), "{e}");
        };
        refuse(&|m| m.identity.pid = 0, "pid 0");
        refuse(&|m| m.identity.pid = u32::MAX, "pid 4294967295");
        refuse(&|m| m.streams = 0, "0 streams");
        refuse(&|m| m.streams = 65, "65 streams, 1 to 64");
        refuse(&|m| m.regions[1].len = u64::MAX, "18446744073709551615 bytes");
        refuse(&|m| m.regions[1].len = 0, "of 0 bytes");
        refuse(&|m| m.regions[1].index = 0, "region 0 twice");
        let mut bomb = sample(0).encode();
        let n = bomb.len();
        bomb[n - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Metadata::decode(&bomb).unwrap_err().message().contains("4294967295 regions"));
        let mut other = sample(0).encode();
        other[4] = 9;
        assert_eq!(Metadata::decode(&other).unwrap_err().status(), Status::Version);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(tail in prop::collection::vec(any::<u8>(), 0..400), flip in 0usize..160) {
            let mut b = sample(2).encode();
            let at = flip % b.len();
            b[at] ^= tail.first().copied().unwrap_or(1) | 1;
            for bytes in [&b[..], &tail[..]] {
                if let Ok(m) = Metadata::decode(bytes) {
                    prop_assert_eq!(Metadata::decode(&m.encode()).unwrap(), m);
                }
            }
        }
    }
}
