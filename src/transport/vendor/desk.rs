//! Who drives the worker: the reactor for reads that are short or copied while they are posted, since waking a thread takes
//! longer than many of them, and its thread for everything else. Both look at what is under way.

use super::Agents;
use super::worker::{Command, Next, Report, Worker};
use crate::error::{Error, Status};
use crate::transport::{Done, Job};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

pub(super) struct Desk<A: Agents, R> {
    /// `None` before it begins and after it has ended. Whoever holds it may be inside the library for long.
    worker: Mutex<Option<Worker<A, R>>>,
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
    pub fn new() -> Desk<A, R> {
        Desk { worker: Mutex::new(None), calls: Mutex::default(), called: Condvar::new() }
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
            && let Some(worker) = held.as_mut().filter(|w| w.is_prompt(&job))
            && self.calls.lock().commands.is_empty()
        {
            worker.start(job);
            return;
        }
        self.leave(Command::Start(job));
    }

    /// The reactor's turn, if nobody is at it: looks at what is under way, and posts one read that is prompt. Returns what
    /// has ended, and whether it would go on.
    pub fn lend_a_hand(&self) -> (Vec<Done>, bool) {
        let mut held = self.worker.try_lock();
        let Some(Some(worker)) = held.as_deref_mut() else { return Default::default() };
        let waited = worker.waits();
        let (ended, room) = worker.turn_in_hand();
        if worker.waits() && (room || !waited) {
            self.call(|c| c.more = true);
        }
        (ended, worker.any_prompt())
    }

    /// The thread: until the desk is closed.
    pub fn serve(&self, worker: Worker<A, R>) {
        *self.worker.lock() = Some(worker);
        loop {
            let next = {
                let mut held = self.worker.lock();
                let Some(worker) = held.as_mut() else { return };
                let command = self.calls.lock().commands.pop_front();
                worker.turn(command)
            };
            if !self.wait(next) {
                break;
            }
        }
        let reason = Error::new(Status::PeerDead, "the transport is gone");
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            worker.end(&reason);
        }
    }

    /// Returns whether the thread has to go on.
    fn wait(&self, next: Next) -> bool {
        let mut calls = self.calls.lock();
        match next {
            Next::After(pause) if !calls.any() => drop(self.called.wait_for(&mut calls, pause)),
            Next::Called => self.called.wait_while(&mut calls, |c| !c.any()),
            Next::Now | Next::After(_) => {}
        }
        calls.more = false;
        !calls.closed || !calls.commands.is_empty()
    }
}
