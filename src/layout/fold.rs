//! Folding a strided copy into loops around the longest contiguous run.

/// One dimension of a copy: `count` steps of `src` and `dst` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Step {
    pub count: u64,
    pub src: u64,
    pub dst: u64,
}

/// Axes, two token levels are cut away by segments, one token dim, one layer dim.
pub(crate) const MAX_STEPS: usize = super::limit::AXES + 2;

/// Loops, outermost first, around a run of `run` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Loops {
    pub run: u64,
    steps: [Step; MAX_STEPS],
    len: u8,
}

impl Loops {
    pub fn steps(&self) -> &[Step] {
        self.steps.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// Runs that the loops make.
    pub fn runs(&self) -> u64 {
        self.steps().iter().fold(1u64, |n, s| n.saturating_mul(s.count))
    }
}

/// Folds dims around elements of `unit` bytes. The order of the runs is by falling destination stride: it is part of the
/// plan order that both sides of a streamed transfer rely on.
pub(crate) fn fold(unit: u64, dims: &[Step]) -> Loops {
    let mut steps = [Step::default(); MAX_STEPS];
    let mut len = 0usize;
    for d in dims.iter().filter(|d| d.count != 1).take(MAX_STEPS) {
        let before = |s: &Step| (s.dst, s.src) >= (d.dst, d.src);
        let at = steps.iter().take(len).position(|s| !before(s)).unwrap_or(len);
        for i in (at..len).rev() {
            if let (Some(from), Some(to)) = (steps.get(i).copied(), steps.get_mut(i + 1)) {
                *to = from;
            }
        }
        if let Some(slot) = steps.get_mut(at) {
            *slot = *d;
        }
        len += 1;
    }
    let mut run = unit;
    while let Some(last) = len.checked_sub(1).and_then(|i| steps.get(i)) {
        if last.src != run || last.dst != run {
            break;
        }
        run = run.saturating_mul(last.count);
        len -= 1;
    }
    // A loop that only continues the loop inside it is that loop, longer.
    let mut i = len;
    while i >= 2 {
        let (outer, inner) = (steps.get(i - 2).copied(), steps.get(i - 1).copied());
        if let (Some(o), Some(n)) = (outer, inner)
            && o.src == n.src.saturating_mul(n.count)
            && o.dst == n.dst.saturating_mul(n.count)
        {
            if let Some(slot) = steps.get_mut(i - 2) {
                *slot = Step { count: o.count.saturating_mul(n.count), ..n };
            }
            steps.copy_within(i..len, i - 1);
            len -= 1;
        }
        i -= 1;
    }
    for slot in steps.iter_mut().skip(len) {
        *slot = Step::default();
    }
    Loops { run, steps, len: len as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(count: u64, src: u64, dst: u64) -> Step {
        Step { count, src, dst }
    }

    #[test]
    fn contiguous_on_both_sides_becomes_one_run() {
        let loops = fold(2, &[step(8, 2048, 2048), step(128, 2, 2), step(8, 256, 256)]);
        assert_eq!((loops.run, loops.steps().len()), (8 * 2048, 0));
    }

    #[test]
    fn a_run_ends_where_one_side_jumps() {
        let loops = fold(2, &[step(4, 2048, 1024), step(128, 2, 2)]);
        assert_eq!((loops.run, loops.steps()), (256, &[step(4, 2048, 1024)][..]));
        let loops = fold(2, &[step(3, 4096, 2048), step(4, 1024, 512), step(128, 2, 2)]);
        assert_eq!((loops.run, loops.steps()), (256, &[step(12, 1024, 512)][..]));
        assert_eq!(loops.runs(), 12);
    }
}
