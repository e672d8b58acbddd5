//! What is installed, and where.

use crate::prefix::{fresh, prefix};
use crate::tools::{root, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// All files and links below a directory, relative to it.
pub fn tree(dir: &Path) -> BTreeSet<String> {
    fn walk(base: &Path, dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                walk(base, &path, found);
            } else {
                found.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}

/// What belongs below a prefix, with this place for libraries.
pub fn expected(lib: &str) -> BTreeSet<String> {
    let version = env!("CARGO_PKG_VERSION");
    let mut files: BTreeSet<String> = [
        format!("{lib}/libkvlink.a"),
        format!("{lib}/libkvlink.so"),
        format!("{lib}/libkvlink.so.0"),
        format!("{lib}/libkvlink.so.{version}"),
        format!("{lib}/pkgconfig/kvlink.pc"),
        format!("{lib}/cmake/kvlink/kvlink-config.cmake"),
        format!("{lib}/cmake/kvlink/kvlink-config-version.cmake"),
        format!("{lib}/cmake/kvlink/kvlink-targets.cmake"),
        format!("{lib}/cmake/kvlink/kvlink-targets-release.cmake"),
        "share/doc/kvlink/LICENSE".into(),
    ]
    .into();
    files.extend(tree(&root().join("include")).into_iter().map(|f| format!("include/{f}")));
    for page in tree(&root().join("docs/man")) {
        let section = page.rsplit('.').next().unwrap();
        files.insert(format!("share/man/man{section}/{page}"));
    }
    files
}

#[test]
fn everything_is_installed_and_nothing_else() {
    let Some(prefix) = prefix() else { return };
    assert_eq!(tree(&prefix.path), expected("lib"));
    let target = |name: &str| fs::read_link(prefix.lib().join(name)).unwrap();
    assert_eq!(target("libkvlink.so"), Path::new("libkvlink.so.0"));
    assert_eq!(target("libkvlink.so.0"), Path::new(concat!("libkvlink.so.", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn no_installed_text_names_where_it_was_built_or_installed() {
    let Some(prefix) = prefix() else { return };
    let places = [root().to_str().unwrap(), env!("CARGO_TARGET_TMPDIR"), prefix.path.to_str().unwrap()];
    for file in tree(&prefix.path).iter().filter(|f| f.contains("pkgconfig/") || f.contains("cmake/")) {
        let text = fs::read_to_string(prefix.path.join(file)).unwrap();
        assert!(places.iter().all(|p| !text.contains(p)), "{file}:\n{text}");
    }
}

#[test]
fn make_install_takes_prefix_and_destdir() {
    let Some(_) = prefix() else { return };
    let plan = fresh("make");
    // What make would run; the build itself is that of the prefix.
    let mut make = Command::new("make");
    make.current_dir(root()).args(["-n", "install", "PREFIX=/opt/kv"]).arg(format!("DESTDIR={}", plan.display()));
    let text = succeed(&mut make);
    assert!(text.contains("-DCMAKE_INSTALL_PREFIX='/opt/kv'"), "{text}");
    assert!(text.contains(&format!("DESTDIR='{}' cmake --install", plan.display())), "{text}");
    let mut cmake = Command::new("cmake");
    cmake.args(["--install"]).arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("cmake")).args(["--prefix", "/opt/kv"]);
    succeed(cmake.env("DESTDIR", &plan));
    assert_eq!(tree(&plan.join("opt/kv")), expected("lib"));
}
