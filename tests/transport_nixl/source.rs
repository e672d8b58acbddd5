//! The other process of tests that need one.

use crate::nixl::lock_nothing;
use crate::node::{AUTO, Node, PATIENCE, options};
use crate::refused::{layout, start};
use crate::tools;
use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::transport::Transport;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Instant;

/// Set in that process, to what it is to be.
pub const CHILD: &str = "KVLINK_NIXL_CHILD";

/// A source in a process of its own.
pub struct Source {
    pub process: std::process::Child,
    stdin: ChildStdin,
    lines: BufReader<std::process::ChildStdout>,
}

impl Source {
    pub fn start(engine: &str, environment: &[(&str, &str)]) -> Source {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.envs(environment.iter().copied());
        Source::run(&mut command, engine)
    }

    /// One whose kernel locks no memory for it.
    pub fn that_locks_nothing(engine: &str) -> Source {
        Source::run(lock_nothing(&mut Command::new(std::env::current_exe().unwrap())), engine)
    }

    fn run(command: &mut Command, engine: &str) -> Source {
        let command = command.args(["child", "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, engine);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Source { process, stdin, lines: BufReader::new(stdout) }
    }

    /// `None` if the process has ended.
    pub fn ask(&mut self, command: &str) -> Option<String> {
        writeln!(self.stdin, "{command}").ok()?;
        self.answer()
    }

    pub fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(answer) = line.trim_end().strip_prefix('@') {
                return Some(answer.to_string());
            }
        }
    }

    pub fn metadata(&mut self) -> Vec<u8> {
        let hex = self.ask("metadata").unwrap();
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        tools::signal(self.process.id(), signal);
    }

    pub fn stop(&self) {
        tools::stop(self.process.id());
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn exit(source: &mut Source) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = source.process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not exit");
        std::thread::yield_now();
    }
}

/// What it does.
pub fn child() {
    let Ok(engine) = std::env::var(CHILD) else { return };
    println!();
    let refused = |e: String| {
        println!("@refused {}", e.replace('\n', " "));
        std::process::exit(0);
    };
    if engine == "required" {
        let mut config = AgentConfig::new("a", 0, 1);
        config.require = Require::Named("nixl".into());
        let e = Agent::new(config, layout()).err().unwrap();
        assert_eq!(e.status(), Status::TransportUnavailable);
        return refused(e.message().to_string());
    }
    if engine == "start" {
        let variable = |name: &str| std::env::var(format!("KVLINK_NIXL_{name}")).ok();
        let mut o = options(AUTO).unwrap();
        o.library = variable("LIBRARY").map(PathBuf::from).or(o.library);
        o.backend = variable("BACKEND").unwrap_or(o.backend);
        if let Some(list) = variable("PARAMETERS") {
            let pair = |l: &str| l.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()));
            o.parameters = list.lines().filter_map(pair).collect();
        }
        start(o).map(|_| ()).unwrap_or_else(refused);
        println!("@started");
        return;
    }
    let node = Node::new(options(&engine).unwrap(), 7);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "metadata" => {
                let hex: String = node.nixl.metadata().iter().map(|b| format!("{b:02x}")).collect();
                println!("@{hex}");
            }
            "ping" => println!("@pong"),
            "end" => break,
            other => panic!("{other}"),
        }
    }
    drop(node);
    println!("@ended");
}
