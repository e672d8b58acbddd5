//! Root directories with a system of their own; /proc and /dev are the host's.

use crate::tools::{output, skip};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")];

pub struct Root {
    pub path: PathBuf,
}

impl Root {
    /// Whether this machine lets us have one; if not, that is said.
    pub fn possible() -> bool {
        let possible = output(&mut own("true", &[])).status.success();
        if !possible {
            skip("no mount namespaces: no root directory of its own");
        }
        possible
    }

    pub fn new(path: PathBuf) -> Root {
        for dir in ["proc", "dev"] {
            fs::create_dir_all(path.join(dir)).unwrap();
        }
        Root { path }
    }

    /// A command inside; mounts end with it.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let script = "for d in proc dev; do mount --rbind /$d \"$1/$d\"; done; exec chroot \"$@\"";
        let mut all: Vec<&OsStr> = vec![self.path.as_os_str(), program.as_ref()];
        all.extend(args.iter().map(|a| OsStr::new(*a)));
        let mut command = own(script, &all);
        command.env_clear().envs(ENVIRONMENT);
        command
    }

    /// A program outside that runs a command inside; arguments that it gets are added.
    pub fn program(&self, at: &Path, program: &str, args: &[&str]) {
        let command = self.command(program, args);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|w| format!("'{}'", w.to_str().unwrap().replace('\'', r"'\''")));
        let environment = ENVIRONMENT.iter().map(|(name, value)| format!("{name}={value}"));
        let line: Vec<String> = environment.chain(words).collect();
        fs::write(at, format!("#!/bin/sh\nexec env -i {} \"$@\"\n", line.join(" "))).unwrap();
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn put(&self, file: &Path, dir: &str) {
        let to = self.path.join(dir).join(file.file_name().unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", file.display(), to.display()));
    }
}

pub fn is_root() -> bool {
    // SAFETY: no arguments, no memory.
    unsafe { libc::geteuid() == 0 }
}

/// A shell script in a mount namespace of its own.
fn own(script: &str, args: &[&OsStr]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(if is_root() { &["--mount"][..] } else { &["--mount", "--user", "--map-root-user"] });
    unshare.args(["sh", "-euc", script, "sh"]).args(args);
    unshare
}
