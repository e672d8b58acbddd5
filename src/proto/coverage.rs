//! Which part of an accepted request one source has delivered.

use crate::layout::Plan;
use crate::wire::Range;
use std::collections::{BTreeMap, BTreeSet};

/// Delivered token intervals and state, by layer.
#[derive(Default)]
pub(crate) struct Coverage {
    tokens: BTreeMap<u32, Vec<(u64, u64)>>,
    slots: BTreeSet<u32>,
}

impl Coverage {
    /// Adds what one write delivered.
    pub fn add(&mut self, layers: impl Iterator<Item = u32>, range: &Range) {
        for layer in layers.filter(|l| (range.layer_begin..range.layer_end).contains(l)) {
            let list = self.tokens.entry(layer).or_default();
            list.push((range.token_begin, range.token_end));
            list.sort_unstable();
            let mut merged: Vec<(u64, u64)> = Vec::with_capacity(list.len());
            for (b, e) in list.drain(..) {
                match merged.last_mut() {
                    Some(last) if b <= last.1 => last.1 = last.1.max(e),
                    _ => merged.push((b, e)),
                }
            }
            *list = merged;
            if range.token_end == range.token_total {
                self.slots.insert(layer);
            }
        }
    }

    /// The first thing of the plan that is still missing, as a sentence.
    pub fn missing(&self, plan: &Plan, want: &Range) -> Option<String> {
        for (layer, slots) in plan.layers() {
            if !(want.layer_begin..want.layer_end).contains(&layer) {
                continue;
            }
            if slots {
                if want.token_end == want.token_total && !self.slots.contains(&layer) {
                    return Some(format!("the state of layer {layer} was not written"));
                }
                continue;
            }
            let have = self.tokens.get(&layer).map(Vec::as_slice).unwrap_or(&[]);
            let whole = have.iter().any(|(b, e)| *b <= want.token_begin && *e >= want.token_end);
            if !whole && want.token_begin < want.token_end {
                return Some(format!(
                    "layer {layer}: tokens {have:?} of [{}, {}) were written",
                    want.token_begin, want.token_end
                ));
            }
        }
        None
    }
}
