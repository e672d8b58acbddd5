//! Constructors for the common forms of cache tensors, so that an engine describes a real model in a few lines.

use super::{Axis, Element, Extent, Matching, Part, Tensor, Tile};
use crate::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The interval of `total` units that rank `rank` of `size` holds: an even split, and where there are fewer units than
/// ranks, one unit each, replicated on neighbouring ranks.
///
/// Ranges for every divisible case are those of vLLM, SGLang and TensorRT-LLM.
pub fn shard(total: u64, size: u32, rank: u32) -> (u64, u64) {
    let at = |r: u64| (u128::from(r) * u128::from(total)).checked_div(u128::from(size)).unwrap_or(0) as u64;
    let begin = at(u64::from(rank));
    let end = at(u64::from(rank).saturating_add(1)).max(begin.saturating_add(1));
    (begin, end.saturating_sub(begin))
}

/// Physical order of layer, block, head, token and content, outermost first: any permutation of `LBHNC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Order([u8; 5]);

impl Order {
    /// Layer, block, head, token, content ("HND").
    pub const LBHNC: Order = Order(*b"LBHNC");
    /// Layer, block, token, head, content ("NHD").
    pub const LBNHC: Order = Order(*b"LBNHC");
    /// Head outside of blocks.
    pub const LHBNC: Order = Order(*b"LHBNC");
    /// Cross-layer blocks, heads outside of tokens.
    pub const BLHNC: Order = Order(*b"BLHNC");
    /// Cross-layer blocks, tokens outside of heads.
    pub const BLNHC: Order = Order(*b"BLNHC");
    /// Cross-layer blocks, heads outside of layers.
    pub const BHLNC: Order = Order(*b"BHLNC");

    /// Every order that serving engines are known to use.
    pub const COMMON: [Order; 6] = [Order::LBHNC, Order::LBNHC, Order::LHBNC, Order::BLHNC, Order::BLNHC, Order::BHLNC];

    /// Byte strides of (L, B, H, N, C) for these counts, `unit` being the bytes of one content element.
    fn strides(self, counts: [u64; 5], unit: u64) -> Result<Strides> {
        let mut strides = [0u64; 5];
        let mut below = unit;
        for letter in self.0.iter().rev() {
            let at = b"LBHNC".iter().position(|l| l == letter).unwrap_or(0);
            if let (Some(s), Some(n)) = (strides.get_mut(at), counts.get(at)) {
                *s = below;
                below = below.checked_mul(*n).ok_or_else(overflow)?;
            }
        }
        let [layer, block, head, token, content] = strides;
        Ok(Strides { layer, block, head, token, content, total: below })
    }
}

struct Strides {
    layer: u64,
    block: u64,
    head: u64,
    token: u64,
    content: u64,
    total: u64,
}

fn overflow() -> Error {
    Error::new(Status::InvalidLayout, "the allocation's size overflows 64 bits")
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(s: &str) -> Result<Order> {
        let bad =
            || Error::new(Status::InvalidLayout, format!("storage order {s:?} is not a permutation of \"LBHNC\""));
        let order: [u8; 5] = s.as_bytes().try_into().map_err(|_| bad())?;
        if b"LBHNC".iter().all(|l| order.contains(l)) { Ok(Order(order)) } else { Err(bad()) }
    }
}

impl TryFrom<String> for Order {
    type Error = String;

    fn try_from(s: String) -> std::result::Result<Order, String> {
        s.parse().map_err(|e: Error| e.message().to_string())
    }
}

impl From<Order> for String {
    fn from(o: Order) -> String {
        o.0.iter().map(|b| char::from(*b)).collect()
    }
}

/// Where the values lie relative to the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyValue {
    /// One content row `[key | value]` per token and head.
    Packed,
    /// Two allocations of the same order; the values begin here.
    Planes {
        /// Region of the values.
        region: u32,
        /// Byte offset in that region.
        offset: u64,
    },
}

/// Where an allocation lies and how many blocks it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the region.
    pub region: u32,
    /// Byte offset of the allocation.
    pub offset: u64,
    /// Block ids are `0 .. num_blocks`.
    pub num_blocks: u32,
    /// Bytes from block to block where a block is padded or belongs to a bigger page; 0: as dense as the order allows.
    pub block_stride: u64,
    /// Bytes from layer to layer; 0: as dense as the order allows.
    pub layer_stride: u64,
}

/// Paged attention keys and values.
#[derive(Clone, Debug)]
pub struct Attention<'a> {
    /// Global indices of the layers of this allocation, in storage order.
    pub layers: &'a [u32],
    /// Role of the tensors, "kv" where nothing else is needed.
    pub role: &'a str,
    /// Group index.
    pub group: u32,
    /// Where.
    pub place: Place,
    /// Physical order.
    pub order: Order,
    /// Tokens of one block.
    pub block_tokens: u32,
    /// Tokens of one kernel block inside a block; equal to `block_tokens` where there is none.
    pub kernel_tokens: u32,
    /// KV heads of the model.
    pub heads: u64,
    /// First head and number of heads of this rank.
    pub shard: (u64, u64),
    /// Elements of a key and of a value.
    pub dims: (u64, u64),
    /// Packed or two planes.
    pub key_value: KeyValue,
    /// Element type.
    pub element: Element,
}

impl Attention<'_> {
    /// The tensors, one per layer, and the bytes of the allocation (of one plane).
    ///
    /// # Errors
    /// [`Status::InvalidLayout`] on overflow or a kernel block that does not divide the block.
    pub fn tensors(&self) -> Result<(Vec<Tensor>, u64)> {
        let content = self.dims.0.checked_add(self.dims.1).ok_or_else(overflow)?;
        let axes = vec![
            Axis { name: "head".into(), extent: self.heads, matching: Matching::Exact },
            Axis { name: "content".into(), extent: content, matching: Matching::Exact },
        ];
        let planes = match self.key_value {
            KeyValue::Packed => vec![(self.place.region, self.place.offset, 0, content)],
            KeyValue::Planes { region, offset } => {
                vec![(self.place.region, self.place.offset, 0, self.dims.0), (region, offset, self.dims.0, self.dims.1)]
            }
        };
        let mut total = 0;
        let mut tensors: Vec<Tensor> = Vec::new();
        for (region, offset, begin, len) in planes {
            let grid = self.grid(len)?;
            total = total.max(grid.total);
            for (i, layer) in self.layers.iter().enumerate() {
                let at = (i as u64).checked_mul(grid.layer).and_then(|x| x.checked_add(offset)).ok_or_else(overflow)?;
                let part = Part {
                    region,
                    offset: at,
                    block_stride: grid.block,
                    token_stride: grid.token,
                    tile: grid.tile,
                    extents: vec![
                        Extent { begin: self.shard.0, len: self.shard.1, stride: grid.head },
                        Extent { begin, len, stride: grid.content },
                    ],
                };
                match tensors.iter_mut().find(|t| t.layer == *layer) {
                    Some(t) => t.parts.push(part),
                    None => tensors.push(Tensor {
                        layer: *layer,
                        role: self.role.to_string(),
                        group: self.group,
                        element: self.element,
                        axes: axes.clone(),
                        parts: vec![part],
                    }),
                }
            }
        }
        Ok((tensors, total))
    }

    fn grid(&self, content: u64) -> Result<Grid> {
        let kernel = self.kernel_tokens.max(1);
        let tiles = u64::from(self.block_tokens / kernel);
        if tiles == 0 || !self.block_tokens.is_multiple_of(kernel) {
            return Err(Error::new(
                Status::InvalidLayout,
                format!("kernel block of {kernel} tokens does not divide block of {}", self.block_tokens),
            ));
        }
        let unit = u64::from(self.element.bytes);
        let blocks = u64::from(self.place.num_blocks).checked_mul(tiles).ok_or_else(overflow)?;
        let counts = [self.layers.len() as u64, blocks, self.shard.1, u64::from(kernel), content];
        let s = self.order.strides(counts, unit)?;
        let dense = s.block.checked_mul(tiles).ok_or_else(overflow)?;
        let block = if self.place.block_stride == 0 { dense } else { self.place.block_stride };
        let layer = if self.place.layer_stride == 0 { s.layer } else { self.place.layer_stride };
        let tile = (tiles > 1).then_some(Tile { tokens: kernel, stride: s.block });
        Ok(Grid { layer, block, head: s.head, token: s.token, content: s.content, tile, total: s.total })
    }
}

struct Grid {
    layer: u64,
    block: u64,
    head: u64,
    token: u64,
    content: u64,
    tile: Option<Tile>,
    total: u64,
}

/// One record per token, equal on all tensor-parallel ranks: MLA latents, indexer keys, opaque records.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Global indices of the layers, in storage order.
    pub layers: &'a [u32],
    /// Role ("mla", "indexer", "fp8_ds_mla", ...): names the format of opaque records.
    pub role: &'a str,
    /// Group index.
    pub group: u32,
    /// Where. A block stride of 0 means dense, a layer stride of 0 means one dense allocation per layer.
    pub place: Place,
    /// Tokens of one block.
    pub block_tokens: u32,
    /// Element type, and elements of a record.
    pub element: Element,
    /// Elements of one record; 1 for an opaque one.
    pub elements: u64,
    /// Bytes from token to token; 0: dense.
    pub token_stride: u64,
}

impl Record<'_> {
    /// The tensors, one per layer, and the bytes of the allocation.
    ///
    /// # Errors
    /// [`Status::InvalidLayout`] on overflow.
    pub fn tensors(&self) -> Result<(Vec<Tensor>, u64)> {
        let unit = u64::from(self.element.bytes);
        let bytes = unit.checked_mul(self.elements).ok_or_else(overflow)?;
        let token_stride = if self.token_stride == 0 { bytes } else { self.token_stride };
        let dense = token_stride.checked_mul(u64::from(self.block_tokens)).ok_or_else(overflow)?;
        let block_stride = if self.place.block_stride == 0 { dense } else { self.place.block_stride };
        let layer_bytes = block_stride.checked_mul(u64::from(self.place.num_blocks)).ok_or_else(overflow)?;
        let layer_stride = if self.place.layer_stride == 0 { layer_bytes } else { self.place.layer_stride };
        let mut tensors = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let offset = (i as u64).checked_mul(layer_stride).and_then(|x| x.checked_add(self.place.offset));
            tensors.push(Tensor {
                layer: *layer,
                role: self.role.to_string(),
                group: self.group,
                element: self.element,
                axes: vec![Axis { name: "content".into(), extent: self.elements, matching: Matching::Exact }],
                parts: vec![Part {
                    region: self.place.region,
                    offset: offset.ok_or_else(overflow)?,
                    block_stride,
                    token_stride,
                    tile: None,
                    extents: vec![Extent { begin: 0, len: self.elements, stride: unit }],
                }],
            });
        }
        let total = (self.layers.len() as u64).checked_mul(layer_stride).ok_or_else(overflow)?;
        Ok((tensors, total))
    }
}

/// Memory order of a convolution state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvOrder {
    /// Channels outside, rows inside.
    #[default]
    Ds,
    /// Rows outside, channels inside.
    Sd,
}

/// One section of a sectioned axis: `units` units of `width` channels, sharded (or replicated) by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Units of the model (heads, groups, channels).
    pub units: u64,
    /// Channels of one unit.
    pub width: u64,
}

/// Convolution state `[x|B|C]` or `[q|k|v]`, one slot per request: `rows` = kernel - 1 + speculative tokens.
#[derive(Clone, Debug)]
pub struct Conv<'a> {
    /// Layer.
    pub layer: u32,
    /// Group index (a slots group).
    pub group: u32,
    /// Region, byte offset of slot 0, bytes from slot to slot.
    pub region: u32,
    /// Byte offset of slot 0.
    pub offset: u64,
    /// Bytes from slot to slot.
    pub slot_stride: u64,
    /// The sections, with the first unit and number of units that this rank holds.
    pub sections: &'a [(Section, (u64, u64))],
    /// Rows that this rank keeps.
    pub rows: u64,
    /// Memory order.
    pub order: ConvOrder,
    /// Element type.
    pub element: Element,
}

impl Conv<'_> {
    /// The tensor (role "conv") and its bytes per slot.
    ///
    /// # Errors
    /// [`Status::InvalidLayout`] on overflow.
    pub fn tensor(&self) -> Result<(Tensor, u64)> {
        let unit = u64::from(self.element.bytes);
        let mul = |a: u64, b: u64| a.checked_mul(b).ok_or_else(overflow);
        let mut local = 0u64;
        let mut extent = 0u64;
        for (s, (_, n)) in self.sections {
            local = local.checked_add(mul(*n, s.width)?).ok_or_else(overflow)?;
            extent = extent.checked_add(mul(s.units, s.width)?).ok_or_else(overflow)?;
        }
        let (channel, row) = match self.order {
            ConvOrder::Ds => (mul(self.rows, unit)?, unit),
            ConvOrder::Sd => (unit, mul(local, unit)?),
        };
        let (mut global, mut at) = (0u64, self.offset);
        let mut parts = Vec::with_capacity(self.sections.len());
        for (s, (first, n)) in self.sections {
            let len = mul(*n, s.width)?;
            let begin = mul(*first, s.width)?.checked_add(global).ok_or_else(overflow)?;
            parts.push(Part {
                region: self.region,
                offset: at,
                block_stride: self.slot_stride,
                token_stride: 0,
                tile: None,
                extents: vec![Extent { begin, len, stride: channel }, Extent { begin: 0, len: self.rows, stride: row }],
            });
            at = at.checked_add(mul(len, channel)?).ok_or_else(overflow)?;
            global = global.checked_add(mul(s.units, s.width)?).ok_or_else(overflow)?;
        }
        let tensor = Tensor {
            layer: self.layer,
            role: "conv".into(),
            group: self.group,
            element: self.element,
            axes: vec![
                Axis { name: "channel".into(), extent, matching: Matching::Exact },
                Axis { name: "row".into(), extent: self.rows, matching: Matching::Common },
            ],
            parts,
        };
        Ok((tensor, mul(mul(local, self.rows)?, unit)?))
    }
}

/// Recurrent state, one slot per request: `units` heads (or channels) of `width` elements.
#[derive(Clone, Debug)]
pub struct State<'a> {
    /// Layer.
    pub layer: u32,
    /// Role, "state" where nothing else is needed.
    pub role: &'a str,
    /// Group index (a slots group).
    pub group: u32,
    /// Region.
    pub region: u32,
    /// Byte offset of slot 0.
    pub offset: u64,
    /// Bytes from slot to slot.
    pub slot_stride: u64,
    /// Units of the model and elements of one.
    pub section: Section,
    /// First unit and number of units of this rank.
    pub shard: (u64, u64),
    /// Element type.
    pub element: Element,
}

impl State<'_> {
    /// The tensor and its bytes per slot.
    ///
    /// # Errors
    /// [`Status::InvalidLayout`] on overflow.
    pub fn tensor(&self) -> Result<(Tensor, u64)> {
        let unit = u64::from(self.element.bytes);
        let row = unit.checked_mul(self.section.width).ok_or_else(overflow)?;
        let tensor = Tensor {
            layer: self.layer,
            role: self.role.to_string(),
            group: self.group,
            element: self.element,
            axes: vec![
                Axis { name: "head".into(), extent: self.section.units, matching: Matching::Exact },
                Axis { name: "content".into(), extent: self.section.width, matching: Matching::Exact },
            ],
            parts: vec![Part {
                region: self.region,
                offset: self.offset,
                block_stride: self.slot_stride,
                token_stride: 0,
                tile: None,
                extents: vec![
                    Extent { begin: self.shard.0, len: self.shard.1, stride: row },
                    Extent { begin: 0, len: self.section.width, stride: unit },
                ],
            }],
        };
        Ok((tensor, row.checked_mul(self.shard.1).ok_or_else(overflow)?))
    }
}
