//! A peer's memory as we can reach it: mapped, or copied across processes.

use super::identity;
use super::metadata::{File, Identity, Metadata, Region, way};
use super::sys::{self, Foreign, Mapping, PIECES, Source, Target};
use crate::error::{Error, Result, Status};
use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// Something, or the reason why it is not to be had.
type Told<T> = std::result::Result<T, String>;

#[derive(Debug)]
struct RemoteRegion {
    addr: u64,
    len: u64,
    mapping: Option<Mapping>,
}

/// Where bytes of a peer's region are.
#[derive(Debug)]
pub(super) enum Reach {
    Mapped(Source),
    Foreign(Foreign),
}

/// What [`Remote::probe`] found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Every region is mapped.
    pub shm: bool,
    /// Cross-process copies work.
    pub cma: bool,
    /// Why not, one sentence per way.
    pub rejected: Vec<String>,
}

/// A linked peer's process and regions.
#[derive(Debug)]
pub(super) struct Remote {
    pid: i32,
    nonce: [u8; 16],
    nonce_addr: usize,
    regions: BTreeMap<u32, RemoteRegion>,
}

impl Remote {
    /// Finds out how the peer's memory can be reached. `ways` are those that we allow.
    pub fn probe(meta: &Metadata, own: &Identity, ways: u16) -> (Remote, Found) {
        let plain = |r: &Region| (r.index, RemoteRegion { addr: r.addr, len: r.len, mapping: None });
        let mut remote = Remote {
            pid: meta.identity.pid as i32,
            nonce: meta.nonce,
            nonce_addr: usize::try_from(meta.nonce_addr).unwrap_or(0),
            regions: meta.regions.iter().map(plain).collect(),
        };
        let mut found = Found::default();
        let elsewhere = same_process(&meta.identity, own).err();
        let usable = |bit: u16| -> Told<()> {
            match &elsewhere {
                _ if ways & bit == 0 => Err("switched off by our options".into()),
                _ if meta.ways & bit == 0 => Err("switched off by the peer's options".into()),
                Some(why) => Err(why.clone()),
                None => Ok(()),
            }
        };
        match usable(way::SHM).and_then(|()| remote.map(meta)) {
            Ok(()) => found.shm = true,
            Err(why) => found.rejected.push(format!("host/shm: {why}")),
        }
        match usable(way::CMA).and_then(|()| remote.check_nonce().map_err(|e| e.message().to_string())) {
            Ok(()) => found.cma = true,
            Err(why) => found.rejected.push(format!("host/cma: {why}")),
        }
        (remote, found)
    }

    /// Maps whatever can be mapped; says what could not.
    fn map(&mut self, meta: &Metadata) -> Told<()> {
        let mut failed: Option<String> = None;
        let mut missing = 0;
        for r in &meta.regions {
            let mapped = match r.file {
                None => Err("is not shareable memory".to_string()),
                Some(f) => map_region(self.pid, r, f),
            };
            match (mapped, self.regions.get_mut(&r.index)) {
                (Ok(m), Some(slot)) => slot.mapping = Some(m),
                (Ok(_), None) => {}
                (Err(why), _) => {
                    missing += 1;
                    failed.get_or_insert_with(|| format!("region {} {why}", r.index));
                }
            }
        }
        match failed {
            None if meta.regions.is_empty() => Err("the peer has no regions".into()),
            None => Ok(()),
            Some(why) if missing > 1 => Err(format!("{why}; {} more regions cannot be mapped", missing - 1)),
            Some(why) => Err(why),
        }
    }

    /// Reads the peer's nonce where it said it is: proves access, and that this is still the same process.
    fn check_nonce(&self) -> Result<()> {
        let mut got = [0; 16];
        self.read(&mut vec![], &mut vec![], &mut got)
            .map(|_| ())
            .map_err(|e| e.within(format!("probing process {}", self.pid)))
    }

    /// The word at an offset, read after everything that was copied before.
    pub fn peek(&self, region: u32, offset: u64) -> Option<u64> {
        let mut word = [0u8; 8];
        if !offset.is_multiple_of(8) || self.len(region)?.checked_sub(8)? < offset {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        match self.reach(region, offset, 8).ok()? {
            Reach::Mapped(source) => sys::copy(Target::of(&mut word), source),
            Reach::Foreign(piece) => {
                let (mut local, mut remote) = (vec![Target::of(&mut word)], vec![piece]);
                self.read(&mut local, &mut remote, &mut [0; 16]).ok()?;
            }
        }
        Some(u64::from_le_bytes(word))
    }

    pub fn len(&self, region: u32) -> Option<u64> {
        self.regions.get(&region).map(|r| r.len)
    }

    /// Where `len` bytes at `offset` are. Bounds were checked when the job was posted.
    #[inline]
    pub fn reach(&self, region: u32, offset: u64, len: u64) -> Result<Reach> {
        let found = self.regions.get(&region).and_then(|r| match &r.mapping {
            Some(m) => m.source(offset, len).map(Reach::Mapped),
            None => Some(Reach::Foreign(Foreign { addr: r.addr.checked_add(offset)? as usize, len: len as usize })),
        });
        found.ok_or_else(|| {
            Error::new(
                Status::Internal,
                format!("region {region}, offset {offset}, length {len}: checked, yet not there"),
            )
        })
    }

    /// Copies from `remote` to `local`, which have the same bytes in total and each room for one piece more, and reads
    /// the nonce in the same call. Returns the bytes copied, all of them unless some are not readable.
    pub fn read(&self, local: &mut Vec<Target>, remote: &mut Vec<Foreign>, nonce: &mut [u8; 16]) -> Result<u64> {
        use sys::Join;
        debug_assert!(local.len() < PIECES && remote.len() < PIECES);
        let wanted: usize = local.iter().map(Join::len).sum();
        local.push(Target::of(nonce));
        remote.push(Foreign { addr: self.nonce_addr, len: nonce.len() });
        let result = sys::read_process(self.pid, local, remote);
        local.pop();
        remote.pop();
        match result {
            Ok(n) if n == wanted + nonce.len() && *nonce == self.nonce => Ok(wanted as u64),
            // A short copy stops at an unreadable byte; the next call begins there and says so. Bytes that were copied
            // without their nonce are vouched for by the next one: a process that went away never comes back.
            Ok(n) if n > 0 && n < wanted => Ok(n as u64),
            Ok(n) if n < wanted => Err(self.unreadable(remote)),
            Ok(_) => Err(Error::new(
                Status::Incarnation,
                format!("process {} is not the one that we linked to: its nonce differs", self.pid),
            )),
            Err(Errno::SRCH) => Err(Error::new(Status::PeerDead, format!("process {} is gone", self.pid))),
            Err(Errno::FAULT) => Err(self.unreadable(remote)),
            Err(Errno::PERM) => Err(Error::new(Status::Permission, denied(self.pid))),
            Err(e) => Err(Error::new(Status::System, format!("process_vm_readv from process {}: {e}", self.pid))),
        }
    }

    fn unreadable(&self, remote: &[Foreign]) -> Error {
        let at = remote.first().map_or(self.nonce_addr, |f| f.addr);
        let region = self.regions.iter().find(|(_, r)| r.addr <= at as u64 && (at as u64) < r.addr + r.len);
        let what =
            region.map_or("its nonce".to_string(), |(i, r)| format!("region {i} at offset {}", at as u64 - r.addr));
        Error::new(Status::Incarnation, format!("process {} has no memory at {at:#x}, {what}", self.pid))
    }
}

/// Why the kernel may have said no.
fn denied(pid: i32) -> String {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let yama = match scope.as_deref().map(str::trim) {
        None | Some("0") => String::new(),
        Some(n) => {
            format!("; kernel.yama.ptrace_scope is {n}: the peer must set ptracer_any, or we need CAP_SYS_PTRACE")
        }
    };
    format!("process_vm_readv from process {pid}: {} (same user and ptrace rights are needed{yama})", Errno::PERM)
}

/// Whether the peer is a process that we can see, and the very one that made the metadata.
fn same_process(peer: &Identity, own: &Identity) -> Told<()> {
    if peer.boot != own.boot {
        return Err("the peer is on another host (boot ids differ)".into());
    }
    if peer.namespace != own.namespace {
        return Err(format!("the peer is in pid namespace {}, we are in {}", peer.namespace, own.namespace));
    }
    match identity::start_time(&peer.pid.to_string()) {
        Ok(t) if t == peer.start => Ok(()),
        Ok(t) => Err(format!("pid {} was reused: started at tick {t}, the peer at {}", peer.pid, peer.start)),
        Err(e) => Err(e.message().to_string()),
    }
}

fn map_region(pid: i32, region: &Region, file: File) -> Told<Mapping> {
    let path = format!("/proc/{pid}/fd/{}", file.fd);
    let failed = |e: Errno| format!("({path}): {e}");
    let len = usize::try_from(region.len).map_err(|_| format!("({path}): {} bytes", region.len))?;
    // The file is looked at before it is opened: opening a device or a pipe could do something.
    let verify = |stat: rustix::fs::Stat| -> Told<()> {
        if (stat.st_dev, stat.st_ino) != (file.device, file.inode) {
            return Err(format!("({path}): is inode {}, the peer announced {}", stat.st_ino, file.inode));
        }
        if stat.st_size as u64 != region.len {
            return Err(format!("({path}): has {} bytes, the peer announced {}", stat.st_size, region.len));
        }
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::RegularFile => Ok(()),
            other => Err(format!("({path}): is a {other:?}, not memory")),
        }
    };
    verify(rustix::fs::stat(path.as_str()).map_err(failed)?)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path.as_str(), flags, Mode::empty()).map_err(failed)?;
    verify(rustix::fs::fstat(&fd).map_err(failed)?)?;
    // Without this seal the peer could shrink the file and kill us with SIGBUS.
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(failed)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(format!("({path}): is not sealed against shrinking"));
    }
    Mapping::new(fd.as_fd(), len).map_err(|e| format!("({path}): mapping {len} bytes: {e}"))
}
