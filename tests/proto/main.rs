//! The protocol's state machines under virtual time: what each test proves is in its name.

mod content;
mod rng;
mod sim;
mod world;

mod chaos;
mod contracts;
mod handshake;
mod hostile;
mod moriio;
mod notify;
mod read;
mod router;
mod write;
