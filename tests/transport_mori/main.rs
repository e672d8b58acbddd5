//! The MoRI transport by itself, over AMD's own MoRI-IO and stand-ins for the hardware.

#[path = "../mori/mod.rs"]
mod mori;
#[path = "../tools/mod.rs"]
mod tools;

mod check;
mod fault;
mod node;
mod process;
mod reads;
mod refused;
mod xgmi;

/// Not a test of its own: the other process of those that need one.
#[test]
fn child() {
    process::child();
}
