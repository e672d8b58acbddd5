//! What calls into the library: one caller at a time, since no calls may overlap; who, `desk.rs` says.

mod ending;
mod flight;

use super::batch::{self, Cursor, Ends, STAGED_BYTES};
use super::{Agents, Landing, Peer, Range, VendorOptions};
use crate::error::{Error, Result, Status};
use crate::transport::{Done, Job, JobId, LinkId};
use ending::Closing;
use flight::{Flight, PROVEN};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Between looks: at least, and at most at reads that are under way. In between it is an eighth of the time since something
/// was done, so that no end is noticed much later than it came.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(1);
const EIGHTH: u32 = 8;
/// Spans of a job that is posted in about the time that it takes to wake a thread, if one read suffices for it.
const FEW: usize = 64;
/// Between looks at reads that nobody waits for any more.
const ABANDONED: Duration = Duration::from_millis(20);

pub(super) enum Command {
    /// Answered with what peers have to know.
    Register {
        region: u32,
        memory: Range,
        answer: Sender<Result<Vec<u8>>>,
    },
    /// Loads a peer's metadata. Where nobody waits for the answer, a failure is one of the link's jobs.
    Connect {
        link: LinkId,
        peer: Peer,
        answer: Option<Sender<Result<()>>>,
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

struct Link {
    peer: Peer,
    /// Nothing can be read any more.
    broken: Option<Error>,
    /// It was disconnected, and stays until its last read has ended.
    gone: bool,
    /// It has been read from: posting does not wait for what only the first read does.
    answered: bool,
    /// Rises with reads that complete while they are posted.
    prompt: i32,
}

struct Running {
    job: Job,
    /// Its spans are gathered in memory of our own, even where they could go straight into the blocks.
    gathers: bool,
    /// What has not been posted yet.
    todo: VecDeque<(Cursor, Cursor)>,
    moved: u64,
    /// The source's board showed the job's mark after its last byte.
    held: bool,
    /// Why it will end; it ends when nothing writes for it any more.
    failure: Option<Error>,
}

/// The reactor, to the worker.
pub(super) trait Report {
    /// A job has ended.
    fn report(&self, done: Done);
    /// There is something to do for it.
    fn call(&self);
}

/// When the worker has to be driven next.
pub(super) enum Next {
    Now,
    /// Unless it hears something.
    After(Duration),
    /// The same, but only the reader is tended then.
    Tend(Duration),
    /// When it hears something.
    Called,
}

pub(super) struct Worker<A: Agents, R> {
    agents: Option<A>,
    landing: Landing,
    patience: Duration,
    links: BTreeMap<LinkId, Link>,
    jobs: BTreeMap<JobId, Running>,
    /// Jobs with something to post, in turn.
    turns: VecDeque<JobId>,
    flights: Vec<Flight<A>>,
    /// Since when the reader is to be replaced: nothing is posted until then.
    replacing: Option<Instant>,
    /// Why nothing can be begun any more.
    ended: Option<Error>,
    closing: Option<Closing>,
    /// An engine that loops had the last turn.
    engine: bool,
    /// The thread will come soon by itself.
    pub watched: bool,
    /// A read has failed, and the thread has to see to it.
    pub failing: bool,
    /// When something was done last.
    worked: Instant,
    /// Jobs that ended while the reactor was at it.
    in_hand: Option<Vec<Done>>,
    out: R,
}

fn is_short(job: &Job) -> bool {
    job.spans.len() <= FEW && job.spans.iter().fold(0u64, |sum, s| sum.saturating_add(s.len)) <= STAGED_BYTES
}

impl<A: Agents, R: Report> Worker<A, R> {
    pub fn new(agents: A, options: &A::Options, out: R) -> Worker<A, R> {
        Worker {
            agents: Some(agents),
            landing: options.landing(),
            patience: options.patience(),
            links: BTreeMap::new(),
            jobs: BTreeMap::new(),
            turns: VecDeque::new(),
            flights: Vec::new(),
            replacing: None,
            ended: None,
            closing: None,
            engine: false,
            watched: false,
            failing: false,
            worked: Instant::now(),
            in_hand: None,
            out,
        }
    }

    /// The thread's turn.
    pub fn turn(&mut self, command: Option<Command>) -> Next {
        let heard = command.is_some();
        if let Some(c) = command {
            self.obey(c);
        }
        // An engine that loops has had a turn since, or it does not any more.
        let looped = std::mem::take(&mut self.engine);
        let engine = !std::mem::take(&mut self.failing) && looped;
        let posted = self.post(engine);
        let worked = (!engine && self.look()) || posted || heard;
        if self.close() {
            self.replace_if_due();
        }
        self.forget_links();
        let next = self.next(engine, worked);
        self.watched = matches!(next, Next::Now) || matches!(next, Next::After(pause) if pause <= LONGEST);
        next
    }

    fn next(&mut self, engine: bool, worked: bool) -> Next {
        let now = Instant::now();
        if worked {
            self.worked = now;
            return Next::Now;
        }
        let pause = now.saturating_duration_since(self.worked) / EIGHTH;
        if engine && self.waits(false) {
            Next::After(LONGEST)
        } else if self.flights.iter().any(|f| f.job.is_some()) {
            Next::After(pause.clamp(SHORTEST, LONGEST))
        } else if self.waits(false) {
            Next::After(pause.clamp(SHORTEST, ABANDONED))
        } else if let (Some(agents), Some(longest)) = (&mut self.agents, A::TENDED) {
            agents.tend();
            Next::Tend(pause.clamp(SHORTEST, longest))
        } else {
            Next::Called
        }
    }

    /// There is work for the thread, which an engine that loops does not do.
    pub fn waits(&self, engine: bool) -> bool {
        let looks = !engine && !self.flights.is_empty();
        let posts = self.turns.iter().any(|id| !self.is_prompt_id(id, engine));
        let gone = self.links.values().any(|l| l.gone);
        looks || posts || gone || self.replacing.is_some() || self.closing.is_some()
    }

    /// There is work for the reactor, whoever drives it.
    pub fn any_prompt(&self) -> bool {
        self.turns.iter().any(|id| self.is_prompt_id(id, false))
    }

    pub(super) fn is_prompt_id(&self, id: &JobId, engine: bool) -> bool {
        self.jobs.get(id).is_some_and(|r| self.is_prompt(&r.job, engine))
    }

    /// Whether a job's reads will be copied while they are posted, or are posted sooner than a thread is awake. With an engine
    /// that loops, that is so wherever posting does not wait.
    fn is_prompt(&self, job: &Job, engine: bool) -> bool {
        let prompt = |l: &Link| l.prompt >= PROVEN || (l.answered && (engine || is_short(job)));
        A::SWIFT && self.replacing.is_none() && self.links.get(&job.link).is_some_and(prompt)
    }

    /// Whether the reactor is to post its reads.
    pub fn is_the_reactors(&self, job: &Job) -> bool {
        self.is_prompt(job, self.engine)
    }

    /// The reactor's turn: looks at what is under way, and posts one read of a job that is prompt.
    /// Returns what has ended, and whether there is room for further reads since.
    pub fn turn_in_hand(&mut self, engine: bool) -> (Vec<Done>, bool) {
        self.engine = engine;
        self.in_hand = Some(Vec::new());
        let room = self.look();
        let has_turn = |id| self.is_prompt_id(id, false) || (self.is_prompt_id(id, engine) && self.has_room(id));
        let prompt = self.turns.iter().position(has_turn);
        if let Some(id) = prompt.and_then(|at| self.turns.remove(at)) {
            self.post_next(id);
        }
        (self.in_hand.take().unwrap_or_default(), room)
    }

    fn report(&mut self, done: Done) {
        match &mut self.in_hand {
            Some(ended) => ended.push(done),
            None => self.out.report(done),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Register { region, memory, answer } => {
                let _ = answer.send(self.agents().and_then(|a| a.register(region, memory)));
            }
            Command::Connect { link, peer, answer } => {
                let made = self.connect(link, peer, answer.is_none());
                let _ = answer.map(|a| a.send(made));
            }
            Command::Disconnect { link } => {
                let text = format!("link {} was disconnected", link.0);
                self.break_link(link, Error::new(Status::PeerDead, text));
                if let Some(l) = self.links.get_mut(&link) {
                    l.gone = true;
                }
            }
            Command::Start(job) => self.start(job),
            Command::Cancel { job, reason } => self.fail(job, reason),
            Command::End { reason, answer } => self.begin_to_close(&reason, Some(answer)),
        }
    }

    fn agents(&mut self) -> Result<&mut A> {
        match (&self.ended, &mut self.agents) {
            (Some(e), _) => Err(e.clone()),
            (None, Some(a)) => Ok(a),
            (None, None) => Err(Error::new(Status::Internal, format!("{}: agents without an end", A::NAME))),
        }
    }

    /// With `keep`, a link that cannot be made is a broken one.
    fn connect(&mut self, link: LinkId, peer: Peer, keep: bool) -> Result<()> {
        let same = |l: &Link| l.peer.agent == peer.agent;
        let spoilt = self.links.values().any(|l| same(l) && l.broken.is_some());
        let in_use = |f: &Flight<A>| self.links.get(&f.link).is_some_and(same);
        let in_use = self.links.values().any(|l| same(l) && l.broken.is_none()) || self.flights.iter().any(in_use);
        let loaded = self.agents().and_then(|agents| {
            if spoilt && !in_use {
                // NIXL, for one, goes on refusing a peer that it has lost until it is told to forget it.
                agents.forget(&peer.agent);
            }
            agents.load(&peer)
        });
        if loaded.is_ok() || keep {
            self.links
                .insert(link, Link { peer, broken: loaded.clone().err(), gone: false, answered: false, prompt: 0 });
        }
        loaded
    }

    /// Takes a job in.
    pub fn start(&mut self, mut job: Job) {
        let id = job.id;
        let to = Cursor { span: job.spans.len(), within: 0 };
        let checked = self.check(&job);
        let todo = VecDeque::from([(Cursor::default(), to)]);
        let gathers = self.landing != Landing::Direct && (batch::gather(&mut job.spans) || job.staged);
        self.jobs.insert(id, Running { job, gathers, todo, moved: 0, held: false, failure: None });
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
            (None, None) => Err(Error::new(Status::Internal, format!("{}: no agents", A::NAME))),
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
            let withdrawn = self.agents.as_mut().is_some_and(|a| a.withdraw(&mut f.request));
            if f.landing.is_some() || withdrawn {
                f.job = None;
            }
        }
        self.end_job_if_over(id);
    }

    fn end_job_if_over(&mut self, id: JobId) {
        let Some(r) = self.jobs.get(&id) else { return };
        if !r.todo.is_empty() || self.flights.iter().any(|f| f.job == Some(id)) || self.look_at_mark(id) {
            return;
        }
        if let Some(r) = self.jobs.remove(&id) {
            let Running { job, moved, held, failure, .. } = r;
            let result = failure.map_or(Ok(()), Err);
            self.report(Done { id, result, bytes: moved, held, spans: job.spans });
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
