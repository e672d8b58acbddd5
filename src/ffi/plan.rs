//! Plans: the mathematics alone, for engines that keep their own transport.

use super::decode::{Sized32, copy_out, out, read_struct, reserved, slice};
use super::guard::{guard, kvlink_status_t};
use super::handle::{PLANS, PlanHandle, kvlink_layout_t, kvlink_plan_t};
use super::layout::{check_rank, copy_list, instance};
use super::types::{kvlink_blocks_t, kvlink_span_t, sized};
use crate::error::{Error, Result, Status};
use crate::layout::{BlockList, Form, Request, Span, compile};
use parking_lot::Mutex;
use std::ffi::c_char;

/// What to expand. Block lists have one entry per group of the layout.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_plan_request_t {
    /// sizeof(kvlink_plan_request_t).
    pub struct_size: u32,
    /// First layer.
    pub layer_first: u32,
    /// Number of layers; 0: all.
    pub layer_count: u32,
    /// Zero.
    pub reserved: u32,
    /// First token.
    pub token_begin: u64,
    /// One past the last token; 0: token_total.
    pub token_end: u64,
    /// Tokens of the whole request. State is moved if token_end is token_total.
    pub token_total: u64,
    /// The source's block lists.
    pub source_blocks: *const kvlink_blocks_t,
    /// Their number.
    pub num_source_blocks: usize,
    /// The destination's block lists.
    pub destination_blocks: *const kvlink_blocks_t,
    /// Their number.
    pub num_destination_blocks: usize,
}

sized!(kvlink_plan_request_t);

/// Compiles and proves what destination rank `destination` takes from source rank `source`. Pure; any thread.
///
/// `sources` and `destinations` are the layouts of all ranks of either instance, by rank. `out_plan` is NULL, with status
/// KVLINK_OK, if the two ranks have nothing to exchange.
///
/// Errors: KVLINK_E_INCOMPATIBLE (kvlink_last_error lists why), KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BAD_HANDLE,
/// KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_plan_create(
    sources: *const *const kvlink_layout_t,
    num_sources: usize,
    destinations: *const *const kvlink_layout_t,
    num_destinations: usize,
    source: u32,
    destination: u32,
    out_plan: *mut *mut kvlink_plan_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (slot, src, dst) = unsafe {
            (
                out(out_plan, "out_plan")?,
                instance(sources, num_sources, "sources")?,
                instance(destinations, num_destinations, "destinations")?,
            )
        };
        check_rank(source, src.len(), "source")?;
        check_rank(destination, dst.len(), "destination")?;
        let inbound =
            compile(&src, &dst, destination as usize).map_err(|v| Error::new(Status::Incompatible, v.to_string()))?;
        let plan = inbound.plans.into_iter().find(|p| p.source() == source);
        slot.write(match plan {
            Some(plan) => PLANS.insert(PlanHandle { plan, buffers: Mutex::default() }),
            None => std::ptr::null_mut(),
        });
        Ok(())
    })
}

/// Destroys a plan; NULL is fine.
///
/// Errors: KVLINK_E_BAD_HANDLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_plan_destroy(plan: *mut kvlink_plan_t) -> kvlink_status_t {
    guard(|| PLANS.remove(plan).map(|_| ()))
}

/// Expands a request into spans, merged where neighbours touch on both sides.
///
/// `count` receives the number of spans also when `cap` is too small. Any thread; calls on one plan take turns. In the
/// steady state nothing is allocated per span.
///
/// Errors: KVLINK_E_INVALID_BLOCKS, KVLINK_E_BUFFER_TOO_SMALL, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER,
/// KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_plan_expand(
    plan: *const kvlink_plan_t,
    request: *const kvlink_plan_request_t,
    spans: *mut kvlink_span_t,
    cap: usize,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = PLANS.find(plan)?;
        // SAFETY: the module's contract for pointers.
        unsafe {
            let r = read_struct(request)?;
            reserved(kvlink_plan_request_t::NAME, r.reserved)?;
            let src = lists(r.source_blocks, r.num_source_blocks, "source_blocks")?;
            let dst = lists(r.destination_blocks, r.num_destination_blocks, "destination_blocks")?;
            let token_end = if r.token_end == 0 { r.token_total } else { r.token_end };
            let request = Request {
                src: &src,
                dst: &dst,
                tokens: r.token_begin..token_end,
                end: r.token_total,
                layers: layers(r.layer_first, r.layer_count),
                slots: token_end == r.token_total,
            };
            let mut buffers = handle.buffers.lock();
            let (scratch, list) = &mut *buffers;
            list.clear();
            handle.plan.expand(&request, scratch, list)?;
            // kvlink_span_t has the layout of Span: same fields, both repr(C).
            copy_list::<Span>(list, spans.cast(), cap, count)
        }
    })
}

/// Copies a text that says what the plan does: ranks, average run, whether its runs should be packed and by which rule.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_plan_explain(
    plan: *const kvlink_plan_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let handle = PLANS.find(plan)?;
        let p = &handle.plan;
        let rule = crate::layout::STAGE_RUN_BYTES;
        let form = match p.form() {
            Form::Direct { mean_run } => {
                format!("direct: runs of {mean_run} B on average, packing pays below {rule} B")
            }
            Form::Staged { mean_run } => {
                format!("staged: runs of {mean_run} B on average, packing pays below {rule} B")
            }
        };
        let layers = p.layers().len();
        let text =
            format!("source rank {} to destination rank {}: {layers} layers, {form}", p.source(), p.destination());
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(text.as_bytes(), true, buf.cast(), cap, len) }
    })
}

pub(super) fn layers(first: u32, count: u32) -> std::ops::Range<u32> {
    if count == 0 { first..u32::MAX } else { first..first.saturating_add(count) }
}

unsafe fn lists<'a>(p: *const kvlink_blocks_t, n: usize, name: &str) -> Result<Vec<BlockList<'a>>> {
    // SAFETY: the caller's contract.
    unsafe {
        let mut out = Vec::with_capacity(n.min(crate::wire::limit::GROUPS));
        for (g, b) in slice(p, n, name)?.iter().enumerate() {
            out.push(BlockList { ids: slice(b.ids, b.count, &format!("{name}[{g}].ids"))?, first: b.first });
        }
        Ok(out)
    }
}
