//! The layout model: regions, groups, tensors, parts.

use super::Element;
use super::validate;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A registered byte range. Its address is bound later; here only its size counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Size in bytes.
    pub len: u64,
}

/// How the block ids of a group relate to the positions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// Entry `j` of a block list holds the local tokens `[j, j + 1) * block_tokens`.
    Paged,
    /// The list is a ring of `n` blocks per request: local block `j` lives in entry `j mod n`.
    Ring,
    /// No token axis: entry `j` of a list is the `j`-th state slot of the request.
    Slots,
}

/// Which tokens before the end of a request a group still needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// All of them.
    #[default]
    Full,
    /// The last `n` tokens (sliding window).
    Window(u64),
    /// The chunk of `n` tokens that the last token lies in (chunked attention).
    Chunk(u64),
}

impl Reach {
    /// First token that the query at position `end - 1` attends to.
    pub fn first(self, end: u64) -> u64 {
        match self {
            Reach::Full => 0,
            Reach::Window(n) => end.saturating_sub(n),
            Reach::Chunk(n) => match end.saturating_sub(1).checked_div(n) {
                Some(chunk) => chunk.saturating_mul(n),
                None => 0,
            },
        }
    }
}

/// Interleaved context parallelism: global token `t` lies in chunk `t / interleave`, chunk `c` on rank `c mod size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextParallel {
    /// Ranks that share the token axis.
    pub size: u32,
    /// Which of them this one is.
    pub rank: u32,
    /// Tokens of one chunk.
    pub interleave: u32,
}

impl Default for ContextParallel {
    fn default() -> Self {
        ContextParallel { size: 1, rank: 0, interleave: 1 }
    }
}

/// A KV-cache group: one block-id space. Group `g` means the same on every rank of an instance, also on ranks that hold
/// no tensor of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// How block lists are read.
    pub kind: GroupKind,
    /// Tokens of this rank in one block; 1 for [`GroupKind::Slots`].
    pub block_tokens: u32,
    /// Valid block ids are `0 .. num_blocks`.
    pub num_blocks: u32,
    /// Which tokens a request still needs.
    #[serde(default)]
    pub reach: Reach,
    /// How the token axis is spread over ranks.
    #[serde(default)]
    pub context: ContextParallel,
}

impl Group {
    /// The first id that is neither a block nor a hole, and its position.
    pub fn outside(&self, ids: &[u32]) -> Option<(usize, u32)> {
        let outside = |id: u32| id >= self.num_blocks && id != super::NO_BLOCK;
        // Most lists are right: all are looked at, many at a time.
        if !ids.iter().fold(false, |any, id| any | outside(*id)) {
            return None;
        }
        ids.iter().copied().enumerate().find(|(_, id)| outside(*id))
    }
}

/// Whether both sides must have the same extent along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// They must.
    #[default]
    Exact,
    /// Only the indices that both have are moved, by index (speculative rows of a conv state).
    Common,
}

/// A named axis of the global logical space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name ("head", "channel", "row", "content", ...), equal on both sides.
    pub name: String,
    /// Global extent in elements.
    pub extent: u64,
    /// How extents of the two sides relate.
    #[serde(default)]
    pub matching: Matching,
}

/// The interval of one axis that a part stores, and its stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// First global index.
    pub begin: u64,
    /// Number of indices.
    pub len: u64,
    /// Bytes between neighbours.
    pub stride: u64,
}

impl Extent {
    /// One past the last global index.
    pub(crate) fn end(&self) -> u64 {
        self.begin.saturating_add(self.len)
    }
}

/// A second level of the token axis inside a block (kernel blocks inside a manager page).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Tokens of one tile; divides the block.
    pub tokens: u32,
    /// Bytes between tiles.
    pub stride: u64,
}

/// One strided box: where a rank stores the elements of a tensor whose indices lie in `extents`.
///
/// The element with local token `t` and indices `i` begins at byte
/// `offset + id * block_stride + (t / tile) * tile_stride + (t mod tile) * token_stride + sum (i - begin) * stride`
/// of the region, `id` being the block id and `t` the token within the block.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Index of the region.
    pub region: u32,
    /// Byte offset of the first element of block 0.
    pub offset: u64,
    /// Bytes between blocks of consecutive ids.
    pub block_stride: u64,
    /// Bytes between tokens (of one tile).
    #[serde(default)]
    pub token_stride: u64,
    /// The second level of the token axis, if any.
    #[serde(default)]
    pub tile: Option<Tile>,
    /// One entry per axis of the tensor.
    pub extents: Vec<Extent>,
}

/// One cache tensor as a rank stores it. `(layer, role)` names it; two sides match tensors by that name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Global layer index.
    pub layer: u32,
    /// What it is ("kv", "mla", "conv", "state", "indexer", ...). Names the format of opaque records too.
    pub role: String,
    /// Index of its group.
    pub group: u32,
    /// Element type.
    pub element: Element,
    /// The global axes, token axis not counted.
    pub axes: Vec<Axis>,
    /// What this rank stores of it: logically disjoint boxes. Sections of an axis are parts.
    pub parts: Vec<Part>,
}

/// Everything that describes one rank's cache; becomes a [`Layout`] by [`Layout::new`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutDesc {
    /// Name of the model; two sides that both give one must give the same.
    #[serde(default)]
    pub model: String,
    /// The byte ranges.
    pub regions: Vec<Region>,
    /// The block-id spaces.
    pub groups: Vec<Group>,
    /// The tensors.
    pub tensors: Vec<Tensor>,
}

/// A rank's cache layout. A value of this type is valid: inside its regions, not overlapping where that loses data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    desc: LayoutDesc,
    /// All tensors by (layer, role).
    order: Vec<Named>,
    /// Pairs of groups whose tensors share bytes.
    aliases: Vec<Alias>,
}

/// A tensor by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub layer: u32,
    /// Its index.
    pub tensor: u32,
    /// Index of the first tensor of the same structure: all but layer, regions and offsets. It has the same role.
    pub class: u32,
}

/// Two groups that read the same bytes in different ways (dual-purpose pages). One pair of groups has an alias for every
/// way in which their pages lie over one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub groups: (u32, u32),
    pub pages: (Page, Page),
}

/// The contiguous bytes that a block covers: `offset + id * stride + 0..len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub offset: u64,
    pub stride: u64,
    pub len: u64,
}

impl Layout {
    /// Checks a description.
    ///
    /// # Errors
    /// [`Status::InvalidLayout`](crate::error::Status::InvalidLayout) or
    /// [`Status::Limit`](crate::error::Status::Limit); the message lists every contradiction found.
    pub fn new(desc: LayoutDesc) -> Result<Layout> {
        let aliases = validate::validate(&desc)?;
        let numbered = desc.tensors.iter().zip(0..).zip(classes(&desc));
        let mut order: Vec<Named> =
            numbered.map(|((t, tensor), class)| Named { layer: t.layer, tensor, class }).collect();
        order.sort_by(|a, b| name(&desc, a).cmp(&name(&desc, b)));
        Ok(Layout { desc, order, aliases })
    }

    /// The description it was made from.
    pub fn desc(&self) -> &LayoutDesc {
        &self.desc
    }

    /// Name of the model, may be empty.
    pub fn model(&self) -> &str {
        &self.desc.model
    }

    /// The byte ranges.
    pub fn regions(&self) -> &[Region] {
        &self.desc.regions
    }

    /// The block-id spaces.
    pub fn groups(&self) -> &[Group] {
        &self.desc.groups
    }

    /// The tensors, in the order of the description.
    pub fn tensors(&self) -> &[Tensor] {
        &self.desc.tensors
    }

    /// The layers that this rank holds: from the lowest to one past the highest.
    pub fn layers(&self) -> Range<u32> {
        let first = self.desc.tensors.iter().map(|t| t.layer).min().unwrap_or(0);
        let last = self.desc.tensors.iter().map(|t| t.layer.saturating_add(1)).max().unwrap_or(0);
        first..last
    }

    /// The tensor of this name.
    pub fn find(&self, layer: u32, role: &str) -> Option<&Tensor> {
        let at = self.order.binary_search_by(|n| name(&self.desc, n).cmp(&(layer, role))).ok()?;
        self.order.get(at).and_then(|n| self.desc.tensors.get(n.tensor as usize))
    }

    /// The tensor at a position of the order by (layer, role), with its name.
    pub(crate) fn nth(&self, at: usize) -> Option<((u32, &str), Named)> {
        self.order.get(at).map(|n| (name(&self.desc, n), *n))
    }

    pub(crate) fn aliases(&self) -> &[Alias] {
        &self.aliases
    }
}

/// The role is read from the first tensor of the structure: whoever walks many layouts touches less memory.
fn name<'a>(desc: &'a LayoutDesc, named: &Named) -> (u32, &'a str) {
    (named.layer, desc.tensors.get(named.class as usize).map_or("", |t| t.role.as_str()))
}

/// Gives tensors of equal structure the same number.
fn classes(desc: &LayoutDesc) -> Vec<u32> {
    use std::collections::HashMap;
    use std::hash::{DefaultHasher, Hash, Hasher};
    let structure = |t: &Tensor, h: &mut DefaultHasher| {
        (t.group, t.element, &t.axes, &t.role).hash(h);
        for p in &t.parts {
            (p.block_stride, p.token_stride, p.tile, &p.extents).hash(h);
        }
    };
    let same = |a: &Tensor, b: &Tensor| {
        a.group == b.group
            && a.element == b.element
            && a.role == b.role
            && a.axes == b.axes
            && a.parts.len() == b.parts.len()
            && a.parts.iter().zip(&b.parts).all(|(p, q)| {
                (p.block_stride, p.token_stride, p.tile) == (q.block_stride, q.token_stride, q.tile)
                    && p.extents == q.extents
            })
    };
    let mut firsts: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut out = Vec::with_capacity(desc.tensors.len());
    for (i, t) in desc.tensors.iter().enumerate() {
        let mut h = DefaultHasher::new();
        structure(t, &mut h);
        let bucket = firsts.entry(h.finish()).or_default();
        let first = bucket.iter().copied().find(|j| desc.tensors.get(*j as usize).is_some_and(|u| same(t, u)));
        out.push(first.unwrap_or(i as u32));
        if first.is_none() {
            bucket.push(i as u32);
        }
    }
    out
}
