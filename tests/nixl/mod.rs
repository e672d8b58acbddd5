//! Where the tests find NIXL.
#![allow(dead_code)]

use crate::tools::skip;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The wheel that `scripts/nixl.sh` has installed; without it, what needs it is skipped.
pub fn packages() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let dir = cache.join("kvlink/nixl-1.5.1");
    if dir.join(".nixl_cu12.mesonpy.libs/libnixl_capi.so").is_file() {
        return Some(dir);
    }
    skip(&format!("NIXL is not in {} (sh scripts/nixl.sh)", dir.display()));
    None
}

/// In this process no memory can be locked, as in a container with the usual limit.
pub fn lock_nothing(command: &mut Command) -> &mut Command {
    const IPC_LOCK: libc::c_ulong = 14;
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: system calls only. Who has not the right to give the capability up does not have it.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_CAPBSET_DROP, IPC_LOCK, 0, 0, 0);
            match libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}
