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

/// So many looks for an event in a row, each so soon after the one before, tell an engine that polls in a loop.
const SPINNING: u32 = 4;
const SOON: Duration = Duration::from_micros(50);
/// So many events in a row that were there without its doing tell that it does not any more: one may have come while the
/// engine was kept from looking.
const AT_ONCE: u32 = 4;
/// How long work is left to an engine that polls.
pub(super) const LATER: Duration = Duration::from_millis(1);
/// So long after its last look it is expected back. Until then the thread looks by itself, every [`LATER`]: to set its alarm
/// takes 10 to 30 µs on a virtual machine, which is 5 % of a transfer of 4 MiB (`benches/nixl`).
const EXPECTED: Duration = Duration::from_millis(8);

pub(super) struct Waker {
    now: OwnedFd,
    later: OwnedFd,
    /// Somebody left something for the reactor.
    pending: AtomicBool,
    /// The thread is, or is about to be, asleep: to wake it needs a system call.
    asleep: AtomicBool,
    /// Looks of an engine since its last event, each soon after the one before; the end of the last, in nanoseconds after
    /// `start`.
    looks: AtomicU32,
    looked: AtomicU64,
    start: Instant,
    /// Not 0: events go to an engine that polls in a loop. So many more must be there by themselves until it does not.
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

    /// An engine looks for events; returns whether it does so in a loop. One that waits for them does not, nor does one that
    /// looks after an event whether there is another.
    pub fn engine_looks(&self, at: Instant, waits: bool) -> bool {
        let soon = !waits && self.since_look(at) < SOON;
        let looks = if soon { self.looks.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.looks.store(looks, Ordering::Relaxed);
        soon && (looks >= SPINNING || self.polls())
    }

    /// It has looked, and may have taken a turn before.
    pub fn engine_looked(&self, at: Instant, found: bool, turned: bool) {
        self.looked.store(self.nanoseconds(at), Ordering::Relaxed);
        if found {
            let loops = self.looks.swap(0, Ordering::Relaxed) >= SPINNING || turned;
            let left = if loops { AT_ONCE } else { self.polls.load(Ordering::SeqCst).saturating_sub(1) };
            self.polls.store(left, Ordering::SeqCst);
        }
    }

    fn since_look(&self, at: Instant) -> Duration {
        Duration::from_nanos(self.nanoseconds(at).saturating_sub(self.looked.load(Ordering::Relaxed)))
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// An engine takes a turn.
    pub fn engine_takes_turn(&self) {
        self.taken.store(true, Ordering::SeqCst);
    }

    /// An engine that polls is at it.
    pub fn engine_is_at_it(&self) -> bool {
        self.taken.swap(false, Ordering::SeqCst) && self.polls()
    }

    /// The thread need not be woken for an engine that polls.
    pub fn expects_engine(&self, now: Instant) -> bool {
        self.polls() && self.since_look(now) < EXPECTED
    }

    /// An engine polls in a loop.
    pub fn polls(&self) -> bool {
        self.polls.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(5);

    /// An engine under virtual time.
    struct Engine {
        waker: Waker,
        now: Instant,
    }

    impl Engine {
        fn new() -> Engine {
            Engine { waker: Waker::new().unwrap(), now: Instant::now() + Duration::from_secs(1) }
        }

        /// Looks after `pause`; an event comes after `waits`, or is there. Returns whether it would take a turn.
        fn look(&mut self, pause: Duration, waits: Option<Duration>, found: bool) -> bool {
            self.now += pause;
            let turns = self.waker.engine_looks(self.now, waits.is_some());
            self.now += waits.unwrap_or_default();
            self.waker.engine_looked(self.now, found, turns);
            turns
        }

        /// One that polls in a loop.
        fn looping() -> Engine {
            let mut engine = Engine::new();
            let turns: Vec<bool> = (0..6).map(|i| engine.look(STEP, None, i == 5)).collect();
            assert_eq!(turns, [false, false, false, false, true, true], "after {SPINNING}, each soon");
            assert!(engine.waker.polls());
            engine
        }
    }

    #[test]
    fn an_engine_that_polls_in_a_loop_takes_turns() {
        let mut engine = Engine::looping();
        for _ in 0..20 {
            assert!(engine.look(STEP, None, true), "its events come with its turns");
            assert!(!engine.look(SOON, None, false), "it has done something else");
        }
        assert!(engine.waker.polls());
        let waker = &engine.waker;
        assert!(waker.expects_engine(engine.now) && !waker.expects_engine(engine.now + EXPECTED));
    }

    #[test]
    fn one_that_looks_now_and_then_takes_none() {
        let mut engine = Engine::new();
        assert!((0..20).all(|i| !engine.look(SOON, None, i % 3 == 0)));
        assert!(!engine.waker.polls());
    }

    #[test]
    fn one_that_waits_takes_none_however_soon_it_does_again() {
        let mut engine = Engine::new();
        assert!((0..20).all(|_| !engine.look(STEP, Some(STEP), true)));
        assert!(!engine.waker.polls());
    }

    #[test]
    fn one_that_looks_whether_there_is_more_takes_none() {
        let mut engine = Engine::new();
        assert!((0..40).all(|i| !engine.look(STEP, None, i % 2 == 0)));
        assert!(!engine.waker.polls());
    }

    #[test]
    fn one_that_ceases_to_poll_is_noticed() {
        for waits in [None, Some(STEP)] {
            let mut engine = Engine::looping();
            for _ in 0..AT_ONCE {
                assert!(engine.waker.polls());
                assert!(!engine.look(SOON, waits, true));
            }
            assert!(!engine.waker.polls() && !engine.waker.expects_engine(engine.now));
        }
    }
}
