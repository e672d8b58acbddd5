//! The steady state allocates nothing: a second expansion with the same buffers.

mod common;

use common::case::{Ask, pair};
use common::models;
use kvlink::layout::form::Order;
use kvlink::layout::model::{Pages, Placement};
use kvlink::layout::{Request, Scratch, compile};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn checking_and_expanding_again_allocate_nothing() {
    for model in models::all() {
        let model = models::thin(&model, 3, 1);
        let src = Placement { tp: 4, num_blocks: 64, order: Order::LBNHC, ..Placement::default() };
        let pages = if model.name.starts_with("Kimi") { Pages::Shared } else { Pages::Separate };
        let dst = Placement { tp: 6, block_tokens: 48, pages, order: Order::LBNHC, ..src.clone() };
        let partial = Ask { tokens: 5..190, layers: 1..60, holes: true, ..Ask::whole(200) };
        for ask in [Ask::whole(200), partial] {
            let case = pair(&model, &src, &dst, &ask);
            let (mut scratch, mut out) = (Scratch::default(), Vec::new());
            for plan in compile(&case.src, &case.dst, 1).unwrap().plans {
                let src = case.src_lists[plan.source() as usize].borrow();
                let dst = case.dst_lists[1].borrow();
                let request = Request {
                    tokens: ask.tokens.clone(),
                    layers: ask.layers.clone(),
                    ..Request::whole(&src, &dst, ask.end)
                };
                plan.check(&request, &mut scratch).unwrap();
                plan.expand(&request, &mut scratch, &mut out).unwrap();
                out.clear();
                let before = COUNT.with(Cell::get);
                plan.check(&request, &mut scratch).unwrap();
                plan.expand(&request, &mut scratch, &mut out).unwrap();
                assert_eq!(COUNT.with(Cell::get) - before, 0, "{}", model.name);
                out.clear();
            }
        }
    }
}
