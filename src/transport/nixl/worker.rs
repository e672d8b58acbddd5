//! The thread that makes all calls into NIXL: some of them copy before they return, and none may overlap.

use super::agents::{Agents, Slot};
use super::batch::{self, Batch, Cursor, Ends, Place};
use super::options::{Landing, NixlOptions};
use super::sys::{Failure, Range, Request, State};
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::transport::{Done, JobId, LinkId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// Reads of one link that may be under way.
const DEPTH: usize = 4;
/// So many more reads than not must have completed while they were posted before a link's data lands in the blocks. One
/// that does not counts as many.
const PROVEN: i32 = 8;
/// Between looks at reads that are under way: at first, and at most.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(1);
/// Between looks at reads that nobody waits for any more.
const ABANDONED: Duration = Duration::from_millis(20);

pub(super) enum Command {
    /// Answered with what peers have to know.
    Register {
        region: u32,
        memory: Range,
        answer: Sender<Result<Vec<u8>>>,
    },
    /// Loads a peer's metadata.
    Connect {
        link: LinkId,
        peer: Peer,
        answer: Sender<Result<()>>,
    },
    Disconnect {
        link: LinkId,
    },
    Start(Job),
    Cancel {
        job: JobId,
        reason: Error,
    },
    /// Ends both agents and with them all use of memory; jobs end with this error.
    End {
        reason: Error,
        answer: Sender<Result<()>>,
    },
}

/// A peer's server.
#[derive(Debug)]
pub(super) struct Peer {
    pub agent: CString,
    pub metadata: Vec<u8>,
    /// Address and length.
    pub regions: HashMap<u32, (u64, u64)>,
}

pub(super) struct Job {
    pub id: JobId,
    pub link: LinkId,
    pub spans: Vec<Span>,
    /// Runs are short.
    pub short: bool,
}

struct Link {
    peer: Peer,
    /// Nothing can be read any more.
    broken: Option<Error>,
    /// It was disconnected, and stays until its last read has ended.
    gone: bool,
    /// Rises with reads that complete while they are posted.
    prompt: i32,
}

struct Running {
    job: Job,
    /// What has not been posted yet.
    todo: VecDeque<(Cursor, Cursor)>,
    moved: u64,
    /// Why it will end; it ends when nothing writes for it any more.
    failure: Option<Error>,
}

/// A read that was posted.
struct Flight {
    request: Request,
    link: LinkId,
    /// `None`: nobody waits for it, and it writes to nobody's memory.
    job: Option<JobId>,
    from: Cursor,
    end: Cursor,
    bytes: u64,
    landing: Option<(Slot, Vec<Place>)>,
    /// NIXL says that it failed, which does not prove that nothing of it writes any more.
    failed: bool,
    /// When its job failed.
    unwanted: Option<Instant>,
}

/// Where ended jobs go.
pub(super) trait Report {
    fn report(&self, done: Done);
}

pub(super) struct Worker<R> {
    agents: Option<Agents>,
    options: NixlOptions,
    links: BTreeMap<LinkId, Link>,
    jobs: BTreeMap<JobId, Running>,
    /// Jobs with something to post, in turn.
    turns: VecDeque<JobId>,
    flights: Vec<Flight>,
    /// Since when the reader is to be replaced: nothing is posted until then.
    replacing: Option<Instant>,
    /// Why nothing can be done any more.
    ended: Option<Error>,
    out: R,
}

/// NIXL does not tell the reasons apart.
fn unreadable(peer: &Peer, e: Failure) -> Error {
    let text = format!(
        "nixl: reading from agent {}: {e}: its process has ended, its memory was taken away, or the network between failed",
        peer.agent.to_string_lossy()
    );
    Error::new(Status::Incarnation, text)
}

impl<R: Report> Worker<R> {
    pub fn new(agents: Agents, options: NixlOptions, out: R) -> Worker<R> {
        Worker {
            agents: Some(agents),
            options,
            links: BTreeMap::new(),
            jobs: BTreeMap::new(),
            turns: VecDeque::new(),
            flights: Vec::new(),
            replacing: None,
            ended: None,
            out,
        }
    }

    /// Runs until nobody can command it any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        let (mut pause, mut worked) = (SHORTEST, false);
        loop {
            let idle = self.turns.is_empty() && self.flights.is_empty() && self.replacing.is_none();
            let next = if worked {
                commands.try_recv().map_err(|e| e == TryRecvError::Disconnected)
            } else if idle {
                commands.recv().map_err(|_| true)
            } else {
                commands.recv_timeout(pause).map_err(|e| e == RecvTimeoutError::Disconnected)
            };
            let heard = next.is_ok();
            match next {
                Ok(c) => self.obey(c),
                Err(true) => break,
                Err(false) => {}
            }
            let posted = self.post();
            worked = self.look() || posted || heard;
            self.replace_if_due();
            let most = if self.flights.iter().any(|f| f.job.is_some()) { LONGEST } else { ABANDONED };
            pause = if worked { SHORTEST } else { (pause * 2).min(most) };
        }
        let reason = Error::new(Status::PeerDead, "the transport is gone");
        if let Err(e) = self.end(&reason) {
            log::error!("kvlink: {e}");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Register { region, memory, answer } => {
                let _ = answer.send(self.agents().and_then(|a| a.register(region, memory)));
            }
            Command::Connect { link, peer, answer } => {
                let _ = answer.send(self.connect(link, peer));
            }
            Command::Disconnect { link } => {
                let text = format!("link {} was disconnected", link.0);
                self.break_link(link, Error::new(Status::PeerDead, text));
                if let Some(l) = self.links.get_mut(&link) {
                    l.gone = true;
                }
                self.forget_links();
            }
            Command::Start(job) => self.start(job),
            Command::Cancel { job, reason } => self.fail(job, reason),
            Command::End { reason, answer } => {
                let _ = answer.send(self.end(&reason));
            }
        }
    }

    fn agents(&mut self) -> Result<&mut Agents> {
        match (&mut self.agents, &self.ended) {
            (Some(a), _) => Ok(a),
            (None, Some(e)) => Err(e.clone()),
            (None, None) => Err(Error::new(Status::Internal, "nixl: agents without an end")),
        }
    }

    fn connect(&mut self, link: LinkId, peer: Peer) -> Result<()> {
        let same = |l: &Link| l.peer.agent == peer.agent;
        let spoilt = self.links.values().any(|l| same(l) && l.broken.is_some());
        let in_use = |f: &Flight| self.links.get(&f.link).is_some_and(same);
        let in_use = self.links.values().any(|l| same(l) && l.broken.is_none()) || self.flights.iter().any(in_use);
        let agents = self.agents()?;
        if spoilt && !in_use {
            // NIXL goes on refusing a peer that it has lost until it is told to forget it.
            agents.forget(&peer.agent);
        }
        agents.load(&peer.agent, &peer.metadata)?;
        self.links.insert(link, Link { peer, broken: None, gone: false, prompt: 0 });
        Ok(())
    }

    fn start(&mut self, job: Job) {
        let id = job.id;
        let to = Cursor { span: job.spans.len(), within: 0 };
        let checked = self.check(&job);
        let todo = VecDeque::from([(Cursor::default(), to)]);
        self.jobs.insert(id, Running { job, todo, moved: 0, failure: None });
        match checked {
            Ok(()) => self.turns.push_back(id),
            Err(e) => self.fail(id, e),
        }
    }

    fn check(&mut self, job: &Job) -> Result<()> {
        let Some(link) = self.links.get(&job.link).filter(|l| !l.gone) else {
            return Err(Error::new(Status::PeerDead, format!("link {} does not exist", job.link.0)));
        };
        if let Some(e) = &link.broken {
            return Err(e.clone());
        }
        match (&self.agents, &self.ended) {
            (Some(agents), _) => Ends { own: agents.regions(), peer: &link.peer.regions }.check(&job.spans),
            (None, e) => Err(e.clone().unwrap_or_else(|| Error::new(Status::Internal, "nixl: no agents"))),
        }
    }

    /// Gives every job a turn while there is room; returns whether anything was posted.
    fn post(&mut self) -> bool {
        if self.replacing.is_some() {
            return false;
        }
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else { break };
            let Some(link) = self.jobs.get(&id).map(|r| r.job.link) else { continue };
            if self.flights.iter().filter(|f| f.link == link).count() >= DEPTH {
                self.turns.push_back(id);
                continue;
            }
            match self.post_one(id) {
                Ok(true) => self.turns.push_back(id),
                Ok(false) => self.end_job_if_over(id),
                Err(e) => self.fail(id, e),
            }
            return true;
        }
        false
    }

    /// Posts a job's next read; returns whether there is more to post.
    fn post_one(&mut self, id: JobId) -> Result<bool> {
        let (Some(running), Some(agents)) = (self.jobs.get_mut(&id), &mut self.agents) else { return Ok(false) };
        let Some((from, to)) = running.todo.pop_front() else { return Ok(false) };
        let job = &running.job;
        let Some(link) = self.links.get_mut(&job.link) else { return Ok(false) };
        let straight = match self.options.landing {
            Landing::Direct => true,
            Landing::Staged => false,
            Landing::Auto => link.prompt >= PROVEN && !job.short,
        };
        let slot = if straight { None } else { Some(agents.slot()?) };
        let ends = Ends { own: agents.regions(), peer: &link.peer.regions };
        let made = match &slot {
            None => batch::direct(&job.spans, from, to, ends),
            Some(slot) => batch::staged(&job.spans, from, to, ends, slot.range(), job.short),
        };
        let Batch { pieces, places, bytes, end } = match made {
            Ok(b) if b.bytes > 0 => b,
            nothing => {
                slot.into_iter().for_each(|s| agents.give_back(s));
                return nothing.map(|_| !running.todo.is_empty());
            }
        };
        if end != to {
            running.todo.push_front((end, to));
        }
        let more = !running.todo.is_empty();
        let reader = agents.reader()?;
        let request = match reader.read(&link.peer.agent, &pieces) {
            Ok(request) => request,
            Err(e) => {
                slot.into_iter().for_each(|s| agents.give_back(s));
                let (link, error) = (job.link, unreadable(&link.peer, e));
                self.break_link(link, error);
                return Ok(false);
            }
        };
        let state = reader.post(&request);
        link.prompt = match state {
            State::Complete => PROVEN.min(link.prompt + 1),
            State::Running | State::Failed(_) => (link.prompt - PROVEN).max(-8 * PROVEN),
        };
        let landing = slot.map(|s| (s, places));
        let (link, job) = (job.link, Some(id));
        let f = Flight { request, link, job, from, end, bytes, landing, failed: false, unwanted: None };
        self.flights.push(f);
        self.settle(self.flights.len() - 1, state);
        Ok(more && self.jobs.get(&id).is_some_and(|r| r.failure.is_none()))
    }

    /// Looks at every read that is under way; returns whether one has ended.
    fn look(&mut self) -> bool {
        let before = self.flights.len();
        for at in (0..before).rev() {
            let (Some(f), Some(agents)) = (self.flights.get(at), &mut self.agents) else { continue };
            if f.failed {
                continue;
            }
            if let Ok(reader) = agents.reader() {
                let state = reader.state(&f.request);
                self.settle(at, state);
            }
        }
        self.flights.len() < before
    }

    /// A read stands like this.
    fn settle(&mut self, at: usize, state: State) {
        match state {
            State::Running => {}
            State::Complete => self.land(at),
            State::Failed(e) => self.failed(at, e),
        }
    }

    fn land(&mut self, at: usize) {
        let f = self.flights.swap_remove(at);
        let Some(agents) = &mut self.agents else { return };
        if let Some((slot, places)) = f.landing {
            if f.job.is_some() {
                for p in &places {
                    if let Some(source) = slot.range().part(p.at, p.target.len() as u64) {
                        p.target.copy_from(source);
                    }
                }
            }
            agents.give_back(slot);
        }
        agents.release(f.request);
        if let Some(r) = f.job.and_then(|id| self.jobs.get_mut(&id)) {
            r.moved += f.bytes;
            let id = r.job.id;
            self.end_job_if_over(id);
        }
        self.forget_links();
    }

    /// The peer's memory cannot be read any more: nothing of this link can.
    fn failed(&mut self, at: usize, e: Failure) {
        let Some(f) = self.flights.get_mut(at) else { return };
        f.failed = true;
        let link = f.link;
        if f.landing.is_some() {
            // Nobody's memory is at stake: what it lands in is not used again while this reader lives.
            let f = self.flights.swap_remove(at);
            if let (Some(agents), Some((slot, _))) = (&mut self.agents, f.landing) {
                agents.retire(slot);
                agents.release(f.request);
            }
        }
        if let Some(l) = self.links.get(&link) {
            let error = unreadable(&l.peer, e);
            self.break_link(link, error);
        }
        self.forget_links();
    }

    fn break_link(&mut self, link: LinkId, error: Error) {
        let Some(l) = self.links.get_mut(&link) else { return };
        l.broken.get_or_insert(error.clone());
        let ids: Vec<JobId> = self.jobs.values().filter(|r| r.job.link == link).map(|r| r.job.id).collect();
        for id in ids {
            self.fail(id, error.clone());
        }
    }

    /// Ends a job early: at once where nothing writes to its memory, else when that is so.
    fn fail(&mut self, id: JobId, error: Error) {
        let Some(r) = self.jobs.get_mut(&id) else { return };
        if r.failure.is_none() {
            r.failure = Some(error);
        }
        r.todo.clear();
        self.turns.retain(|t| *t != id);
        for f in self.flights.iter_mut().filter(|f| f.job == Some(id)) {
            f.unwanted.get_or_insert_with(Instant::now);
            if f.landing.is_some() {
                f.job = None;
            }
        }
        self.end_job_if_over(id);
    }

    fn end_job_if_over(&mut self, id: JobId) {
        let Some(r) = self.jobs.get(&id) else { return };
        if !r.todo.is_empty() || self.flights.iter().any(|f| f.job == Some(id)) {
            return;
        }
        if let Some(r) = self.jobs.remove(&id) {
            let Running { job, moved, failure, .. } = r;
            self.out.report(Done { id, result: failure.map_or(Ok(()), Err), bytes: moved, spans: job.spans });
        }
    }

    /// Links that were disconnected and whose last read has ended.
    fn forget_links(&mut self) {
        let over = |id: &LinkId, l: &Link| l.gone && !self.flights.iter().any(|f| f.link == *id);
        let ids: Vec<LinkId> = self.links.iter().filter(|(id, l)| over(id, l)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(l) = self.links.remove(&id) else { continue };
            if !self.links.values().any(|o| o.peer.agent == l.peer.agent)
                && let Some(agents) = &mut self.agents
            {
                agents.forget(&l.peer.agent);
            }
        }
    }

    /// A reader whose reads cannot be proven to have ended is replaced, after the others had time to end.
    fn replace_if_due(&mut self) {
        let patience = self.options.patience;
        let now = Instant::now();
        let stuck = |f: &Flight| f.failed || f.unwanted.is_some_and(|t| now.saturating_duration_since(t) >= patience);
        let matters = |f: &&Flight| f.landing.is_none();
        if self.replacing.is_none() && self.flights.iter().filter(matters).any(stuck) {
            self.replacing = Some(now);
        }
        let Some(since) = self.replacing else { return };
        let waits = self.flights.iter().any(|f| !stuck(f)) && now.saturating_duration_since(since) < patience;
        if !waits {
            self.replace();
        }
    }

    fn replace(&mut self) {
        self.replacing = None;
        let ended = self.end_reader();
        if let (Ok(()), Some(agents)) = (&ended, &mut self.agents) {
            let renewed = agents.renew();
            for (id, l) in &mut self.links {
                if l.broken.is_some() || l.gone {
                    continue;
                }
                let again = renewed.clone().and_then(|()| agents.load(&l.peer.agent, &l.peer.metadata));
                if let Err(e) = again {
                    l.broken = Some(e.within(format!("link {}", id.0)));
                }
            }
        }
        // What was under way for jobs that are still wanted is read again.
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            let Some(r) = self.jobs.get(&id) else { continue };
            let broken = self.links.get(&r.job.link).and_then(|l| l.broken.clone());
            match r.failure.clone().or(ended.clone().err()).or(broken) {
                Some(e) => self.fail(id, e),
                None if !self.turns.contains(&id) => self.turns.push_back(id),
                None => {}
            }
        }
        self.forget_links();
    }

    /// Ends the reader and all that is under way with it; the reads of jobs that are still wanted are to be done again. Where
    /// its end cannot be proven, jobs whose blocks it was reading into fail for that reason.
    fn end_reader(&mut self) -> Result<()> {
        let Some(agents) = &mut self.agents else { return Ok(()) };
        let mut at_stake = Vec::new();
        for f in self.flights.drain(..) {
            agents.release(f.request);
            match f.landing {
                Some((slot, _)) => agents.retire(slot),
                None => at_stake.extend(f.job),
            }
            if let Some(r) = f.job.and_then(|id| self.jobs.get_mut(&id)).filter(|r| r.failure.is_none()) {
                r.todo.push_back((f.from, f.end));
            }
        }
        let ended = agents.end_reader();
        if let Err(e) = &ended {
            for id in at_stake {
                self.jobs.entry(id).and_modify(|r| r.failure = Some(e.clone()));
            }
        }
        ended
    }

    /// Ends everything: jobs, then, when nothing is under way or patience is at its end, both agents.
    fn end(&mut self, reason: &Error) -> Result<()> {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.fail(id, reason.clone());
        }
        let deadline = Instant::now() + self.options.patience;
        while self.flights.iter().any(|f| !f.failed) && Instant::now() < deadline {
            if !self.look() {
                std::thread::sleep(SHORTEST);
            }
        }
        let mut ended = self.end_reader();
        if let Some(agents) = self.agents.take() {
            ended = ended.and(agents.end());
        }
        self.ended.get_or_insert(reason.clone());
        for (id, r) in std::mem::take(&mut self.jobs) {
            let Running { job, moved, failure, .. } = r;
            let error = failure.unwrap_or_else(|| reason.clone());
            self.out.report(Done { id, result: Err(error), bytes: moved, spans: job.spans });
        }
        self.turns.clear();
        ended
    }
}
