//! Where the tests find NIXL.
#![allow(dead_code)]

#[path = "../tools/mod.rs"]
mod tools;

use std::path::PathBuf;

/// The wheel that `scripts/nixl.sh` has installed; without it, what needs it is skipped.
pub fn packages() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let dir = cache.join("kvlink/nixl-1.5.1");
    if dir.join(".nixl_cu12.mesonpy.libs/libnixl_capi.so").is_file() {
        return Some(dir);
    }
    tools::skip(&format!("NIXL is not in {} (sh scripts/nixl.sh)", dir.display()));
    None
}
