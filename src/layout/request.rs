//! What a request asks of a plan.

use std::ops::Range;

/// A hole in a block list: this position holds nothing (a block outside the window, say).
pub const NO_BLOCK: u32 = u32::MAX;

/// The blocks of one group of one request on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockList<'a> {
    /// Block ids by position; [`NO_BLOCK`] is a hole.
    pub ids: &'a [u32],
    /// Local block position of the first id: the list begins at local token `first * block_tokens`.
    pub first: u64,
}

impl<'a> BlockList<'a> {
    /// A list that begins at the request's first token.
    pub fn new(ids: &'a [u32]) -> BlockList<'a> {
        BlockList { ids, first: 0 }
    }
}

/// One request: block lists by group, and which part of the request to move.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The source's lists, one per group of its layout.
    pub src: &'a [BlockList<'a>],
    /// The destination's lists, one per group of its layout.
    pub dst: &'a [BlockList<'a>],
    /// Global tokens to move.
    pub tokens: Range<u64>,
    /// Tokens of the whole request so far: windows and rings are counted back from here.
    pub end: u64,
    /// Global layers to move.
    pub layers: Range<u32>,
    /// Whether slot groups (recurrent state) are moved too: their content is that at `end`.
    pub slots: bool,
}

impl<'a> Request<'a> {
    /// All layers and all state of the tokens `0..end`.
    pub fn whole(src: &'a [BlockList<'a>], dst: &'a [BlockList<'a>], end: u64) -> Request<'a> {
        Request { src, dst, tokens: 0..end, end, layers: 0..u32::MAX, slots: true }
    }
}
