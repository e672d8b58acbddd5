//! An engine of each side as a program that takes commands on its standard input, as examples/c/prefill.c and decode.c do.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running program.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command, args: &[&str]) -> Program {
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Program { child, input, output }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
    }

    /// The rest of the next line that begins like this.
    fn wait(&mut self, prefix: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended before it said {prefix:?}");
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                return rest.to_string();
            }
        }
    }

    fn stop(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `layout_by_hand` of decode.c describes, on one rank, with blocks of half the size.
const LAYOUT: &str = r#"{
  "geometry": {"name": "tiny-hybrid", "num_layers": 4, "caches": [
    {"layers": [0, 2], "cache": {"kind": "state", "state": {"units": 8, "width": 256}, "state_dtype": "f32",
      "conv": [{"units": 8, "width": 16}, {"units": 8, "width": 16}, {"units": 8, "width": 16}], "conv_rows": 3}},
    {"layers": [1, 3], "cache": {"kind": "attention", "heads": 8, "dims": [64, 64], "dtype": "bf16"}}]},
  "placement": {"block_tokens": 16, "num_blocks": 16}
}"#;

/// Bytes of 100 tokens and one request's state on all ranks together.
const BYTES: u64 = 2 * (100 * 8 * 128 * 2) + 2 * (8 * 256 * 4 + 3 * 8 * 16 * 3 * 2);

fn number(line: &str, name: &str) -> u64 {
    let word = line.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {name} in {line:?}")).parse().unwrap()
}

/// One prefill rank and two decode ranks move a request by reading it, and another by writing it. The commands start the
/// programs, less their arguments; `dir` is for files.
pub fn move_a_request_both_ways(prefill: impl Fn() -> Command, decode: impl Fn() -> Command, dir: &Path) {
    let layout = dir.join("layout.json");
    std::fs::write(&layout, LAYOUT).unwrap();

    let args = ["--layout", layout.to_str().unwrap(), "--instance", "p", "--layers", "4"];
    let mut p = Program::start(prefill(), &args);
    let p_address = p.wait("address ");
    let mut ranks = vec![Program::start(decode(), &["--instance", "d", "--ranks", "2"])];
    let leader = ranks[0].wait("address ");
    ranks.push(Program::start(decode(), &["--instance", "d", "--ranks", "2", "--rank", "1", "--leader", &leader]));
    p.wait("ready");

    p.tell("offer r1 100 3/0,2,4,6,8,10,12");
    let ticket = p.wait("ticket r1 ");
    for d in &mut ranks {
        d.tell(&format!("connect {p_address}"));
        assert!(d.wait("linked ").contains("host/"));
        d.tell(&format!("read r1 {ticket} 1/5,4,7,6"));
    }
    let lines: Vec<String> = ranks.iter_mut().map(|d| d.wait("received r1 ")).collect();
    assert!(lines.iter().all(|l| l.starts_with("status=0 ")), "{lines:?}");
    assert_eq!(lines.iter().map(|l| number(l, "bytes")).sum::<u64>(), BYTES);
    assert!(p.wait("released r1 ").starts_with("status=0 "));

    for d in &mut ranks {
        d.tell("accept r2 100 2/9,8,11,10");
        d.wait("accepted r2");
    }
    p.tell(&format!("connect {leader}"));
    assert!(p.wait("linked ").contains("host/"));
    p.tell("write r2 100 2/1,3,5,7,9,11,13");
    let wrote = p.wait("wrote r2 ");
    assert!(wrote.starts_with("status=0 "), "{wrote}");
    let lines: Vec<String> = ranks.iter_mut().map(|d| d.wait("received r2 ")).collect();
    assert!(lines.iter().all(|l| l.starts_with("status=0 ") && l.ends_with("aux=token=700")), "{lines:?}");
    assert_eq!(lines.iter().map(|l| number(l, "bytes")).sum::<u64>(), BYTES);

    ranks.into_iter().for_each(Program::stop);
    p.stop();
}
