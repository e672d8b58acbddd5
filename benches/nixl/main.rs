//! Requests over NIXL between two processes, from the call to the event, beside NIXL driven as vLLM drives it. Same memory,
//! same blocks, same run. Also: what connecting to a peer costs, what idle agents do, and what prepared lists of blocks would
//! bring.
//! `cargo bench --bench nixl`; needs the wheel that `scripts/nixl.sh` installs. Arguments choose: `-- tcp/16384`,
//! `-- connect`, `-- idle`, `-- prepared`; `-- --no-thread` takes the progress thread from the reference's agents that read.

#[allow(dead_code)]
#[path = "../../src/transport/nixl/abi.rs"]
mod abi;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/tools/mod.rs"]
mod tools;
#[path = "../../tests/nixl/mod.rs"]
mod wheel;

mod bare;
mod connect;
mod idle;
mod prepared;
mod requests;

use bare::{Bare, Blocks};
use common::engine::{layout, offer};
use common::remote::Remote;
use common::{cpu, filled, hex, permuted, unhex};
use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::transport::host::HostOptions;
use kvlink::transport::nixl::{Nixl, NixlOptions};
use kvlink::transport::{Poller, Transport};
use std::ffi::c_int;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

const BYTES: usize = 256 << 20;
const LAYERS: u32 = 64;
const SIZES: [u32; 3] = [4 << 10, 16 << 10, 64 << 10];
const WAYS: [(&str, &str); 2] = [("ucx", "NET_DEVICES=lo"), ("ucx/tcp", "TLS=tcp,NET_DEVICES=lo")];
const CHILD: &str = "KVLINK_BENCH_NIXL";

/// Blocks of a layer.
fn blocks_of(size: u32) -> u32 {
    BYTES as u32 / LAYERS / size
}

/// The first blocks of a layer in an order of the seed's.
fn ids(size: u32, n: usize, seed: u64) -> Vec<u32> {
    let mut ids = permuted(blocks_of(size), seed);
    ids.truncate(n);
    ids
}

/// The same of several layers, as numbers in a list of the blocks of all.
fn indices(size: u32, layers: u32, ids: &[u32]) -> Vec<c_int> {
    (0..layers).flat_map(|l| ids.iter().map(move |i| (l * blocks_of(size) + i) as c_int)).collect()
}

fn options(engine: &str) -> NixlOptions {
    let parameters = vec![("engine_config".to_string(), engine.to_string())];
    NixlOptions { library: wheel::packages(), parameters, ..NixlOptions::default() }
}

/// One agent for every way and size, all over one memory.
fn agents(name: &str, memory: &SharedMemory) -> Vec<Agent> {
    let mut out = Vec::new();
    for (_, engine) in WAYS {
        for size in SIZES {
            let mut c = AgentConfig::new(name, 0, 1);
            c.host = HostOptions { shm: false, cma: false, ..HostOptions::default() };
            c.nixl = Some(options(engine));
            c.require = Require::Named("nixl/ucx".into());
            c.endpoint.lease = Duration::from_secs(3600);
            let agent = Agent::new(c, layout(LAYERS, blocks_of(size), size)).unwrap();
            agent.register(0, Memory::new(memory.addr(), memory.len()).unwrap()).unwrap();
            out.push(agent);
        }
    }
    out
}

/// The transport without an agent.
fn transport(engine: &str, memory: &SharedMemory) -> (Nixl, Arc<Poller>) {
    let poller = Arc::new(Poller::new().unwrap());
    let mut nixl = Nixl::new(poller.clone(), 0, options(engine)).unwrap();
    nixl.register(0, &Memory::new(memory.addr(), memory.len()).unwrap()).unwrap();
    (nixl, poller)
}

/// The source of everything.
fn child() {
    let memory = filled(BYTES);
    let agents = agents("prefill", &memory);
    let transports = WAYS.map(|w| transport(w.1, &memory).0);
    let bare = WAYS.map(|w| Bare::new(&format!("source {}", w.0), w.1, &memory));
    let mut out = std::io::stdout().lock();
    let mut words = vec![memory.addr().to_string()];
    words.extend(agents.iter().map(|a| a.address().to_string()));
    words.extend(transports.iter().map(|t| hex(&t.metadata())));
    words.extend(bare.iter().map(|b| hex(&b.metadata())));
    writeln!(out, "{}", words.join(" ")).unwrap();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "offer" => {
                bare.iter().for_each(|b| _ = b.notifications());
                let ids = ids(SIZES[number(1) % SIZES.len()], number(2), number(4) as u64);
                writeln!(out, "{}", hex(&offer(&agents[number(1)], words[3], &ids))).unwrap();
            }
            "cpu" => writeln!(out, "{}", cpu()).unwrap(),
            other => panic!("{other}"),
        }
        out.flush().unwrap();
    }
    // Neither side ends its agents while the other's may be reading.
    std::process::exit(0);
}

/// What there is on both sides.
struct World {
    remote: Remote,
    memory: Arc<SharedMemory>,
    agents: Vec<Agent>,
    /// Where the source's memory and agents are, and the metadata of its transports and of its bare agents.
    base: usize,
    addresses: Vec<String>,
    transports: Vec<Vec<u8>>,
    bare: Vec<Vec<u8>>,
}

impl World {
    fn new() -> World {
        let mut remote = Remote::start(CHILD, "1");
        let memory = filled(BYTES);
        let agents = agents("decode", &memory);
        let first = remote.line();
        let mut words = first.split(' ');
        let base = words.next().unwrap().parse().unwrap();
        let addresses = words.by_ref().take(agents.len()).map(String::from).collect();
        let transports = words.by_ref().take(WAYS.len()).map(unhex).collect();
        World { remote, memory, agents, base, addresses, transports, bare: words.map(unhex).collect() }
    }

    fn own(&self, size: u32) -> Blocks {
        Blocks { base: self.memory.addr(), size: size as usize }
    }

    fn far(&self, size: u32) -> Blocks {
        Blocks { base: self.base, size: size as usize }
    }
}

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    if wheel::packages().is_none() {
        return;
    }
    let mut world = World::new();
    requests::print(&mut world);
    connect::print(&world);
    idle::print(&world);
    prepared::print(&world);
    drop(world.remote);
    // Nothing of NIXL is ended before the source has: that would be timed by its patience.
    std::process::exit(0);
}
