//! The benchmark's other process: itself, started again, which answers lines with lines.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Remote {
    process: Child,
    /// `None` once it is to end.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    /// `variable` tells it that it is the other one.
    pub fn start(variable: &str, value: &str) -> Remote {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().unwrap());
        Remote { process, stdin, lines: BufReader::with_capacity(1 << 20, stdout).lines() }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    pub fn line(&mut self) -> String {
        self.lines.next().expect("the other process has ended").unwrap()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.line()
    }

    /// Processor time of both processes.
    pub fn cpu(&mut self) -> f64 {
        super::cpu() + self.ask("cpu").parse::<f64>().unwrap()
    }
}

impl Drop for Remote {
    /// It ends when nobody asks any more.
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.process.wait();
    }
}
