//! The lease board: a region of every agent that shows which of its leases hold.
//!
//! A source keeps one word per lease, at a slot that follows from its process and the request. It clears the word before it
//! lets the blocks be reused. A sink that has copied the blocks and then still finds the word knows, without asking, that
//! its copy was complete while the lease held. A word that is not there proves nothing: two requests may share a slot, and
//! the sink asks.

/// Index under which the board is registered with transports.
pub const BOARD_REGION: u32 = u32::MAX;
/// Words of a board.
pub const BOARD_SLOTS: u64 = 1 << 15;
/// Bytes of a board.
pub const BOARD_BYTES: usize = 8 * BOARD_SLOTS as usize;

/// Where a lease shows, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseMark {
    /// Byte offset of its word.
    pub offset: u64,
    /// The word while it holds; never 0.
    pub word: u64,
}

impl LeaseMark {
    /// The mark of a request's lease at a source's process, in the request's `round`-th life there.
    ///
    /// FNV-1a over the process and round numbers (little-endian) and the request's bytes gives `h`. With `mix` the finalizer of
    /// SplitMix64, the slot is the high half of `mix(h)` times the number of slots, the word is `mix(h ^ C)` with its lowest
    /// bit set, `C` being 0x9e3779b97f4a7c15.
    pub fn new(incarnation: u64, request: &str, round: u32) -> LeaseMark {
        let (process, round) = (incarnation.to_le_bytes(), round.to_le_bytes());
        let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        let h = process.iter().chain(&round).chain(request.as_bytes()).fold(0xcbf2_9ce4_8422_2325, step);
        let slot = (u128::from(mix(h)) * u128::from(BOARD_SLOTS)) >> 64;
        LeaseMark { offset: 8 * slot as u64, word: mix(h ^ 0x9e37_79b9_7f4a_7c15) | 1 }
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_lie_on_the_board_and_differ_between_lives() {
        let mut words = std::collections::HashSet::new();
        for i in 0..10_000u64 {
            let m = LeaseMark::new(7, &format!("r{i}"), 1);
            assert!(m.offset.is_multiple_of(8) && (m.offset as usize) < BOARD_BYTES && m.word != 0);
            assert!(words.insert(m.word));
            assert_ne!(m.word, LeaseMark::new(8, &format!("r{i}"), 1).word);
        }
    }
}
