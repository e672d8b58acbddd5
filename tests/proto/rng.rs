//! The generator of tests/common, with what the simulator draws: a failing seed reproduces the whole run.

#[path = "../common/rng.rs"]
#[allow(dead_code)]
mod base;

pub use base::mix;
use std::ops::Range;
use std::time::Duration;

pub struct Rng(base::Rng);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(base::Rng::new(seed))
    }

    pub fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.0.below(range.end - range.start)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.0.chance(percent)
    }

    pub fn micros(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.below(range))
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(0..list.len() as u64) as usize]
    }
}
