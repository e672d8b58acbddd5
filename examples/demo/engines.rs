//! The C programs as processes, and their memory as this process sees it.
//!
//! Nothing is left behind: layouts are handed over as memory files, a rank ends when its input does, and the system ends
//! it when this process is gone.

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A region of a rank, mapped here too.
pub struct Mapping {
    addr: *mut u8,
    len: usize,
}

// SAFETY: plain memory; who may touch it when is the caller's business.
unsafe impl Send for Mapping {}
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the memory file that lies at `addr` in process `pid`.
    fn of_process(pid: u32, addr: u64, len: usize) -> Result<Mapping, String> {
        let fail = |what: &str| format!("memory of process {pid}: {what}");
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| fail(&e.to_string()))?;
        let line =
            maps.lines().find(|l| l.starts_with(&format!("{addr:x}-")) || l.starts_with(&format!("{addr:08x}-")));
        let inode: u64 =
            line.and_then(|l| l.split_whitespace().nth(4)?.parse().ok()).ok_or_else(|| fail("not mapped"))?;
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| fail(&e.to_string()))?;
        let paths = fds.flatten().map(|e| e.path());
        let of_memory = |p: &Path| {
            let name = std::fs::read_link(p).unwrap_or_default();
            name.to_string_lossy().starts_with("/memfd:") && std::fs::metadata(p).is_ok_and(|m| m.ino() == inode)
        };
        let path = paths.into_iter().find(|p| of_memory(p)).ok_or_else(|| fail("its file is not open"))?;
        let file = File::options().read(true).write(true).open(path).map_err(|e| fail(&e.to_string()))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of this process.
        let at =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) };
        Ok(Mapping { addr: at.map_err(|e| fail(&e.to_string()))?.cast(), len })
    }

    pub fn addr(&self) -> *mut u8 {
        self.addr
    }

    /// The bytes; the other process must not write meanwhile.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped until drop.
        unsafe { std::slice::from_raw_parts(self.addr, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped until drop.
        unsafe { std::slice::from_raw_parts_mut(self.addr, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `of_process`; no slice outlives it.
        let _ = unsafe { munmap(self.addr.cast(), self.len) };
    }
}

/// One running rank.
pub struct Rank {
    child: Child,
    input: Option<ChildStdin>,
    pub address: String,
    pub regions: Vec<Mapping>,
}

/// All ranks of an instance.
pub struct Instance {
    pub name: &'static str,
    pub ranks: Vec<Rank>,
    lines: Receiver<(usize, Option<String>)>,
    out: Sender<(usize, Option<String>)>,
    /// Lines that nobody waited for yet.
    early: Vec<(usize, String)>,
}

impl Instance {
    /// Starts a rank per layout, and waits until all of them are ready for peers.
    pub fn start(
        program: &Path,
        name: &'static str,
        layouts: &[String],
        layers: u32,
        options: &[&str],
    ) -> Result<Instance, String> {
        let (out, lines) = channel();
        let mut it = Instance { name, ranks: Vec::new(), lines, out, early: Vec::new() };
        for json in layouts {
            it.spawn(program, json, layouts.len(), layers, options)?;
        }
        it.gather("ready")?;
        for rank in 0..it.ranks.len() {
            let pid = it.ranks[rank].child.id();
            while let Some(at) = it.early.iter().position(|(r, l)| *r == rank && l.starts_with("region ")) {
                let line = it.early.remove(at).1;
                let mut words = line.split(' ').skip(2);
                let addr = words.next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok());
                let len = words.next().and_then(|w| w.parse().ok());
                let (Some(addr), Some(len)) = (addr, len) else { return Err(format!("{name}: {line:?}")) };
                it.ranks[rank].regions.push(Mapping::of_process(pid, addr, len)?);
            }
        }
        Ok(it)
    }

    fn spawn(&mut self, program: &Path, json: &str, ranks: usize, layers: u32, options: &[&str]) -> Result<(), String> {
        let index = self.ranks.len();
        let fail = |e: std::io::Error| format!("{}: {e}", program.display());
        let file = memfd_create("layout", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let mut file = File::from(file);
        file.write_all(json.as_bytes()).map_err(fail)?;
        let mut command = Command::new(program);
        command
            .arg("--layout")
            .arg(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
            .args(["--instance", self.name])
            .args(options)
            .args(["--rank", &index.to_string(), "--ranks", &ranks.to_string(), "--layers", &layers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(first) = self.ranks.first() {
            command.args(["--leader", &first.address]);
        }
        // SAFETY: one system call, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(fail)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        self.ranks.push(Rank { child, input, address: String::new(), regions: Vec::new() });
        let out = self.out.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output.into_iter().next().expect("piped")).lines().map_while(Result::ok) {
                let _ = out.send((index, Some(line)));
            }
            let _ = out.send((index, None));
        });
        let line = self.wait(Some(index), "address ")?.1;
        self.ranks[index].address = line["address ".len()..].to_string();
        Ok(())
    }

    pub fn tell(&mut self, rank: usize, command: &str) -> Result<(), String> {
        let input = self.ranks[rank].input.as_mut().ok_or("a rank has ended")?;
        writeln!(input, "{command}").map_err(|e| format!("{} rank {rank}: {e}", self.name))
    }

    pub fn tell_all(&mut self, command: &str) -> Result<(), String> {
        (0..self.ranks.len()).try_for_each(|r| self.tell(r, command))
    }

    /// The next line of a rank (or any rank) that begins like this.
    pub fn wait(&mut self, rank: Option<usize>, prefix: &str) -> Result<(usize, String), String> {
        let fits = |r: usize, l: &str| rank.is_none_or(|x| x == r) && l.starts_with(prefix);
        if let Some(at) = self.early.iter().position(|(r, l)| fits(*r, l)) {
            return Ok(self.early.remove(at));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((r, Some(line))) if fits(r, &line) => return Ok((r, line)),
                Ok((r, Some(line))) => self.early.push((r, line)),
                Ok((r, None)) => return Err(format!("{} rank {r} has ended", self.name)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(format!("{}: no {prefix:?} within {PATIENCE:?}", self.name));
                }
            }
        }
    }

    /// One such line of every rank, by rank.
    pub fn gather(&mut self, prefix: &str) -> Result<Vec<String>, String> {
        (0..self.ranks.len()).map(|r| self.wait(Some(r), prefix).map(|(_, l)| l)).collect()
    }

    /// Ends all ranks and waits for them.
    pub fn stop(mut self) -> Result<(), String> {
        for rank in &mut self.ranks {
            rank.input = None;
        }
        for (i, rank) in self.ranks.iter_mut().enumerate() {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match rank.child.try_wait().map_err(|e| e.to_string())? {
                    Some(status) if status.success() => break,
                    Some(status) => return Err(format!("{} rank {i} ended with {status}", self.name)),
                    None if Instant::now() > deadline => return Err(format!("{} rank {i} does not end", self.name)),
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            if !matches!(rank.child.try_wait(), Ok(Some(_))) {
                let _ = rank.child.kill();
                let _ = rank.child.wait();
            }
        }
    }
}

/// A number in a line of `name=value` words.
pub fn field(line: &str, name: &str) -> Result<i64, String> {
    let found = line.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    found.and_then(|v| v.parse().ok()).ok_or_else(|| format!("no {name} in {line:?}"))
}
