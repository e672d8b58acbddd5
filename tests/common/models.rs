//! The catalog of models under `tests/data/models`.

use kvlink::layout::model::{Cache, Model};
use std::path::PathBuf;

pub fn all() -> Vec<Model> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| serde_json::from_str(&std::fs::read_to_string(p).unwrap()).unwrap()).collect()
}

pub fn named(prefix: &str) -> Model {
    all().into_iter().find(|m| m.name.starts_with(prefix)).unwrap_or_else(|| panic!("no model {prefix}"))
}

/// The same structure with at most `layers` layers of each kind and a smaller recurrent state.
pub fn thin(model: &Model, layers: usize, state: u64) -> Model {
    let mut out = model.clone();
    for entry in &mut out.caches {
        entry.layers.truncate(layers);
        if let Cache::State { state: section, .. } = &mut entry.cache {
            section.width = (section.width / state).max(1);
        }
    }
    out
}
