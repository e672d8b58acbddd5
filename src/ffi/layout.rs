//! Layouts: descriptions in, immutable handles out.

use super::decode::{
    Sized32, copy_out, flag, null, optional_string, out, read_struct, reserved, slice, string, unknown,
};
use super::form::{forms, kvlink_attention_t, kvlink_record_t, kvlink_state_t};
use super::guard::{guard, kvlink_status_t};
use super::handle::{LAYOUTS, kvlink_layout_t};
use super::types::{element, sized};
use crate::error::{Error, Result, Status};
use crate::layout::{
    Axis, ContextParallel, Extent, Group, GroupKind, Layout, LayoutDesc, Matching, Part, Reach, Region, Tensor, Tile,
    compile, layout_from_json, layout_to_json,
};
use std::ffi::c_char;
use std::sync::Arc;

/// How block lists of a group are read.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_group_kind {
    /// Entry j holds the tokens j * block_tokens and following.
    KVLINK_GROUP_PAGED = 0,
    /// The list is a ring of blocks per request.
    KVLINK_GROUP_RING = 1,
    /// No token axis: entry j is the j-th state slot of the request.
    KVLINK_GROUP_SLOTS = 2,
}

/// Which tokens before the end of a request a group still needs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvlink_reach {
    /// All.
    KVLINK_REACH_FULL = 0,
    /// The last `reach_tokens` (sliding window).
    KVLINK_REACH_WINDOW = 1,
    /// The chunk of `reach_tokens` that the last token lies in.
    KVLINK_REACH_CHUNK = 2,
}

/// A KV-cache group: one block-id space, the same on all ranks of an instance.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_group_t {
    /// A kvlink_group_kind.
    pub kind: u32,
    /// Tokens of this rank in one block; 1 for slots.
    pub block_tokens: u32,
    /// Block ids are below this.
    pub num_blocks: u32,
    /// A kvlink_reach.
    pub reach: u32,
    /// Tokens of the window or chunk.
    pub reach_tokens: u64,
    /// Context-parallel size; 0 and 1: not parallel.
    pub context_size: u32,
    /// Context-parallel rank.
    pub context_rank: u32,
    /// Tokens of one interleaved chunk; 0: 1.
    pub context_interleave: u32,
    /// Zero.
    pub reserved: u32,
}

/// A global axis of a tensor; the token axis is not listed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_axis_t {
    /// Name ("head", "channel", ...), equal on both sides.
    pub name: *const c_char,
    /// Global extent in elements.
    pub extent: u64,
    /// 0: both sides must have this extent; 1: only indices that both have are moved.
    pub common: u32,
    /// Zero.
    pub reserved: u32,
}

/// The interval of an axis that a part stores.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_extent_t {
    /// First global index.
    pub begin: u64,
    /// Number of indices.
    pub len: u64,
    /// Bytes between neighbours.
    pub stride: u64,
}

/// A strided box: token t (within its block) and indices i of block id b begin at byte
/// offset + b * block_stride + (t / tile_tokens) * tile_stride + (t % tile_tokens) * token_stride
/// + sum (i - begin) * stride of the region.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_part_t {
    /// Region index.
    pub region: u32,
    /// Tokens of a tile; 0: no tiles.
    pub tile_tokens: u32,
    /// Byte offset of the first element of block 0.
    pub offset: u64,
    /// Bytes between blocks.
    pub block_stride: u64,
    /// Bytes between tokens.
    pub token_stride: u64,
    /// Bytes between tiles.
    pub tile_stride: u64,
    /// One extent per axis.
    pub extents: *const kvlink_extent_t,
}

/// A cache tensor as this rank stores it; (layer, role) names it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_tensor_t {
    /// Global layer index.
    pub layer: u32,
    /// Group index.
    pub group: u32,
    /// A kvlink_dtype.
    pub dtype: u32,
    /// Bytes of an element; 0: those of the type.
    pub element_bytes: u32,
    /// What it is; names the format of opaque records too.
    pub role: *const c_char,
    /// Axes.
    pub axes: *const kvlink_axis_t,
    /// Number of axes, at most 4.
    pub num_axes: usize,
    /// Parts: logically disjoint boxes; sections of an axis are parts.
    pub parts: *const kvlink_part_t,
    /// Number of parts.
    pub num_parts: usize,
}

/// Everything that describes one rank's cache. Tensors of the common forms need only one entry for all their layers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_layout_desc_t {
    /// sizeof(kvlink_layout_desc_t).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the model; NULL or empty: not compared with the peer's.
    pub model: *const c_char,
    /// Bytes of each region.
    pub region_bytes: *const u64,
    /// Number of regions.
    pub num_regions: usize,
    /// Groups.
    pub groups: *const kvlink_group_t,
    /// Number of groups.
    pub num_groups: usize,
    /// Attention keys and values.
    pub attention: *const kvlink_attention_t,
    /// Number of attention entries.
    pub num_attention: usize,
    /// Records per token (MLA latents, indexer keys, opaque records).
    pub records: *const kvlink_record_t,
    /// Number of record entries.
    pub num_records: usize,
    /// Convolution and recurrent states.
    pub states: *const kvlink_state_t,
    /// Number of state entries.
    pub num_states: usize,
    /// Anything else.
    pub tensors: *const kvlink_tensor_t,
    /// Number of tensors.
    pub num_tensors: usize,
}

/// One incompatibility of two sides: what, and both values. Texts are NUL-terminated and cut where they do not fit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_finding_t {
    /// The thing: "layer 3 state".
    pub subject: [c_char; 128],
    /// Its field: "dtype".
    pub field: [c_char; 64],
    /// The destination's value.
    pub destination: [c_char; 160],
    /// The source's value.
    pub source: [c_char; 160],
}

sized!(kvlink_layout_desc_t);

/// Makes a layout from a description.
///
/// The description is copied; nothing of it is kept. Any thread.
///
/// Errors: KVLINK_E_INVALID_LAYOUT (the message lists the contradictions, the first 16 of many), KVLINK_E_LIMIT, KVLINK_E_UNKNOWN_ENUM,
/// KVLINK_E_NULL_POINTER, KVLINK_E_STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_create(
    desc: *const kvlink_layout_desc_t,
    out_layout: *mut *mut kvlink_layout_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (slot, desc) = unsafe { (out(out_layout, "out_layout")?, describe(&read_struct(desc)?)?) };
        slot.write(LAYOUTS.insert(Layout::new(desc)?));
        Ok(())
    })
}

/// Makes a layout from JSON: a complete description, or a model `geometry` with a `placement` (docs/layout.md). Any thread.
///
/// Errors: KVLINK_E_INVALID_LAYOUT, KVLINK_E_INVALID_ARGUMENT (an impossible placement, not UTF-8), KVLINK_E_LIMIT,
/// KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_from_json(
    json: *const c_char,
    len: usize,
    out_layout: *mut *mut kvlink_layout_t,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (slot, bytes) = unsafe { (out(out_layout, "out_layout")?, slice(json.cast::<u8>(), len, "json")?) };
        let text = std::str::from_utf8(bytes).map_err(|e| {
            Error::new(Status::InvalidArgument, format!("json is not UTF-8 at byte {}", e.valid_up_to()))
        })?;
        slot.write(LAYOUTS.insert(layout_from_json(text)?));
        Ok(())
    })
}

/// Destroys a layout; NULL is fine. Agents and plans made from it keep what they need.
///
/// Errors: KVLINK_E_BAD_HANDLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_destroy(layout: *mut kvlink_layout_t) -> kvlink_status_t {
    guard(|| LAYOUTS.remove(layout).map(|_| ()))
}

/// Copies the complete description of a layout as JSON, NUL-terminated: what kvlink understood.
///
/// `len` (may be NULL) receives the length without the NUL.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_explain(
    layout: *const kvlink_layout_t,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let layout = LAYOUTS.find(layout)?;
        // SAFETY: the module's contract for pointers.
        unsafe { copy_out(layout_to_json(&layout).as_bytes(), true, buf.cast(), cap, len) }
    })
}

/// Stores the bytes that each region needs. `count` receives the number of regions.
///
/// Errors: KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER, KVLINK_E_BUFFER_TOO_SMALL (`count` is stored).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_regions(
    layout: *const kvlink_layout_t,
    bytes: *mut u64,
    cap: usize,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let layout = LAYOUTS.find(layout)?;
        let all: Vec<u64> = layout.regions().iter().map(|r| r.len).collect();
        // SAFETY: the module's contract for pointers.
        unsafe { copy_list(&all, bytes, cap, count) }
    })
}

/// Stores kind, size and reach of each group. `count` receives the number of groups.
///
/// Errors: as kvlink_layout_regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_groups(
    layout: *const kvlink_layout_t,
    groups: *mut kvlink_group_t,
    cap: usize,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        let layout = LAYOUTS.find(layout)?;
        let all: Vec<kvlink_group_t> = layout.groups().iter().map(c_group).collect();
        // SAFETY: the module's contract for pointers.
        unsafe { copy_list(&all, groups, cap, count) }
    })
}

/// Whether destination rank `rank` can get its cache from the source instance. Pure; any thread.
///
/// `sources` and `destinations` are the layouts of all ranks of either instance, by rank. On KVLINK_E_INCOMPATIBLE every
/// incompatibility is a finding: `count` receives their number, the first `cap` are stored (`findings` may be NULL with
/// `cap` 0), and kvlink_last_error has them as one text.
///
/// Errors: KVLINK_E_INCOMPATIBLE, KVLINK_E_INVALID_ARGUMENT, KVLINK_E_BAD_HANDLE, KVLINK_E_NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_layout_check(
    sources: *const *const kvlink_layout_t,
    num_sources: usize,
    destinations: *const *const kvlink_layout_t,
    num_destinations: usize,
    rank: u32,
    findings: *mut kvlink_finding_t,
    cap: usize,
    count: *mut usize,
) -> kvlink_status_t {
    guard(|| {
        // SAFETY: the module's contract for pointers.
        let (slot, src, dst) = unsafe {
            (
                out(count, "count")?,
                instance(sources, num_sources, "sources")?,
                instance(destinations, num_destinations, "destinations")?,
            )
        };
        slot.write(0);
        if cap > 0 && findings.is_null() {
            return Err(null("findings"));
        }
        check_rank(rank, dst.len(), "destination")?;
        let verdict = compile(&src, &dst, rank as usize).err();
        let all: Vec<kvlink_finding_t> = verdict
            .iter()
            .flat_map(|v| &v.findings)
            .map(|f| kvlink_finding_t {
                subject: text(&f.subject),
                field: text(&f.field),
                destination: text(&f.local),
                source: text(&f.remote),
            })
            .collect();
        // SAFETY: the module's contract for pointers.
        unsafe {
            slot.write(all.len());
            if cap > 0 {
                std::ptr::copy_nonoverlapping(all.as_ptr(), findings, all.len().min(cap));
            }
        }
        match verdict {
            None => Ok(()),
            Some(v) => Err(Error::new(Status::Incompatible, v.to_string())),
        }
    })
}

/// Layouts of all ranks of an instance.
///
/// # Safety
/// Pointers as the header says.
pub(super) unsafe fn instance(p: *const *const kvlink_layout_t, n: usize, name: &str) -> Result<Vec<Arc<Layout>>> {
    // SAFETY: the caller's contract.
    let handles = unsafe { slice(p, n, name) }?;
    handles.iter().map(|h| LAYOUTS.find(*h)).collect()
}

pub(super) fn check_rank(rank: u32, ranks: usize, name: &str) -> Result<()> {
    if (rank as usize) < ranks {
        return Ok(());
    }
    Err(Error::new(Status::InvalidArgument, format!("{name} rank {rank} of {ranks} ranks")))
}

/// Copies a list, all or nothing; `count` gets its length.
///
/// # Safety
/// Pointers as the header says.
pub(super) unsafe fn copy_list<T: Copy>(list: &[T], to: *mut T, cap: usize, count: *mut usize) -> Result<()> {
    // SAFETY: the caller's contract.
    unsafe { out(count, "count") }?.write(list.len());
    if list.len() > cap {
        let text = format!("room for {cap} entries, {} are needed", list.len());
        return Err(Error::new(Status::BufferTooSmall, text));
    }
    if !list.is_empty() {
        // SAFETY: not null by the check, room for `cap >= len` by contract.
        unsafe {
            out(to, "list")?;
            std::ptr::copy_nonoverlapping(list.as_ptr(), to, list.len());
        }
    }
    Ok(())
}

fn text<const N: usize>(s: &str) -> [c_char; N] {
    let mut end = s.len().min(N - 1);
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(s.as_bytes().iter().take(end)) {
        *to = *from as c_char;
    }
    out
}

unsafe fn describe(d: &kvlink_layout_desc_t) -> Result<LayoutDesc> {
    // SAFETY: pointers as the header says.
    unsafe {
        reserved(kvlink_layout_desc_t::NAME, d.reserved)?;
        let mut desc = LayoutDesc { model: optional_string(d.model, "model")?.to_string(), ..LayoutDesc::default() };
        desc.regions =
            slice(d.region_bytes, d.num_regions, "region_bytes")?.iter().map(|len| Region { len: *len }).collect();
        for (i, g) in slice(d.groups, d.num_groups, "groups")?.iter().enumerate() {
            desc.groups.push(group(i, g)?);
        }
        forms(d, &mut desc)?;
        for (i, t) in slice(d.tensors, d.num_tensors, "tensors")?.iter().enumerate() {
            desc.tensors.push(tensor(&format!("tensors[{i}]"), t)?);
        }
        Ok(desc)
    }
}

fn group(i: usize, g: &kvlink_group_t) -> Result<Group> {
    reserved(&format!("groups[{i}]"), g.reserved)?;
    let kind = match g.kind {
        0 => GroupKind::Paged,
        1 => GroupKind::Ring,
        2 => GroupKind::Slots,
        n => return Err(unknown(&format!("groups[{i}].kind"), n, "0..=2")),
    };
    let reach = match g.reach {
        0 => Reach::Full,
        1 => Reach::Window(g.reach_tokens),
        2 => Reach::Chunk(g.reach_tokens),
        n => return Err(unknown(&format!("groups[{i}].reach"), n, "0..=2")),
    };
    let context =
        ContextParallel { size: g.context_size.max(1), rank: g.context_rank, interleave: g.context_interleave.max(1) };
    Ok(Group { kind, block_tokens: g.block_tokens, num_blocks: g.num_blocks, reach, context })
}

fn c_group(g: &Group) -> kvlink_group_t {
    let (reach, reach_tokens) = match g.reach {
        Reach::Full => (0, 0),
        Reach::Window(n) => (1, n),
        Reach::Chunk(n) => (2, n),
    };
    kvlink_group_t {
        kind: match g.kind {
            GroupKind::Paged => 0,
            GroupKind::Ring => 1,
            GroupKind::Slots => 2,
        },
        block_tokens: g.block_tokens,
        num_blocks: g.num_blocks,
        reach,
        reach_tokens,
        context_size: g.context.size,
        context_rank: g.context.rank,
        context_interleave: g.context.interleave,
        reserved: 0,
    }
}

unsafe fn tensor(name: &str, t: &kvlink_tensor_t) -> Result<Tensor> {
    // SAFETY: pointers as the header says.
    unsafe {
        let mut axes = Vec::new();
        for (i, a) in slice(t.axes, t.num_axes, &format!("{name}.axes"))?.iter().enumerate() {
            reserved(&format!("{name}.axes[{i}]"), a.reserved)?;
            let common = flag(&format!("{name}.axes[{i}].common"), a.common)?;
            let matching = if common { Matching::Common } else { Matching::Exact };
            let axis = string(a.name, &format!("{name}.axes[{i}].name"))?;
            axes.push(Axis { name: axis.to_string(), extent: a.extent, matching });
        }
        let mut parts = Vec::new();
        for (i, p) in slice(t.parts, t.num_parts, &format!("{name}.parts"))?.iter().enumerate() {
            let extents = slice(p.extents, t.num_axes, &format!("{name}.parts[{i}].extents"))?;
            parts.push(Part {
                region: p.region,
                offset: p.offset,
                block_stride: p.block_stride,
                token_stride: p.token_stride,
                tile: (p.tile_tokens != 0).then_some(Tile { tokens: p.tile_tokens, stride: p.tile_stride }),
                extents: extents.iter().map(|e| Extent { begin: e.begin, len: e.len, stride: e.stride }).collect(),
            });
        }
        Ok(Tensor {
            layer: t.layer,
            role: string(t.role, &format!("{name}.role"))?.to_string(),
            group: t.group,
            element: element(name, t.dtype, t.element_bytes)?,
            axes,
            parts,
        })
    }
}
