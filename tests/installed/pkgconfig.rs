//! C programs built with a compiler and pkg-config.

use crate::prefix::{Prefix, RIGHT, clean, copy, fresh, prefix};
use crate::programs;
use crate::tools::{all_here, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const STRICT: [&str; 5] = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Compiles sources that lie in a directory.
fn compile(dir: &Path, sources: &[&str], flags: &[String]) -> PathBuf {
    let program = dir.join(sources[0].strip_suffix(".c").unwrap());
    let mut cc = Command::new("cc");
    clean(&mut cc).current_dir(dir).args(STRICT).args(sources).args(flags).arg("-o").arg(&program);
    succeed(&mut cc);
    program
}

fn minimal(name: &str) -> PathBuf {
    let dir = fresh(name);
    copy(&dir, &["examples/c/minimal.c"]);
    dir
}

fn needs_kvlink(program: &Path) -> bool {
    succeed(Command::new("readelf").arg("-dW").arg(program)).contains("[libkvlink.so.0]")
}

fn flags(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn dynamic(prefix: &Prefix, name: &str) {
    let dir = minimal(name);
    let program = compile(&dir, &["minimal.c"], &prefix.pkg_config(&["--cflags", "--libs"]));
    assert!(needs_kvlink(&program));
    assert_eq!(succeed(&mut prefix.program(&program)), RIGHT);
}

#[test]
fn a_program_is_linked_dynamically() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    dynamic(prefix, "pc-dynamic");
}

#[test]
fn a_program_is_linked_statically() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    let dir = minimal("pc-static");
    let mut args = prefix.pkg_config(&["--cflags"]);
    args.extend(flags(&["-Wl,-Bstatic"]));
    args.extend(prefix.pkg_config(&["--libs"]));
    args.extend(flags(&["-Wl,-Bdynamic"]));
    let program = compile(&dir, &["minimal.c"], &args);
    assert!(!needs_kvlink(&program));
    assert_eq!(succeed(clean(&mut Command::new(program))), RIGHT);
}

#[test]
fn a_program_without_any_shared_library_runs() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    let dir = minimal("pc-all-static");
    let mut args = flags(&["-static"]);
    args.extend(prefix.pkg_config(&["--static", "--cflags", "--libs"]));
    let program = compile(&dir, &["minimal.c"], &args);
    let text = succeed(Command::new("readelf").arg("-lW").arg(&program));
    assert!(!text.contains("INTERP"), "{text}");
    assert_eq!(succeed(&mut Command::new(program)), RIGHT);
}

#[test]
fn clang_links_both_libraries() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config", "clang"])) else { return };
    let dir = minimal("pc-clang");
    let library = prefix.lib().join("libkvlink.a");
    for link in [prefix.pkg_config(&["--libs"]), flags(&[library.to_str().unwrap(), "-lpthread", "-ldl", "-lm"])] {
        let mut clang = Command::new("clang");
        clean(&mut clang).current_dir(&dir).args(STRICT).args(prefix.pkg_config(&["--cflags"]));
        succeed(clang.arg("minimal.c").args(link).args(["-o", "minimal"]));
        assert_eq!(succeed(&mut prefix.program(&dir.join("minimal"))), RIGHT);
    }
}

#[test]
fn the_prefix_can_be_moved() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    let moved = Prefix { path: fresh("moved").join("elsewhere") };
    succeed(Command::new("cp").arg("-a").arg(&prefix.path).arg(&moved.path));
    let flags = moved.pkg_config(&["--cflags", "--libs"]);
    assert!(flags.iter().all(|f| !f.contains(prefix.path.to_str().unwrap())), "{flags:?}");
    dynamic(&moved, "pc-moved");
    crate::cmake::both_targets(&moved, "cmake-moved");
}

#[test]
fn the_version_is_the_package_s() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    assert_eq!(prefix.pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let dir = fresh("pc-version");
    let source = "#include <kvlink.h>\n#include <stdio.h>\nint main(void) { return puts(kvlink_version()) < 0; }\n";
    fs::write(dir.join("version.c"), source).unwrap();
    let program = compile(&dir, &["version.c"], &prefix.pkg_config(&["--cflags", "--libs"]));
    assert_eq!(succeed(&mut prefix.program(&program)).trim(), env!("CARGO_PKG_VERSION"));
}

/// The two programs that talk to one another, built from the installed tree.
#[test]
fn prefill_and_decode_move_a_request_both_ways() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config"])) else { return };
    let dir = fresh("pc-programs");
    copy(&dir, &["examples/c/prefill.c", "examples/c/decode.c", "examples/c/common.c", "examples/c/common.h"]);
    let flags = prefix.pkg_config(&["--cflags", "--libs"]);
    let prefill = compile(&dir, &["prefill.c", "common.c"], &flags);
    let decode = compile(&dir, &["decode.c", "common.c"], &flags);
    programs::move_a_request_both_ways(|| prefix.program(&prefill), || prefix.program(&decode), &dir);
}
