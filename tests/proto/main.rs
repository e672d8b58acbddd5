//! The protocol's state machines under virtual time: what each test proves is in its name.

mod content;
mod rng;
mod sim;
mod world;

mod read;
