//! Request ids: `___prefill_addr_{P}___decode_addr_{D}_{32 hex digits}`, as the router makes them, and inside what vLLM
//! wraps around them (`cmpl-` ... `-0-abcdef12`).

use super::ZmqAddress;
use crate::error::{Error, Result, Status};
use std::fmt;

const PREFILL: &str = "___prefill_addr_";
const DECODE: &str = "___decode_addr_";
const UNIQUE: usize = 32;
/// Bytes of a request id that are looked at.
const MAX: usize = 2048;

/// Which instances the router chose for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRoute {
    /// The prefill instance.
    pub prefill: ZmqAddress,
    /// The decode instance.
    pub decode: ZmqAddress,
    /// What tells the request from others: 32 lower-case hexadecimal digits.
    unique: String,
}

impl RequestRoute {
    /// A route; `unique` has 32 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`].
    pub fn new(prefill: ZmqAddress, decode: ZmqAddress, unique: &str) -> Result<RequestRoute> {
        let digits = unique.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if unique.len() != UNIQUE || !digits {
            return Err(bad(format!("{unique:?} is not {UNIQUE} lower-case hexadecimal digits")));
        }
        Ok(RequestRoute { prefill, decode, unique: unique.to_string() })
    }

    /// From a request id, also one that vLLM has wrapped.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming what is wrong.
    pub fn parse(id: &str) -> Result<RequestRoute> {
        if id.len() > MAX {
            return Err(bad(format!("a request id of {} bytes, at most {MAX}", id.len())));
        }
        let lacks = |what: &str| bad(format!("request id {id:?} lacks {what:?}: it did not come through the router"));
        let (before, rest) = id.split_once(PREFILL).ok_or_else(|| lacks(PREFILL))?;
        if !before.is_empty() && !before.ends_with('-') {
            return Err(bad(format!("request id {id:?}: {before:?} before {PREFILL:?} does not end with '-'")));
        }
        let (prefill, rest) = rest.split_once(DECODE).ok_or_else(|| lacks(DECODE))?;
        if rest.contains(PREFILL) || rest.contains(DECODE) || prefill.contains(PREFILL) {
            return Err(bad(format!("request id {id:?} has more than one pair of addresses")));
        }
        // The digits hold no underscore, and neither does what vLLM appends.
        let (decode, tail) = rest.rsplit_once('_').ok_or_else(|| lacks("_"))?;
        let (unique, after) = tail.split_at_checked(UNIQUE).ok_or_else(|| {
            bad(format!("request id {id:?} ends with {} characters, {UNIQUE} digits are needed", tail.len()))
        })?;
        if !after.is_empty() && !after.starts_with('-') {
            return Err(bad(format!("request id {id:?}: {after:?} after the digits does not begin with '-'")));
        }
        let within = |side: &'static str| move |e: Error| e.within(side);
        let prefill = ZmqAddress::parse(prefill).map_err(within("prefill address"))?;
        let decode = ZmqAddress::parse(decode).map_err(within("decode address"))?;
        RequestRoute::new(prefill, decode, unique)
    }

    /// The digits that tell the request from others.
    pub fn unique(&self) -> &str {
        &self.unique
    }
}

impl fmt::Display for RequestRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFILL}{}{DECODE}{}_{}", self.prefill, self.decode, self.unique)
    }
}

fn bad(text: String) -> Error {
    Error::new(Status::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005___decode_addr_\
                         host:10.0.0.2,handshake:7301,notify:7501_00112233445566778899aabbccddeeff";

    #[test]
    fn an_id_of_the_router_is_read_plain_and_wrapped() {
        let plain = RequestRoute::parse(PLAIN).unwrap();
        assert_eq!(plain.prefill, ZmqAddress::new("10.0.0.1", 6301, 61005).unwrap());
        assert_eq!(plain.decode, ZmqAddress::new("10.0.0.2", 7301, 7501).unwrap());
        assert_eq!(plain.unique(), "00112233445566778899aabbccddeeff");
        assert_eq!(plain.to_string(), PLAIN);
        for wrapped in [format!("cmpl-{PLAIN}-0-abcdef12"), format!("chatcmpl-{PLAIN}"), format!("{PLAIN}-0")] {
            assert_eq!(RequestRoute::parse(&wrapped).unwrap(), plain, "{wrapped}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (id, named) in [
            ("plain-id".to_string(), "___prefill_addr_"),
            ("___prefill_addr_host:a,handshake:1,notify:2".into(), "___decode_addr_"),
            (PLAIN.replace("6301", "99999"), "prefill address: handshake port"),
            (PLAIN.replace("host:10.0.0.2", "host:"), "decode address: host of 0 bytes"),
            (PLAIN.replace("7301", "0"), "decode address: handshake port"),
            (format!("{PLAIN}{PLAIN}"), "more than one pair"),
            (PLAIN.replace("aabb", "AABB"), "hexadecimal"),
            (PLAIN[..PLAIN.len() - 1].to_string(), "digits are needed"),
            (format!("{PLAIN}0"), "does not begin with '-'"),
            (format!("evil{PLAIN}"), "does not end with '-'"),
            (format!("{PLAIN}-{}", "x".repeat(3000)), "at most 2048"),
        ] {
            let e = RequestRoute::parse(&id).unwrap_err();
            assert_eq!(e.status(), Status::InvalidArgument);
            assert!(e.message().contains(named), "{id}: {e}");
        }
    }
}
