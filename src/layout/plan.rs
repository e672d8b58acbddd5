//! Plans: the compiled templates of one rank pair.

use super::Layout;
use super::fold::{Loops, Step, fold};
use super::stage::{self, Form};
use std::collections::HashMap;
use std::sync::Arc;

/// One contiguous copy from a source region to a destination region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Span {
    /// Byte offset in the source region.
    pub src_offset: u64,
    /// Byte offset in the destination region.
    pub dst_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Index of the source's region.
    pub src_region: u32,
    /// Index of the destination's region.
    pub dst_region: u32,
}

/// The copy of one segment of the token axis: blocks and offsets of its first element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// First global token, relative to the period.
    pub token: u64,
    pub tokens: u64,
    /// Local block positions, relative to the period.
    pub src_block: u64,
    pub dst_block: u64,
    /// Offsets within the block, relative to the part.
    pub src_offset: u64,
    pub dst_offset: u64,
    /// Index of its shape, and of the loops when no token is clipped.
    pub shape: u32,
    pub loops: u32,
}

/// The box of one cut, tokens and layers left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Element size, bytes.
    pub unit: u64,
    pub axes: Vec<Step>,
    /// Bytes between tokens on either side.
    pub token: (u64, u64),
}

impl Shape {
    /// Loops for `tokens` tokens of `layers` layers that lie `delta` bytes apart.
    pub fn fold(&self, tokens: u64, layers: u64, delta: (u64, u64)) -> Loops {
        let mut dims = [Step::default(); super::fold::MAX_STEPS];
        let mut n = 0;
        let more = [
            Step { count: tokens, src: self.token.0, dst: self.token.1 },
            Step { count: layers, src: delta.0, dst: delta.1 },
        ];
        for (slot, d) in dims.iter_mut().zip(self.axes.iter().chain(&more)) {
            *slot = *d;
            n += 1;
        }
        fold(self.unit, dims.get(..n).unwrap_or(&[]))
    }
}

/// One period of the token axis for a pair of parts; shared by all layers of the same structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Slot groups have no tokens: position `j` pairs slot `j` with slot `j`.
    pub slots: bool,
    /// Global tokens of one period, and how many blocks either side advances.
    pub period: u64,
    pub src_blocks: u64,
    pub dst_blocks: u64,
    pub cuts: Vec<Cut>,
    pub shapes: Vec<Shape>,
    pub loops: Vec<Loops>,
}

/// A template placed at a pair of parts, for one layer or for layers at equal distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopySet {
    /// First layer and number of layers; more than one only if their runs join when walked block by block.
    pub layer: u32,
    pub layers: u32,
    pub layer_delta: (u64, u64),
    pub src_group: u32,
    pub dst_group: u32,
    pub src_region: u32,
    pub dst_region: u32,
    pub src_offset: u64,
    pub dst_offset: u64,
    pub src_block_stride: u64,
    pub dst_block_stride: u64,
    pub template: Arc<Template>,
}

/// What one destination rank takes from one source rank. Only [`compile`](super::compile) makes plans, and only with
/// their proof.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) src: Arc<Layout>,
    pub(crate) dst: Arc<Layout>,
    pub(crate) sets: Vec<CopySet>,
    /// The first set of each one's template. Sets of one template differ in layer, regions and offsets only.
    pub(crate) kinds: Vec<u32>,
    /// Groups that the sets read and write, by group index.
    pub(crate) used: (Vec<bool>, Vec<bool>),
}

impl Plan {
    pub(crate) fn new(ranks: (u32, u32), src: Arc<Layout>, dst: Arc<Layout>, sets: Vec<CopySet>) -> Plan {
        let marks = |layout: &Layout, group: fn(&CopySet) -> u32| {
            (0..layout.groups().len() as u32).map(|g| sets.iter().any(|s| group(s) == g)).collect()
        };
        let used = (marks(&src, |s| s.src_group), marks(&dst, |s| s.dst_group));
        let mut first = HashMap::new();
        let kinds = sets.iter().zip(0..).map(|(s, i)| *first.entry(Arc::as_ptr(&s.template)).or_insert(i)).collect();
        Plan { source: ranks.0, destination: ranks.1, src, dst, sets, kinds, used }
    }

    /// Rank index of the source within its instance.
    pub fn source(&self) -> u32 {
        self.source
    }

    /// Rank index of the destination within its instance.
    pub fn destination(&self) -> u32 {
        self.destination
    }

    /// The source rank's layout.
    pub fn source_layout(&self) -> &Arc<Layout> {
        &self.src
    }

    /// The destination rank's layout.
    pub fn destination_layout(&self) -> &Arc<Layout> {
        &self.dst
    }

    /// Average bytes of a run before neighbours are merged.
    pub fn mean_run_bytes(&self) -> u64 {
        let (mut bytes, mut runs) = (0u64, 0u64);
        for set in &self.sets {
            for cut in &set.template.cuts {
                if let Some(l) = set.template.loops.get(cut.loops as usize) {
                    runs = runs.saturating_add(l.runs());
                    bytes = bytes.saturating_add(l.runs().saturating_mul(l.run));
                }
            }
        }
        bytes.checked_div(runs).unwrap_or(0)
    }

    /// Whether the copy should be packed on its way, and the rule that says so.
    pub fn form(&self) -> Form {
        stage::form(self.mean_run_bytes())
    }

    /// Groups of the source that this plan reads.
    pub fn source_groups(&self) -> Vec<u32> {
        indices(&self.used.0)
    }

    /// Groups of the destination that this plan writes.
    pub fn destination_groups(&self) -> Vec<u32> {
        indices(&self.used.1)
    }
}

fn indices(marks: &[bool]) -> Vec<u32> {
    marks.iter().enumerate().filter(|(_, used)| **used).map(|(i, _)| i as u32).collect()
}

impl Plan {
    /// The layers that the plan moves, ascending, each with whether it is recurrent state (a slots group).
    pub fn layers(&self) -> Vec<(u32, bool)> {
        let one = |s: &CopySet| {
            let (layer, slots) = (s.layer, s.template.slots);
            (0..s.layers).map(move |i| (layer.saturating_add(i), slots))
        };
        let mut all: Vec<(u32, bool)> = self.sets.iter().flat_map(one).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
