//! Programs that tests run.
#![allow(dead_code, reason = "no test runs all of them")]

use rustix::net;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// More than it takes to stop a process.
const STOPPING: Duration = Duration::from_secs(30);

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

pub fn signal(process: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(process as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Stops a process; returns when all its threads stand still, not only the first.
pub fn stop(process: u32) {
    signal(process, rustix::process::Signal::STOP);
    let stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().unwrap_or("").starts_with('T')
    };
    let (tasks, deadline) = (format!("/proc/{process}/task"), Instant::now() + STOPPING);
    while !std::fs::read_dir(&tasks).unwrap().map(stopped).fold(true, |all, one| all & one) {
        assert!(Instant::now() < deadline, "process {process} does not stand still within {STOPPING:?}");
        std::thread::yield_now();
    }
}

/// A port of 127.0.0.1 that is ours until this process ends: a socket that does not listen keeps others from being given it.
/// Connections to it are refused, and a server that sets SO_REUSEADDR may listen there.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let socket =
        net::socket_with(net::AddressFamily::INET, net::SocketType::STREAM, net::SocketFlags::CLOEXEC, None).unwrap();
    net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let port = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap().port();
    HELD.lock().unwrap().push(socket);
    port
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
