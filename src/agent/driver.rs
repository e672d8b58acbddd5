//! Who drives the reactor: a thread of its own, and an engine's thread that polls without waiting.
//!
//! Waking a sleeping thread takes tens of microseconds on a virtual machine, some of them its waker's; an engine that polls in
//! a loop is awake anyway, and carries its transfers through by itself. So the thread leaves the turns to it, and comes when
//! they stop. No other engine's thread takes turns: one that the scheduler takes its core from in the middle of one would
//! stop the heartbeats, for seconds where it had yielded in a loop before.

use super::Shared;
use super::calls::PoisonOnUnwind;
use super::reactor::{Reactor, SLICE};
use super::waker::LATER;
use crate::error::{Error, Result, Status};
use crate::proto::{Event, EventKind};
use crate::transport::{Poller, Ready, Slice};
use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the thread keeps looking after a call before it sleeps: the next call of a busy engine is met awake.
const LINGER: Duration = Duration::from_micros(50);
/// Bytes that an engine's thread moves in one poll at most.
const POLL_SLICE: u64 = 128 << 10;

pub(super) struct Driver<'a> {
    pub shared: &'a Shared,
    pub poller: &'a Poller,
    pub reactor: &'a Mutex<Reactor>,
}

impl Driver<'_> {
    /// The thread: runs until the agent is stopped. A panic poisons the agent instead of ending the process.
    pub fn run(&self) {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Some(Error::new(Status::Internal, text.unwrap_or_else(|| "panic".into())))
            }
        };
        self.reactor.lock().hang_up();
        if let Some(e) = error {
            self.shared.poisoned.store(true, Ordering::SeqCst);
            let text = format!("the agent stopped: {}", e.message());
            self.shared.queue.push(Event { text, ..Event::new(EventKind::AgentFailed, e.status()) });
            let inbox = self.shared.inbox.lock();
            self.shared.answered.notify_all();
            drop(inbox);
        }
    }

    fn serve(&self) -> Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        let mut linger = Instant::now();
        loop {
            if self.shared.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            if self.shared.poisoned.load(Ordering::Acquire) {
                return Err(Error::new(Status::Internal, "a call panicked"));
            }
            // To wait for the lock would make the engine pay for waking us.
            let waker = &self.shared.waker;
            let free = if waker.engine_is_at_it() { None } else { self.reactor.try_lock() };
            let Some(mut reactor) = free else {
                // It serves what is ready, or leaves it so.
                ready.clear();
                std::thread::sleep(LATER);
                continue;
            };
            let now = Instant::now();
            if waker.is_pending() && !waker.polls() {
                linger = now + LINGER;
            }
            reactor.turn(&ready, Slice::of(SLICE))?;
            let (more, due) = (reactor.has_more(), reactor.due());
            drop(reactor);
            let timeout = if more || now < linger { Some(Duration::ZERO) } else { self.sleep(now, due) };
            self.poller.wait(timeout, &mut ready)?;
            waker.is_awake(&ready);
        }
    }

    /// Says how long to sleep: not at all while something may have come since we looked. Announces the sleep, unless it is so
    /// short that nobody has to be woken from it.
    fn sleep(&self, now: Instant, due: Option<Instant>) -> Option<Duration> {
        let until_due = due.map(|at| at.saturating_duration_since(now));
        if self.shared.waker.expects_engine(now) {
            return Some(until_due.map_or(LATER, |t| t.min(LATER)));
        }
        self.shared.waker.falls_asleep();
        // A turn takes `pending`, whoever set it: what is no work for a turn has to be looked for here.
        let ends = self.shared.stop.load(Ordering::SeqCst) || self.shared.poisoned.load(Ordering::SeqCst);
        if ends || self.shared.waker.is_pending() {
            return Some(Duration::ZERO);
        }
        until_due
    }

    /// One turn on the caller's thread, unless somebody else is at it.
    pub fn lend_a_hand(&self) {
        let Some(mut reactor) = self.reactor.try_lock() else { return };
        if self.shared.stop.load(Ordering::Acquire) || self.shared.poisoned.load(Ordering::Acquire) {
            return;
        }
        self.shared.waker.engine_takes_turn();
        let poison = PoisonOnUnwind(self.shared);
        let before = reactor.due();
        let mut ready = Vec::new();
        let turned = self
            .poller
            .wait(Some(Duration::ZERO), &mut ready)
            .and_then(|()| reactor.turn(&ready, Slice { bytes: POLL_SLICE, loops: true }));
        if turned.is_ok() {
            std::mem::forget(poison);
        }
        // The thread sleeps until a time that may have become too late, and does not know what is left.
        let sooner = reactor.due().is_some_and(|at| before.is_none_or(|b| at < b));
        let left = reactor.has_more() || sooner;
        drop(reactor);
        if left {
            self.shared.wake();
        }
    }
}
