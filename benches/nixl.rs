//! Requests over NIXL between two processes, from the call to the event, beside NIXL driven as vLLM drives it: lists of all
//! blocks prepared once, one transfer per request, polled until it is complete. Same memory, same blocks, same run.
//! `cargo bench --bench nixl`; needs the wheel that `scripts/nixl.sh` installs.

#[path = "../tests/nixl/mod.rs"]
mod wheel;

use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::form::{Place, Record};
use kvlink::layout::{DType, Element, Group, GroupKind, Layout, LayoutDesc, Reach, Region};
use kvlink::memory::{Memory, SharedMemory};
use kvlink::proto::{Direction, EventKind, Id, Offer, ReadArgs};
use kvlink::transport::host::HostOptions;
use kvlink::transport::nixl::NixlOptions;
use kvlink::wire::Blocks;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 256 << 20;
const SIZES: [u32; 3] = [4 << 10, 16 << 10, 64 << 10];
/// Blocks of a request (one layer's, and all of 64 layers), and how many requests are timed.
const REQUESTS: [(usize, usize); 2] = [(64, 60), (4096, 10)];
/// Rounds before those.
const WARM: usize = 4;
const WAYS: [(&str, &str); 2] = [("ucx", "NET_DEVICES=lo"), ("ucx/tcp", "TLS=tcp,NET_DEVICES=lo")];
/// A seed that leaves blocks where they are.
const IN_ORDER: u64 = 0;
/// How the source's blocks lie: anywhere, or one behind the other, as a cache that is rarely full hands them out.
const SOURCES: [(&str, u64); 2] = [("any", 1), ("adjacent", IN_ORDER)];
const CHILD: &str = "KVLINK_BENCH_NIXL";

fn layout(block: u32) -> Arc<Layout> {
    let blocks = BYTES as u32 / block;
    let record = Record {
        layers: &[0],
        role: "x",
        group: 0,
        place: Place { region: 0, offset: 0, num_blocks: blocks, block_stride: 0, layer_stride: 0 },
        block_tokens: 16,
        element: Element::of(DType::U8),
        elements: u64::from(block / 16),
        token_stride: 0,
    };
    let (tensors, bytes) = record.tensors().unwrap();
    let (kind, reach, context) = (GroupKind::Paged, Reach::Full, Default::default());
    let group = Group { kind, block_tokens: 16, num_blocks: blocks, reach, context };
    let regions = vec![Region { len: bytes }];
    Arc::new(Layout::new(LayoutDesc { model: "bench".into(), regions, groups: vec![group], tensors }).unwrap())
}

/// The first blocks of all in an order of the seed's.
fn permuted(block: u32, n: usize, seed: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..BYTES as u32 / block).collect();
    if seed == IN_ORDER {
        ids.truncate(n);
        return ids;
    }
    let mut state = seed;
    for i in (1..ids.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ids.swap(i, (state >> 33) as usize % (i + 1));
    }
    ids.truncate(n);
    ids
}

fn memory(byte: u8) -> Arc<SharedMemory> {
    let m = Arc::new(SharedMemory::allocate(BYTES).unwrap());
    // Pages that nobody has touched would be allocated within the time measured.
    unsafe { std::ptr::write_bytes(m.addr() as *mut u8, byte, m.len()) };
    m
}

/// One agent for every way and size, all over one memory.
fn agents(name: &str, memory: &Arc<SharedMemory>) -> Vec<Agent> {
    let mut out = Vec::new();
    for (_, engine) in WAYS {
        for size in SIZES {
            let mut c = AgentConfig::new(name, 0, 1);
            c.host = HostOptions { shm: false, cma: false, ..HostOptions::default() };
            let parameters = vec![("engine_config".to_string(), engine.to_string())];
            c.nixl = Some(NixlOptions { library: wheel::packages(), parameters, ..NixlOptions::default() });
            c.require = Require::Named("nixl/ucx".into());
            c.endpoint.lease = Duration::from_secs(3600);
            let agent = Agent::new(c, layout(size)).unwrap();
            agent.register(0, Memory::new(memory.addr(), memory.len()).unwrap()).unwrap();
            out.push(agent);
        }
    }
    out
}

fn wait(agent: &Agent, kind: EventKind) {
    loop {
        let e = agent.events().poll(1, Some(Duration::from_secs(60))).pop().expect("an event");
        assert_eq!(e.status, Status::Ok, "{kind:?}: {}", e.text);
        if e.kind == kind {
            return;
        }
    }
}

fn blocks(ids: &[u32]) -> Vec<Blocks> {
    vec![Blocks { first: 0, ids: ids.to_vec() }]
}

fn cpu() -> f64 {
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    time(usage.ru_utime) + time(usage.ru_stime)
}

type Handle = *mut c_void;

/// NIXL itself.
struct Bare {
    library: Handle,
    agent: Handle,
    options: Handle,
}

#[repr(C)]
struct Config {
    progress_thread: bool,
    listen_thread: bool,
    listen_port: c_int,
    sync: c_int,
    workers: u32,
    progress_delay_us: u64,
    listen_delay_us: u64,
    telemetry: bool,
}

macro_rules! call {
    ($bare:expr, $name:ident($($arg:expr),*): ($($ty:ty),*)) => {{
        let name = concat!("nixl_capi_", stringify!($name), "\0");
        let f = unsafe { libc::dlsym($bare, name.as_ptr().cast()) };
        assert!(!f.is_null(), "{name}");
        let f: unsafe extern "C" fn($($ty),*) -> c_int = unsafe { std::mem::transmute(f) };
        unsafe { f($($arg),*) }
    }};
}

impl Bare {
    fn new(name: &str, engine: &str, memory: &SharedMemory) -> Bare {
        let path = wheel::packages().unwrap().join(".nixl_cu12.mesonpy.libs/libnixl_capi.so");
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let l = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!l.is_null());
        let name = CString::new(name).unwrap();
        // A delay of 0, what vLLM has, keeps a core busy: here the reference gets the better value.
        let config = Config {
            progress_thread: true,
            listen_thread: false,
            listen_port: 0,
            sync: 1,
            workers: 1,
            progress_delay_us: 1000,
            listen_delay_us: 0,
            telemetry: false,
        };
        let mut new = [std::ptr::null_mut(); 5];
        let [agent, params, backend, options, list] = &mut new;
        let (key, value) = (c"engine_config", CString::new(engine).unwrap());
        let codes = [
            call!(l, create_configured_agent(name.as_ptr(), &config, agent): (*const c_char, *const Config, *mut Handle)),
            call!(l, create_params(params): (*mut Handle)),
            call!(l, params_add(*params, key.as_ptr(), value.as_ptr()): (Handle, *const c_char, *const c_char)),
            call!(l, create_backend(*agent, c"UCX".as_ptr(), *params, backend): (Handle, *const c_char, Handle, *mut Handle)),
            call!(l, create_opt_args(options): (*mut Handle)),
            call!(l, opt_args_add_backend(*options, *backend): (Handle, Handle)),
            call!(l, create_reg_dlist(0, list): (c_int, *mut Handle)),
            call!(l, reg_dlist_add_desc(*list, memory.addr(), memory.len(), 0, std::ptr::null(), 0): (Handle, usize, usize, u64, *const c_void, usize)),
            call!(l, register_mem(*agent, *list, *options): (Handle, Handle, Handle)),
        ];
        assert_eq!(codes, [0; 9]);
        Bare { library: l, agent: *agent, options: *options }
    }

    fn metadata(&self) -> Vec<u8> {
        let (mut data, mut len) = (std::ptr::null_mut::<c_void>(), 0usize);
        let code =
            call!(self.library, get_local_md(self.agent, &mut data, &mut len): (Handle, *mut Handle, *mut usize));
        assert_eq!(code, 0);
        unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec()
    }

    fn load(&self, metadata: &[u8]) -> CString {
        let mut name = std::ptr::null_mut();
        let (data, len) = (metadata.as_ptr().cast(), metadata.len());
        let code = call!(self.library, load_remote_md(self.agent, data, len, &mut name): (Handle, *const c_void, usize, *mut *mut c_char));
        assert_eq!(code, 0);
        unsafe { CStr::from_ptr(name) }.to_owned()
    }

    /// A list of all blocks: of ours, whose name is empty, or of a peer's.
    fn prepare(&self, name: &CStr, base: usize, block: u32) -> Handle {
        let (mut list, mut prepared) = (std::ptr::null_mut(), std::ptr::null_mut());
        assert_eq!(call!(self.library, create_xfer_dlist(0, &mut list): (c_int, *mut Handle)), 0);
        for i in 0..BYTES / block as usize {
            let addr = base + i * block as usize;
            call!(self.library, xfer_dlist_add_desc(list, addr, block as usize, 0): (Handle, usize, usize, u64));
        }
        let code = call!(self.library, prep_xfer_dlist(self.agent, name.as_ptr(), list, &mut prepared, self.options): (Handle, *const c_char, Handle, *mut Handle, Handle));
        assert_eq!(code, 0);
        prepared
    }

    /// Returns how long it took to post.
    fn read(&self, local: Handle, to: &[c_int], remote: Handle, from: &[c_int]) -> Duration {
        let begin = Instant::now();
        let mut request = std::ptr::null_mut();
        let (n, to, from) = (to.len(), to.as_ptr(), from.as_ptr());
        let code = call!(self.library, make_xfer_req(self.agent, 0, local, to, n, remote, from, n, &mut request, self.options): (Handle, c_int, Handle, *const c_int, usize, Handle, *const c_int, usize, *mut Handle, Handle));
        assert_eq!(code, 0);
        let mut code =
            call!(self.library, post_xfer_req(self.agent, request, std::ptr::null_mut()): (Handle, Handle, Handle));
        let posted = begin.elapsed();
        while code == 1 {
            std::thread::yield_now();
            code = call!(self.library, get_xfer_status(self.agent, request): (Handle, Handle));
        }
        assert_eq!(code, 0);
        call!(self.library, release_xfer_req(self.agent, request): (Handle, Handle));
        call!(self.library, destroy_xfer_req(request): (Handle));
        posted
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The source of everything.
fn child() {
    let memory = memory(7);
    let agents = agents("prefill", &memory);
    let bare: Vec<Bare> = WAYS.iter().map(|w| Bare::new(&format!("source {}", w.0), w.1, &memory)).collect();
    let mut out = std::io::stdout().lock();
    let mut words = vec![memory.addr().to_string()];
    words.extend(agents.iter().map(|a| a.address().to_string()));
    words.extend(bare.iter().map(|b| hex(&b.metadata())));
    writeln!(out, "{}", words.join(" ")).unwrap();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "offer" => {
                let agent = &agents[number(1)];
                let ids = permuted(SIZES[number(1) % SIZES.len()], number(2), number(4) as u64);
                let tokens = ids.len() as u64 * 16;
                let offer = Offer { request: words[3].into(), blocks: blocks(&ids), tokens, lease: None, user_data: 0 };
                writeln!(out, "{}", hex(&agent.ticket(agent.offer(offer).unwrap()).unwrap())).unwrap();
            }
            "cpu" => writeln!(out, "{}", cpu()).unwrap(),
            other => panic!("{other}"),
        }
        out.flush().unwrap();
    }
    // Neither side ends its agents while the other's may be reading.
    std::process::exit(0);
}

struct Remote {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn cpu(&mut self) -> f64 {
        cpu() + self.ask("cpu").parse::<f64>().unwrap()
    }
}

/// Times of requests, and the processor time of both processes for all of them.
#[derive(Default)]
struct Series {
    times: Vec<f64>,
    posts: Vec<f64>,
    cpu: f64,
}

impl Series {
    fn add(&mut self, time: Duration, post: Duration, cpu: f64) {
        self.times.push(time.as_secs_f64());
        self.posts.push(post.as_secs_f64());
        self.cpu += cpu;
    }

    fn at(list: &mut [f64], share: f64) -> f64 {
        list.sort_by(f64::total_cmp);
        list[((list.len() - 1) as f64 * share) as usize]
    }

    /// GB/s at the median, milliseconds of p50 and p99, median µs of the posting call, CPU seconds per GB.
    fn columns(&mut self, bytes: usize) -> String {
        let (p50, p99) = (Series::at(&mut self.times, 0.5), Series::at(&mut self.times, 0.99));
        let gb = bytes as f64 / 1e9;
        let (post, cpu) = (Series::at(&mut self.posts, 0.5) * 1e6, self.cpu / self.times.len() as f64 / gb);
        format!("{:>8.2}{:>10.3}{:>10.3}{:>10.0}{:>8.2}", gb / p50, p50 * 1e3, p99 * 1e3, post, cpu)
    }
}

fn read(agent: &Agent, peer: Id, ticket: &[u8], ids: &[u32]) -> Duration {
    let args = ReadArgs {
        peer,
        ticket,
        blocks: blocks(ids),
        token_begin: 0,
        token_end: None,
        layers: (0, u32::MAX),
        timeout: None,
        user_data: 0,
    };
    let begin = Instant::now();
    agent.read(args).unwrap();
    let posted = begin.elapsed();
    wait(agent, EventKind::Transfer);
    posted
}

fn parent() {
    if wheel::packages().is_none() {
        return;
    }
    let mut process = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let memory = memory(0);
    let agents = agents("decode", &memory);
    let stdin = process.stdin.take().unwrap();
    let lines = BufReader::with_capacity(1 << 20, process.stdout.take().unwrap()).lines();
    let mut remote = Remote { stdin, lines };
    let first = remote.lines.next().unwrap().unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    let base: usize = words[0].parse().unwrap();
    println!("blocks go anywhere; per line kvlink over NIXL, then NIXL with prepared lists and one transfer a request");
    let columns = format!("{:>8}{:>10}{:>10}{:>10}{:>8}", "GB/s", "p50 ms", "p99 ms", "post us", "cpu/GB");
    println!("{:<9}{:>7}{:>7}{:>10}{columns}   |{columns}{:>8}", "", "block", "blocks", "source", "ratio");
    for (w, (way, engine)) in WAYS.iter().enumerate() {
        let bare = Bare::new(&format!("sink {way}"), engine, &memory);
        let name = bare.load(&unhex(words[1 + agents.len() + w]));
        for (s, block) in SIZES.into_iter().enumerate() {
            let i = w * SIZES.len() + s;
            let agent = &agents[i];
            let peer = agent.handshake(words[1 + i], Direction::Inbound, 0).unwrap();
            wait(agent, EventKind::Handshake);
            let (local, far) = (bare.prepare(c"", memory.addr(), block), bare.prepare(&name, base, block));
            let cases = REQUESTS.into_iter().flat_map(|r| SOURCES.map(|s| (r, s)));
            for ((n, rounds), (source, seed)) in cases {
                let index = |seed| permuted(block, n, seed).iter().map(|i| *i as c_int).collect::<Vec<_>>();
                let (ids, from, to) = (permuted(block, n, 2), index(seed), index(2));
                let (mut ours, mut theirs) = (Series::default(), Series::default());
                for round in 0..rounds + WARM {
                    let ticket = unhex(&remote.ask(&format!("offer {i} {n} r{n}-{round}-{seed} {seed}")));
                    // Who comes second finds the data in the caches: they take turns. The first rounds warm up.
                    for ours_now in [round % 2 == 0, round % 2 != 0] {
                        let before = remote.cpu();
                        let begin = Instant::now();
                        let posted = match ours_now {
                            true => read(agent, peer, &ticket, &ids),
                            false => bare.read(local, &to, far, &from),
                        };
                        let time = begin.elapsed();
                        let cpu = remote.cpu() - before;
                        let series = if ours_now { &mut ours } else { &mut theirs };
                        if round >= WARM {
                            series.add(time, posted, cpu);
                        }
                    }
                }
                let bytes = n * block as usize;
                let ratio = Series::at(&mut theirs.times, 0.5) / Series::at(&mut ours.times, 0.5);
                let (ours, theirs) = (ours.columns(bytes), theirs.columns(bytes));
                println!("{way:<9}{block:>7}{n:>7}{source:>10}{ours}   |{theirs}{ratio:>8.2}");
            }
        }
    }
    drop(remote);
    process.wait().unwrap();
    std::process::exit(0);
}

fn main() {
    match std::env::var(CHILD) {
        Ok(_) => child(),
        Err(_) => parent(),
    }
}
