//! MoRI-IO, AMD's library for KV cache between its GPUs, as a transport.
//!
//! The destination pulls by MoRI's READ (see [`super::vendor`]), straight into the blocks. MoRI itself is C++ and is called
//! through `libkvlink_mori.so` (the directory `mori`), after another process has found that it can be (`preflight.rs`).
//!
//! MoRI cannot cancel, and a read that it reports as failed may go on: what failed on one queue pair runs on in the others. So
//! only a success, or the end of the MoRI engine that reads (`engines.rs`), ends a job whose blocks are being read into.

mod engines;
mod library;
mod metadata;
mod options;
mod preflight;
mod request;
mod sys;

pub use options::{Backend, MoriOptions, PollMode};

use super::vendor::Vendor;

/// The MoRI transport.
pub type Mori = Vendor<engines::Engines>;
