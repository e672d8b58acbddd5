//! What a worker of vLLM's MoRIIOConnector says about itself on its handshake port.

use super::base64;
use super::msgpack::{Pack, Unpack, bad};
use crate::error::{Error, Result, Status};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// The one frame that asks for it.
pub const GET_META: &[u8] = b"get_meta_msg";

/// Bytes of one of MoRI's descriptions.
const BLOB: usize = 64 << 10;
/// Bytes of a name.
const NAME: usize = 1024;
/// Regions, layers, and numbers of a layout.
const MANY: usize = 1 << 16;

/// One of MoRI's descriptions, packed; base64url in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&base64::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Blob, D::Error> {
        let text = String::deserialize(from)?;
        base64::decode(&text).map(Blob).ok_or_else(|| serde::de::Error::custom("a description is not base64url"))
    }
}

/// The memory of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMemory {
    /// The layer's name in the model.
    pub layer: String,
    /// MoRI's descriptions of its regions.
    pub regions: Vec<Blob>,
}

/// Everything that a worker says. Its JSON has the same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshake {
    /// "host:handshake_port".
    pub engine_id: String,
    /// MoRI's description of the engine.
    pub agent_metadata: Blob,
    /// Where the caches begin.
    pub kv_caches_base_addr: Vec<u64>,
    /// Blocks of a cache.
    pub num_blocks: u64,
    /// Bytes of a block.
    pub block_len: u64,
    /// Name of the attention backend.
    pub attn_backend_name: String,
    /// Where the heads of a layer are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kv_head_layouts: BTreeMap<String, Vec<u64>>,
    /// Where the recurrent states of a layer are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mamba_state_layouts: BTreeMap<String, Vec<u64>>,
    /// Tokens of a block, by layer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attention_block_sizes: BTreeMap<String, u64>,
    /// The layers' memory, in the order that both sides share.
    pub layers: Vec<LayerMemory>,
}

impl Handshake {
    /// From JSON text.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn from_json(text: &[u8]) -> Result<Handshake> {
        let wrong = |text: String| Error::new(Status::InvalidArgument, format!("handshake: {text}"));
        let all: Handshake = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        all.check().map_err(|e| wrong(e.message().to_string()))?;
        Ok(all)
    }

    /// As JSON text.
    pub fn to_json(&self) -> String {
        // Maps of texts to texts and numbers have a JSON text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The contents of the two answers to [`GET_META`]; each follows an empty frame.
    pub fn encode(&self) -> [Vec<u8>; 2] {
        let maps = [&self.kv_head_layouts, &self.mamba_state_layouts];
        let given = maps.iter().filter(|m| !m.is_empty()).count() + usize::from(!self.attention_block_sizes.is_empty());
        let mut meta = Pack::default();
        meta.map(6 + given).text("engine_id").text(&self.engine_id).text("agent_metadata").blob(&self.agent_metadata.0);
        meta.text("kv_caches_base_addr").uints(&self.kv_caches_base_addr);
        meta.text("num_blocks").uint(self.num_blocks).text("block_len").uint(self.block_len);
        meta.text("attn_backend_name").text(&self.attn_backend_name);
        for (name, layouts) in ["kv_head_layouts", "mamba_state_layouts"].into_iter().zip(maps) {
            if !layouts.is_empty() {
                meta.text(name).map(layouts.len());
                for (layer, numbers) in layouts {
                    meta.text(layer).uints(numbers);
                }
            }
        }
        if !self.attention_block_sizes.is_empty() {
            meta.text("attention_block_sizes").map(self.attention_block_sizes.len());
            for (layer, tokens) in &self.attention_block_sizes {
                meta.text(layer).uint(*tokens);
            }
        }
        let mut layers = Pack::default();
        layers.map(self.layers.len());
        for one in &self.layers {
            layers.text(&one.layer).array(one.regions.len());
            for region in &one.regions {
                layers.blob(&region.0);
            }
        }
        [meta.0, layers.0]
    }

    /// From the contents of the two answers.
    ///
    /// # Errors
    /// [`Status::Protocol`] naming the field.
    pub fn decode(meta: &[u8], layers: &[u8]) -> Result<Handshake> {
        let (mut engine_id, mut agent_metadata, mut bases, mut backend) = (None, None, None, None);
        let (mut num_blocks, mut block_len) = (None, None);
        let (mut heads, mut states, mut sizes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut input = Unpack::new(meta);
        input.map("metadata", |key, value| {
            match key {
                "engine_id" => engine_id = Some(value.text(key)?.to_string()),
                "agent_metadata" => agent_metadata = Some(Blob(value.blob(key)?.to_vec())),
                "kv_caches_base_addr" => bases = Some(uints(key, value)?),
                "num_blocks" => num_blocks = Some(value.uint(key)?),
                "block_len" => block_len = Some(value.uint(key)?),
                "attn_backend_name" => backend = Some(value.text(key)?.to_string()),
                "kv_head_layouts" => heads = by_layer(key, value, |v| uints(key, v))?,
                "mamba_state_layouts" => states = by_layer(key, value, |v| uints(key, v))?,
                "attention_block_sizes" => sizes = by_layer(key, value, |v| v.uint(key))?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        input.end("metadata")?;
        let missing = |name: &str| bad(format!("{name} is missing"));
        let all = Handshake {
            engine_id: engine_id.ok_or_else(|| missing("engine_id"))?,
            agent_metadata: agent_metadata.ok_or_else(|| missing("agent_metadata"))?,
            kv_caches_base_addr: bases.ok_or_else(|| missing("kv_caches_base_addr"))?,
            num_blocks: num_blocks.ok_or_else(|| missing("num_blocks"))?,
            block_len: block_len.ok_or_else(|| missing("block_len"))?,
            attn_backend_name: backend.ok_or_else(|| missing("attn_backend_name"))?,
            kv_head_layouts: heads,
            mamba_state_layouts: states,
            attention_block_sizes: sizes,
            layers: memory(layers)?,
        };
        all.check()?;
        Ok(all)
    }

    fn check(&self) -> Result<()> {
        let few = |what: &str, n: usize, range: std::ops::RangeInclusive<usize>| match range.contains(&n) {
            true => Ok(()),
            false => Err(bad(format!("{what} has {n}, must have {}..={}", range.start(), range.end()))),
        };
        few("engine_id", self.engine_id.len(), 1..=NAME)?;
        few("attn_backend_name", self.attn_backend_name.len(), 0..=NAME)?;
        few("agent_metadata", self.agent_metadata.0.len(), 1..=BLOB)?;
        few("kv_caches_base_addr", self.kv_caches_base_addr.len(), 0..=MANY)?;
        few("layers", self.layers.len(), 1..=MANY)?;
        for (i, one) in self.layers.iter().enumerate() {
            few("the name of a layer", one.layer.len(), 1..=NAME)?;
            few(&format!("layer {i}"), one.regions.len(), 1..=MANY)?;
            one.regions.iter().try_for_each(|r| few(&format!("a region of layer {i}"), r.0.len(), 1..=BLOB))?;
        }
        for (name, layouts) in
            [("kv_head_layouts", &self.kv_head_layouts), ("mamba_state_layouts", &self.mamba_state_layouts)]
        {
            for (layer, numbers) in layouts {
                few(&format!("the name of a layer in {name}"), layer.len(), 1..=NAME)?;
                few(name, numbers.len(), 1..=MANY)?;
            }
        }
        self.attention_block_sizes.iter().try_for_each(|(layer, tokens)| {
            few("the name of a layer in attention_block_sizes", layer.len(), 1..=NAME)?;
            if *tokens == 0 { Err(bad(format!("attention_block_sizes of {layer:?} is 0"))) } else { Ok(()) }
        })
    }
}

fn uints(what: &str, value: &mut Unpack<'_>) -> Result<Vec<u64>> {
    let mut out = Vec::new();
    value.array(what, |n| {
        out.push(n.uint(what)?);
        Ok(())
    })?;
    Ok(out)
}

fn by_layer<'a, T>(
    what: &str,
    value: &mut Unpack<'a>,
    mut read: impl FnMut(&mut Unpack<'a>) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let mut out = BTreeMap::new();
    value.map(what, |layer, value| {
        out.insert(layer.to_string(), read(value)?);
        Ok(true)
    })?;
    Ok(out)
}

/// Layers keep the order in which they come.
fn memory(bytes: &[u8]) -> Result<Vec<LayerMemory>> {
    let mut out = Vec::new();
    let mut input = Unpack::new(bytes);
    input.map("layers", |layer, value| {
        let mut regions = Vec::new();
        value.array("a layer's regions", |region| {
            regions.push(Blob(region.blob("a layer's region")?.to_vec()));
            Ok(())
        })?;
        out.push(LayerMemory { layer: layer.to_string(), regions });
        Ok(true)
    })?;
    input.end("layers")?;
    Ok(out)
}
