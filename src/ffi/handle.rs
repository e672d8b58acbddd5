//! Handles: numbers that look like pointers, so that a stale one is found out and never followed.

use crate::agent::Agent;
use crate::error::{Error, Result, Status};
use crate::layout::{Layout, Plan, Scratch, Span};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A cache layout. Immutable; may be shared by threads; destroyed with kvlink_layout_destroy.
pub struct kvlink_layout_t {
    _opaque: [u8; 0],
}

/// A compiled and proven plan of one rank pair. Immutable; destroyed with kvlink_plan_destroy.
pub struct kvlink_plan_t {
    _opaque: [u8; 0],
}

/// One rank's endpoint; destroyed with kvlink_agent_destroy.
pub struct kvlink_agent_t {
    _opaque: [u8; 0],
}

/// An agent with the events of its last poll, whose payloads the caller may still look at.
pub(super) struct AgentHandle {
    pub agent: Agent,
    pub polled: Mutex<Vec<crate::proto::Event>>,
}

/// A plan with buffers for its expansion.
pub(super) struct PlanHandle {
    pub plan: Arc<Plan>,
    pub buffers: Mutex<(Scratch, Vec<Span>)>,
}

/// Live objects of one kind. The numbers are never reused and differ between kinds.
pub(super) struct Table<T> {
    name: &'static str,
    tag: usize,
    live: RwLock<HashMap<usize, Arc<T>>>,
}

static NEXT: AtomicUsize = AtomicUsize::new(1);

impl<T> Table<T> {
    fn new(name: &'static str, tag: usize) -> Table<T> {
        Table { name, tag, live: RwLock::new(HashMap::new()) }
    }

    pub fn insert<H>(&self, value: T) -> *mut H {
        let key = NEXT.fetch_add(1, Ordering::Relaxed) << 4 | self.tag;
        self.live.write().insert(key, Arc::new(value));
        std::ptr::without_provenance_mut(key)
    }

    pub fn find<H>(&self, handle: *const H) -> Result<Arc<T>> {
        if handle.is_null() {
            return Err(super::decode::null(self.name));
        }
        self.live.read().get(&handle.addr()).cloned().ok_or_else(|| self.stale(handle.addr()))
    }

    /// Takes an object out; NULL is fine.
    pub fn remove<H>(&self, handle: *mut H) -> Result<Option<Arc<T>>> {
        if handle.is_null() {
            return Ok(None);
        }
        let found = self.live.write().remove(&handle.addr());
        found.map(Some).ok_or_else(|| self.stale(handle.addr()))
    }

    fn stale(&self, addr: usize) -> Error {
        Error::new(Status::BadHandle, format!("{} {addr:#x} is stale, foreign or never was one", self.name))
    }
}

/// The agent of a handle, in the process that made it.
pub(super) fn agent(handle: *const kvlink_agent_t) -> Result<Arc<AgentHandle>> {
    let found = AGENTS.find(handle)?;
    found.agent.check_process()?;
    Ok(found)
}

pub(super) static LAYOUTS: LazyLock<Table<Layout>> = LazyLock::new(|| Table::new("layout", 0));
pub(super) static PLANS: LazyLock<Table<PlanHandle>> = LazyLock::new(|| Table::new("plan", 4));
pub(super) static AGENTS: LazyLock<Table<AgentHandle>> = LazyLock::new(|| Table::new("agent", 8));
