//! Tests in a process of their own, and the other process of tests that need one.

use crate::node::{Node, options};
use crate::tools;
use kvlink::transport::Transport;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};

/// Set in that process.
const CHILD: &str = "KVLINK_MORI_CHILD";

/// Runs this test again, in a process of its own and with these variables; `true` in that process.
pub fn is_alone(variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let thread = std::thread::current();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([thread.name().unwrap(), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", output.status);
    false
}

/// A source in a process of its own.
pub struct Source {
    pub process: std::process::Child,
    stdin: ChildStdin,
    lines: BufReader<std::process::ChildStdout>,
}

impl Source {
    pub fn start() -> Source {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "source")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Source { process, stdin, lines: BufReader::new(stdout) }
    }

    pub fn metadata(&mut self) -> Vec<u8> {
        writeln!(self.stdin, "metadata").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the other process has ended");
            if let Some(hex) = line.trim_end().strip_prefix('@') {
                return (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        tools::signal(self.process.id(), signal);
    }

    pub fn stop(&self) {
        tools::stop(self.process.id());
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What it does.
pub fn child() {
    if std::env::var(CHILD).as_deref() != Ok("source") {
        return;
    }
    println!();
    let node = Node::new(options().unwrap(), 7);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        assert_eq!(line, "metadata");
        let hex: String = node.mori.metadata().iter().map(|b| format!("{b:02x}")).collect();
        println!("@{hex}");
    }
}
