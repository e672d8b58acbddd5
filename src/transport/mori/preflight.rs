//! Looking at the machine in a process of its own before MoRI is loaded in this one.
//!
//! MoRI exits, aborts or loops for ever on machines that do not suit it. `kvlink-mori-check`, beside `libkvlink_mori.so`, finds
//! the cause, and starts MoRI once where it finds none.

use super::library::unavailable;
use super::options::{Backend, MoriOptions, PollMode};
use crate::error::Result;
use parking_lot::Mutex;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

pub(super) const PROGRAM: &str = "kvlink-mori-check";
/// When the program gives up by itself, and when it is killed.
const PATIENCE_S: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(PATIENCE_S + 10);

/// What has passed in this process.
static PASSED: Mutex<Vec<Vec<String>>> = Mutex::new(Vec::new());

/// Refuses with the cause where MoRI cannot be used. What has passed once is not looked at again.
pub(super) fn check(program: &Path, options: &MoriOptions) -> Result<()> {
    let arguments = arguments(options);
    let mut passed = PASSED.lock();
    if passed.contains(&arguments) {
        return Ok(());
    }
    run(program, &arguments, DEADLINE).map_err(|cause| unavailable(format!("mori: {cause}")))?;
    passed.push(arguments);
    Ok(())
}

fn arguments(o: &MoriOptions) -> Vec<String> {
    let poll = match o.poll_mode {
        PollMode::Polling => "polling",
        PollMode::Event => "event",
    };
    let batch = o.post_batch_size.map_or(-1, i64::from);
    let mut out: Vec<String> = vec!["--preflight".into()];
    let mut add = |name: &str, value: String| out.extend([format!("--{name}"), value]);
    add("backend", o.backend.name().into());
    add("host", o.host());
    add("port", o.port.to_string());
    add("qp-per-transfer", o.qp_per_transfer.to_string());
    add("post-batch-size", batch.to_string());
    add("num-workers", o.num_workers.to_string());
    add("poll", poll.into());
    add("seconds", PATIENCE_S.to_string());
    if o.backend == Backend::Rdma {
        add("bytes", o.expected.to_string());
    }
    if !o.devices.is_empty() {
        add("devices", o.devices.clone());
    }
    out
}

/// Runs the program; the error is the cause that it names, or how it ended.
fn run(program: &Path, arguments: &[String], deadline: Duration) -> std::result::Result<(), String> {
    let shown = program.display();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{shown} cannot be run: {e}"))?;
    let said = listen(child.stdout.take());
    let complained = listen(child.stderr.take());
    let said = said.recv_timeout(deadline);
    if said.is_err() {
        let _ = child.kill();
    }
    // An engine that waits for all its children may have got this one's status.
    let status = child.wait().ok();
    let Ok(said) = said else { return Err(format!("{PROGRAM} has not ended after {deadline:?} and was killed")) };
    judge(&said, &complained.recv().unwrap_or_default(), status)
}

fn judge(said: &str, complained: &str, status: Option<ExitStatus>) -> std::result::Result<(), String> {
    let last = said.lines().last().unwrap_or_default();
    if last.starts_with("passed") {
        return Ok(());
    }
    if let Some(cause) = last.strip_prefix("refused: ") {
        return Err(cause.to_string());
    }
    let how = match (last.strip_prefix("ended: "), last.strip_prefix("checking: "), status) {
        (Some(how), ..) => format!("MoRI {how} in {PROGRAM}"),
        (None, Some(doing), Some(status)) => format!("{PROGRAM} ended ({status}) while checking {doing}"),
        (None, Some(doing), None) => format!("{PROGRAM} ended while checking {doing}"),
        (None, None, _) => format!("{PROGRAM} said {last:?}, which is no verdict"),
    };
    match complained.lines().rfind(|l| !l.trim().is_empty()) {
        Some(line) => Err(format!("{how}; it wrote: {}", line.trim())),
        None => Err(how),
    }
}

/// All that comes, once it ends.
fn listen(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    let work = move || {
        let mut bytes = Vec::new();
        // What came before an error counts.
        let _ = from.map(|mut f| f.read_to_end(&mut bytes));
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    };
    // Without the thread, nothing was said.
    let _ = std::thread::Builder::new().name("kvlink-mori".into()).spawn(work);
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(script: &str, deadline: Duration) -> String {
        run(Path::new("/bin/sh"), &["-c".into(), script.into()], deadline).unwrap_err()
    }

    #[test]
    fn every_end_says_what_was_going_on() {
        let long = Duration::from_secs(60);
        assert_eq!(ran("echo 'checking: x'; echo 'refused: no card'", long), "no card");
        let aborted =
            ran("echo 'ended: aborted while starting MoRI'; echo 'x' >&2; echo 'Assertion y' >&2; exit 1", long);
        assert_eq!(aborted, "MoRI aborted while starting MoRI in kvlink-mori-check; it wrote: Assertion y");
        let killed = ran("echo 'checking: the devices'; kill -9 $$", long);
        assert!(killed.contains("signal: 9") && killed.contains("the devices"), "{killed}");
        assert!(ran("true", long).contains("no verdict"));
        let e = run(Path::new("/nonexistent/program"), &[], long).unwrap_err();
        assert!(e.contains("/nonexistent/program cannot be run"), "{e}");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let e = ran("echo 'checking: x'; exec sleep 1000", Duration::from_millis(50));
        assert!(e.contains("has not ended after 50ms and was killed"), "{e}");
    }
}
