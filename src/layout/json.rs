//! JSON descriptions; the schema is documented in docs/layout.md.

use super::model::{Model, Placement};
use super::shape::{Layout, LayoutDesc};
use crate::error::{Error, Result, Status};
use serde::Deserialize;

/// Bytes of the longest accepted document.
const MAX_JSON: usize = 64 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Geometry {
    geometry: Model,
    placement: Placement,
}

/// A layout from JSON: either a complete description (`regions`, `groups`, `tensors`), or a `geometry` with a
/// `placement`.
///
/// # Errors
/// [`Status::InvalidLayout`] names the place in the text, or what [`Layout::new`] found.
pub fn layout_from_json(text: &str) -> Result<Layout> {
    if text.len() > MAX_JSON {
        return Err(Error::new(Status::Limit, format!("layout JSON of {} bytes, at most {MAX_JSON}", text.len())));
    }
    let bad = |e: serde_json::Error| Error::new(Status::InvalidLayout, format!("layout JSON: {e}"));
    let value: serde_json::Value = serde_json::from_str(text).map_err(bad)?;
    if value.get("geometry").is_some() {
        let g: Geometry = serde_json::from_value(value).map_err(bad)?;
        return Layout::new(g.geometry.describe(&g.placement)?);
    }
    let desc: LayoutDesc = serde_json::from_value(value).map_err(bad)?;
    Layout::new(desc)
}

/// The complete description of a layout as JSON.
pub fn layout_to_json(layout: &Layout) -> String {
    serde_json::to_string(layout.desc()).unwrap_or_default()
}
