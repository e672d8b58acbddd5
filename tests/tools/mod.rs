//! Programs that tests run.
#![allow(dead_code, reason = "no test runs all of them")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command that must succeed; returns what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = output(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// Whether a program is there.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|d| d.join(program).is_file())
}

/// Whether all programs are there. Missing ones are said, not passed over: CI installs all of them (scripts/setup.sh).
pub fn all_here(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|p| !have(p)).collect();
    if !missing.is_empty() {
        skip(&format!("missing: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Says on a line of its own that a test was left out, and why. Past the harness, which keeps what tests that pass print.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}: must be there in CI");
    let thread = std::thread::current();
    let line = format!("\nSKIPPED: {}: {why}\n", thread.name().unwrap_or("a test"));
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
