//! The host transport between real processes: this binary starts itself again as the source.

mod host;

use host::*;
use kvlink::error::Status;
use kvlink::transport::host::HostOptions;
use kvlink::transport::{Action, JobId, Transport};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SIZE: usize = 24 << 20;
const CHILD: &str = "KVLINK_TEST_CHILD";
const STRANGER: &str = "KVLINK_TEST_STRANGER";

fn send_bytes(s: &mut TcpStream, bytes: &[u8]) {
    s.write_all(&(bytes.len() as u32).to_le_bytes()).unwrap();
    s.write_all(bytes).unwrap();
}

fn receive_bytes(s: &mut TcpStream) -> Vec<u8> {
    let mut n = [0; 4];
    s.read_exact(&mut n).unwrap();
    let mut bytes = vec![0; u32::from_le_bytes(n) as usize];
    s.read_exact(&mut bytes).unwrap();
    bytes
}

/// Not a test of its own: the source's process. Sends the streams that it is told to, until its parent is gone.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let (address, way) = told.split_once(' ').unwrap();
    let way = WAYS[way.parse::<usize>().unwrap()];
    let mut node = Node::new(way.options(), Block::new(way == Way::Shm, 1, SIZE));
    let mut control = TcpStream::connect(address).unwrap();
    send_bytes(&mut control, &node.host.metadata());
    let theirs = receive_bytes(&mut control);
    if way == Way::Tcp {
        node.host.connect(LINK, &theirs).unwrap();
        node.host.attach(LINK, TcpStream::connect(address).unwrap()).unwrap();
    }
    control.set_nonblocking(true).unwrap();
    let mut command = [0u8; 32];
    let mut have = 0;
    loop {
        match control.read(&mut command[have..]) {
            Ok(0) => return,
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if have == command.len() {
            have = 0;
            let word = |i: usize| u64::from_le_bytes(command[i * 8..i * 8 + 8].try_into().unwrap());
            let list = spans(word(0), word(1) as usize, word(2), SIZE as u64, SIZE as u64);
            let tag = word(3) >> 1;
            node.host.post(job(tag, Action::Send { tag }, list, word(3) & 1 == 1)).unwrap();
        }
        node.round(Duration::from_millis(1), 1 << 20);
    }
}

/// Not a test of its own: links to the metadata that it is given and says what became of it.
#[test]
fn stranger() {
    let Ok(hex) = std::env::var(STRANGER) else { return };
    let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    let metadata: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let mut node = Node::new(HostOptions::default(), Block::new(false, 2, 4096));
    let link = node.host.connect(LINK, &metadata).unwrap();
    eprintln!("link {}; {}", link.name, link.rejected.join("; "));
}

#[test]
fn another_user_is_refused_by_the_kernel_and_gets_streams() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // The binary may lie where another user cannot go.
    let dir = std::env::temp_dir().join(format!("kvlink-stranger-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let node = Node::new(HostOptions::default(), Block::new(true, 1, 4096));
    let hex: String = node.host.metadata().iter().map(|b| format!("{b:02x}")).collect();
    let out = Command::new(&program)
        .args(["stranger", "--exact", "--nocapture"])
        .env(STRANGER, hex)
        .current_dir(&dir)
        .gid(65534)
        .uid(65534)
        .output();
    std::fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&out.unwrap().stderr).into_owned();
    assert!(said.contains("link host/tcp; host/shm: region 3 (/proc/"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(said.contains("host/cma: probing process") && said.contains("Operation not permitted"), "{said}");
}

struct Across {
    way: Way,
    sink: Node,
    child: Child,
    control: TcpStream,
    next: u64,
}

impl Across {
    fn new(way: Way) -> Across {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = WAYS.iter().position(|w| *w == way).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--test-threads=1"])
            .env(CHILD, format!("{} {at}", listener.local_addr().unwrap()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut sink = Node::new(way.options(), Block::new(false, 2, SIZE));
        let mut control = listener.accept().unwrap().0;
        let theirs = receive_bytes(&mut control);
        send_bytes(&mut control, &sink.host.metadata());
        let link = sink.host.connect(LINK, &theirs).unwrap();
        assert_eq!(link.name, way.name());
        if way == Way::Tcp {
            sink.host.attach(LINK, listener.accept().unwrap().0).unwrap();
        }
        Across { way, sink, child, control, next: 1 }
    }

    fn post(&mut self, seed: u64, count: usize, longest: u64, staged: bool) -> u64 {
        let id = self.next;
        self.next += 1;
        let list = spans(seed, count, longest, SIZE as u64, SIZE as u64);
        let action = if self.way == Way::Tcp {
            let words = [seed, count as u64, longest, id << 1 | u64::from(staged)];
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            self.control.write_all(&bytes).unwrap();
            Action::Receive { tag: id }
        } else {
            Action::Pull
        };
        self.sink.host.post(job(id, action, list, staged)).unwrap();
        id
    }

    fn begin(&mut self) -> u64 {
        let before = self.sink.block.bytes().to_vec();
        let id = self.post(21, 1200, 20_000, false);
        within("the first bytes", || {
            self.sink.round(Duration::from_millis(1), 300_000);
            self.sink.block.bytes() != before
        });
        id
    }
}

impl Drop for Across {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_byte_from_another_process() {
    for way in WAYS {
        let mut across = Across::new(way);
        let source = pattern(1, SIZE);
        let mut model = pattern(2, SIZE);
        for (n, (count, longest)) in [(0, 1), (50_000, 300), (3000, 5000), (30, 1 << 20)].into_iter().enumerate() {
            for staged in [false, true] {
                apply(&spans(n as u64, count, longest, SIZE as u64, SIZE as u64), &source, &mut model);
                let id = across.post(n as u64, count, longest, staged);
                across.sink.finish(id).result.unwrap();
                assert!(across.sink.block.bytes() == model, "{way:?} {count} x {longest} staged {staged}");
            }
        }
    }
}

#[test]
fn a_killed_peer_is_noticed_within_few_rounds() {
    for way in [Way::Cma, Way::Tcp] {
        let mut across = Across::new(way);
        let id = across.begin();
        across.child.kill().unwrap();
        across.child.wait().unwrap();
        let mut rounds = 0;
        let done = loop {
            across.sink.round(Duration::from_millis(1), 1 << 20);
            rounds += 1;
            // What is in the socket's buffers is read first.
            assert!(rounds < 100, "{way:?}");
            if let Some(done) = across.sink.take(id) {
                break done;
            }
        };
        assert_eq!(done.result.unwrap_err().status(), Status::PeerDead, "{way:?}");
        let frozen = across.sink.block.bytes().to_vec();
        for _ in 0..20 {
            across.sink.round(Duration::from_millis(1), 1 << 20);
        }
        assert!(across.sink.block.bytes() == frozen);
    }
}

#[test]
fn a_killed_peers_mapped_memory_stays_readable() {
    let mut across = Across::new(Way::Shm);
    let id = across.begin();
    across.child.kill().unwrap();
    across.child.wait().unwrap();
    across.sink.finish(id).result.unwrap();
    let mut model = pattern(2, SIZE);
    apply(&spans(21, 1200, 20_000, SIZE as u64, SIZE as u64), &pattern(1, SIZE), &mut model);
    assert!(across.sink.block.bytes() == model);
}

#[test]
fn nothing_arrives_after_a_cancel_from_another_process() {
    for way in WAYS {
        let mut across = Across::new(way);
        let id = across.begin();
        across.sink.host.cancel(JobId(id), Status::Cancelled);
        let frozen = across.sink.block.bytes().to_vec();
        for _ in 0..100 {
            across.sink.round(Duration::from_millis(1), 1 << 20);
        }
        assert_eq!(across.sink.take(id).unwrap().result.unwrap_err().status(), Status::Cancelled);
        assert!(across.sink.block.bytes() == frozen, "{way:?}");
        let id = across.post(22, 100, 1000, false);
        across.sink.finish(id).result.unwrap();
    }
}
