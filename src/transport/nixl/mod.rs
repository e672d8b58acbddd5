//! NIXL, the library that most of the field deploys, as a transport.
//!
//! The destination pulls by NIXL's READ (see [`super::vendor`]). NIXL cannot cancel. Where it says that a read has completed
//! as soon as it was posted, data lands in the blocks; elsewhere it lands in memory of the transport's own and is copied.

mod abi;
mod agents;
mod elf;
mod library;
mod options;
mod reasons;
mod sys;

pub use super::vendor::Landing;
use super::vendor::{Vendor, batch};
pub use options::NixlOptions;

/// The NIXL transport.
pub type Nixl = Vendor<agents::Agents>;
