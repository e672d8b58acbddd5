//! The C examples build without warnings with nothing but a C compiler, and do what they say.

mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the library that this test was built with.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let dir = exe.parent().unwrap();
    assert!(dir.join("libkvlink.so").exists(), "no libkvlink.so in {}", dir.display());
    dir.to_path_buf()
}

/// Builds a program in a directory of its own.
fn build(name: &str, sources: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("examples_c-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    for link in ["libkvlink.so", "libkvlink.so.0"] {
        let _ = std::fs::remove_file(dir.join(link));
        std::os::unix::fs::symlink(library().join("libkvlink.so"), dir.join(link)).unwrap();
    }
    let program = dir.join(name);
    let output = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root.join("include"))
        .args(sources.iter().map(|s| root.join("examples/c").join(s)))
        .arg("-L")
        .arg(&dir)
        .args(["-lkvlink", "-Wl,-rpath,$ORIGIN", "-o"])
        .arg(&program)
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

#[test]
fn the_minimal_example_moves_its_bytes() {
    let output = Command::new(build("minimal", &["minimal.c"])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"all bytes are right\n");
}

#[test]
fn the_example_of_the_readme_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let code = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme.c");
    std::fs::write(&file, code).unwrap();
    let output = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
        .args([&root.join("include"), &file])
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn prefill_and_decode_move_a_request_both_ways() {
    let prefill = build("prefill", &["prefill.c", "common.c"]);
    let decode = build("decode", &["decode.c", "common.c"]);
    let dir = prefill.parent().unwrap();
    programs::move_a_request_both_ways(|| Command::new(&prefill), || Command::new(&decode), dir);
}
