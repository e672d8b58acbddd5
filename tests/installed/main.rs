//! kvlink as a system library: installed with CMake into a prefix, and used from there by programs that see nothing else.

mod chroot;
mod cmake;
mod deb;
mod dlopen;
mod files;
mod languages;
mod library;
#[allow(dead_code, reason = "other tests look for more")]
#[path = "../abi/map.rs"]
mod map;
mod pkgconfig;
mod prefix;
#[path = "../programs/mod.rs"]
mod programs;
#[path = "../tools/mod.rs"]
mod tools;
