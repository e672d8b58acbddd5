//! What the libraries look like to linkers.

use crate::map;
use crate::prefix::{Prefix, clean, fresh, prefix};
use crate::tools::{root, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Global symbols that a library defines, as nm prints them with these options.
fn globals(library: &Path, options: &[&str]) -> BTreeSet<String> {
    let mut nm = Command::new("nm");
    let text = succeed(nm.args(["--extern-only", "--defined-only", "--format=posix"]).args(options).arg(library));
    // Version names are absolute symbols themselves.
    let symbols = text.lines().map(|l| l.split(' ').collect::<Vec<_>>()).filter(|w| w.len() > 1 && w[1] != "A");
    symbols.map(|w| w[0].to_string()).collect()
}

#[test]
fn every_export_has_its_version_and_nothing_else_is_exported() {
    let Some(prefix) = prefix() else { return };
    let stanzas = map::parse(&fs::read_to_string(root().join("abi/kvlink.map")).unwrap()).unwrap();
    let versioned = |s: &map::Stanza| s.symbols.iter().map(|f| format!("{f}@@{}", s.name)).collect::<Vec<_>>();
    let expected: BTreeSet<String> = stanzas.iter().flat_map(versioned).collect();
    assert_eq!(globals(&prefix.so(), &["-D", "--with-symbol-versions"]), expected);
}

#[test]
fn the_static_library_defines_the_same_functions_and_nothing_else() {
    let Some(prefix) = prefix() else { return };
    let symbols = fs::read_to_string(root().join("abi/kvlink.symbols")).unwrap();
    let expected: BTreeSet<String> = symbols.lines().map(ToString::to_string).collect();
    assert_eq!(globals(&prefix.lib().join("libkvlink.a"), &[]), expected);
}

#[test]
fn the_library_has_its_name_and_needs_the_system_alone() {
    let Some(prefix) = prefix() else { return };
    let text = succeed(Command::new("readelf").arg("-dW").arg(prefix.so()));
    let named = |tag: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| l.contains(tag));
        lines.filter_map(|l| Some(l.split_once('[')?.1.split_once(']')?.0.to_string())).collect()
    };
    assert_eq!(named("(SONAME)"), ["libkvlink.so.0"]);
    assert_eq!(named("PATH)"), Vec::<String>::new());
    let system = |n: &String| ["libc.so.", "libgcc_s.so.", "libm.so.", "ld-linux"].iter().any(|k| n.starts_with(k));
    let needed = named("(NEEDED)");
    assert!(!needed.is_empty() && needed.iter().all(system), "{needed:?}");
}

/// Half again as much as there was when this was written (2.9 MB: the standard library, JSON, the planner, the protocols and three
/// transports), so that growth is noticed before a runtime or a vendor's library has slipped in.
const STRIPPED: u64 = 4_300_000;

#[test]
fn the_stripped_library_is_small() {
    let Some(prefix) = prefix() else { return };
    let stripped = fresh("stripped").join("libkvlink.so");
    succeed(Command::new("strip").arg("--strip-unneeded").arg(prefix.so()).arg("-o").arg(&stripped));
    let size = fs::metadata(&stripped).unwrap().len();
    println!("libkvlink.so: {size} bytes stripped, {} installed", fs::metadata(prefix.so()).unwrap().len());
    assert!(size < STRIPPED, "{size} bytes, bound {STRIPPED}");
}

const OTHER: &str = r#"#[unsafe(no_mangle)]
pub extern "C" fn other(n: u32) -> u32 {
    std::panic::catch_unwind(|| if n > 3 { panic!("on purpose") } else { n }).unwrap_or(7)
}
"#;

const BOTH: &str = r#"#include <kvlink.h>
#include <string.h>
unsigned other(unsigned n);
int main(int argc, char **argv)
{
    (void)argv;
    return other(2 + (unsigned)argc) != 3 || other(9) != 7 || strlen(kvlink_version()) == 0;
}
"#;

/// Two static libraries in Rust have the standard library twice; all of either is linked, in both orders.
#[test]
fn the_static_library_can_be_linked_beside_another_one_in_rust() {
    let Some(prefix) = prefix() else { return };
    let dir = fresh("two-rust-libraries");
    fs::write(dir.join("other.rs"), OTHER).unwrap();
    fs::write(dir.join("both.c"), BOTH).unwrap();
    let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
    let mut other = Command::new(rustc);
    other.current_dir(&dir).args(["--edition=2024", "--crate-type=staticlib", "-O", "other.rs", "-o", "libother.a"]);
    succeed(clean(&mut other));
    link_both(prefix, &dir, ["libother.a", "libkvlink.a"]);
    link_both(prefix, &dir, ["libkvlink.a", "libother.a"]);
}

fn link_both(prefix: &Prefix, dir: &Path, order: [&str; 2]) {
    let mut cc = Command::new("cc");
    clean(&mut cc).current_dir(dir).args(["-std=c99", "both.c", "-o", "both", "-Wl,--whole-archive"]);
    for library in order {
        let installed = prefix.lib().join(library);
        cc.arg(if installed.exists() { installed } else { dir.join(library) });
    }
    cc.arg(format!("-I{}", prefix.path.join("include").display()));
    succeed(cc.args(["-Wl,--no-whole-archive", "-lpthread", "-ldl", "-lm"]));
    succeed(&mut Command::new(dir.join("both")));
}
