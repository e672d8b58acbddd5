//! Why NIXL does not work here, with what a person can look at. Its own status does not tell, and what it prints goes to the
//! standard error output.

use super::elf;
use super::options::NixlOptions;
use super::sys::{self, Failure, Library, NoAgent, Range};
use crate::error::{Error, Result, Status};
use std::path::{Path, PathBuf};

fn unavailable(text: String) -> Error {
    Error::new(Status::TransportUnavailable, format!("nixl: {text}"))
}

/// A backend whose libraries would end the process is refused: UCX does that when it is loaded into a process where the
/// functions of another copy come before its own.
pub(super) fn check_copies(library: &Library, backend: &str) -> Result<()> {
    let Some(first) = sys::global(c"ucp_init_version") else { return Ok(()) };
    let needed = elf::needed(&plugin(library, backend));
    let Some(second) = needed.iter().find(|n| n.starts_with("libucp") && !sys::is_loaded(n)) else { return Ok(()) };
    Err(unavailable(format!(
        "backend {backend} brings {second}, and this process has another copy of UCX, {}, whose functions it would be bound \
         to, which ends the process: do not link or preload that one ({}), load it without RTLD_GLOBAL, or use a NIXL that \
         is built with it",
        first.display(),
        variable("LD_PRELOAD")
    )))
}

/// Why there is no agent.
pub(super) fn not_started(library: &Library, options: &NixlOptions, e: NoAgent) -> Error {
    let (file, backend) = (library.file.display(), &options.backend);
    unavailable(match e {
        NoAgent::Call(e) => format!("{file}: {e}"),
        NoAgent::NoBackend(known) if known.is_empty() => {
            let plugins = plugins(library);
            let lacks = if plugins.is_dir() { "has none" } else { "is not there" };
            format!(
                "{file} finds no backends: it looks for libplugin_*.so in {}, which {lacks}; {}, and unset it looks in \
                 \"plugins\" beside the library",
                plugins.display(),
                variable(PLUGINS)
            )
        }
        NoAgent::NoBackend(known) => format!("there is no backend {backend:?}; {file} has {}", known.join(", ")),
        NoAgent::Backend(e) => match sys::preload(plugin(library, backend).as_os_str()) {
            Err(text) => format!("backend {backend} cannot be loaded: {text}"),
            Ok(()) => refused(options, e),
        },
        NoAgent::Local(e) => {
            format!(
                "backend {backend} reads from storage, not from other processes ({e}): use UCX or another for networks"
            )
        }
    })
}

/// A backend that is there does not start.
fn refused(options: &NixlOptions, e: Failure) -> String {
    let set: Vec<String> = options.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let set = if set.is_empty() { "no parameters".to_string() } else { set.join(" ") };
    let mut text = format!("backend {} with {set} does not start: {e}", options.backend);
    if options.backend == "UCX" {
        text += &format!(
            "; a parameter may be wrong, or UCX is left without a transport that notices a dead peer (tcp, or that of a \
             network card: shared memory is not enough) on a device of this host ({}): {}, {}",
            devices().join(", "),
            variable("UCX_TLS"),
            variable("UCX_NET_DEVICES")
        );
    }
    text + "; NIXL writes its reason to the standard error output"
}

/// Why memory could not be registered.
pub(super) fn not_registered(region: u32, memory: Range, e: Failure) -> Error {
    let len = memory.len() as u64;
    let text = format!("nixl: registering region {region} of {len} bytes: {e}; {}", locking(len, &memory_status()));
    Error::new(Status::Backend, text)
}

/// What the kernel says to locking so many bytes more, as network cards need it.
fn locking(bytes: u64, status: &str) -> String {
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next());
    let kib = |name: &str| field(name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
    let capabilities = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    const IPC_LOCK: u32 = 14;
    let used = kib("VmLck:").max(kib("VmPin:"));
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(limit) if capabilities >> IPC_LOCK & 1 == 0 && used.saturating_add(bytes) > limit => format!(
            "a network card needs it locked, but RLIMIT_MEMLOCK is {limit} bytes, of which {used} are in use: raise it \
             (ulimit -l, LimitMEMLOCK=, --ulimit memlock=-1) or grant CAP_IPC_LOCK"
        ),
        _ => "it may be locked (RLIMIT_MEMLOCK, CAP_IPC_LOCK); NIXL writes its reason to the standard error output"
            .into(),
    }
}

fn memory_status() -> String {
    std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}

const PLUGINS: &str = "NIXL_PLUGIN_DIR";

/// Where NIXL looks for backends; the variable is its own.
fn plugins(library: &Library) -> PathBuf {
    let beside = || library.file.parent().unwrap_or(Path::new("")).join("plugins");
    std::env::var_os(PLUGINS).filter(|v| !v.is_empty()).map_or_else(beside, PathBuf::from)
}

fn plugin(library: &Library, backend: &str) -> PathBuf {
    plugins(library).join(format!("libplugin_{backend}.so"))
}

/// For messages only.
fn variable(name: &str) -> String {
    match std::env::var_os(name) {
        Some(value) => format!("{name} is {value:?}"),
        None => format!("{name} is not set"),
    }
}

fn devices() -> Vec<String> {
    let all =
        ["/sys/class/net", "/sys/class/infiniband"].into_iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten();
    let mut names: Vec<String> = all.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: &str = "CapEff:\t0000000000000000\nVmLck:\t       4 kB\nVmPin:\t       0 kB\n";

    #[test]
    fn the_limit_is_only_blamed_where_it_forbids() {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let forbidden = locking(u64::MAX >> 1, NOBODY);
        let named = limit.map_or("it may be locked".into(), |l| format!("{l} bytes, of which 4096 are in use"));
        assert!(forbidden.contains(&named), "{forbidden}");
        for (bytes, status) in [(0, NOBODY), (u64::MAX >> 1, "CapEff:\t0000000000004000\n")] {
            let text = locking(bytes, status);
            assert!(text.contains("it may be locked"), "{text}");
        }
    }
}
