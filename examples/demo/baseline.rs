//! What the machine can do with the same spans and nothing around them.

use crate::engines::Mapping;
use kvlink::layout::Span;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// All spans of a rank pair.
pub struct Pair {
    pub source: usize,
    pub destination: usize,
    pub spans: Vec<Span>,
}

/// Regions by rank.
pub struct Memories<'a> {
    pub source: Vec<&'a [Mapping]>,
    pub destination: Vec<&'a [Mapping]>,
}

const ROUNDS: usize = 3;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Time of copying all spans within this process, on as many threads as there are cores.
pub fn memcpy(pairs: &[Pair], memory: &Memories<'_>) -> Duration {
    let n = threads().min(pairs.len()).max(1);
    let once = || {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for t in 0..n {
                scope.spawn(move || {
                    for pair in pairs.iter().skip(t).step_by(n) {
                        let (from, to) = (memory.source[pair.source], memory.destination[pair.destination]);
                        for s in &pair.spans {
                            let (src, dst) = (from[s.src_region as usize].addr(), to[s.dst_region as usize].addr());
                            // SAFETY: the planner proved that spans lie in their regions, and what a plan writes is
                            // written by one thread only.
                            unsafe {
                                std::ptr::copy_nonoverlapping(
                                    src.add(s.src_offset as usize),
                                    dst.add(s.dst_offset as usize),
                                    s.len as usize,
                                );
                            }
                        }
                    }
                });
            }
        });
        begin.elapsed()
    };
    once();
    median((0..ROUNDS).map(|_| once()).collect())
}

const PIECES: usize = 1024;

/// Where a stream of spans stands.
#[derive(Clone, Copy, Default)]
struct Cursor {
    span: usize,
    within: u64,
}

impl Cursor {
    fn advance(&mut self, spans: &[Span], mut n: u64) {
        while n > 0 {
            let left = spans[self.span].len - self.within;
            if n < left {
                self.within += n;
                return;
            }
            n -= left;
            (self.span, self.within) = (self.span + 1, 0);
        }
    }

    /// The next pieces: address offsets, lengths and regions.
    fn pieces<'a>(&self, spans: &'a [Span]) -> impl Iterator<Item = (&'a Span, u64)> + use<'a> {
        let within = self.within;
        let rest = spans[self.span..].iter().take(PIECES);
        rest.enumerate().map(move |(i, s)| (s, if i == 0 { within } else { 0 }))
    }
}

fn send(mut socket: TcpStream, spans: &[Span], from: &[Mapping]) -> std::io::Result<()> {
    let mut at = Cursor::default();
    while at.span < spans.len() {
        let list: Vec<IoSlice<'_>> = at
            .pieces(spans)
            .map(|(s, within)| {
                let begin = (s.src_offset + within) as usize;
                IoSlice::new(&from[s.src_region as usize].bytes()[begin..begin + (s.len - within) as usize])
            })
            .collect();
        let n = socket.write_vectored(&list)?;
        at.advance(spans, n as u64);
    }
    Ok(())
}

fn receive(mut socket: TcpStream, spans: &[Span], to: &[Mapping]) -> std::io::Result<()> {
    let mut at = Cursor::default();
    while at.span < spans.len() {
        let mut list: Vec<IoSliceMut<'_>> = at
            .pieces(spans)
            .map(|(s, within)| {
                let addr = to[s.dst_region as usize].addr();
                // SAFETY: as above; the pieces of a list do not overlap, since a plan writes every byte once.
                IoSliceMut::new(unsafe {
                    std::slice::from_raw_parts_mut(
                        addr.add((s.dst_offset + within) as usize),
                        (s.len - within) as usize,
                    )
                })
            })
            .collect();
        let n = socket.read_vectored(&mut list)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        at.advance(spans, n as u64);
    }
    Ok(())
}

/// Time of sending all spans over one loopback connection per rank pair, scattered and gathered.
pub fn sockets(pairs: &[Pair], memory: &Memories<'_>) -> std::io::Result<Duration> {
    let once = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut ends = Vec::new();
        for _ in pairs {
            let out = TcpStream::connect(listener.local_addr()?)?;
            ends.push((out, listener.accept()?.0));
        }
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            for (pair, (out, into)) in pairs.iter().zip(ends) {
                let (from, to) = (memory.source[pair.source], memory.destination[pair.destination]);
                running.push(scope.spawn(move || send(out, &pair.spans, from)));
                running.push(scope.spawn(move || receive(into, &pair.spans, to)));
            }
            running.into_iter().try_for_each(|t| t.join().unwrap_or(Err(std::io::ErrorKind::Other.into())))
        })?;
        Ok::<_, std::io::Error>(begin.elapsed())
    };
    once()?;
    Ok(median((0..ROUNDS).map(|_| once()).collect::<Result<_, _>>()?))
}
