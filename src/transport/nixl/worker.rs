//! The thread that makes all calls into NIXL: some of them copy before they return, and none may overlap.

mod ending;
mod flight;

use super::agents::Agents;
use super::batch::{Cursor, Ends};
use super::options::NixlOptions;
use super::sys::Range;
use crate::error::{Error, Result, Status};
use crate::layout::Span;
use crate::transport::{Done, JobId, LinkId};
use ending::Closing;
use flight::Flight;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

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
    /// Ends both agents and all use of memory, and answers when that is so; jobs end with this error.
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
    /// Why nothing can be begun any more.
    ended: Option<Error>,
    closing: Option<Closing>,
    out: R,
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
            closing: None,
            out,
        }
    }

    /// Runs until nobody can command it any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        let (mut pause, mut worked) = (SHORTEST, false);
        loop {
            let waits = self.replacing.is_some() || self.closing.is_some();
            let idle = self.turns.is_empty() && self.flights.is_empty() && !waits;
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
            if self.close() {
                self.replace_if_due();
            }
            let most = if self.flights.iter().any(|f| f.job.is_some()) { LONGEST } else { ABANDONED };
            pause = if worked { SHORTEST } else { (pause * 2).min(most) };
        }
        let reason = Error::new(Status::PeerDead, "the transport is gone");
        self.begin_to_close(&reason, None);
        while !self.close() {
            if !self.look() {
                std::thread::sleep(SHORTEST);
            }
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
            Command::End { reason, answer } => self.begin_to_close(&reason, Some(answer)),
        }
    }

    fn agents(&mut self) -> Result<&mut Agents> {
        match (&self.ended, &mut self.agents) {
            (Some(e), _) => Err(e.clone()),
            (None, Some(a)) => Ok(a),
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
        let own = self.agents.as_ref().map(Agents::regions);
        match (&self.ended, own) {
            (Some(e), _) => Err(e.clone()),
            (None, Some(own)) => Ends { own, peer: &link.peer.regions }.check(&job.spans),
            (None, None) => Err(Error::new(Status::Internal, "nixl: no agents")),
        }
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
}
