//! `make demo`: prefill and decode ranks as separate C processes move a request, and every byte is checked.

mod baseline;
mod engines;
#[path = "../../tests/common/models.rs"]
#[allow(dead_code)]
mod models;
mod oracle;
#[path = "../../tests/common/rng.rs"]
#[allow(dead_code)]
mod rng;
mod scenario;
mod table;

use baseline::Memories;
use engines::{Instance, Mapping, Rank, field};
use kvlink::layout::Layout;
use scenario::{Mode, Planned, Scenario, Side, plan};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use table::Column;

/// Transfers that are timed after the first one.
const ROUNDS: usize = 5;
const POISON: u64 = 0x6b76_6c69_6e6b;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            progress("");
            eprintln!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, String> {
    let mut args = std::env::args().skip(1);
    let programs = PathBuf::from(args.next().ok_or("usage: demo PROGRAMS [NAME=VALUE ...]; see `make demo`")?);
    let scenarios = scenarios(&args.collect::<Vec<_>>())?;
    let begin = Instant::now();
    let mut columns = Vec::new();
    for s in &scenarios {
        run_scenario(&programs, s, &mut columns)?;
    }
    progress("");
    print!("{}", table::render(&columns));
    let good = columns.iter().all(|c| c.verdict.is_ok());
    for c in &columns {
        if let Err(e) = &c.verdict {
            println!("\n{} {} over {}: {e}", c.model, c.mode, c.transport);
        }
    }
    println!("\n{} in {:.1} s", if good { "all bytes are right" } else { "FAILED" }, begin.elapsed().as_secs_f64());
    Ok(good)
}

/// A line that the next one replaces.
fn progress(text: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}");
    } else if !text.is_empty() {
        let _ = writeln!(err, "{text}");
    }
}

fn scenarios(args: &[String]) -> Result<Vec<Scenario>, String> {
    let models = models::all();
    let find = |name: &str| {
        let plain = |s: &str| s.to_lowercase().replace(['_', '.'], "-");
        let wanted = plain(name);
        let found = models.iter().find(|m| plain(&m.name).starts_with(&wanted)).cloned();
        let names = || models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("no model {name:?}; there are {}", names()))
    };
    let both = || vec!["shm".to_string(), "tcp".to_string()];
    let kimi = find("Kimi-Linear")?;
    if args.is_empty() {
        let read = Scenario {
            model: kimi,
            p_tp: 4,
            d_tp: 8,
            mode: Mode::Read,
            tokens: 8192,
            transports: both(),
            libraries: vec![],
        };
        let model = find("Llama-3.1-70B")?;
        let write = Scenario {
            model,
            p_tp: 2,
            d_tp: 4,
            mode: Mode::Write,
            tokens: 1024,
            transports: both(),
            libraries: vec![],
        };
        return Ok(vec![read, write]);
    }
    let mut s = Scenario {
        model: kimi,
        p_tp: 2,
        d_tp: 4,
        mode: Mode::Read,
        tokens: 1024,
        transports: both(),
        libraries: vec![],
    };
    for arg in args {
        let (name, value) = arg.split_once('=').ok_or_else(|| format!("{arg:?} is not NAME=VALUE"))?;
        let number = || match value.parse::<u32>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{name}={value}: not a positive number")),
        };
        match (name, value) {
            ("MODEL", _) => s.model = find(value)?,
            ("P_TP", _) => s.p_tp = number()?,
            ("D_TP", _) => s.d_tp = number()?,
            ("TOKENS", _) => s.tokens = u64::from(number()?),
            ("MODE", "read") => s.mode = Mode::Read,
            ("MODE", "write") => s.mode = Mode::Write,
            ("TRANSPORT", "shm" | "cma" | "tcp" | "nixl" | "mori") => s.transports = vec![value.to_string()],
            ("NIXL", _) => s.libraries.extend(["--nixl-library".into(), value.into()]),
            ("MORI", _) => s.libraries.extend(["--mori-library".into(), value.into()]),
            ("MODE", _) => return Err(format!("MODE={value}: read or write")),
            ("TRANSPORT", _) => return Err(format!("TRANSPORT={value}: shm, cma, tcp, nixl or mori")),
            _ => return Err(format!("unknown option {name}: MODEL, P_TP, D_TP, MODE, TRANSPORT, TOKENS")),
        }
    }
    Ok(vec![s])
}

fn check_memory(needed: u64) -> Result<(), String> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let free = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib * 1024);
    match free {
        Some(free) if needed > free / 10 * 8 => {
            Err(format!("{} MiB of cache are needed, {} MiB are free: fewer TOKENS", needed >> 20, free >> 20))
        }
        _ => Ok(()),
    }
}

/// Baselines, measured beside the transfers: other work on the machine weighs on both.
struct Limits {
    memcpy: Duration,
    sockets: Duration,
}

fn run_scenario(programs: &std::path::Path, s: &Scenario, columns: &mut Vec<Column>) -> Result<(), String> {
    let p = Side::new(&s.model, s.p_tp, s.tokens, 1)?;
    let d = Side::new(&s.model, s.d_tp, s.tokens, 2)?;
    check_memory(p.bytes() + d.bytes())?;
    let planned = plan(&p, &d, s.mode, &s.model, s.tokens)?;
    for transport in &s.transports {
        let title = format!("{} {}->{} {transport}", s.model.name, s.p_tp, s.d_tp);
        columns.push(run_transport(programs, s, (&p, &d), &planned, transport, &title)?);
    }
    Ok(())
}

fn run_transport(
    programs: &std::path::Path,
    s: &Scenario,
    (p, d): (&Side, &Side),
    planned: &Planned,
    transport: &str,
    title: &str,
) -> Result<Column, String> {
    progress(&format!("{title}: starting {} processes", s.p_tp + s.d_tp));
    let own = matches!(transport, "nixl" | "mori");
    let way = if own { transport.to_string() } else { format!("host/{transport}") };
    let mut options = vec!["--transport", way.as_str()];
    options.extend(s.libraries.iter().map(String::as_str));
    let layers = s.model.num_layers;
    let mut prefill = Instance::start(&programs.join("prefill"), "prefill", &p.json, layers, &options)?;
    let mut decode = Instance::start(&programs.join("decode"), "decode", &d.json, layers, &options)?;

    progress(&format!("{title}: filling {} MiB", (p.bytes() + d.bytes()) >> 20));
    each(&mut prefill.ranks, &p.layouts, |rank, layout, regions| {
        oracle::fill_poison(regions, 1000 + rank as u64);
        oracle::fill_request(layout, &p.lists, s.tokens, regions);
        Ok(())
    })?;
    poison(&mut decode, d)?;

    progress(&format!("{title}: handshakes"));
    let effective = match s.mode {
        Mode::Read => connect(&mut decode, &prefill)?,
        Mode::Write => connect(&mut prefill, &decode)?,
    };

    progress(&format!("{title}: moving {} MiB for the first time", planned.bytes >> 20));
    let first = transfer(s, (p, d), (&mut prefill, &mut decode), planned, 0)?;
    progress(&format!("{title}: checking every byte"));
    let mut verdict = verify(&mut decode, d, s.tokens);
    progress(&format!("{title}: measuring memcpy and sockets with the same spans"));
    let memory = Memories {
        source: prefill.ranks.iter().map(|r| &r.regions[..]).collect(),
        destination: decode.ranks.iter().map(|r| &r.regions[..]).collect(),
    };
    let limits = Limits {
        memcpy: baseline::memcpy(&planned.pairs, &memory),
        sockets: baseline::sockets(&planned.pairs, &memory).map_err(|e| format!("sockets: {e}"))?,
    };
    poison(&mut decode, d)?;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        progress(&format!("{title}: moving {} MiB, round {round} of {ROUNDS}", planned.bytes >> 20));
        times.push(transfer(s, (p, d), (&mut prefill, &mut decode), planned, round)?);
    }
    times.sort();
    progress(&format!("{title}: checking every byte again"));
    let again = verify(&mut decode, d, s.tokens);
    if verdict.is_ok() {
        verdict = again;
    }
    if verdict.is_ok() {
        check_the_check(&mut decode.ranks[0], d, s.tokens)?;
    }

    progress(&format!("{title}: stopping"));
    prefill.stop()?;
    decode.stop()?;
    let wanted = verdict.as_ref().map_or(planned.bytes, |v| v.1);
    if wanted != planned.bytes {
        verdict = Err(format!("{} bytes were planned, {wanted} are needed", planned.bytes));
    }
    Ok(Column {
        model: s.model.name.clone(),
        mode: match s.mode {
            Mode::Read => "read",
            Mode::Write => "write, layer by layer",
        },
        topology: format!("TP {} -> TP {}", s.p_tp, s.d_tp),
        tokens: s.tokens,
        bytes: planned.bytes,
        runs: planned.runs,
        spans: planned.spans,
        transport: effective,
        compile: planned.compile,
        first,
        steady: times[times.len() / 2],
        memcpy: limits.memcpy,
        sockets: limits.sockets,
        verdict: verdict.map(|v| v.0),
    })
}

/// Runs `f` for every rank with its regions, on all cores.
fn each<T: Send>(
    ranks: &mut [Rank],
    layouts: &[Arc<Layout>],
    f: impl Fn(usize, &Layout, &mut [&mut [u8]]) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let next = AtomicUsize::new(0);
    let work: Vec<_> = ranks.iter_mut().map(|r| std::sync::Mutex::new(Some(&mut r.regions))).collect();
    let results: Vec<_> = work.iter().map(|_| std::sync::Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(work.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(regions) = work.get(i).and_then(|w| w.lock().ok()?.take()) else { return };
                    let mut regions: Vec<&mut [u8]> = regions.iter_mut().map(Mapping::bytes_mut).collect();
                    let result = f(i, &layouts[i], &mut regions);
                    if let Ok(mut slot) = results[i].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    let missing = |i| Err(format!("rank {i}: no result"));
    results.into_iter().enumerate().map(|(i, r)| r.into_inner().ok().flatten().unwrap_or_else(|| missing(i))).collect()
}

fn poison(decode: &mut Instance, d: &Side) -> Result<(), String> {
    each(&mut decode.ranks, &d.layouts, |rank, _, regions| {
        oracle::fill_poison(regions, POISON + rank as u64);
        Ok(())
    })?;
    Ok(())
}

/// Bytes compared, and bytes that the request needs.
fn verify(decode: &mut Instance, d: &Side, tokens: u64) -> Result<(u64, u64), String> {
    let one = |rank: usize, layout: &Layout, regions: &mut [&mut [u8]]| {
        let regions: Vec<&[u8]> = regions.iter().map(|r| &**r).collect();
        oracle::verify(layout, &d.lists, tokens, POISON + rank as u64, &regions)
            .map_err(|e| format!("decode rank {rank}: {e}"))
    };
    let all = each(&mut decode.ranks, &d.layouts, one)?;
    Ok((all.iter().map(|v| v.0).sum(), all.iter().map(|v| v.1).sum()))
}

/// A check that cannot fail proves nothing: a changed byte of the request and one beside it must both be found.
fn check_the_check(rank: &mut Rank, d: &Side, tokens: u64) -> Result<(), String> {
    let layout = &d.layouts[0];
    let mut flip = |at: usize| {
        let byte = &mut rank.regions[0].bytes_mut()[at];
        *byte ^= 1;
        let regions: Vec<&[u8]> = rank.regions.iter().map(Mapping::bytes).collect();
        let found = oracle::verify(layout, &d.lists, tokens, POISON, &regions).is_err();
        rank.regions[0].bytes_mut()[at] ^= 1;
        if found { Ok(()) } else { Err(format!("the check did not see that byte {at} was changed")) }
    };
    let (mine, beside) = oracle::examples(layout, &d.lists, tokens);
    mine.into_iter().chain(beside).try_for_each(&mut flip)
}

/// Shakes hands on all ranks; returns the transports in effect.
fn connect(from: &mut Instance, to: &Instance) -> Result<String, String> {
    from.tell_all(&format!("connect {}", to.ranks[0].address))?;
    let mut names: Vec<String> = Vec::new();
    for line in from.gather("linked ")? {
        // "rank 3: host/shm (why not a better one)"
        let words: Vec<&str> = line.split([' ', ';']).collect();
        let reports = words.windows(3).filter(|w| w[0] == "rank" && w[2].contains('/'));
        names.extend(reports.map(|w| w[2].to_string()));
    }
    names.sort();
    names.dedup();
    Ok(names.join(", "))
}

/// One transfer of the request to all ranks: from the first call to the last event.
fn transfer(
    s: &Scenario,
    (p, d): (&Side, &Side),
    (prefill, decode): (&mut Instance, &mut Instance),
    planned: &Planned,
    round: usize,
) -> Result<Duration, String> {
    let (request, from, to) = (format!("request-{round}"), p.blocks(), d.blocks());
    let begun = match s.mode {
        Mode::Read => {
            prefill.tell_all(&format!("offer {request} {} {from}", s.tokens))?;
            let tickets = prefill.gather(&format!("ticket {request} "))?;
            let ticket = tickets[0].rsplit(' ').next().unwrap_or_default();
            decode.tell_all(&format!("read {request} {ticket} {to}"))?;
            Vec::new()
        }
        Mode::Write => {
            decode.tell_all(&format!("accept {request} {} {to}", s.tokens))?;
            decode.gather(&format!("accepted {request}"))?;
            prefill.tell_all(&format!("write {request} {} {from}", s.tokens))?;
            prefill.gather(&format!("wrote {request} "))?
        }
    };
    let received = decode.gather(&format!("received {request} "))?;
    let freed = match s.mode {
        Mode::Read => prefill.gather(&format!("released {request} "))?,
        Mode::Write => Vec::new(),
    };
    for line in begun.iter().chain(&received).chain(&freed) {
        if field(line, "status")? != 0 {
            return Err(format!("a transfer failed: {line}"));
        }
    }
    let mut bytes = 0;
    for line in &received {
        bytes += field(line, "bytes")?;
        if s.mode == Mode::Write && !line.contains(" aux=token=") {
            return Err(format!("the side payload is missing: {line}"));
        }
    }
    if bytes as u64 != planned.bytes {
        return Err(format!("{bytes} bytes were reported, {} planned", planned.bytes));
    }
    let times = |lines: &[String], name: &str| lines.iter().map(|l| field(l, name)).collect::<Result<Vec<_>, _>>();
    let begin = times(if s.mode == Mode::Read { &received } else { &begun }, "begin")?.into_iter().min();
    let end = times(&received, "end")?.into_iter().max();
    let (Some(begin), Some(end)) = (begin, end) else { return Err("no ranks".into()) };
    Ok(Duration::from_nanos((end - begin).max(1) as u64))
}
