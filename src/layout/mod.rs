//! Pure mathematics of KV-cache layouts: what must move, and the proof that it is right.
//!
//! A [`Tensor`] is a box in a global logical space (tokens and named axes). A rank stores a shard of it as one or more
//! [`Part`]s: strided boxes inside blocks inside a region. Moving KV cache is one operation,
//!
//! ```text
//! copy( destination part ∩ source part )
//! ```
//!
//! per pair of ranks. [`compile`] turns two instances' layouts into proven [`Plan`]s once; [`Plan::expand`] turns block
//! lists into [`Span`]s for every request.
//!
//! No I/O, no clock, no unsafe code; arithmetic is checked and nothing indexes out of bounds.

mod assign;
mod boxes;
mod check;
mod compile;
mod element;
mod expand;
mod fold;
mod footprint;
pub mod form;
mod json;
mod lists;
pub mod model;
mod plan;
mod proof;
mod ranks;
mod request;
mod rows;
mod segment;
mod shape;
mod stage;
mod template;
mod validate;
mod verdict;

pub use compile::{Inbound, compile};
pub use element::{DType, Element};
pub use expand::{Scratch, Summary};
pub use json::{layout_from_json, layout_to_json};
pub use plan::{Plan, Span};
pub use request::{BlockList, NO_BLOCK, Request};
pub use shape::{
    Axis, ContextParallel, Extent, Group, GroupKind, Layout, LayoutDesc, Matching, Part, Reach, Region, Tensor, Tile,
};
pub use stage::{Form, STAGE_RUN_BYTES};
pub use verdict::{Finding, Verdict};

/// Limits that keep every computation of this module bounded. A layout or a pair beyond them is refused by name.
pub mod limit {
    /// Ranks of one instance.
    pub const RANKS: usize = 1024;
    /// Regions, groups of one layout.
    pub const REGIONS: usize = 4096;
    /// Block-id spaces of one layout.
    pub const GROUPS: usize = 256;
    /// Tensors of one layout.
    pub const TENSORS: usize = 16_384;
    /// Parts of one tensor.
    pub const PARTS: usize = 64;
    /// Axes of one tensor (the token axis not counted).
    pub const AXES: usize = 4;
    /// Bytes of a name.
    pub const NAME: usize = 128;
    /// Bytes of one element.
    pub const ELEMENT: u32 = 1 << 20;
    /// Tokens of one block.
    pub const BLOCK_TOKENS: u32 = 1 << 24;
    /// Block ids of one group.
    pub const BLOCKS: u32 = 1 << 30;
    /// Pieces that one period of the token axis may be cut into.
    pub const SEGMENTS: usize = 1 << 18;
    /// Cells that one part may be cut into by the boundaries of its sources.
    pub const CELLS: usize = 1 << 14;
    /// Contiguous pieces of one block of a tensor that shares its bytes with another group.
    pub const PAGES: u64 = 256;
    /// Steps of all overlap tests of one layout.
    pub const OVERLAP_STEPS: u32 = 1 << 25;
}
