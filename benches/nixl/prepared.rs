//! What a read would gain if its request were made from lists of blocks that were prepared before.

use crate::bare::Bare;
use crate::common::{IN_ORDER, percentile, wanted};
use crate::{LAYERS, WAYS, World, blocks_of, ids, indices};
use std::time::Instant;

const ROUNDS: usize = 60;
/// Size and number of a read's blocks: what one read of ours has at most, and less.
const READS: [(u32, usize); 4] = [(2 << 10, 64), (2 << 10, 512), (16 << 10, 16), (16 << 10, 64)];

pub fn print(world: &World) {
    if !wanted("prepared") {
        return;
    }
    println!(
        "one read, median us: its request from lists of its own, or from prepared ones; then posted until it is complete"
    );
    let columns = format!("{:>9}{:>9}{:>11}{:>9}", "own", "prepared", "the read", "gain %");
    println!("{:<9}{:>7}{:>8}{columns}{:>16}", "", "block", "blocks", "preparing all");
    for (w, (way, engine)) in WAYS.iter().enumerate() {
        let bare = Bare::new(&format!("prepared {way}"), engine, &world.memory);
        let name = bare.connect(&world.bare[w]);
        for (size, n) in READS {
            let all = LAYERS * blocks_of(size);
            let (own, far) = (world.own(size), world.far(size));
            let begin = Instant::now();
            let (near, remote) = (bare.prepare(c"", own, all as i32), bare.prepare(&name, far, all as i32));
            let preparing = begin.elapsed().as_secs_f64() * 1e6;
            let layers = n.div_ceil(64) as u32;
            let pick = |seed| indices(size, layers, &ids(size, n.min(64), seed));
            let (to, from) = (pick(2), pick(IN_ORDER + 1));
            let (mut created, mut made, mut read) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..2 * ROUNDS {
                let begin = Instant::now();
                let request = match round % 2 {
                    0 => bare.create(own, &to, &name, far, &from),
                    _ => bare.make(near, &to, remote, &from),
                };
                if round % 2 == 0 { &mut created } else { &mut made }.push(begin.elapsed().as_secs_f64() * 1e6);
                let begin = Instant::now();
                bare.run(request);
                read.push(begin.elapsed().as_secs_f64() * 1e6);
            }
            let [created, made, read] = [&mut created, &mut made, &mut read].map(|t| percentile(t, 0.5));
            let gain = (created - made) / (created + read) * 100.0;
            println!("{way:<9}{size:>7}{n:>8}{created:>9.1}{made:>9.1}{read:>11.1}{gain:>9.1}{preparing:>16.0}");
        }
    }
}
