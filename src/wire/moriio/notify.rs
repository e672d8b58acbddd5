//! What vLLM's MoRIIOConnector instances tell each other about a request, on the notify ports of their workers.
//!
//! A message that a worker of vLLM does not know, or that is not for its role, ends its listener for ever. Nothing but these
//! messages is ever written.

use super::Role;
use super::msgpack::{Pack, Unpack, bad};
use crate::error::{Error, Result, Status};
use crate::wire::limit;
use serde::{Deserialize, Serialize};

/// Bytes of an id that a router and vLLM have made.
const REQUEST: usize = 2048;

/// One message. Its JSON has the same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Notify {
    /// Decode to all prefill ranks, WRITE mode: where the cache goes.
    RemoteBlocks {
        /// The decode side's id of the request.
        req_id: String,
        /// Names the request on both sides.
        transfer_id: String,
        /// Block ids of each group.
        block_notify_list: Vec<Vec<u32>>,
        /// Data-parallel rank of the decode side, of all its hosts.
        #[serde(default)]
        decode_rank: u32,
    },
    /// Prefill to decode, WRITE mode: all is written.
    WriteDone {
        /// Names the request on both sides.
        transfer_id: String,
        /// Prefill ranks that say so before it is true.
        #[serde(default = "one")]
        num_writers: u32,
    },
    /// Prefill to all decode ranks, WRITE mode: nothing will be written.
    WriteFailed {
        /// Names the request on both sides.
        transfer_id: String,
    },
    /// Decode to prefill: the blocks may be reused.
    Release {
        /// Names the request on both sides.
        transfer_id: String,
        /// Decode ranks that say so before it is true, on all prefill ranks together.
        #[serde(default = "one")]
        consumer_tp_size: u32,
    },
}

fn one() -> u32 {
    1
}

impl Notify {
    /// Names the request on both sides.
    pub fn transfer_id(&self) -> &str {
        match self {
            Notify::RemoteBlocks { transfer_id, .. }
            | Notify::WriteDone { transfer_id, .. }
            | Notify::WriteFailed { transfer_id }
            | Notify::Release { transfer_id, .. } => transfer_id,
        }
    }

    /// From JSON text.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn from_json(text: &[u8]) -> Result<Notify> {
        let wrong = |text: String| Error::new(Status::InvalidArgument, format!("message: {text}"));
        let message: Notify = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        message.check().map_err(|e| wrong(e.message().to_string()))?;
        Ok(message)
    }

    /// As JSON text.
    pub fn to_json(&self) -> String {
        // A struct of texts and numbers has a JSON text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether an instance of this role says such a thing.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming both.
    pub fn check_sender(&self, sender: Role) -> Result<()> {
        let of = match self {
            Notify::RemoteBlocks { .. } | Notify::Release { .. } => Role::Decode,
            Notify::WriteDone { .. } | Notify::WriteFailed { .. } => Role::Prefill,
        };
        if of == sender {
            return Ok(());
        }
        let text = format!("{} comes from {of:?} instances, not from {sender:?}", self.name());
        Err(Error::new(Status::InvalidArgument, text))
    }

    /// The frame that carries it; exactly one.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Pack::default();
        match self {
            Notify::RemoteBlocks { req_id, transfer_id, block_notify_list, decode_rank } => {
                out.map(5).text("req_id").text(req_id).text("transfer_id").text(transfer_id).text("block_notify_list");
                match block_notify_list.as_slice() {
                    [one] => {
                        out.uints(one);
                    }
                    groups => {
                        out.array(groups.len());
                        for ids in groups {
                            out.uints(ids);
                        }
                    }
                }
                out.text("decode_rank").uint(u64::from(*decode_rank)).text("type").text(self.name());
            }
            Notify::WriteDone { transfer_id, num_writers } => {
                let many = *num_writers != 1;
                out.map(2 + usize::from(many)).text("type").text(self.name()).text("transfer_id").text(transfer_id);
                if many {
                    out.text("num_writers").uint(u64::from(*num_writers));
                }
            }
            Notify::WriteFailed { transfer_id } => {
                out.map(2).text("type").text(self.name()).text("transfer_id").text(transfer_id);
            }
            Notify::Release { transfer_id, consumer_tp_size } => {
                out.map(3).text("type").text(self.name()).text("transfer_id").text(transfer_id);
                out.text("consumer_tp_size").uint(u64::from(*consumer_tp_size));
            }
        }
        out.0
    }

    /// From a frame that came to an instance of this role. A plain text is an older form: the id of a request that is over.
    ///
    /// # Errors
    /// [`Status::Protocol`] naming the field.
    pub fn decode(frame: &[u8], receiver: Role) -> Result<Notify> {
        let message = match frame.first() {
            Some(0x80..=0x8f | 0xde | 0xdf) => Notify::structured(frame)?,
            _ => Notify::legacy(frame, receiver)?,
        };
        message.check()?;
        let sender = if receiver == Role::Prefill { Role::Decode } else { Role::Prefill };
        message.check_sender(sender).map_err(|e| bad(e.message().to_string()))?;
        Ok(message)
    }

    fn structured(frame: &[u8]) -> Result<Notify> {
        let (mut kind, mut req_id, mut transfer_id) = (None, None, None);
        let (mut blocks, mut decode_rank, mut writers, mut consumers) = (Vec::new(), 0, 1, 1);
        let mut input = Unpack::new(frame);
        input.map("message", |key, value| {
            match key {
                "type" => kind = Some(value.text(key)?),
                "req_id" => req_id = Some(value.text(key)?.to_string()),
                "transfer_id" => transfer_id = Some(value.text(key)?.to_string()),
                "block_notify_list" => blocks = groups(value)?,
                "decode_rank" => decode_rank = value.u32(key)?,
                "num_writers" => writers = value.u32(key)?,
                "consumer_tp_size" => consumers = value.u32(key)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        input.end("message")?;
        let transfer_id = transfer_id.ok_or_else(|| bad("transfer_id is missing".into()))?;
        match (kind, req_id) {
            (Some("remote_blocks") | None, Some(req_id)) => {
                Ok(Notify::RemoteBlocks { req_id, transfer_id, block_notify_list: blocks, decode_rank })
            }
            (Some("remote_blocks"), None) => Err(bad("req_id is missing".into())),
            (Some("write_done"), _) => Ok(Notify::WriteDone { transfer_id, num_writers: writers }),
            (Some("write_failed"), _) => Ok(Notify::WriteFailed { transfer_id }),
            (Some("release"), _) => Ok(Notify::Release { transfer_id, consumer_tp_size: consumers }),
            (Some(other), _) => Err(bad(format!("type is {:?}, which is not known", cut(other)))),
            (None, None) => Err(bad("type is missing".into())),
        }
    }

    fn legacy(frame: &[u8], receiver: Role) -> Result<Notify> {
        let text = std::str::from_utf8(frame).map_err(|_| bad("neither a map nor a text".into()))?;
        if let Some(c) = text.chars().find(|c| c.is_control()) {
            return Err(bad(format!("a text with the character {c:?}")));
        }
        let transfer_id = text.to_string();
        Ok(match receiver {
            Role::Prefill => Notify::Release { transfer_id, consumer_tp_size: 1 },
            Role::Decode => Notify::WriteDone { transfer_id, num_writers: 1 },
        })
    }

    fn check(&self) -> Result<()> {
        check_id("transfer_id", self.transfer_id(), limit::NAME)?;
        let ranks = |name: &str, n: u32| match n as usize {
            1..=limit::RANKS => Ok(()),
            _ => Err(bad(format!("{name} is {n}, must be 1..={}", limit::RANKS))),
        };
        match self {
            Notify::RemoteBlocks { req_id, block_notify_list, .. } => {
                check_id("req_id", req_id, REQUEST)?;
                few_groups(block_notify_list.len())?;
                if block_notify_list.iter().all(Vec::is_empty) {
                    return Err(bad("block_notify_list has no block".into()));
                }
                Ok(())
            }
            Notify::WriteDone { num_writers, .. } => ranks("num_writers", *num_writers),
            Notify::WriteFailed { .. } => Ok(()),
            Notify::Release { consumer_tp_size, .. } => ranks("consumer_tp_size", *consumer_tp_size),
        }
    }

    /// Its type.
    pub fn name(&self) -> &'static str {
        match self {
            Notify::RemoteBlocks { .. } => "remote_blocks",
            Notify::WriteDone { .. } => "write_done",
            Notify::WriteFailed { .. } => "write_failed",
            Notify::Release { .. } => "release",
        }
    }
}

/// Block ids: a list of one group, or a list of lists.
fn groups(value: &mut Unpack<'_>) -> Result<Vec<Vec<u32>>> {
    const WHAT: &str = "block_notify_list";
    let (mut nested, mut flat) = (Vec::new(), Vec::new());
    value.array(WHAT, |element| {
        if element.is_array() {
            let mut ids = Vec::new();
            element.array(WHAT, |id| {
                ids.push(id.u32(WHAT)?);
                Ok(())
            })?;
            nested.push(ids);
            few_groups(nested.len())?;
        } else {
            flat.push(element.u32(WHAT)?);
        }
        Ok(())
    })?;
    match (flat.is_empty(), nested.is_empty()) {
        (false, false) => Err(bad(format!("{WHAT} has blocks and groups"))),
        (false, true) => Ok(vec![flat]),
        _ => Ok(nested),
    }
}

fn few_groups(n: usize) -> Result<()> {
    if n > limit::GROUPS {
        return Err(bad(format!("block_notify_list has {n} groups, at most {}", limit::GROUPS)));
    }
    Ok(())
}

fn check_id(name: &str, id: &str, max: usize) -> Result<()> {
    match id.len() {
        n if n == 0 || n > max => Err(bad(format!("{name} of {n} bytes, must have 1..={max}"))),
        _ if id.contains('\0') => Err(bad(format!("{name} has a NUL"))),
        _ => Ok(()),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
