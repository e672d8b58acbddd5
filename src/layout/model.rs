//! Model geometries as data: a [`Model`] and a [`Placement`] make the [`Layout`](super::Layout) that an engine would
//! allocate for one rank.

use super::form::{Attention, Conv, ConvOrder, KeyValue, Order, Place, Record, Section, State, shard};
use super::{ContextParallel, DType, Element, Group, GroupKind, LayoutDesc, Reach, Region, Tensor, limit};
use crate::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};

/// What one kind of layer keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Cache {
    /// Keys and values per head.
    Attention {
        /// KV heads.
        heads: u64,
        /// Elements of a key and of a value.
        dims: (u64, u64),
        /// Element type.
        dtype: DType,
        /// Tokens that stay visible.
        #[serde(default)]
        reach: Reach,
    },
    /// One record per token, the same on every tensor-parallel rank.
    Record {
        /// Role: names the format.
        role: String,
        /// Element type.
        element: Element,
        /// Elements of a record.
        elements: u64,
    },
    /// Convolution and recurrent state per request (GDN, KDA, Mamba1, Mamba2, lightning).
    State {
        /// Sections of the convolution channels; empty: no convolution.
        #[serde(default)]
        conv: Vec<Section>,
        /// kernel - 1.
        #[serde(default)]
        conv_rows: u64,
        /// Element type of the convolution state.
        #[serde(default = "bf16")]
        conv_dtype: DType,
        /// Heads (or channels) of the recurrent state, elements of each.
        state: Section,
        /// Element type of the recurrent state.
        state_dtype: DType,
    },
}

fn bf16() -> DType {
    DType::Bf16
}

/// The layers that keep one kind of cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// Global layer indices, ascending.
    pub layers: Vec<u32>,
    /// What each keeps.
    pub cache: Cache,
}

/// A model's cache geometry, whatever the topology.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name; part of the comparison of two sides.
    pub name: String,
    /// Number of layers.
    pub num_layers: u32,
    /// What the layers keep. A layer may occur more than once (attention and state in one layer).
    pub caches: Vec<Layers>,
}

/// How hybrid models lay out their pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pages {
    /// A region, a group and block ids of their own for each kind of cache.
    #[default]
    Separate,
    /// One region of equal pages that every group reads in its own way (dual-purpose pages).
    Shared,
}

/// Where one rank stands, and how its engine allocates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Tensor-parallel size and rank.
    pub tp: u32,
    /// Tensor-parallel rank.
    pub tp_rank: u32,
    /// Pipeline-parallel size.
    pub pp: u32,
    /// Pipeline-parallel rank.
    pub pp_rank: u32,
    /// Decode-context-parallel size; divides `tp`.
    pub dcp: u32,
    /// Tokens of one context-parallel chunk.
    pub interleave: u32,
    /// Tokens of one block; 0 with shared pages: the smallest multiple of `align` whose attention page holds the state.
    pub block_tokens: u32,
    /// Granularity of an automatic block size.
    pub align: u32,
    /// Tokens of a kernel block; 0: the whole block.
    pub kernel_tokens: u32,
    /// Block ids per group.
    pub num_blocks: u32,
    /// Storage order of attention.
    pub order: Order,
    /// Keys and values in two planes.
    pub planes: bool,
    /// Memory order of convolution states.
    pub conv_order: ConvOrder,
    /// Speculative tokens: further rows of the convolution states.
    pub speculative: u64,
    /// How pages are laid out.
    pub pages: Pages,
}

impl Default for Placement {
    fn default() -> Placement {
        Placement {
            tp: 1,
            tp_rank: 0,
            pp: 1,
            pp_rank: 0,
            dcp: 1,
            interleave: 1,
            block_tokens: 16,
            align: 16,
            kernel_tokens: 0,
            num_blocks: 16,
            order: Order::LBHNC,
            planes: false,
            conv_order: ConvOrder::Ds,
            speculative: 0,
            pages: Pages::Separate,
        }
    }
}

impl Placement {
    /// The same placement on rank `rank` of the instance: tensor-parallel ranks are numbered first.
    pub fn at(&self, rank: u32) -> Placement {
        let tp = self.tp.max(1);
        Placement { tp_rank: rank % tp, pp_rank: rank / tp, ..self.clone() }
    }

    /// Ranks of the instance.
    pub fn ranks(&self) -> u32 {
        self.tp.saturating_mul(self.pp)
    }
}

impl Model {
    /// The description of one rank's cache.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an impossible placement, [`Status::InvalidLayout`] on overflow.
    pub fn describe(&self, placement: &Placement) -> Result<LayoutDesc> {
        let p = placement;
        let bad = |what: String| Err(Error::new(Status::InvalidArgument, what));
        if p.tp == 0 || p.tp_rank >= p.tp || p.pp == 0 || p.pp_rank >= p.pp {
            return bad(format!("rank tp {}/{} pp {}/{} is impossible", p.tp_rank, p.tp, p.pp_rank, p.pp));
        }
        if p.tp as usize > limit::RANKS || p.pp as usize > limit::RANKS {
            let what = format!("tp {} x pp {}, at most {} ranks are allowed", p.tp, p.pp, limit::RANKS);
            return Err(Error::new(Status::Limit, what));
        }
        if p.dcp == 0 || !p.tp.is_multiple_of(p.dcp) || p.interleave == 0 || p.align == 0 {
            return bad(format!("dcp {} of tp {}, interleave {}, align {}", p.dcp, p.tp, p.interleave, p.align));
        }
        if let Some(layer) = self.caches.iter().flat_map(|c| &c.layers).find(|l| **l >= self.num_layers) {
            return bad(format!("layer {layer} of a model of {} layers", self.num_layers));
        }
        let mut build =
            Build { model: self, p, desc: LayoutDesc { model: self.name.clone(), ..LayoutDesc::default() } };
        match p.pages {
            Pages::Separate => build.separate()?,
            Pages::Shared => build.shared()?,
        }
        Ok(build.desc)
    }
}

/// One slice of layers that form a group.
struct Slice<'a> {
    cache: &'a Cache,
    layers: Vec<u32>,
}

struct Build<'a> {
    model: &'a Model,
    p: &'a Placement,
    desc: LayoutDesc,
}

impl Build<'_> {
    fn mine(&self, layer: &u32) -> bool {
        let (first, n) = shard(u64::from(self.model.num_layers), self.p.pp, self.p.pp_rank);
        (first..first + n).contains(&u64::from(*layer))
    }

    fn group(&self, cache: &Cache, block_tokens: u32) -> Group {
        let context =
            ContextParallel { size: self.p.dcp, rank: self.p.tp_rank % self.p.dcp, interleave: self.p.interleave };
        let (kind, block_tokens, reach, context) = match cache {
            Cache::Attention { reach, .. } => (GroupKind::Paged, block_tokens, *reach, context),
            Cache::Record { .. } => (GroupKind::Paged, block_tokens, Reach::Full, context),
            Cache::State { .. } => (GroupKind::Slots, 1, Reach::Full, ContextParallel::default()),
        };
        Group { kind, block_tokens, num_blocks: self.p.num_blocks, reach, context }
    }

    fn head_shard(&self, heads: u64) -> (u64, u64) {
        shard(heads, self.p.tp / self.p.dcp, self.p.tp_rank / self.p.dcp)
    }

    /// Every kind of cache in a region and a group of its own.
    fn separate(&mut self) -> Result<()> {
        for entry in &self.model.caches {
            let group = self.desc.groups.len() as u32;
            let layers: Vec<u32> = entry.layers.iter().copied().filter(|l| self.mine(l)).collect();
            self.desc.groups.push(self.group(&entry.cache, self.p.block_tokens));
            let region = self.desc.regions.len() as u32;
            let place = Place { region, offset: 0, num_blocks: self.p.num_blocks, block_stride: 0, layer_stride: 0 };
            let mut bytes = 0;
            if !layers.is_empty() {
                bytes = self.tensors(&entry.cache, &layers, group, place, self.p.block_tokens)?;
            }
            self.desc.regions.push(Region { len: bytes });
        }
        Ok(())
    }

    /// One region of equal pages; layers are dealt to groups of equal size, the `i`-th layer of every group reads page
    /// row `i`.
    fn shared(&mut self) -> Result<()> {
        let model = self.model;
        let per_group = model.caches.iter().map(|c| c.layers.len()).filter(|n| *n > 0).min().unwrap_or(1);
        let mut slices = Vec::new();
        for entry in &model.caches {
            let groups = entry.layers.len().div_ceil(per_group);
            for g in 0..groups {
                let layers = entry.layers.iter().copied().skip(g).step_by(groups.max(1)).collect();
                slices.push(Slice { cache: &entry.cache, layers });
            }
        }
        let rows = slices.iter().map(|s| s.layers.len()).max().unwrap_or(0) as u64;
        let block_tokens = self.shared_block_tokens()?;
        let mut page = 0;
        for s in &slices {
            page = page.max(self.page_bytes(s.cache, block_tokens)?);
        }
        let layer_stride = page.checked_mul(u64::from(self.p.num_blocks)).ok_or_else(overflow)?;
        self.desc.regions.push(Region { len: layer_stride.checked_mul(rows).ok_or_else(overflow)? });
        for s in slices {
            let group = self.desc.groups.len() as u32;
            self.desc.groups.push(self.group(s.cache, block_tokens));
            for (row, layer) in s.layers.iter().enumerate() {
                if !self.mine(layer) {
                    continue;
                }
                let offset = layer_stride.checked_mul(row as u64).ok_or_else(overflow)?;
                let place =
                    Place { region: 0, offset, num_blocks: self.p.num_blocks, block_stride: page, layer_stride };
                self.tensors(s.cache, &[*layer], group, place, block_tokens)?;
            }
        }
        Ok(())
    }

    /// The smallest aligned block whose attention page holds the state, on every rank: ranks with an uneven share still
    /// have one block size.
    fn shared_block_tokens(&self) -> Result<u32> {
        if self.p.block_tokens != 0 {
            return Ok(self.p.block_tokens);
        }
        let (mut state, mut token) = (0u64, u64::MAX);
        for rank in 0..self.p.tp {
            let p = self.p.at(rank);
            let there = Build { model: self.model, p: &p, desc: LayoutDesc::default() };
            for entry in &self.model.caches {
                match entry.cache {
                    Cache::State { .. } => state = state.max(there.page_bytes(&entry.cache, 1)?),
                    _ => token = token.min(there.page_bytes(&entry.cache, 1)?),
                }
            }
        }
        let step = token.checked_mul(u64::from(self.p.align)).ok_or_else(overflow)?.max(1);
        let tokens = state.div_ceil(step).max(1).checked_mul(u64::from(self.p.align)).ok_or_else(overflow)?;
        u32::try_from(tokens).map_err(|_| overflow())
    }

    /// Bytes that one block (or slot) of one layer needs.
    fn page_bytes(&self, cache: &Cache, block_tokens: u32) -> Result<u64> {
        let product = |xs: &[u64]| xs.iter().try_fold(1u64, |a, b| a.checked_mul(*b)).ok_or_else(overflow);
        let tokens = u64::from(block_tokens);
        match cache {
            Cache::Attention { heads, dims, dtype, .. } => product(&[
                tokens,
                self.head_shard(*heads).1,
                dims.0.checked_add(dims.1).ok_or_else(overflow)?,
                u64::from(Element::of(*dtype).bytes),
            ]),
            Cache::Record { element, elements, .. } => product(&[tokens, u64::from(element.bytes), *elements]),
            Cache::State { conv, conv_rows, conv_dtype, state, state_dtype } => {
                let mut bytes = 0u64;
                for s in conv {
                    let rows = conv_rows.checked_add(self.p.speculative).ok_or_else(overflow)?;
                    let n = shard(s.units, self.p.tp, self.p.tp_rank).1;
                    let section = product(&[n, s.width, rows, u64::from(Element::of(*conv_dtype).bytes)])?;
                    bytes = bytes.checked_add(section).ok_or_else(overflow)?;
                }
                let n = shard(state.units, self.p.tp, self.p.tp_rank).1;
                let unit = u64::from(Element::of(*state_dtype).bytes);
                bytes = bytes.next_multiple_of(unit.max(1));
                bytes.checked_add(product(&[n, state.width, unit])?).ok_or_else(overflow)
            }
        }
    }

    /// Adds the tensors of these layers; returns the bytes of their allocation.
    fn tensors(&mut self, cache: &Cache, layers: &[u32], group: u32, place: Place, block_tokens: u32) -> Result<u64> {
        match cache {
            Cache::Attention { heads, dims, dtype, .. } => {
                self.attention(*heads, *dims, Element::of(*dtype), layers, group, place, block_tokens)
            }
            Cache::Record { role, element, elements } => {
                let (element, elements) = (*element, *elements);
                let record = Record { layers, role, group, place, block_tokens, element, elements, token_stride: 0 };
                let (tensors, bytes) = record.tensors()?;
                self.desc.tensors.extend(tensors);
                Ok(bytes)
            }
            Cache::State { .. } => self.state(cache, layers, group, place),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        heads: u64,
        dims: (u64, u64),
        element: Element,
        layers: &[u32],
        group: u32,
        place: Place,
        block_tokens: u32,
    ) -> Result<u64> {
        let kernel_tokens = if self.p.kernel_tokens == 0 { block_tokens } else { self.p.kernel_tokens };
        let mut form = Attention {
            layers,
            role: "kv",
            group,
            place,
            order: self.p.order,
            block_tokens,
            kernel_tokens,
            heads,
            shard: self.head_shard(heads),
            dims,
            key_value: KeyValue::Packed,
            element,
        };
        let (mut tensors, bytes) = form.tensors()?;
        if self.p.planes && place.block_stride == 0 {
            // The values follow the keys in the same region; either plane has its share of the packed allocation.
            let keys = (u128::from(bytes) * u128::from(dims.0)).checked_div(u128::from(dims.0 + dims.1)).unwrap_or(0);
            let offset = place.offset.checked_add(keys as u64).ok_or_else(overflow)?;
            form.key_value = KeyValue::Planes { region: place.region, offset };
            tensors = form.tensors()?.0;
        }
        self.desc.tensors.extend(tensors);
        Ok(bytes)
    }

    fn state(&mut self, cache: &Cache, layers: &[u32], group: u32, place: Place) -> Result<u64> {
        let Cache::State { conv, conv_rows, conv_dtype, state, state_dtype } = cache else { return Ok(0) };
        let slot = self.page_bytes(cache, 1)?;
        let slot_stride = if place.block_stride == 0 { slot } else { place.block_stride };
        let layer_stride = slot_stride.checked_mul(u64::from(self.p.num_blocks)).ok_or_else(overflow)?;
        let sections: Vec<(Section, (u64, u64))> =
            conv.iter().map(|s| (*s, shard(s.units, self.p.tp, self.p.tp_rank))).collect();
        let mut at = place.offset;
        for layer in layers {
            let mut offset = at;
            if !sections.is_empty() {
                let (tensor, bytes) = Conv {
                    layer: *layer,
                    group,
                    region: place.region,
                    offset,
                    slot_stride,
                    sections: &sections,
                    rows: conv_rows.checked_add(self.p.speculative).ok_or_else(overflow)?,
                    order: self.p.conv_order,
                    element: Element::of(*conv_dtype),
                }
                .tensor()?;
                let unit = u64::from(Element::of(*state_dtype).bytes);
                offset = offset.checked_add(bytes.next_multiple_of(unit.max(1))).ok_or_else(overflow)?;
                self.push(tensor);
            }
            let (tensor, _) = State {
                layer: *layer,
                role: "state",
                group,
                region: place.region,
                offset,
                slot_stride,
                section: *state,
                shard: shard(state.units, self.p.tp, self.p.tp_rank),
                element: Element::of(*state_dtype),
            }
            .tensor()?;
            self.push(tensor);
            at = at.checked_add(layer_stride).ok_or_else(overflow)?;
        }
        Ok(at.saturating_sub(place.offset))
    }

    fn push(&mut self, tensor: Tensor) {
        self.desc.tensors.push(tensor);
    }
}

fn overflow() -> Error {
    Error::new(Status::InvalidLayout, "the allocation's size overflows 64 bits")
}
