//! The C ABI: the only `extern "C"` of the crate, one small file per noun of the header.
//!
//! Every entry goes through [`guard`](guard::guard): arguments are decoded, panics stop there, errors become a status and
//! the thread's last message. The documentation of the functions is written for the reader of `kvlink.h`.
//!
//! Safety, once for all entries: pointers must be null or point to what the header says, for the duration of the call.
//! Handles are numbers in disguise, looked up in a table: a stale or foreign one is an error.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)]
#![allow(clippy::missing_safety_doc)]

mod agent;
mod config;
mod decode;
mod event;
mod form;
mod guard;
mod handle;
#[cfg(feature = "test-hooks")]
mod hooks;
mod layout;
mod memory;
mod moriio;
mod peer;
mod plan;
mod request;
mod router;
mod types;
mod version;

pub use agent::*;
pub use config::*;
pub use event::*;
pub use form::*;
pub use guard::{kvlink_last_error, kvlink_status_t, kvlink_status_text};
pub use handle::{kvlink_agent_t, kvlink_layout_t, kvlink_plan_t};
#[cfg(feature = "test-hooks")]
pub use hooks::*;
pub use layout::*;
pub use memory::*;
pub use moriio::*;
pub use peer::*;
pub use plan::*;
pub use request::*;
pub use router::*;
pub use types::*;
pub use version::*;
