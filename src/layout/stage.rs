//! When tiny runs should be packed.

/// Runs shorter than this are packed into one large copy and unpacked on the other side.
///
/// Measured by `benches/staging.rs`: below this length the fixed cost per run of a kernel copy (an iovec entry and the
/// pinning of its page, 0.2 to 0.5 µs) exceeds that of copying the run twice. With gaps of 64 B to 1 KiB between runs
/// packing is 20 to 2 times as fast below 256 B, still 1.3 times at 1 KiB, and loses at 2 KiB. A transport that knows
/// better for its own way (contiguous sources, streams) packs less.
pub const STAGE_RUN_BYTES: u64 = 1024;

/// How a plan's bytes should travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Span by span.
    Direct {
        /// Average run, bytes.
        mean_run: u64,
    },
    /// Packed on one side, one large copy, unpacked on the other: the average run is below [`STAGE_RUN_BYTES`].
    Staged {
        /// Average run, bytes.
        mean_run: u64,
    },
}

pub(crate) fn form(mean_run: u64) -> Form {
    if mean_run > 0 && mean_run < STAGE_RUN_BYTES { Form::Staged { mean_run } } else { Form::Direct { mean_run } }
}
