//! kvlink moves KV cache between the prefill and decode instances of an LLM service.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
pub mod error;
pub mod ffi;
pub mod layout;
pub mod memory;
pub mod proto;
pub mod transport;
pub mod wire;
