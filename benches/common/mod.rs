//! What benchmarks share: memory, engines, the other process, and the bare calls that figures are printed beside.
#![allow(dead_code)]

pub mod bare;
pub mod engine;
pub mod remote;

use kvlink::memory::SharedMemory;
use std::sync::Arc;

/// A seed that leaves numbers in their order.
pub const IN_ORDER: u64 = 0;

/// The numbers below `n` in an order of the seed's.
pub fn permuted(n: u32, seed: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..n).collect();
    if seed == IN_ORDER {
        return ids;
    }
    let mut state = seed;
    for i in (1..ids.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ids.swap(i, (state >> 33) as usize % (i + 1));
    }
    ids
}

/// Memory whose pages were touched: they would be allocated within the time measured.
pub fn filled(bytes: usize) -> Arc<SharedMemory> {
    let m = Arc::new(SharedMemory::allocate(bytes).unwrap());
    unsafe { std::ptr::write_bytes(m.addr() as *mut u8, 7, m.len()) };
    m
}

/// Seconds of processor time of this process.
pub fn cpu() -> f64 {
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    time(usage.ru_utime) + time(usage.ru_stime)
}

pub fn percentile(list: &mut [f64], share: f64) -> f64 {
    list.sort_by(f64::total_cmp);
    list[((list.len() - 1) as f64 * share) as usize]
}

/// Arguments choose: `cargo bench --bench host -- tcp/4096`.
pub fn wanted(name: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-')).peekable();
    filters.peek().is_none() || filters.any(|f| name.contains(&f))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}
