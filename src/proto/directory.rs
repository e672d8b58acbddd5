//! The ranks of an instance.

use crate::error::{Error, Result, Status};
use crate::layout::{Layout, layout_from_json};
use crate::wire::Entry;
use std::sync::Arc;

/// All ranks of an instance, by rank, with their layouts.
#[derive(Clone, Debug)]
pub struct Directory {
    entries: Vec<Entry>,
    layouts: Vec<Arc<Layout>>,
}

impl Directory {
    /// Checks and parses entries from the network: ranks 0..n, each once, layouts valid.
    ///
    /// # Errors
    /// [`Status::Protocol`], or what the layout's description lacks, naming the rank.
    pub fn parse(mut entries: Vec<Entry>) -> Result<Directory> {
        entries.sort_by_key(|e| e.rank);
        if let Some((at, e)) = entries.iter().enumerate().find(|(i, e)| *i as u32 != e.rank) {
            let text = format!("directory of {} ranks has rank {} where rank {at} is due", entries.len(), e.rank);
            return Err(Error::new(Status::Protocol, text));
        }
        if entries.is_empty() {
            return Err(Error::new(Status::Protocol, "directory of 0 ranks"));
        }
        let mut layouts: Vec<Arc<Layout>> = Vec::with_capacity(entries.len());
        for (i, e) in entries.iter().enumerate() {
            let same = entries.iter().zip(&layouts).take(i).find(|(o, _)| o.layout == e.layout).map(|(_, l)| l.clone());
            let layout = match same {
                Some(l) => l,
                None => Arc::new(layout_from_json(&e.layout).map_err(|err| err.within(format!("rank {}", e.rank)))?),
            };
            layouts.push(layout);
        }
        Ok(Directory { entries, layouts })
    }

    /// The ranks.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The layouts, by rank.
    pub fn layouts(&self) -> &[Arc<Layout>] {
        &self.layouts
    }

    /// One rank.
    pub fn entry(&self, rank: u32) -> Option<&Entry> {
        self.entries.get(rank as usize)
    }

    /// The processes, by rank: what tells two lives of an instance apart.
    pub fn incarnations(&self) -> Vec<u64> {
        self.entries.iter().map(|e| e.incarnation).collect()
    }
}
