//! Where the tests find MoRI, with stand-ins for the hardware.
#![allow(dead_code)]

use crate::tools::skip;
use std::path::{Path, PathBuf};

/// What `scripts/mori.sh` has built: the directory of libkvlink_mori.so; without it, what needs it is skipped.
pub fn library() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("mori/build/mori");
    if dir.join("libkvlink_mori.so").is_file() && dir.join("kvlink-mori-check").is_file() {
        return Some(dir);
    }
    skip(&format!("MoRI is not in {} (sh scripts/mori.sh)", dir.display()));
    None
}
