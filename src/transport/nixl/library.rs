//! Finding NIXL's library, and saying exactly why it cannot be used.

use super::sys::{self, Library, Unusable};
use crate::error::{Error, Result, Status};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const FILE: &str = "libnixl_capi.so";
/// What the table of functions was written for.
const VERSIONS: &str = "1.0 to 1.5";
const HELP: &str = "to install it: pip install --no-deps nixl-cu12==1.5.1";

/// The one that this process uses: a second copy would bring a second UCX with it.
static LOADED: Mutex<Option<&'static Library>> = Mutex::new(None);

fn unavailable(text: String) -> Error {
    Error::new(Status::TransportUnavailable, text)
}

/// Loads the library that the options name, or the first that is found.
pub(super) fn load(named: Option<&Path>) -> Result<&'static Library> {
    let mut loaded = LOADED.lock();
    let mut tried = Vec::new();
    let candidates = match named {
        Some(path) => named_candidates(path)?,
        None => found(),
    };
    if let Some(library) = *loaded {
        if named.is_none() || candidates.iter().any(|c| same(c, &library.file)) {
            return Ok(library);
        }
        let text = format!(
            "nixl: this process uses {} already and cannot load {} as well: name the same in all agents",
            library.file.display(),
            candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(" or ")
        );
        return Err(unavailable(text));
    }
    // UCX, bundled in the wheel, brings libefa of the system where it is installed, and that a second libibverbs and libnl;
    // unless the system's is there first, the process then crashes when it exits.
    let _ = sys::preload(OsStr::new("libibverbs.so.1"));
    for path in candidates {
        match Library::load(path.as_os_str()) {
            Ok(library) => return Ok(loaded.insert(Box::leak(Box::new(library)))),
            Err(e) => tried.push(explain(&path, e)),
        }
    }
    Err(unavailable(format!("nixl: {}; {HELP}", tried.join("; "))))
}

fn same(a: &Path, b: &Path) -> bool {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_path_buf());
    real(a) == real(b)
}

fn explain(path: &Path, why: Unusable) -> String {
    let path = path.display();
    match why {
        Unusable::NotLoaded(text) => format!("{path} cannot be loaded: {text}"),
        Unusable::Other => format!("{path} is not NIXL's C library, {FILE}: it has none of its functions"),
        Unusable::Missing(names, all) => {
            let first: Vec<&str> = names.iter().take(3).copied().collect();
            let (n, first) = (names.len(), first.join(", "));
            format!("{path} lacks {n} of {all} functions ({first}): it is another NIXL than {VERSIONS}")
        }
        Unusable::Stub => format!("{path} is NIXL's placeholder for builds without NIXL"),
    }
}

/// A file, or a directory that it is in or that Python packages are installed in.
fn named_candidates(path: &Path) -> Result<Vec<PathBuf>> {
    let shown = path.display();
    if !path.exists() {
        return Err(unavailable(format!("nixl: there is no {shown}; {HELP}")));
    }
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let itself = path.join(FILE);
    if itself.is_file() {
        return Ok(vec![itself]);
    }
    let files = in_packages(path);
    if !files.is_empty() {
        return Ok(files);
    }
    let text = match WHEELS.map(|w| path.join(w)).iter().find(|w| w.is_dir()) {
        Some(old) => format!("nixl: {} has no {FILE}: it is another NIXL than {VERSIONS}", old.display()),
        None => format!("nixl: {shown} holds neither {FILE} nor a nixl wheel"),
    };
    Err(unavailable(format!("{text}; {HELP}")))
}

/// Where wheels have it, as their builds lay them out.
const WHEELS: [&str; 3] = [".nixl_cu12.mesonpy.libs", ".nixl_cu13.mesonpy.libs", ".nixl.mesonpy.libs"];

fn in_packages(packages: &Path) -> Vec<PathBuf> {
    WHEELS.iter().map(|w| packages.join(w).join(FILE)).filter(|p| p.is_file()).collect()
}

/// Where it may be: the Python environment that this process runs in, then wherever the loader looks.
fn found() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut all: Vec<PathBuf> = packages(&maps).iter().flat_map(|p| in_packages(p)).collect();
    all.push(PathBuf::from(FILE));
    all
}

/// The directories of Python packages from which this process has loaded something, and those of its interpreter.
fn packages(maps: &str) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for line in maps.lines() {
        let Some(path) = line.find('/').and_then(|at| line.get(at..)).map(Path::new) else { continue };
        let holds = |p: &Path| p.file_name().is_some_and(|n| n == "site-packages" || n == "dist-packages");
        let dir = path.ancestors().find(|p| holds(p)).map(Path::to_path_buf).or_else(|| of_interpreter(path));
        if let Some(dir) = dir.filter(|d| !out.contains(d)) {
            out.push(dir);
        }
    }
    out
}

/// `/usr/bin/python3.11` has `/usr/lib/python3.11/site-packages`.
fn of_interpreter(path: &Path) -> Option<PathBuf> {
    let (bin, name) = (path.parent()?, path.file_name()?);
    if bin.file_name() != Some(OsStr::new("bin")) || !name.to_str()?.starts_with("python3") {
        return None;
    }
    Some(bin.parent()?.join("lib").join(name).join("site-packages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        let e = load(Some(path)).err().unwrap();
        assert_eq!(e.status(), Status::TransportUnavailable);
        e.message().to_string()
    }

    #[test]
    fn what_cannot_be_loaded_says_why_and_how_to_get_it() {
        let dir = std::env::temp_dir().join(format!("kvlink-nixl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let absent = refused(&dir.join("libnixl_capi.so"));
        assert!(absent.contains("there is no") && absent.contains("pip install"), "{absent}");
        let empty = refused(&dir);
        assert!(
            empty.contains("holds neither libnixl_capi.so nor a nixl wheel") && empty.contains("pip install"),
            "{empty}"
        );
        let text = dir.join("text.so");
        std::fs::write(&text, "not a library").unwrap();
        let text = refused(&text);
        assert!(text.contains("text.so cannot be loaded") && text.contains("pip install"), "{text}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn another_library_is_named_as_such() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.lines().find_map(|l| l.get(l.find('/')?..).filter(|p| p.contains("/libc.so"))).unwrap();
        let why = refused(Path::new(libc));
        assert!(why.contains("is not NIXL's C library") && why.contains("pip install"), "{why}");
    }

    #[test]
    fn the_packages_of_a_python_process_are_found() {
        let maps = "7f0-7f1 r-xp 00000000 08:01 1  /venv/lib/python3.11/site-packages/numpy/core/x.so\n\
                    7f1-7f2 r-xp 00000000 08:01 2  /venv/lib/python3.11/site-packages/torch/lib/y.so\n\
                    7f2-7f3 r-xp 00000000 08:01 3  /usr/bin/python3.11\n\
                    7f3-7f4 r-xp 00000000 08:01 4  /usr/lib/libc.so.6\n7f4-7f5 rw-p 0 00:00 0\n";
        let want = ["/venv/lib/python3.11/site-packages", "/usr/lib/python3.11/site-packages"];
        assert_eq!(packages(maps), want.map(PathBuf::from));
    }
}
