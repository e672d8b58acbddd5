//! Registrations against the real thing: sockets of libzmq, and the real vllm-router.

#[path = "../tools/mod.rs"]
mod tools;
mod vllm;

use kvlink::agent::{Agent, AgentConfig};
use kvlink::error::Status;
use kvlink::layout::model::{Cache, Layers, Model, Placement};
use kvlink::layout::{DType, Element, Layout};
use kvlink::proto::{Event, EventKind, Id, RouterArgs};
use kvlink::wire::moriio::{Register, Role, TransferMode, ZmqAddress};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tools::free_port;

/// Against hanging only.
const LONG: Duration = Duration::from_secs(60);

/// Something that a script has put into the user's cache.
fn cached(path: &str, script: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let path = cache.join("kvlink").join(path);
    if !path.exists() {
        tools::skip(&format!("{} is not there: run scripts/{script}", path.display()));
        return None;
    }
    Some(path)
}

/// A program of the environment that scripts/vllm-router.sh makes.
fn program(name: &str) -> Option<PathBuf> {
    cached(&format!("vllm-router-0.1.17/bin/{name}"), "vllm-router.sh")
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    /// Makes it stand still, or go on.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).unwrap();
        if signal == Signal::STOP {
            // Its threads stop one after the other.
            waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A ROUTER socket of libzmq in a process of its own.
struct Peer {
    process: Process,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Peer {
    fn start(port: u16, options: &[&str]) -> Option<Peer> {
        let mut command = Command::new(program("python")?);
        command.arg(tools::root().join("tests/router/peer.py")).arg(port.to_string()).args(options);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Peer { process: Process(child), output, port };
        peer.port = peer.line().trim().parse().unwrap();
        Some(peer)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the socket's process ended");
        line
    }

    /// The next message: the connection's name, and what it says.
    fn beat(&mut self) -> (String, Value) {
        let all: Vec<Value> = serde_json::from_str(&self.line()).unwrap();
        let [Value::String(name), beat] = &all[..] else { panic!("{all:?} is not one frame") };
        (name.clone(), beat.clone())
    }
}

fn agent() -> Agent {
    let cache = Cache::Record { role: "mla".into(), element: Element::of(DType::Bf16), elements: 8 };
    let model = Model { name: "m".into(), num_layers: 1, caches: vec![Layers { layers: vec![0], cache }] };
    let place = Placement { block_tokens: 4, num_blocks: 8, ..Placement::default() };
    let layout = Arc::new(Layout::new(model.describe(&place).unwrap()).unwrap());
    Agent::new(AgentConfig::new("me", 0, 1), layout).unwrap()
}

fn args(port: u16) -> RouterArgs {
    RouterArgs {
        discovery: format!("127.0.0.1:{port}"),
        register: Register {
            role: Role::Decode,
            http_address: "10.0.0.2:8200".into(),
            zmq_address: ZmqAddress::new("10.0.0.2", 7301, 7501).unwrap(),
            dp_size: 300,
            tp_size: 2,
            mode: TransferMode::Write,
        },
        beat: Duration::from_millis(50),
        user_data: 9,
    }
}

fn event(agent: &Agent, id: Id) -> Event {
    let mut events = agent.poll(1, Some(LONG));
    let e = events.pop().expect("an event");
    assert_eq!((e.kind, e.id, e.user_data), (EventKind::Router, id.0, 9), "{e:?}");
    e
}

#[test]
fn a_socket_of_libzmq_gets_the_map_again_and_again() {
    let Some(mut peer) = Peer::start(0, &[]) else { return };
    let agent = agent();
    let id = agent.attach_router(args(peer.port)).unwrap();
    let expected = json!({
        "type": "D", "http_address": "10.0.0.2:8200", "zmq_address": "host:10.0.0.2,handshake:7301,notify:7501",
        "transfer_mode": "WRITE", "dp_size": 300, "tp_size": 2,
    });
    let (name, first) = peer.beat();
    assert_eq!(first, expected);
    assert!(name.starts_with("kvlink 10.0.0.2:8200 "), "{name}");
    for _ in 0..20 {
        assert_eq!(peer.beat(), (name.clone(), expected.clone()));
    }
    let e = event(&agent, id);
    assert_eq!(e.status, Status::Ok, "{}", e.text);
}

#[test]
fn signs_of_life_are_given_and_big_answers_do_no_harm() {
    // Of the rarer beats each would come too late to be a sign of life itself.
    for (option, beat, beats) in [("heartbeats", RouterArgs::BEAT, 3), ("big", Duration::from_millis(50), 30)] {
        let Some(mut peer) = Peer::start(0, &[option]) else { return };
        let agent = agent();
        agent.attach_router(RouterArgs { beat, ..args(peer.port) }).unwrap();
        let (name, _) = peer.beat();
        for _ in 0..beats {
            assert_eq!(peer.beat().0, name, "{option}: the connection was made anew");
        }
    }
}

#[test]
fn a_restarted_socket_knows_it_again() {
    let port = free_port();
    let Some(mut peer) = Peer::start(port, &[]) else { return };
    let agent = agent();
    let id = agent.attach_router(args(port)).unwrap();
    let (first, _) = peer.beat();
    assert_eq!(event(&agent, id).status, Status::Ok);
    drop(peer);
    let e = event(&agent, id);
    assert_eq!(e.status, Status::Unreachable, "{}", e.text);
    assert!(e.text.contains(&format!("router 127.0.0.1:{port}: ")), "{}", e.text);
    let Some(mut peer) = Peer::start(port, &[]) else { return };
    assert_ne!(peer.beat().0, first);
    assert_eq!(event(&agent, id).status, Status::Ok);
}

/// Its kernel goes on to take connections and data.
fn stops_and_goes_on(agent: &Agent, id: Id, process: &Process) {
    // A process that starts may be there later than the first attempt.
    if event(agent, id).status != Status::Ok {
        assert_eq!(event(agent, id).status, Status::Ok);
    }
    process.signal(Signal::STOP);
    let e = event(agent, id);
    assert!(e.status == Status::Unreachable && e.text.contains("no sign of life"), "{e:?}");
    process.signal(Signal::CONT);
    assert_eq!(event(agent, id).status, Status::Ok);
}

#[test]
fn a_socket_that_stands_still_is_noticed() {
    let Some(mut peer) = Peer::start(0, &[]) else { return };
    let agent = agent();
    let id = agent.attach_router(args(peer.port)).unwrap();
    stops_and_goes_on(&agent, id, &peer.process);
    peer.beat();
}

#[test]
fn the_real_router_that_stands_still_is_noticed() {
    let (port, discovery) = (free_port(), free_port());
    let Some(router) = real_router(port, discovery, "stopped") else { return };
    let agent = agent();
    let id = agent.attach_router(RouterArgs { beat: Duration::from_millis(500), ..args(discovery) }).unwrap();
    stops_and_goes_on(&agent, id, &router);
}

#[test]
fn a_router_that_comes_late_is_found() {
    let port = free_port();
    let agent = agent();
    let id = agent.attach_router(args(port)).unwrap();
    let e = event(&agent, id);
    assert_eq!(e.status, Status::Unreachable);
    assert!(e.text.contains("refused"), "{}", e.text);
    let Some(mut peer) = Peer::start(port, &[]) else { return };
    peer.beat();
    assert_eq!(event(&agent, id).status, Status::Ok);
}

#[test]
fn detaching_and_the_end_of_the_agent_close_the_connection() {
    for detach in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = agent();
        let id = agent.attach_router(args(listener.local_addr().unwrap().port())).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        if detach {
            agent.detach_router(id).unwrap();
            assert_eq!(agent.detach_router(id).unwrap_err().status(), Status::BadHandle);
            assert_eq!(agent.detach_router(Id(0)).unwrap_err().status(), Status::BadHandle);
        } else {
            drop(agent);
        }
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn a_server_of_another_kind_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = agent();
    let id = agent.attach_router(args(listener.local_addr().unwrap().port())).unwrap();
    for _ in 0..3 {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // Reset or closed: our greeting was not read.
        while stream.read(&mut [0; 256]).is_ok_and(|n| n > 0) {}
    }
    let e = event(&agent, id);
    assert_eq!(e.status, Status::Protocol);
    assert!(e.text.contains("not a ZeroMQ socket"), "{}", e.text);
}

#[test]
fn there_is_a_limit() {
    let agent = agent();
    for _ in 0..64 {
        agent.attach_router(args(free_port())).unwrap();
    }
    assert_eq!(agent.attach_router(args(1)).unwrap_err().status(), Status::Limit);
    let mut wrong = args(1);
    wrong.discovery = "nowhere".into();
    let agent = self::agent();
    assert_eq!(agent.attach_router(wrong).unwrap_err().status(), Status::InvalidArgument);
}

/// An HTTP request without a body; the status and the body of the answer.
fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Asks until the answer is right.
fn until(port: u16, path: &str, right: impl Fn(&str) -> bool) {
    let begin = Instant::now();
    loop {
        let answer = http(port, path).unwrap_or_default();
        if right(&answer) {
            return;
        }
        assert!(begin.elapsed() < LONG, "{path}: {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn router_log(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("vllm-router-{name}.log"))
}

fn real_router(port: u16, discovery: u16, name: &str) -> Option<Process> {
    let mut command = Command::new(program("vllm-router")?);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--vllm-pd-disaggregation"]);
    command.args(["--kv-connector", "moriio", "--vllm-discovery-address", &format!("127.0.0.1:{discovery}")]);
    command.args(["--prometheus-port", &free_port().to_string()]);
    let out = std::fs::File::create(router_log(name)).unwrap();
    Some(Process(command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap()))
}

/// The router asks every instance that it knows for its health, and names those that do not answer.
#[test]
fn the_real_router_lists_forgets_and_relearns_instances() {
    let (port, discovery) = (free_port(), free_port());
    let start = || real_router(port, discovery, "lists");
    let Some(running) = start() else { return };
    let agent = agent();
    let instance = |role, mode| {
        let http = format!("127.0.0.1:{}", free_port());
        let mut a = args(discovery);
        a.register = Register { role, http_address: http.clone(), mode, dp_size: 1, ..a.register };
        a.beat = RouterArgs::BEAT;
        (agent.attach_router(a).unwrap(), http)
    };
    let (_, p) = instance(Role::Prefill, TransferMode::Read);
    let (d_id, d) = instance(Role::Decode, TransferMode::Read);
    until(port, "/health_generate", |t| t.contains(&p) && t.contains(&d));
    // The first mode wins, and the router's log alone says so.
    let (other_id, other) = instance(Role::Decode, TransferMode::Write);
    until(port, "/health_generate", |t| {
        assert!(!t.contains(&other), "{t}");
        std::fs::read_to_string(router_log("lists")).unwrap().contains("transfer_mode mismatch")
    });
    agent.detach_router(other_id).unwrap();
    // A restarted router hears of the others again.
    drop(running);
    let _running = start().expect("it started before");
    until(port, "/health_generate", |t| t.contains(&p) && t.contains(&d));
    agent.detach_router(d_id).unwrap();
    until(port, "/health_generate", |t| !t.contains(&d));
}

/// The instance in C++, built in a directory of its own.
fn native(name: &str, library: &Path) -> Option<PathBuf> {
    let packages = ["cpp-httplib", "libcrypto"];
    let found = tools::have("pkg-config")
        && tools::output(Command::new("pkg-config").arg("--exists").args(packages)).status.success();
    if !found || !Path::new("/usr/include/nlohmann/json.hpp").exists() || !tools::all_here(&["g++"]) {
        tools::skip("cpp-httplib, libcrypto or nlohmann/json is missing: run scripts/setup.sh router");
        return None;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("router-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    for link in ["libkvlink.so", "libkvlink.so.0"] {
        let _ = std::fs::remove_file(dir.join(link));
        std::os::unix::fs::symlink(library, dir.join(link)).unwrap();
    }
    let flags = tools::succeed(Command::new("pkg-config").args(["--cflags", "--libs"]).args(packages));
    let mut compile = Command::new("g++");
    compile.current_dir(tools::root()).args([
        "-std=c++17",
        "-O1",
        "-pthread",
        "-Iinclude",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
    ]);
    compile.args(["-Wconversion", "-Wshadow", "-Werror", "examples/router/instance.cpp", "-Wl,-rpath,$ORIGIN", "-L"]);
    let program = dir.join("instance");
    tools::succeed(compile.arg(&dir).arg("-lkvlink").args(flags.split_whitespace()).arg("-o").arg(&program));
    Some(program)
}

/// Runs a script with instances in C++ and Python, which checks every byte.
fn with_instances(script: &str, name: &str, arguments: impl Fn(&Path) -> Vec<PathBuf>) {
    let library = std::env::current_exe().unwrap().with_file_name("libkvlink.so");
    let (Some(python), Some(native)) = (program("python"), native(name, &library)) else { return };
    let mut command = Command::new(python);
    command.arg(tools::root().join(script)).args(arguments(&native)).env("KVLINK_LIBRARY", library);
    let modules = ["bindings/python/src", "tests/tools"].map(|m| tools::root().join(m));
    command.env("PYTHONPATH", std::env::join_paths(modules).unwrap()).env("PYTHONDONTWRITEBYTECODE", "1");
    let text = tools::succeed(&mut command);
    assert!(text.ends_with("all right\n"), "{text}");
}

/// Requests through the real router to instances that join, leave and are killed.
fn demo(mode: &str) {
    with_instances("examples/router/demo.py", mode, |native| vec![native.into(), mode.into()]);
}

/// Requests through vLLM's own example proxy.
fn toy(mode: &str) {
    let Some(vllm) = cached("vllm-source-0.33.0", "vllm-source.sh") else { return };
    let arguments = |native: &Path| vec![vllm.clone(), native.into(), mode.into()];
    with_instances("tests/router/toy.py", &format!("toy-{mode}"), arguments);
}

#[test]
fn read_mode_behind_the_example_proxy() {
    toy("read");
}

#[test]
fn write_mode_behind_the_example_proxy() {
    toy("write");
}

#[test]
fn read_mode_behind_the_real_router() {
    demo("read");
}

#[test]
fn write_mode_behind_the_real_router() {
    demo("write");
}
