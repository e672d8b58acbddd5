//! `kv_transfer_params`: JSON objects that the router and the instances add to requests and answers.
//!
//! In READ mode the prefill side's answer carries the ticket; the router hands the object to the decode side as it is,
//! but for `remote_dp_size`, which it overwrites. The ticket is the prefill side's engine id: vLLM's example proxy hands that on, and
//! no key that it does not know. In WRITE mode no ticket is needed: the router gives both sides one
//! `transfer_id`, and the request id names the decode side's address.

use super::{ZmqAddress, base64};
use crate::error::{Error, Result, Status};
use crate::wire::limit;
use serde_json::{Map, Value, json};

/// The key that holds kvlink's ticket.
const ENGINE: &str = "remote_engine_id";
/// What an engine id begins with that is a ticket.
const TICKET: &str = "kvlink:";
/// Bytes of an object that are looked at.
const MAX: usize = limit::FRAME;

/// What an instance is told about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// The prefill side is asked to keep the cache for, or send it to, a decode side.
    pub do_remote_decode: bool,
    /// The decode side is told that a prefill side has, or will have, the cache.
    pub do_remote_prefill: bool,
    /// Names the request on both sides.
    pub transfer_id: String,
    /// Data-parallel size of the other side.
    pub remote_dp_size: u32,
    /// Tensor-parallel size of the other side; `None`: not said.
    pub remote_tp_size: Option<u32>,
    /// Data-parallel rank of the other side; `None`: not said.
    pub remote_dp_rank: Option<u32>,
    /// The prefill side's ticket; empty: none.
    pub ticket: Vec<u8>,
}

/// The prefill side's answer in READ mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Of the request's own `kv_transfer_params`.
    pub transfer_id: &'a str,
    /// Where the prefill side is.
    pub zmq_address: &'a ZmqAddress,
    /// Data-parallel rank that has the cache, and the size.
    pub dp: (u32, u32),
    /// Tensor-parallel size.
    pub tp_size: u32,
    /// The ticket.
    pub ticket: &'a [u8],
}

impl Answer<'_> {
    /// Its JSON text. The block ids are in the ticket; `remote_block_ids` is empty.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn to_json(&self) -> Result<String> {
        check_transfer_id(self.transfer_id)?;
        if self.ticket.is_empty() {
            return Err(bad("the ticket is empty".into()));
        }
        if self.dp.0 >= self.dp.1 || self.tp_size == 0 {
            return Err(bad(format!("dp rank {} of {}, tp_size {}", self.dp.0, self.dp.1, self.tp_size)));
        }
        let at = self.zmq_address;
        let value = json!({
            "do_remote_prefill": true,
            "do_remote_decode": false,
            ENGINE: format!("{TICKET}{}", base64::encode(self.ticket)),
            "remote_block_ids": [],
            "remote_host": at.host(),
            "remote_handshake_port": at.handshake(),
            "remote_notify_port": at.notify(),
            "remote_dp_rank": self.dp.0,
            "remote_dp_size": self.dp.1,
            "tp_size": self.tp_size,
            "transfer_id": self.transfer_id,
        });
        Ok(value.to_string())
    }
}

impl Params {
    /// From JSON text; unknown keys are ignored, known ones must have their type.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the key.
    pub fn from_json(text: &[u8]) -> Result<Params> {
        if text.len() > MAX {
            return Err(bad(format!("{} bytes, at most {MAX}", text.len())));
        }
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
        let transfer_id = match object.get("transfer_id") {
            Some(Value::String(s)) => s.clone(),
            other => return Err(wrong("transfer_id", other, "a string")),
        };
        check_transfer_id(&transfer_id)?;
        let ticket = match object.get(ENGINE) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(s)) => match s.strip_prefix(TICKET).map(|t| (t.len(), base64::decode(t))) {
                Some((n, None)) => return Err(bad(format!("{ENGINE}: a ticket of {n} characters is not base64url"))),
                Some((_, Some(ticket))) => ticket,
                // The engine id of another kind of instance.
                None => Vec::new(),
            },
            other => return Err(wrong(ENGINE, other, "a string")),
        };
        let size = |key| match number(&object, key)? {
            Some(0) => Err(bad(format!("{key} is 0"))),
            n => Ok(n),
        };
        let params = Params {
            do_remote_decode: flag(&object, "do_remote_decode")?,
            do_remote_prefill: flag(&object, "do_remote_prefill")?,
            transfer_id,
            remote_dp_size: size("remote_dp_size")?.unwrap_or(1),
            // The router says remote_tp_size, a prefill side's answer tp_size.
            remote_tp_size: size("remote_tp_size")?.or(size("tp_size")?),
            remote_dp_rank: number(&object, "remote_dp_rank")?,
            ticket,
        };
        if params.do_remote_decode == params.do_remote_prefill {
            let both = params.do_remote_decode;
            return Err(bad(format!("do_remote_decode and do_remote_prefill are both {both}")));
        }
        Ok(params)
    }
}

fn check_transfer_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > limit::NAME || id.contains('\0') {
        return Err(bad(format!("transfer_id of {} bytes, must have 1..={} and no NUL", id.len(), limit::NAME)));
    }
    Ok(())
}

fn flag(object: &Map<String, Value>, key: &str) -> Result<bool> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        other => Err(wrong(key, other, "true or false")),
    }
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<u32>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_u64().map(u32::try_from) {
            Some(Ok(n)) => Ok(Some(n)),
            _ => Err(wrong(key, Some(v), "a number below 2^32")),
        },
    }
}

fn wrong(key: &str, value: Option<&Value>, wanted: &str) -> Error {
    match value {
        None => bad(format!("{key} is missing")),
        Some(v) => {
            let text: String = v.to_string().chars().take(80).collect();
            bad(format!("{key} is {text}, must be {wanted}"))
        }
    }
}

fn bad(text: String) -> Error {
    Error::new(Status::InvalidArgument, format!("kv_transfer_params: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_with_its_ticket() {
        let at = ZmqAddress::new("10.0.0.1", 6301, 61005).unwrap();
        let answer = Answer { transfer_id: "tx-1", zmq_address: &at, dp: (1, 2), tp_size: 4, ticket: &[1, 2, 255] };
        let text = answer.to_json().unwrap();
        // The router overwrites one number and leaves the rest.
        let text = text.replace("\"remote_dp_size\":2", "\"remote_dp_size\":1");
        let expected = Params {
            do_remote_decode: false,
            do_remote_prefill: true,
            transfer_id: "tx-1".into(),
            remote_dp_size: 1,
            remote_tp_size: Some(4),
            remote_dp_rank: Some(1),
            ticket: vec![1, 2, 255],
        };
        assert_eq!(Params::from_json(text.as_bytes()), Ok(expected));
        assert!(Answer { ticket: &[], ..answer.clone() }.to_json().is_err());
        assert!(Answer { transfer_id: "", ..answer.clone() }.to_json().is_err());
        assert!(Answer { dp: (2, 2), ..answer }.to_json().is_err());
    }

    #[test]
    fn what_the_router_sends_is_read() {
        let prefill = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,
            "remote_block_ids":null,"remote_dp_size":1,"remote_tp_size":2,"transfer_id":"tx-00ff"}"#;
        let p = Params::from_json(prefill).unwrap();
        assert_eq!((p.do_remote_decode, p.remote_tp_size, p.ticket.len()), (true, Some(2), 0));
        let decode = br#"{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"tx-00ff"}"#;
        let p = Params::from_json(decode).unwrap();
        assert_eq!((p.do_remote_prefill, p.remote_dp_size, p.remote_tp_size), (true, 1, None));
        let vllm = br#"{"do_remote_prefill":true,"transfer_id":"a","remote_engine_id":"10.0.0.1:6301"}"#;
        assert_eq!(Params::from_json(vllm).unwrap().ticket, b"");
    }

    #[test]
    fn hostile_objects_are_refused_by_name() {
        for (text, named) in [
            ("", "EOF"),
            ("[]", "map"),
            ("{}", "transfer_id is missing"),
            (r#"{"transfer_id":7}"#, "transfer_id is 7"),
            (r#"{"transfer_id":""}"#, "transfer_id of 0 bytes"),
            (r#"{"transfer_id":"a\u0000b"}"#, "NUL"),
            (r#"{"transfer_id":"a"}"#, "both false"),
            (r#"{"transfer_id":"a","do_remote_decode":true,"do_remote_prefill":true}"#, "both true"),
            (r#"{"transfer_id":"a","do_remote_decode":"yes"}"#, "do_remote_decode is \"yes\""),
            (r#"{"transfer_id":"a","do_remote_decode":true,"remote_tp_size":0}"#, "remote_tp_size is 0"),
            (r#"{"transfer_id":"a","do_remote_decode":true,"remote_tp_size":-1}"#, "remote_tp_size is -1"),
            (r#"{"transfer_id":"a","do_remote_decode":true,"remote_dp_rank":4294967296}"#, "below 2^32"),
            (r#"{"transfer_id":"a","do_remote_decode":true,"remote_engine_id":"kvlink:*"}"#, "base64url"),
            (r#"{"transfer_id":"a","do_remote_decode":true,"remote_engine_id":[1]}"#, "remote_engine_id is [1]"),
        ] {
            let e = Params::from_json(text.as_bytes()).unwrap_err();
            assert_eq!(e.status(), Status::InvalidArgument);
            assert!(e.message().contains(named), "{text}: {e}");
        }
        let deep = "[".repeat(100_000);
        assert!(Params::from_json(deep.as_bytes()).is_err());
    }
}
