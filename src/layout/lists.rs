//! What block lists have to be before they are followed.

use super::plan::Plan;
use super::request::{BlockList, NO_BLOCK, Request};
use super::shape::{Alias, Group, GroupKind, Layout, Page};
use crate::error::{Error, Result, Status};

/// Reused from request to request.
#[derive(Default)]
pub(super) struct Buffers {
    seen: Vec<u64>,
    pages: Vec<(u64, u64)>,
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(Status::InvalidBlocks, message)
}

impl Plan {
    /// The lists of a request by themselves, and its range of tokens.
    pub(super) fn check_lists(&self, request: &Request<'_>, buffers: &mut Buffers) -> Result<()> {
        check_side("source", &self.src, request.src, &self.used.0, None)?;
        check_side("destination", &self.dst, request.dst, &self.used.1, Some(buffers))?;
        if request.tokens.start > request.tokens.end || request.tokens.end > request.end {
            return Err(invalid(format!(
                "token range [{}, {}) of a request of {} tokens",
                request.tokens.start, request.tokens.end, request.end
            )));
        }
        Ok(())
    }
}

/// In the groups that the plan uses: ids in range, and on the destination also unique and disjoint from those of groups
/// that share their bytes.
fn check_side(
    which: &str,
    layout: &Layout,
    lists: &[BlockList<'_>],
    used: &[bool],
    buffers: Option<&mut Buffers>,
) -> Result<()> {
    if lists.len() != layout.groups().len() {
        return Err(invalid(format!(
            "{} {which} block lists for a layout of {} groups",
            lists.len(),
            layout.groups().len()
        )));
    }
    let groups = layout.groups().iter().zip(lists).enumerate().zip(used).filter(|(_, used)| **used).map(|(g, _)| g);
    for (g, (group, list)) in groups.clone() {
        if let Some((at, id)) = group.outside(list.ids) {
            return Err(invalid(format!(
                "group {g}: {which} block id {id} at position {at} is not below {}",
                group.num_blocks
            )));
        }
        if group.kind == GroupKind::Slots
            && let Some(at) = list.ids.iter().position(|id| *id == NO_BLOCK)
        {
            return Err(invalid(format!("group {g}: a hole at position {at} of a {which} list of state slots")));
        }
    }
    let Some(buffers) = buffers else { return Ok(()) };
    for (g, (group, list)) in groups {
        unique(g, group, list, &mut buffers.seen)?;
    }
    for alias in layout.aliases() {
        let is_used = |g: u32| used.get(g as usize).copied().unwrap_or(false);
        if is_used(alias.groups.0) || is_used(alias.groups.1) {
            disjoint(alias, lists, &mut buffers.pages)?;
        }
    }
    Ok(())
}

fn unique(g: usize, group: &Group, list: &BlockList<'_>, seen: &mut Vec<u64>) -> Result<()> {
    let words = (group.num_blocks as usize).div_ceil(64);
    if seen.len() < words {
        seen.resize(words, 0);
    }
    let mut twice = None;
    let mark = |id: u32| (id as usize / 64, 1u64 << (id % 64));
    for id in list.ids.iter().filter(|id| **id != NO_BLOCK) {
        let (word, bit) = mark(*id);
        if let Some(w) = seen.get_mut(word) {
            if *w & bit != 0 {
                twice = Some(*id);
            }
            *w |= bit;
        }
    }
    for id in list.ids.iter().filter(|id| **id != NO_BLOCK) {
        if let Some(w) = seen.get_mut(mark(*id).0) {
            *w = 0;
        }
    }
    match twice {
        Some(id) => {
            Err(invalid(format!("group {g}: destination block id {id} occurs twice: one would overwrite the other")))
        }
        None => Ok(()),
    }
}

/// No page of one group lies over a page of the other.
fn disjoint(alias: &Alias, lists: &[BlockList<'_>], pages: &mut Vec<(u64, u64)>) -> Result<()> {
    let ids = |g: u32| lists.get(g as usize).map(|l| l.ids).unwrap_or(&[]).iter().filter(|id| **id != NO_BLOCK);
    let page = |p: Page, id: u32| {
        let begin = u64::from(id).wrapping_mul(p.stride).wrapping_add(p.offset);
        (begin, begin.wrapping_add(p.len))
    };
    pages.clear();
    pages.extend(ids(alias.groups.0).map(|id| page(alias.pages.0, *id)));
    pages.sort_unstable();
    for id in ids(alias.groups.1) {
        let (begin, end) = page(alias.pages.1, *id);
        let at = pages.partition_point(|p| p.1 <= begin);
        if let Some(p) = pages.get(at)
            && p.0 < end
        {
            return Err(invalid(format!(
                "groups {} and {} share their memory, and destination block {id} of group {} (bytes [{begin}, {end})) lies over a block of group {} (bytes [{}, {}))",
                alias.groups.0, alias.groups.1, alias.groups.1, alias.groups.0, p.0, p.1
            )));
        }
    }
    Ok(())
}
