//! The manual: one page of section 3 for every function, written from the header, and kvlink(7) by hand.

#[path = "../cheader/mod.rs"]
mod cheader;
mod page;
#[path = "../tools/mod.rs"]
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    tools::root()
}

fn pages() -> PathBuf {
    root().join("docs/man")
}

fn header() -> String {
    std::fs::read_to_string(root().join("include/kvlink.h")).unwrap()
}

/// Pages of section 3 in docs/man.
fn committed() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(pages()).unwrap().map(|f| f.unwrap().path());
    let pages = files.filter(|f| f.extension().is_some_and(|e| e == "3"));
    pages.map(|f| (f.file_name().unwrap().to_str().unwrap().into(), std::fs::read_to_string(f).unwrap())).collect()
}

#[test]
fn the_committed_pages_are_what_the_header_says() {
    let fresh = page::all(&header());
    if std::env::var_os("KVLINK_BLESS").is_some() {
        for stale in committed().keys().filter(|k| !fresh.contains_key(*k)) {
            std::fs::remove_file(pages().join(stale)).unwrap();
        }
        for (name, text) in &fresh {
            std::fs::write(pages().join(name), text).unwrap();
        }
    }
    let committed = committed();
    let differ: Vec<&String> = fresh.keys().filter(|k| committed.get(*k) != fresh.get(*k)).collect();
    assert!(differ.is_empty(), "stale: {differ:?}: run `make header`");
    assert_eq!(committed.len(), fresh.len(), "a page is there whose function is not: run `make header`");
}

#[test]
fn every_exported_function_has_a_page() {
    let symbols = std::fs::read_to_string(root().join("abi/kvlink.symbols")).unwrap();
    let expected: Vec<String> = symbols.lines().map(|s| format!("{s}.3")).collect();
    assert_eq!(committed().into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn kvlink_7_names_every_function_and_every_caveat_of_the_header() {
    let page = std::fs::read_to_string(pages().join("kvlink.7")).unwrap();
    for function in cheader::functions(&header()) {
        assert!(page.contains(&format!("BR {} (3)", function.name)), "kvlink(7) does not name {}", function.name);
    }
    let header = header();
    let (_, caveats) = header.split_once("Caveats first:").unwrap();
    let count = caveats.split("Generated from").next().unwrap().matches("\n *  - ").count();
    let (_, section) = page.split_once(".SH CAVEATS\n").expect("kvlink(7) has CAVEATS");
    let bullets = section.split("\n.SH ").next().unwrap().matches(".IP \\(bu").count();
    assert_eq!(bullets, count, "caveats of kvlink(7) and of the header");
}

#[test]
fn the_formatters_have_nothing_to_say() {
    if !tools::all_here(&["man", "mandoc"]) {
        return;
    }
    let files = std::fs::read_dir(pages()).unwrap().map(|f| f.unwrap().path());
    for file in files {
        let mut man = Command::new("man");
        let output = tools::output(man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(&file));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{}: {text}", file.display());
        // The pages have no date: they change with the header, not with the calendar.
        let output = tools::output(Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&file));
        let text = String::from_utf8_lossy(&output.stdout);
        let faults: Vec<&str> = text.lines().filter(|l| !l.contains("missing date")).collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}
