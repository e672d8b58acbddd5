//! Where the tests find NIXL.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::Once;

/// The wheel that `scripts/setup.sh` has installed. Without it tests are skipped, loudly, but not in CI.
pub fn packages() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let dir = cache.join("kvlink/nixl-1.5.1");
    if dir.join(".nixl_cu12.mesonpy.libs/libnixl_capi.so").is_file() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "there is no NIXL in {}", dir.display());
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        println!("\nSKIPPED: tests over NIXL: {} is not there (sh scripts/setup.sh test)", dir.display())
    });
    None
}
