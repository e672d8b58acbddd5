//! The shape of the code: references between modules point downwards only, `unsafe` stays where it is allowed, and no
//! file grows out of hand.

use std::path::{Path, PathBuf};

/// Lowest first.
const MODULES: [&str; 8] = ["error", "layout", "wire", "memory", "transport", "proto", "agent", "ffi"];

const LONGEST: usize = 700;

/// Modules that `module` may name. A module that is not listed may name everything below it.
fn allowed(module: &str) -> Vec<&'static str> {
    match module {
        "error" => vec![],
        "layout" => vec!["error"],
        "wire" => vec!["error", "layout"],
        // Siblings: the agent joins them.
        "transport" => vec!["error", "layout", "wire", "memory"],
        "proto" => vec!["error", "layout", "wire", "memory"],
        other => {
            let at = MODULES.iter().position(|m| *m == other).unwrap_or_else(|| panic!("module {other} has no layer"));
            MODULES[..at].to_vec()
        }
    }
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source file: its path below `src`, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let read = |p: PathBuf| (p.strip_prefix(&root).unwrap().to_path_buf(), std::fs::read_to_string(&p).unwrap());
    paths.into_iter().map(read).collect()
}

/// Path segments of a file's module: `transport/host/mod.rs` is `["transport", "host"]`.
fn module(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// Code without comments, string contents and white space.
fn code(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut last = ' ';
        for (i, c) in line.char_indices() {
            if c == '"' && last != '\\' && last != '\'' {
                quoted = !quoted;
            }
            if !quoted && line[i..].starts_with("//") {
                break;
            }
            if !quoted || c == '"' {
                out.push(c);
            }
            last = c;
        }
        out.push('\n');
    }
    out
}

/// The names that follow `prefix`, also inside braces: `crate::{error, layout::Span}`.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let word = |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut out = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(inside) = rest.strip_prefix('{') else {
            out.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    out.push(word(&inside[start..i]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    out.push(word(&inside[start..i]));
                    start = i + 1;
                }
                _ => {}
            }
        }
    }
    out.retain(|n| !n.is_empty());
    out
}

/// Top-level modules that a file names.
fn references(path: &Path, text: &str) -> Vec<String> {
    let code = code(text);
    let mut out = names_after(&code, "crate::");
    // As many `super` as the file is deep lead to the crate's root.
    let depth = module(path).len();
    if depth > 0 {
        out.extend(names_after(&code, &"super::".repeat(depth)));
    }
    out.retain(|n| MODULES.contains(&n.as_str()));
    out
}

#[test]
fn modules_name_only_what_lies_below() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        let Some(own) = module.first() else { continue };
        let allowed = allowed(own);
        for name in references(&path, &text) {
            if name != *own && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn transports_do_not_know_each_other() {
    let backends = ["host", "nixl", "mori", "verbs"];
    for (path, text) in sources() {
        let module = module(&path);
        let [first, own, ..] = &module[..] else { continue };
        if first != "transport" || !backends.contains(&own.as_str()) {
            continue;
        }
        let code = code(&text);
        let mut named = names_after(&code, "crate::transport::");
        named.extend(names_after(&code, &"super::".repeat(module.len() - 1)));
        let wrong: Vec<_> = named.iter().filter(|n| *n != own && backends.contains(&n.as_str())).collect();
        assert!(wrong.is_empty(), "{} names {wrong:?}", path.display());
    }
}

fn may_be_unsafe(path: &Path) -> bool {
    let file = path.file_name().unwrap().to_string_lossy().into_owned();
    path.starts_with("ffi")
        || path.starts_with("memory")
        || path == Path::new("ffi.rs")
        || path == Path::new("memory.rs")
        || (path.starts_with("transport") && (file.starts_with("sys") || path.iter().any(|p| p == "sys")))
}

#[test]
fn unsafe_stays_at_the_edges() {
    for (path, text) in sources() {
        let code = code(&text);
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        assert!(may_be_unsafe(&path) || words.all(|w| w != "unsafe"), "{} uses unsafe", path.display());
    }
}

#[test]
fn files_stay_short() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines, at most {LONGEST}", path.display());
    }
}

#[test]
fn the_scanner_sees_references() {
    let path = Path::new("layout/plan.rs");
    let text = "use crate::{error::{Error, Result}, agent::Agent};\nuse super::super::wire::Frame; // crate::ffi\n";
    assert_eq!(references(path, text), ["error", "agent", "wire"]);
    assert_eq!(references(path, "let s = \"crate::ffi\"; use super::Plan; $crate::memory::x"), [] as [String; 0]);
    assert_eq!(references(Path::new("transport/host/mod.rs"), "use super::super::proto::Session;"), ["proto"]);
}
