//! The common forms of tensors: one struct describes all layers of a kind.

use super::decode::{optional_string, reserved, slice, unknown};
use super::layout::kvlink_layout_desc_t;
use super::types::element;
use crate::error::{Error, Result, Status};
use crate::layout::LayoutDesc;
use crate::layout::form::{Attention, Conv, ConvOrder, KeyValue, Order, Place, Record, Section, State};
use std::ffi::c_char;

/// Paged attention keys and values of several layers in one allocation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_attention_t {
    /// Global indices of the layers, in storage order.
    pub layers: *const u32,
    /// Number of layers.
    pub num_layers: usize,
    /// Role; NULL: "kv".
    pub role: *const c_char,
    /// Storage order, outermost first: a permutation of "LBHNC" (layer, block, head, token, content); NULL: "LBHNC".
    pub order: *const c_char,
    /// Group index.
    pub group: u32,
    /// Region index.
    pub region: u32,
    /// Byte offset of the allocation.
    pub offset: u64,
    /// Bytes from block to block; 0: dense.
    pub block_stride: u64,
    /// Bytes from layer to layer; 0: dense.
    pub layer_stride: u64,
    /// KV heads of the model.
    pub heads: u64,
    /// First head of this rank.
    pub first_head: u64,
    /// Heads of this rank.
    pub num_heads: u64,
    /// Elements of a key.
    pub key_dim: u64,
    /// Elements of a value.
    pub value_dim: u64,
    /// 0: keys and values packed into one content row; 1: two planes, values at `value_region`, `value_offset`.
    pub planes: u32,
    /// Region of the value plane.
    pub value_region: u32,
    /// Byte offset of the value plane.
    pub value_offset: u64,
    /// Tokens of a kernel block inside a block; 0: the whole block.
    pub kernel_tokens: u32,
    /// A kvlink_dtype.
    pub dtype: u32,
}

/// One record per token, equal on all tensor-parallel ranks, of several layers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_record_t {
    /// Global indices of the layers, in storage order.
    pub layers: *const u32,
    /// Number of layers.
    pub num_layers: usize,
    /// Role: names the format ("mla", "fp8_ds_mla", "indexer").
    pub role: *const c_char,
    /// Group index.
    pub group: u32,
    /// Region index.
    pub region: u32,
    /// Byte offset of the allocation.
    pub offset: u64,
    /// Bytes from block to block; 0: dense.
    pub block_stride: u64,
    /// Bytes from layer to layer; 0: dense.
    pub layer_stride: u64,
    /// Bytes from token to token; 0: dense.
    pub token_stride: u64,
    /// Elements of a record; 0: 1 (an opaque record).
    pub elements: u64,
    /// A kvlink_dtype.
    pub dtype: u32,
    /// Bytes of an element; 0: those of the type.
    pub element_bytes: u32,
}

/// One section of the convolution channels, sharded (or replicated) by itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_section_t {
    /// Units of the model (heads, groups, channels).
    pub units: u64,
    /// Channels of one unit.
    pub width: u64,
    /// First unit of this rank.
    pub first: u64,
    /// Units of this rank.
    pub count: u64,
}

/// Convolution and recurrent state per request (GDN, KDA, Mamba, lightning) of several layers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvlink_state_t {
    /// Global indices of the layers, in storage order.
    pub layers: *const u32,
    /// Number of layers.
    pub num_layers: usize,
    /// Group index (of kind slots).
    pub group: u32,
    /// Region index.
    pub region: u32,
    /// Byte offset of the convolution state of slot 0 of the first layer.
    pub conv_offset: u64,
    /// Byte offset of the recurrent state of slot 0 of the first layer.
    pub state_offset: u64,
    /// Bytes from slot to slot.
    pub slot_stride: u64,
    /// Bytes from layer to layer.
    pub layer_stride: u64,
    /// Sections of the convolution channels ([x|B|C], [q|k|v]); none: no convolution state.
    pub conv: *const kvlink_section_t,
    /// Number of sections.
    pub num_conv: usize,
    /// Rows that this rank keeps: kernel - 1 + speculative tokens.
    pub conv_rows: u64,
    /// 0: channels outside, rows inside; 1: rows outside.
    pub conv_rows_outside: u32,
    /// A kvlink_dtype.
    pub conv_dtype: u32,
    /// Heads (units) of the recurrent state and elements of one (width); count 0: no recurrent state.
    pub state: kvlink_section_t,
    /// A kvlink_dtype.
    pub state_dtype: u32,
    /// Zero.
    pub reserved: u32,
}

/// Adds the tensors of the description's forms.
///
/// # Safety
/// Pointers as the header says.
pub(super) unsafe fn forms(d: &kvlink_layout_desc_t, desc: &mut LayoutDesc) -> Result<()> {
    // SAFETY: the caller's contract.
    unsafe {
        for (i, a) in slice(d.attention, d.num_attention, "attention")?.iter().enumerate() {
            attention(&format!("attention[{i}]"), a, desc)?;
        }
        for (i, r) in slice(d.records, d.num_records, "records")?.iter().enumerate() {
            record(&format!("records[{i}]"), r, desc)?;
        }
        for (i, s) in slice(d.states, d.num_states, "states")?.iter().enumerate() {
            state(&format!("states[{i}]"), s, desc)?;
        }
    }
    Ok(())
}

/// Blocks and tokens per block of a group that a form names.
fn group_of(name: &str, group: u32, desc: &LayoutDesc) -> Result<(u32, u32)> {
    match desc.groups.get(group as usize) {
        Some(g) => Ok((g.num_blocks, g.block_tokens)),
        None => {
            let text = format!("{name}.group is {group}, the layout has {} groups", desc.groups.len());
            Err(Error::new(Status::InvalidLayout, text))
        }
    }
}

unsafe fn attention(name: &str, a: &kvlink_attention_t, desc: &mut LayoutDesc) -> Result<()> {
    let (num_blocks, block_tokens) = group_of(name, a.group, desc)?;
    let place = Place {
        region: a.region,
        offset: a.offset,
        num_blocks,
        block_stride: a.block_stride,
        layer_stride: a.layer_stride,
    };
    // SAFETY: pointers as the header says.
    let (layers, role, order) = unsafe {
        (
            slice(a.layers, a.num_layers, &format!("{name}.layers"))?,
            optional_string(a.role, &format!("{name}.role"))?,
            optional_string(a.order, &format!("{name}.order"))?,
        )
    };
    let form = Attention {
        layers,
        role: if role.is_empty() { "kv" } else { role },
        group: a.group,
        place,
        order: if order.is_empty() { Order::LBHNC } else { order.parse()? },
        block_tokens,
        kernel_tokens: if a.kernel_tokens == 0 { block_tokens } else { a.kernel_tokens },
        heads: a.heads,
        shard: (a.first_head, a.num_heads),
        dims: (a.key_dim, a.value_dim),
        key_value: match a.planes {
            0 => KeyValue::Packed,
            1 => KeyValue::Planes { region: a.value_region, offset: a.value_offset },
            n => return Err(unknown(&format!("{name}.planes"), n, "0..=1")),
        },
        element: element(name, a.dtype, 0)?,
    };
    desc.tensors.extend(form.tensors()?.0);
    Ok(())
}

unsafe fn record(name: &str, r: &kvlink_record_t, desc: &mut LayoutDesc) -> Result<()> {
    let (num_blocks, block_tokens) = group_of(name, r.group, desc)?;
    // SAFETY: pointers as the header says.
    let (layers, role) = unsafe {
        (slice(r.layers, r.num_layers, &format!("{name}.layers"))?, optional_string(r.role, &format!("{name}.role"))?)
    };
    let form = Record {
        layers,
        role,
        group: r.group,
        place: Place {
            region: r.region,
            offset: r.offset,
            num_blocks,
            block_stride: r.block_stride,
            layer_stride: r.layer_stride,
        },
        block_tokens,
        element: element(name, r.dtype, r.element_bytes)?,
        elements: r.elements.max(1),
        token_stride: r.token_stride,
    };
    desc.tensors.extend(form.tensors()?.0);
    Ok(())
}

unsafe fn state(name: &str, s: &kvlink_state_t, desc: &mut LayoutDesc) -> Result<()> {
    // SAFETY: pointers as the header says.
    let (layers, conv) = unsafe {
        (slice(s.layers, s.num_layers, &format!("{name}.layers"))?, slice(s.conv, s.num_conv, &format!("{name}.conv"))?)
    };
    let order = match s.conv_rows_outside {
        0 => ConvOrder::Ds,
        1 => ConvOrder::Sd,
        n => return Err(unknown(&format!("{name}.conv_rows_outside"), n, "0..=1")),
    };
    reserved(name, s.reserved)?;
    let section = |x: &kvlink_section_t| (Section { units: x.units, width: x.width }, (x.first, x.count));
    let sections: Vec<(Section, (u64, u64))> = conv.iter().map(section).collect();
    for (i, layer) in layers.iter().enumerate() {
        let at = |offset: u64| {
            let far = (i as u64).checked_mul(s.layer_stride).and_then(|x| x.checked_add(offset));
            far.ok_or_else(|| Error::new(Status::InvalidLayout, format!("{name}: offsets overflow 64 bits")))
        };
        if !sections.is_empty() {
            let form = Conv {
                layer: *layer,
                group: s.group,
                region: s.region,
                offset: at(s.conv_offset)?,
                slot_stride: s.slot_stride,
                sections: &sections,
                rows: s.conv_rows,
                order,
                element: element(&format!("{name}.conv"), s.conv_dtype, 0)?,
            };
            desc.tensors.push(form.tensor()?.0);
        }
        if s.state.count > 0 {
            let (whole, shard) = section(&s.state);
            let form = State {
                layer: *layer,
                role: "state",
                group: s.group,
                region: s.region,
                offset: at(s.state_offset)?,
                slot_stride: s.slot_stride,
                section: whole,
                shard,
                element: element(&format!("{name}.state"), s.state_dtype, 0)?,
            };
            desc.tensors.push(form.tensor()?.0);
        }
    }
    Ok(())
}
