//! Sets of ranks of one instance.

use super::limit;

const WORDS: usize = limit::RANKS.div_ceil(64);

/// Ranks below [`limit::RANKS`], one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RankSet([u64; WORDS]);

impl RankSet {
    pub fn insert(&mut self, rank: u32) {
        if let Some(word) = self.0.get_mut(rank as usize / 64) {
            *word |= 1 << (rank % 64);
        }
    }

    pub fn contains(&self, rank: u32) -> bool {
        self.0.get(rank as usize / 64).is_some_and(|word| word >> (rank % 64) & 1 == 1)
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        *self == RankSet::default()
    }

    pub fn first(&self) -> Option<u32> {
        self.nth(0)
    }

    /// The `n`-th smallest member, counted from 0.
    pub fn nth(&self, n: usize) -> Option<u32> {
        let mut left = n;
        for (i, word) in self.0.iter().enumerate() {
            let here = word.count_ones() as usize;
            if left < here {
                let rest = (0..left).fold(*word, |w, _| w & w.wrapping_sub(1));
                return Some(i as u32 * 64 + rest.trailing_zeros());
            }
            left -= here;
        }
        None
    }

    /// The members below `rank`.
    pub fn below(&self, rank: u32) -> RankSet {
        let mut out = *self;
        for (i, word) in out.0.iter_mut().enumerate() {
            let bits = u64::from(rank).saturating_sub(i as u64 * 64);
            if bits < 64 {
                *word &= (1 << bits) - 1;
            }
        }
        out
    }

    fn zip(&self, other: &RankSet, f: impl Fn(u64, u64) -> u64) -> RankSet {
        let mut out = *self;
        for (a, b) in out.0.iter_mut().zip(&other.0) {
            *a = f(*a, *b);
        }
        out
    }

    pub fn union(&self, other: &RankSet) -> RankSet {
        self.zip(other, |a, b| a | b)
    }

    pub fn intersection(&self, other: &RankSet) -> RankSet {
        self.zip(other, |a, b| a & b)
    }

    pub fn without(&self, other: &RankSet) -> RankSet {
        self.zip(other, |a, b| a & !b)
    }
}

impl FromIterator<u32> for RankSet {
    fn from_iter<T: IntoIterator<Item = u32>>(ranks: T) -> RankSet {
        let mut out = RankSet::default();
        ranks.into_iter().for_each(|r| out.insert(r));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranks() -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(0..limit::RANKS as u32, 0..200)
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_set(a in ranks(), b in ranks(), bound in 0..=limit::RANKS as u32) {
            let set = |s: &BTreeSet<u32>| s.iter().copied().collect::<RankSet>();
            let (x, y) = (set(&a), set(&b));
            let members = |s: RankSet| (0..).map_while(|i| s.nth(i)).collect::<BTreeSet<u32>>();
            prop_assert_eq!(members(x), a.clone());
            prop_assert_eq!((x.len(), x.is_empty(), x.first()), (a.len(), a.is_empty(), a.first().copied()));
            prop_assert!((0..limit::RANKS as u32).all(|r| x.contains(r) == a.contains(&r)));
            prop_assert_eq!(members(x.below(bound)), a.range(..bound).copied().collect());
            prop_assert_eq!(members(x.union(&y)), a.union(&b).copied().collect());
            prop_assert_eq!(members(x.intersection(&y)), a.intersection(&b).copied().collect());
            prop_assert_eq!(members(x.without(&y)), a.difference(&b).copied().collect());
        }
    }
}
