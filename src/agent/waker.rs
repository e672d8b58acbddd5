//! What wakes the reactor's thread: at once, or where an engine polls, only if it does not come to the work itself.

use crate::error::{Error, Result, Status};
use crate::transport::{Interest, Poller, Ready};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many looks for events, each so soon after the one before, tell an engine that polls in a loop.
const SPINNING: u32 = 4;
const SOON: Duration = Duration::from_micros(50);
/// So many events in a row that were there at the first looks tell that it does not any more: one may have come while the
/// engine was kept from looking.
const AT_ONCE: u32 = 4;
/// How long work is left to an engine that polls.
pub(super) const LATER: Duration = Duration::from_millis(1);

pub(super) struct Waker {
    now: OwnedFd,
    later: OwnedFd,
    /// Somebody left something for the reactor.
    pending: AtomicBool,
    /// The thread is, or is about to be, asleep: to wake it needs a system call.
    asleep: AtomicBool,
    /// Looks of engines for events, each soon after the one before; the end of the last, in nanoseconds after `start`.
    looks: AtomicU32,
    looked: AtomicU64,
    start: Instant,
    /// Not 0: events go to an engine that polls in a loop. So many more must be there at first looks until it does not.
    polls: AtomicU32,
    /// An engine took a turn since the thread last asked.
    taken: AtomicBool,
}

impl Waker {
    pub fn new() -> Result<Waker> {
        let system = |what: &str, e: rustix::io::Errno| Error::new(Status::System, format!("{what}: {e}"));
        Ok(Waker {
            now: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| system("eventfd", e))?,
            later: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
                .map_err(|e| system("timerfd_create", e))?,
            pending: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
            looks: AtomicU32::new(0),
            looked: AtomicU64::new(0),
            start: Instant::now(),
            polls: AtomicU32::new(0),
            taken: AtomicBool::new(false),
        })
    }

    /// Lets a poller wake from it.
    pub fn watch(&self, poller: &Poller, key: u64) -> Result<()> {
        let only_read = Interest { read: true, write: false };
        poller.add(&self.now, key, only_read)?;
        poller.add(&self.later, key, only_read)
    }

    /// Makes the reactor look at the endpoint and the inbox. Either it sees `pending` before it sleeps, or we see that it
    /// sleeps: both are sequentially consistent.
    pub fn wake(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) && !(self.polls() && self.wake_later()) {
            let _ = rustix::io::write(&self.now, &1u64.to_ne_bytes());
        }
    }

    fn wake_later(&self) -> bool {
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec { tv_sec: 0, tv_nsec: LATER.subsec_nanos().into() };
        let time = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.later, TimerfdTimerFlags::empty(), &time).is_ok()
    }

    /// Something was left; the turn that asks takes it.
    pub fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }

    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// The thread is about to sleep; what was left before is still pending.
    pub fn falls_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// The thread is awake, and this was ready.
    pub fn is_awake(&self, ready: &[Ready]) {
        self.asleep.store(false, Ordering::SeqCst);
        if !ready.is_empty() {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.now, &mut count);
            let _ = rustix::io::read(&self.later, &mut count);
        }
    }

    /// An engine looks for events; returns whether it does so in a loop.
    pub fn engine_looks(&self) -> bool {
        let soon = self.now().saturating_sub(self.looked.load(Ordering::Relaxed)) < SOON.as_nanos() as u64;
        let looks = if soon { self.looks.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.looks.store(looks, Ordering::Relaxed);
        looks >= SPINNING
    }

    /// It has looked.
    pub fn engine_looked(&self, found: bool) {
        self.looked.store(self.now(), Ordering::Relaxed);
        if found {
            let loops = self.looks.load(Ordering::Relaxed) >= SPINNING;
            let left = if loops { AT_ONCE } else { self.polls.load(Ordering::SeqCst).saturating_sub(1) };
            self.polls.store(left, Ordering::SeqCst);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// An engine takes a turn.
    pub fn engine_takes_turn(&self) {
        self.taken.store(true, Ordering::SeqCst);
    }

    /// An engine that polls is at it.
    pub fn engine_is_at_it(&self) -> bool {
        self.taken.swap(false, Ordering::SeqCst) && self.polls()
    }

    pub fn polls(&self) -> bool {
        self.polls.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_engine_that_looks_in_a_loop_takes_turns() {
        let waker = Waker::new().unwrap();
        let look = || {
            let loops = waker.engine_looks();
            waker.engine_looked(false);
            loops
        };
        for _ in 0..20 {
            std::thread::sleep(SOON);
            assert!(!look(), "now and then");
        }
        assert!((0..1_000_000).any(|_| look()), "in a loop");
        waker.engine_looked(true);
        for _ in 0..AT_ONCE {
            assert!(waker.polls());
            std::thread::sleep(SOON);
            assert!(!look());
            waker.engine_looked(true);
        }
        assert!(!waker.polls());
    }
}
