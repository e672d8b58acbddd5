//! Which blocks a failed read leaves without valid data.

use crate::layout::{GroupKind, Layout, NO_BLOCK};
use crate::wire::{Blocks, Range};

/// The blocks of one group into which a read of this range may have written. Blocks that lie wholly before the range, or
/// before what the group still needs, are left out.
pub(super) fn touched(layout: &Layout, group: u32, blocks: &Blocks, range: &Range) -> Vec<u32> {
    let Some(g) = layout.groups().get(group as usize) else { return Vec::new() };
    let held = |ids: &[u32]| ids.iter().copied().filter(|id| *id != NO_BLOCK).collect();
    match g.kind {
        GroupKind::Slots if range.token_end == range.token_total => held(&blocks.ids),
        GroupKind::Slots => Vec::new(),
        GroupKind::Ring => held(&blocks.ids),
        GroupKind::Paged => {
            let begin = range.token_begin.max(g.reach.first(range.token_total));
            if begin >= range.token_end {
                return Vec::new();
            }
            let interleave = u64::from(g.context.interleave.max(1));
            let round = interleave.saturating_mul(u64::from(g.context.size.max(1)));
            let tokens = u64::from(g.block_tokens.max(1));
            // Rounded outwards to whole chunks: which of them are ours does not matter.
            let low = (begin / round).saturating_mul(interleave);
            let high = range.token_end.div_ceil(round).saturating_mul(interleave);
            let (low, high) = match g.context.size {
                0 | 1 => (begin, range.token_end),
                _ => (low, high),
            };
            let at = |block: u64| {
                usize::try_from(block.saturating_sub(blocks.first))
                    .map_or(blocks.ids.len(), |i| i.min(blocks.ids.len()))
            };
            held(blocks.ids.get(at(low / tokens)..at(high.div_ceil(tokens))).unwrap_or(&[]))
        }
    }
}
