//! Opposite workers of vLLM's MoRIIOConnector: their own listeners and senders.

use super::{LONG, Process, agent, cached, free_port, tools};
use kvlink::agent::{Agent, MoriioConfig};
use kvlink::error::Status;
use kvlink::proto::{Event, EventKind, Id, MoriioArgs};
use kvlink::wire::moriio::{Blob, Handshake, LayerMemory, Notify, PortRanks, Role};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A worker of vLLM in a process of its own.
struct Vllm {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    handshake: u16,
    notify: u16,
}

impl Vllm {
    fn start(role: &str) -> Option<Vllm> {
        let place = cached("vllm-source-0.33.0", "vllm-source.sh")?;
        let (handshake, notify) = (free_port(), free_port());
        let mut command = Command::new(place.join("bin/python"));
        command.arg(tools::root().join("tests/router/vllm_worker.py")).arg(place.join("src")).arg(role);
        command.args([handshake.to_string(), notify.to_string()]).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut it = Vllm { process: Process(child), input, output, handshake, notify };
        assert_eq!(it.answer(), "ready");
        Some(it)
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the worker's process ended");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, command: Value) -> Value {
        writeln!(self.input, "{command}").unwrap();
        self.answer()
    }

    /// Its state, when it is so.
    fn until(&mut self, so: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let state = self.ask(json!(["state"]));
            if so(&state) {
                return state;
            }
            assert!(begin.elapsed() < LONG, "{state}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn at(&self, port: u16) -> String {
        format!("127.0.0.1:{port}")
    }
}

fn handshake() -> Handshake {
    Handshake {
        engine_id: "127.0.0.1:9".into(),
        agent_metadata: Blob(b"\x96OURS".to_vec()),
        kv_caches_base_addr: vec![u64::MAX, 0],
        num_blocks: 70_000,
        block_len: 1 << 33,
        attn_backend_name: "KVLINK".into(),
        kv_head_layouts: [("l1".into(), vec![1, 2, 300])].into(),
        mamba_state_layouts: [("l0".into(), vec![7])].into(),
        attention_block_sizes: [("l1".into(), 32)].into(),
        layers: ["l1", "l0"]
            .map(|l| LayerMemory { layer: l.into(), regions: vec![Blob(vec![0x9f; 300]), Blob(vec![1])] })
            .to_vec(),
    }
}

fn config(role: Role) -> MoriioConfig {
    MoriioConfig {
        args: MoriioArgs { role, handshake: Some(handshake()), user_data: 5 },
        host: "127.0.0.1".into(),
        handshake_port: free_port(),
        notify_port: free_port(),
        ranks: PortRanks { dp: (0, 1), tp: (0, 1) },
    }
}

fn next(agent: &Agent) -> Event {
    let e = agent.poll(1, Some(LONG)).pop().expect("an event");
    assert_eq!(e.kind, EventKind::Moriio, "{e:?}");
    e
}

/// How an exchange ended.
fn end(agent: &Agent, id: Id) -> (Status, String) {
    let e = next(agent);
    assert_eq!((e.id, e.user_data), (id.0, 9), "{e:?}");
    (e.status, e.text)
}

/// What others said.
fn heard(agent: &Agent) -> (Status, String) {
    let e = next(agent);
    assert_eq!((e.id, e.user_data), (0, 5), "{e:?}");
    (e.status, e.text)
}

fn tell(agent: &Agent, address: &str, message: Value) -> (Status, String) {
    let message = Notify::from_json(message.to_string().as_bytes()).unwrap();
    let id = agent.send_moriio(address, &message, LONG, 9).unwrap();
    end(agent, id)
}

#[test]
fn vllm_says_who_it_is_and_learns_who_we_are() {
    let Some(mut vllm) = Vllm::start("prefill") else { return };
    let agent = agent();
    let config = config(Role::Decode);
    agent.open_moriio(config.clone()).unwrap();
    for _ in 0..2 {
        let id = agent.meet_moriio(&vllm.at(vllm.handshake), LONG, 9).unwrap();
        let (status, text) = end(&agent, id);
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status:?} {text}"));
        let expected = json!({
            "engine_id": vllm.at(vllm.handshake), "agent_metadata": "lkVERVND",
            "kv_caches_base_addr": [1u64 << 40, 7], "num_blocks": 128, "block_len": 65536,
            "attn_backend_name": "FLASH_ATTN", "kv_head_layouts": {"l1": [8, 16, 256, 65536, 256, 2048, 0, 32768]},
            "mamba_state_layouts": {"l0": [1, 2, 3]}, "attention_block_sizes": {"l1": 16},
            "layers": [{"layer": "l1", "regions": ["n01ERVND"]}, {"layer": "l0", "regions": ["n0NPTlY", "n1NTTQ"]}],
        });
        assert_eq!((status, said), (Status::Ok, expected));
    }
    let ours = vllm.ask(json!(["meet", config.handshake_port]));
    let regions = json!(["9f".repeat(300), "01"]);
    let expected = json!({
        "engine_id": "127.0.0.1:9", "agent_metadata": "964f555253", "kv_caches_base_addr": [u64::MAX, 0],
        "num_blocks": 70_000, "block_len": 1u64 << 33, "attn_backend_name": "KVLINK",
        "kv_head_layouts": {"l1": [1, 2, 300]}, "mamba_state_layouts": {"l0": [7]}, "attention_block_sizes": {"l1": 32},
        "layers": {"l1": regions, "l0": regions}, "order": ["l1", "l0"],
    });
    assert_eq!(ours, expected);
    assert_eq!(vllm.ask(json!(["state"]))["alive"], true);
}

#[test]
fn a_prefill_worker_of_vllm_hears_us_and_we_hear_it() {
    let Some(mut vllm) = Vllm::start("prefill") else { return };
    let agent = agent();
    let config = config(Role::Decode);
    agent.open_moriio(config.clone()).unwrap();
    let at = vllm.at(vllm.notify);
    let blocks = |tx: &str, ids: Value| json!({"type": "remote_blocks", "req_id": "r", "transfer_id": tx, "block_notify_list": ids, "decode_rank": 2});
    for message in [
        blocks("tx-1", json!([[4, 5]])),
        blocks("tx-2", json!([[1], [], [200_000]])),
        blocks("tx-3", json!([[9]])),
        json!({"type": "release", "transfer_id": "tx-3", "consumer_tp_size": 4}),
    ] {
        assert_eq!(tell(&agent, &at, message), (Status::Ok, String::new()));
    }
    // What is confirmed waits in its socket, if it has not been heard.
    let state = vllm.until(|s| s["released"] != json!([]));
    assert_eq!(state["allocated"], json!({"tx-1": [[[4, 5]], 2], "tx-2": [[[1], [], [200_000]], 2]}));
    assert_eq!((&state["released"], &state["alive"]), (&json!([["tx-3", 4]]), &json!(true)));
    for (transfer, kind, fields) in [
        ("tx-4", json!("write_done"), Value::Null),
        ("tx-5", json!("write_done"), json!({"num_writers": 2})),
        ("tx-6", json!("write_failed"), Value::Null),
        ("tx-7", Value::Null, Value::Null),
    ] {
        vllm.ask(json!(["notify", config.notify_port, transfer, kind, fields]));
        let (status, text) = heard(&agent);
        let said: Value = serde_json::from_str(&text).unwrap();
        let kind = kind.as_str().unwrap_or("write_done");
        let mut expected = json!({"type": kind, "transfer_id": transfer});
        if kind == "write_done" {
            expected["num_writers"] = fields.get("num_writers").cloned().unwrap_or(json!(1));
        }
        assert_eq!((status, said), (Status::Ok, expected));
    }
}

#[test]
fn a_decode_worker_of_vllm_hears_us_and_we_hear_it() {
    let Some(mut vllm) = Vllm::start("decode") else { return };
    let agent = agent();
    let config = config(Role::Prefill);
    agent.open_moriio(config.clone()).unwrap();
    let at = vllm.at(vllm.notify);
    for message in [
        json!({"type": "write_done", "transfer_id": "tx-1"}),
        json!({"type": "write_done", "transfer_id": "tx-2", "num_writers": 2}),
        json!({"type": "write_done", "transfer_id": "tx-3", "num_writers": 2}),
        json!({"type": "write_done", "transfer_id": "tx-3", "num_writers": 2}),
        json!({"type": "write_failed", "transfer_id": "tx-4"}),
    ] {
        assert_eq!(tell(&agent, &at, message), (Status::Ok, String::new()));
    }
    let state = vllm.until(|s| s["failed"] != json!([]));
    assert_eq!((&state["written"], &state["failed"]), (&json!(["tx-1", "tx-3"]), &json!(["tx-4"])));
    assert_eq!((&state["partly"], &state["alive"]), (&json!({"tx-2": 1}), &json!(true)));
    vllm.ask(json!(["blocks", config.notify_port, "r1", "tx-5", [4, 5]]));
    let blocks =
        r#"{"type":"remote_blocks","req_id":"r1","transfer_id":"tx-5","block_notify_list":[[4,5]],"decode_rank":3}"#;
    assert_eq!(heard(&agent), (Status::Ok, blocks.into()));
    vllm.ask(json!(["blocks", config.notify_port, "r2", "tx-6", [[4], [5]]]));
    assert!(heard(&agent).1.contains("[[4],[5]]"));
    vllm.ask(json!(["blocks", config.notify_port, "r3", "tx-7", []]));
    let (status, text) = heard(&agent);
    assert!(status == Status::Protocol && text.contains("no block"), "{text}");
    vllm.ask(json!(["release", config.notify_port, "tx-8"]));
    assert_eq!(heard(&agent).1, r#"{"type":"release","transfer_id":"tx-8","consumer_tp_size":1}"#);
}

#[test]
fn what_would_end_a_listener_of_vllm_is_never_sent() {
    let agent = agent();
    agent.open_moriio(config(Role::Prefill)).unwrap();
    let release = Notify::Release { transfer_id: "t".into(), consumer_tp_size: 1 };
    let e = agent.send_moriio("127.0.0.1:1", &release, LONG, 9).unwrap_err();
    assert!(e.status() == Status::InvalidArgument && e.message().contains("release comes from Decode"), "{e}");
    for address in ["", "a", "a:", ":1", "a:0", "a:65536"] {
        assert_eq!(agent.meet_moriio(address, LONG, 9).unwrap_err().status(), Status::InvalidArgument, "{address:?}");
    }
}

#[test]
fn a_worker_of_vllm_that_stands_still_or_dies_is_told() {
    let Some(mut vllm) = Vllm::start("decode") else { return };
    let agent = agent();
    agent.open_moriio(config(Role::Prefill)).unwrap();
    let at = vllm.at(vllm.notify);
    let done = |n: u32| Notify::WriteDone { transfer_id: format!("tx-{n}"), num_writers: 1 };
    assert_eq!(tell(&agent, &at, json!({"type": "write_done", "transfer_id": "tx-0"})).0, Status::Ok);
    vllm.process.signal(Signal::STOP);
    let id = agent.send_moriio(&at, &done(1), Duration::from_millis(300), 9).unwrap();
    let (status, text) = end(&agent, id);
    assert!(status == Status::PeerDead && text.contains("write_done of tx-1 to"), "{status:?} {text}");
    vllm.process.signal(Signal::CONT);
    assert_eq!(tell(&agent, &at, json!({"type": "write_done", "transfer_id": "tx-2"})).0, Status::Ok);
    assert_eq!(vllm.ask(json!(["state"]))["alive"], true);
    drop(vllm);
    let begun = Instant::now();
    for timeout in [1, 500] {
        let id = agent.send_moriio(&at, &done(3), Duration::from_millis(timeout), 9).unwrap();
        let (status, text) = end(&agent, id);
        let expected = [Status::Unreachable, Status::PeerDead];
        assert!(expected.contains(&status), "{status:?} {text} {at} {timeout}");
    }
    assert!(begun.elapsed() < LONG);
}

#[test]
fn a_worker_that_comes_late_is_met_and_told() {
    let agent = agent();
    let (config, port) = (config(Role::Prefill), free_port());
    agent.open_moriio(config).unwrap();
    let at = format!("127.0.0.1:{port}");
    let done = Notify::WriteDone { transfer_id: "tx-1".into(), num_writers: 1 };
    let id = agent.send_moriio(&at, &done, LONG, 9).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let other = self::agent();
    let late = MoriioConfig { notify_port: port, ..self::config(Role::Decode) };
    other.open_moriio(late).unwrap();
    assert_eq!(end(&agent, id), (Status::Ok, String::new()));
    assert!(heard(&other).1.contains("tx-1"));
}

#[test]
fn opening_closing_and_cancelling() {
    let agent = agent();
    let config = config(Role::Decode);
    let closed = |e: kvlink::error::Error| (e.status(), e.message().to_string());
    assert_eq!(closed(agent.close_moriio().unwrap_err()), (Status::WrongState, "no worker is open".into()));
    assert_eq!(agent.meet_moriio("a:1", LONG, 9).unwrap_err().status(), Status::WrongState);
    for (wrong, status, named) in [
        (MoriioConfig { host: "0.0.0.0".into(), ..config.clone() }, Status::Address, "allow_remote"),
        (MoriioConfig { handshake_port: 0, ..config.clone() }, Status::InvalidArgument, "together"),
        (
            MoriioConfig { ranks: PortRanks { dp: (0, 2), tp: (1, 2) }, ..config.clone() },
            Status::InvalidArgument,
            "collide",
        ),
    ] {
        let e = agent.open_moriio(wrong).unwrap_err();
        assert!(e.status() == status && e.message().contains(named), "{e}");
    }
    let taken = TcpListener::bind(("127.0.0.1", config.notify_port)).unwrap();
    assert_eq!(agent.open_moriio(config.clone()).unwrap_err().status(), Status::Address);
    drop(taken);
    agent.open_moriio(config.clone()).unwrap();
    assert_eq!(agent.open_moriio(config.clone()).unwrap_err().status(), Status::WrongState);
    // Nobody is there.
    let meet = agent.meet_moriio(&format!("127.0.0.1:{}", free_port()), LONG, 9).unwrap();
    agent.cancel(meet).unwrap();
    assert_eq!(end(&agent, meet).0, Status::Cancelled);
    assert_eq!(agent.cancel(meet).unwrap_err().status(), Status::BadHandle);
    let meet = agent.meet_moriio(&format!("127.0.0.1:{}", free_port()), LONG, 9).unwrap();
    agent.close_moriio().unwrap();
    assert_eq!(end(&agent, meet).0, Status::Cancelled);
    assert_eq!(agent.cancel(meet).unwrap_err().status(), Status::BadHandle);
    for _ in 0..100 {
        agent.open_moriio(config.clone()).unwrap();
        let meet = agent.meet_moriio("127.0.0.1:1", Duration::from_millis(1), 9).unwrap();
        agent.close_moriio().unwrap();
        assert!(matches!(end(&agent, meet).0, Status::Cancelled | Status::Unreachable));
    }
    agent.open_moriio(config).unwrap();
}
