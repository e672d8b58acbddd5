//! Programs that were built against an older kvlink must run with this one.
//!
//! abi/kvlink.abi is the ABI of today, written by `make abi`; abi/released holds, for every release, its map and its ABI, which
//! never change (docs/packaging.md).

#[path = "../cheader/mod.rs"]
mod cheader;
mod interface;
mod map;
#[path = "../tools/mod.rs"]
mod tools;

use interface::{Change, compare, dump};
use std::path::{Path, PathBuf};
use tools::{all_here, root};

const NEEDED: [&str; 3] = ["cc", "abidw", "abidiff"];

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files of abi/released that end like this.
fn released(extension: &str) -> Vec<PathBuf> {
    let Ok(dir) = std::fs::read_dir(root().join("abi/released")) else { return Vec::new() };
    let files = dir.map(|f| f.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == extension)).collect()
}

#[test]
fn the_baseline_is_the_interface_of_the_header() {
    if !all_here(&NEEDED) {
        return;
    }
    let (baseline, header) = (root().join("abi/kvlink.abi"), read("include/kvlink.h"));
    let fresh = dump("today", &header, &read("abi/kvlink.map"));
    if std::env::var_os("KVLINK_BLESS").is_some() {
        std::fs::copy(&fresh, &baseline).unwrap();
    }
    match compare(&baseline, &fresh, &header) {
        Change::None => {}
        Change::Compatible(report) => panic!("the ABI has grown; if that is meant, run `make abi`:\n{report}"),
        Change::Incompatible(report) => panic!(
            "the ABI has changed so that programs built against abi/kvlink.abi break. If nothing in abi/released has what \
             changed, run `make abi`; otherwise give the new thing a new name:\n{report}"
        ),
    }
}

#[test]
fn no_release_is_broken() {
    if !all_here(&NEEDED) {
        return;
    }
    let header = read("include/kvlink.h");
    let fresh = dump("now", &header, &read("abi/kvlink.map"));
    for old in released("abi") {
        if let Change::Incompatible(report) = compare(&old, &fresh, &header) {
            panic!("programs built against {} break:\n{report}", old.display());
        }
    }
    let current = map::parse(&read("abi/kvlink.map")).unwrap();
    for old in released("map") {
        let faults = map::changed(&map::parse(&read(&old)).unwrap(), &current);
        assert!(faults.is_empty(), "{}: {faults:#?}", old.display());
    }
}

/// Versions in the changelog's headings, less those that are "not released".
fn released_versions(changelog: &str) -> Vec<&str> {
    let headings = changelog.lines().filter_map(|l| l.strip_prefix("## "));
    headings.filter(|h| !h.contains("not released")).filter_map(|h| h.split([',', ' ']).next()).collect()
}

#[test]
fn every_release_is_frozen() {
    assert_eq!(released_versions("# Changelog\n\n## 0.2.0, not released\n\n## 0.1.0, 2026-01-31\n"), ["0.1.0"]);
    for version in released_versions(&read("CHANGELOG.md")) {
        for extension in ["map", "abi"] {
            let name = format!("{version}.{extension}");
            assert!(
                released(extension).iter().any(|f| f.ends_with(&name)),
                "CHANGELOG.md says that {version} is released: copy abi/kvlink.{extension} to abi/released/{name}"
            );
        }
    }
}

#[test]
fn the_map_lists_the_symbols() {
    let map = map::parse(&read("abi/kvlink.map")).unwrap();
    let mut symbols: Vec<String> = map.iter().flat_map(|s| s.symbols.iter().cloned()).collect();
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        read("abi/kvlink.symbols").lines().collect::<Vec<_>>(),
        "abi/kvlink.map and abi/kvlink.symbols"
    );
    let minor = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0;
    assert_eq!(
        map.last().unwrap().name,
        format!("KVLINK_{minor}"),
        "the newest stanza is that of the package's version"
    );
}
