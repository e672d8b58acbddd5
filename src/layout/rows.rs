//! Walks the tensors of two instances by name.

use super::shape::{Layout, Named};
use std::sync::Arc;

/// One name with its tensor on every rank of both sides.
pub(crate) struct Row<'a> {
    pub layer: u32,
    pub role: &'a str,
    pub src: Vec<Option<Named>>,
    pub dst: Vec<Option<Named>>,
}

/// The rows of all names that some destination rank has, by layer and role.
pub(crate) struct Rows<'a> {
    src: Side<'a>,
    dst: Side<'a>,
}

/// The layouts of an instance, and how far each has been walked in its order.
struct Side<'a> {
    layouts: &'a [Arc<Layout>],
    at: Vec<usize>,
}

impl<'a> Rows<'a> {
    pub fn new(src: &'a [Arc<Layout>], dst: &'a [Arc<Layout>]) -> Rows<'a> {
        let side = |layouts: &'a [Arc<Layout>]| Side { layouts, at: vec![0; layouts.len()] };
        Rows { src: side(src), dst: side(dst) }
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        let heads = self.dst.layouts.iter().zip(&self.dst.at).filter_map(|(l, at)| l.nth(*at));
        let (layer, role) = heads.map(|(name, _)| name).min()?;
        Some(Row { layer, role, src: self.src.take((layer, role)), dst: self.dst.take((layer, role)) })
    }
}

impl Side<'_> {
    /// The tensors of this name, everything before it skipped.
    fn take(&mut self, name: (u32, &str)) -> Vec<Option<Named>> {
        let take = |(l, at): (&Arc<Layout>, &mut usize)| {
            while let Some((found, tensor)) = l.nth(*at).filter(|(found, _)| *found <= name) {
                *at += 1;
                if found == name {
                    return Some(tensor);
                }
            }
            None
        };
        self.layouts.iter().zip(&mut self.at).map(take).collect()
    }
}

impl Row<'_> {
    /// Equal for rows that differ in layer, regions and offsets only: the structure of the tensor on every rank.
    pub fn structure(&self) -> Vec<u32> {
        self.src.iter().chain(&self.dst).map(|found| found.map_or(u32::MAX, |n| n.class)).collect()
    }
}
