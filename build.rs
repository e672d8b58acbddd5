//! Gives the cdylib of developers' builds its SONAME; releases are linked by CMake from the static library.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvlink.so.0");
    }
}
