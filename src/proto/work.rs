//! What a job copies: checked in the call, expanded where it is carried out.

use super::endpoint::Endpoint;
use crate::error::{Error, Result, Status};
use crate::layout::{BlockList, Form, Plan, Request, Span, Summary};
use crate::wire::{Blocks, Range};
use std::sync::Arc;

/// A request of a plan that can be expanded.
#[derive(Clone, Debug)]
pub struct Work {
    plan: Arc<Plan>,
    src: Arc<Vec<Blocks>>,
    dst: Arc<Vec<Blocks>>,
    range: Range,
    bytes: u64,
}

impl Work {
    /// It copies nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Packing pays.
    pub fn staged(&self) -> bool {
        matches!(self.plan.form(), Form::Staged { .. })
    }

    /// Appends its spans.
    ///
    /// # Errors
    /// [`Status::InvalidBlocks`] if it was not checked.
    pub fn expand(&self, out: &mut Vec<Span>) -> Result<Summary> {
        self.with_request(|request| self.plan.expand_checked(request, out))
    }

    fn with_request<T>(&self, f: impl FnOnce(&Request<'_>) -> T) -> T {
        fn lists(blocks: &[Blocks]) -> Vec<BlockList<'_>> {
            blocks.iter().map(|b| BlockList { ids: &b.ids, first: b.first }).collect()
        }
        let range = self.range;
        f(&Request {
            src: &lists(&self.src),
            dst: &lists(&self.dst),
            tokens: range.token_begin..range.token_end,
            end: range.token_total,
            layers: range.layer_begin..range.layer_end,
            slots: range.token_end == range.token_total,
        })
    }
}

impl Endpoint {
    /// Checks a request of a plan.
    pub(super) fn work(
        &mut self,
        plan: &Arc<Plan>,
        src: &Arc<Vec<Blocks>>,
        dst: &Arc<Vec<Blocks>>,
        range: &Range,
    ) -> Result<Work> {
        let (plan, src, dst) = (plan.clone(), src.clone(), dst.clone());
        let mut work = Work { plan, src, dst, range: *range, bytes: 0 };
        let found = work.with_request(|request| work.plan.check(request, &mut self.scratch))?;
        if found.spans > self.config.max_spans as u64 {
            let text = format!("the transfer has {} spans, at most {} are allowed", found.spans, self.config.max_spans);
            return Err(Error::new(Status::Limit, text));
        }
        work.bytes = found.bytes;
        Ok(work)
    }
}
