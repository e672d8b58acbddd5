//! The NIXL transport by itself, on the real library.

#[path = "../nixl/mod.rs"]
mod nixl;
#[path = "../tools/mod.rs"]
mod tools;

mod handshake;
mod node;
mod process;
mod reads;
mod refused;
mod source;

/// Not a test of its own: the other process of those that need one.
#[test]
fn child() {
    source::child();
}
