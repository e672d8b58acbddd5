//! The event queue, and the descriptor that is readable while it is not empty.

use crate::error::{Error, Result, Status};
use crate::proto::Event;
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Events in the order they happened.
pub struct EventQueue {
    events: Mutex<VecDeque<Event>>,
    /// Events that wait; lets an engine that polls in a loop look without the lock.
    count: AtomicUsize,
    arrived: Condvar,
    closed: AtomicBool,
    fd: OwnedFd,
}

impl EventQueue {
    pub(super) fn new() -> Result<EventQueue> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::new(Status::System, format!("eventfd: {e}")))?;
        Ok(EventQueue {
            events: Mutex::new(VecDeque::new()),
            count: AtomicUsize::new(0),
            arrived: Condvar::new(),
            closed: AtomicBool::new(false),
            fd,
        })
    }

    pub(super) fn push(&self, event: Event) {
        let mut events = self.events.lock();
        events.push_back(event);
        self.count.store(events.len(), Ordering::Release);
        // Last: whoever finds the descriptor readable finds the event.
        if events.len() == 1 {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
        drop(events);
        self.arrived.notify_one();
    }

    /// Ends every wait: nothing comes any more.
    pub(super) fn close(&self) {
        let events = self.events.lock();
        self.closed.store(true, Ordering::Relaxed);
        drop(events);
        self.arrived.notify_all();
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// No event waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes up to `max` events; waits for the first one at most `timeout` (`None`: until the agent stops).
    pub fn poll(&self, max: usize, timeout: Option<Duration>) -> Vec<Event> {
        let mut out = Vec::new();
        if max == 0 || (timeout == Some(Duration::ZERO) && self.is_empty()) {
            return out;
        }
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut events = self.events.lock();
        while events.is_empty() && !self.closed.load(Ordering::Relaxed) {
            match (timeout, deadline) {
                (Some(t), _) if t.is_zero() => return out,
                (Some(_), Some(at)) => {
                    if self.arrived.wait_until(&mut events, at).timed_out() {
                        break;
                    }
                }
                _ => self.arrived.wait(&mut events),
            }
        }
        if events.is_empty() {
            return out;
        }
        let n = max.min(events.len());
        out.extend(events.drain(..n));
        self.count.store(events.len(), Ordering::Release);
        if events.is_empty() {
            let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
        }
        out
    }

    /// Readable exactly while the queue is not empty; for epoll and event loops. Never read it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
