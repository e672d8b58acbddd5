//! Readiness of descriptors: a safe, level-triggered epoll.

use crate::error::{Error, Result, Status};
use rustix::event::epoll;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Waits for descriptors. Shared by the reactor and its transports; each chooses its own keys.
#[derive(Debug)]
pub struct Poller {
    fd: OwnedFd,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Data, a new connection, or the end of the stream.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

/// A ready descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The key it was added with.
    pub key: u64,
    /// Something can be read, or the stream ended.
    pub read: bool,
    /// Something can be written, or the stream broke.
    pub write: bool,
}

fn system(what: &str, e: rustix::io::Errno) -> Error {
    Error::new(Status::System, format!("{what}: {e}"))
}

fn flags(i: Interest) -> epoll::EventFlags {
    let mut f = epoll::EventFlags::empty();
    f.set(epoll::EventFlags::IN, i.read);
    f.set(epoll::EventFlags::OUT, i.write);
    f
}

impl Poller {
    /// An empty set.
    pub fn new() -> Result<Poller> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| system("epoll_create1", e))?;
        Ok(Poller { fd })
    }

    /// Adds a descriptor under a key.
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> Result<()> {
        epoll::add(&self.fd, fd, epoll::EventData::new_u64(key), flags(interest)).map_err(|e| system("epoll_ctl", e))
    }

    /// Changes what is waited for.
    pub fn modify(&self, fd: impl AsFd, key: u64, interest: Interest) -> Result<()> {
        epoll::modify(&self.fd, fd, epoll::EventData::new_u64(key), flags(interest)).map_err(|e| system("epoll_ctl", e))
    }

    /// Removes a descriptor; a closed one is gone already.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.fd, fd);
    }

    /// Waits until something is ready or the time is over (`None`: for ever); fills `out`.
    pub fn wait(&self, timeout: Option<Duration>, out: &mut Vec<Ready>) -> Result<()> {
        out.clear();
        let time = match timeout {
            Some(t) => Some(
                rustix::event::Timespec::try_from(t)
                    .map_err(|_| Error::new(Status::InvalidArgument, format!("a timeout of {t:?}")))?,
            ),
            None => None,
        };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut events), time.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(system("epoll_wait", e)),
        }
        let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        out.extend(events.iter().map(|e| {
            let f = e.flags;
            Ready {
                key: e.data.u64(),
                read: f.intersects(epoll::EventFlags::IN | broken),
                write: f.intersects(epoll::EventFlags::OUT | broken),
            }
        }));
        Ok(())
    }
}
