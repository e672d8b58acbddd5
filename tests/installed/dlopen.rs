//! The library in a process that knows nothing of it: loading it does nothing.

use crate::chroot::Root;
use crate::prefix::{Prefix, RIGHT, clean, copy, fresh, prefix};
use crate::tools::{root, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What a library did to a bare process that loaded it.
struct Loaded {
    /// Files that were mapped, by their names.
    mapped: BTreeSet<String>,
    /// Descriptors and threads that came.
    other: BTreeSet<String>,
    version: Option<String>,
}

fn load(dir: &Path, library: &Path) -> Loaded {
    let probe = dir.join("probe");
    let mut cc = Command::new("cc");
    cc.arg(root().join("tests/installed/probe.c")).arg("-o").arg(&probe).arg("-ldl");
    succeed(&mut cc);
    let text = succeed(clean(Command::new(probe).arg(library)));
    let said = |when: &str| -> Vec<String> {
        text.lines().filter_map(|l| l.strip_prefix(when)).map(|l| l.trim().to_string()).collect()
    };
    let (before, mut after) = (said("before "), said("after "));
    for line in &before {
        if let Some(i) = after.iter().position(|l| l == line) {
            after.remove(i);
        }
    }
    let (mapped, other): (Vec<String>, Vec<String>) = after.into_iter().partition(|l| l.starts_with("map "));
    let name =
        |l: String| Path::new(l.strip_prefix("map ").unwrap()).file_name().unwrap().to_str().unwrap().to_string();
    Loaded {
        mapped: mapped.into_iter().map(name).collect(),
        other: other.into_iter().collect(),
        version: said("version ").pop(),
    }
}

#[test]
fn loading_opens_nothing_and_starts_nothing() {
    let Some(prefix) = prefix() else { return };
    let loaded = load(&fresh("dlopen"), &prefix.so());
    assert_eq!(loaded.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    let known = concat!("libkvlink.so.", env!("CARGO_PKG_VERSION"));
    let system = |n: &String| n == known || ["libgcc_s.so.", "libm.so."].iter().any(|k| n.starts_with(k));
    assert!(loaded.mapped.contains(known) && loaded.mapped.iter().all(system), "{:?}", loaded.mapped);
    assert_eq!(loaded.other, BTreeSet::new());
}

const BUSY: &str = r#"#include <fcntl.h>
__attribute__((constructor)) static void begin(void) { (void)!open("/dev/null", O_RDONLY); }
"#;

#[test]
fn a_constructor_that_opens_a_device_would_be_seen() {
    let Some(_) = prefix() else { return };
    let dir = fresh("dlopen-busy");
    fs::write(dir.join("busy.c"), BUSY).unwrap();
    succeed(Command::new("cc").current_dir(&dir).args(["-shared", "-fPIC", "busy.c", "-o", "libbusy.so"]));
    let loaded = load(&dir, &dir.join("libbusy.so"));
    assert!(loaded.other.iter().any(|l| l.ends_with("/dev/null")), "{:?}", loaded.other);
}

/// A root directory with a program and the libraries that it needs, and nothing else.
fn bare_root(prefix: &Prefix, program: &Path) -> Root {
    let bare = Root::new(fresh("bare-root"));
    bare.put(program, "lib");
    bare.put(&prefix.lib().join("libkvlink.so.0"), "lib");
    for name in ["libc.so.6", "libgcc_s.so.1"] {
        let path = succeed(Command::new("cc").arg(format!("-print-file-name={name}")));
        bare.put(Path::new(path.trim()), "lib");
    }
    let headers = succeed(Command::new("readelf").arg("-lW").arg(program));
    let (_, loader) = headers.split_once("interpreter: ").expect("the program is dynamic");
    let loader = Path::new(loader.split(']').next().unwrap());
    bare.put(loader, loader.parent().unwrap().strip_prefix("/").unwrap().to_str().unwrap());
    bare
}

#[test]
fn bytes_move_where_there_is_nothing_but_the_c_library() {
    let Some(prefix) = prefix().filter(|_| Root::possible()) else { return };
    let dir = fresh("bare-build");
    copy(&dir, &["examples/c/minimal.c"]);
    let mut cc = Command::new("cc");
    cc.current_dir(&dir).args(["minimal.c", "-o", "minimal", "-lkvlink"]);
    cc.arg(format!("-I{}", prefix.path.join("include").display())).arg(format!("-L{}", prefix.lib().display()));
    succeed(clean(&mut cc));
    let bare = bare_root(prefix, &dir.join("minimal"));
    assert_eq!(succeed(bare.command("/lib/minimal", &[]).env("LD_LIBRARY_PATH", "/lib")), RIGHT);
}
