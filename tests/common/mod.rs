//! Shared by the layout tests.
#![allow(dead_code)]

pub mod arbitrary;
pub mod boxes;
pub mod case;
pub mod models;
pub mod oracle;
pub mod rng;
