//! Who drives the worker: the reactor for reads that are short or copied while they are posted, since waking a thread takes
//! longer than many of them, and while an engine drives it in a loop; its thread for everything else. Both look at what is under
//! way, and tell the other one what is its to do.

use super::Agents;
use super::worker::{Command, Next, Report, Worker};
use crate::error::{Error, Status};
use crate::transport::{Done, Job};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering, fence};

pub(super) struct Desk<A: Agents, R> {
    /// `None` before it begins and after it has ended. Whoever holds it may be inside the library for long.
    worker: Mutex<Option<Worker<A, R>>>,
    /// The reactor did not get at the worker.
    missed: AtomicBool,
    reactor: R,
    calls: Mutex<Calls>,
    called: Condvar,
}

#[derive(Default)]
struct Calls {
    commands: VecDeque<Command>,
    /// There is work that no command tells of.
    more: bool,
    /// No command will follow.
    closed: bool,
}

impl Calls {
    fn any(&self) -> bool {
        self.more || self.closed || !self.commands.is_empty()
    }
}

impl<A: Agents, R: Report> Desk<A, R> {
    pub fn new(reactor: R) -> Desk<A, R> {
        let (worker, missed) = (Mutex::new(None), AtomicBool::new(false));
        Desk { worker, missed, reactor, calls: Mutex::default(), called: Condvar::new() }
    }

    /// Leaves a command for the thread.
    pub fn leave(&self, command: Command) {
        self.call(|c| c.commands.push_back(command));
    }

    /// The thread ends when it has done what was left for it.
    pub fn close(&self) {
        self.call(|c| c.closed = true);
    }

    fn call(&self, change: impl FnOnce(&mut Calls)) {
        change(&mut self.calls.lock());
        self.called.notify_one();
    }

    /// Begins a job.
    pub fn start(&self, job: Job) {
        if let Some(mut held) = self.worker.try_lock()
            && let Some(worker) = held.as_mut().filter(|w| w.is_the_reactors(&job))
            && self.calls.lock().commands.is_empty()
        {
            worker.start(job);
            return;
        }
        self.leave(Command::Start(job));
    }

    /// The reactor's turn, if nobody is at it: looks at what is under way, and posts one read that is its. Returns what has
    /// ended, and whether it would go on. If it comes in a loop, the thread hears of what is left when it ceases to.
    pub fn lend_a_hand(&self, loops: bool) -> (Vec<Done>, bool) {
        // Either we get at the worker, or who has it sees afterwards that we did not.
        self.missed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut held = self.worker.try_lock();
        let Some(Some(worker)) = held.as_deref_mut() else { return Default::default() };
        self.missed.store(false, Ordering::Relaxed);
        let (ended, room) = worker.turn_in_hand(loops);
        if worker.failing || (worker.waits(loops) && (room || !worker.watched)) {
            worker.watched = true;
            self.call(|c| c.more = true);
        }
        (ended, worker.any_prompt() || (loops && worker.waits(false)))
    }

    /// The thread: until the desk is closed.
    pub fn serve(&self, worker: Worker<A, R>) {
        *self.worker.lock() = Some(worker);
        let mut next = Next::Now;
        while let Some(heard) = self.wait(&next) {
            // Nobody waits for a reader that is only tended.
            let tends = !heard && matches!(next, Next::Tend(_));
            let held = if tends { self.worker.try_lock() } else { Some(self.worker.lock()) };
            let Some(mut held) = held else { continue };
            let Some(worker) = held.as_mut() else { return };
            let command = self.calls.lock().commands.pop_front();
            let knew = worker.any_prompt();
            next = worker.turn(command);
            let prompt = worker.any_prompt();
            drop(held);
            fence(Ordering::SeqCst);
            let missed = self.missed.swap(false, Ordering::Relaxed);
            if prompt && (missed || !knew) {
                self.reactor.call();
            }
        }
        let reason = Error::new(Status::PeerDead, "the transport is gone");
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            worker.end(&reason);
        }
    }

    /// Returns whether the thread was called; `None` when it has to end.
    fn wait(&self, next: &Next) -> Option<bool> {
        let mut calls = self.calls.lock();
        match next {
            Next::After(pause) | Next::Tend(pause) if !calls.any() => _ = self.called.wait_for(&mut calls, *pause),
            Next::Called => self.called.wait_while(&mut calls, |c| !c.any()),
            Next::Now | Next::After(_) | Next::Tend(_) => {}
        }
        let called = calls.any();
        calls.more = false;
        (!calls.closed || !calls.commands.is_empty()).then_some(called)
    }
}
