//! "host:10.0.0.1,handshake:6301,notify:61005", and "10.0.0.1:8000".

use crate::error::{Error, Result, Status};
use crate::wire::limit;
use std::fmt;

/// Where an instance can be reached by the other kind of instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZmqAddress {
    host: String,
    handshake: u16,
    notify: u16,
}

impl ZmqAddress {
    /// An address. A host is a name, an IPv4 address, or an IPv6 address without brackets.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn new(host: &str, handshake: u16, notify: u16) -> Result<ZmqAddress> {
        check_host(host)?;
        for (field, port) in [("handshake", handshake), ("notify", notify)] {
            if port == 0 {
                return Err(bad(format!("{field} port 0, must be 1..=65535")));
            }
        }
        Ok(ZmqAddress { host: host.to_string(), handshake, notify })
    }

    /// From its text: exactly these three fields, in this order.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn parse(text: &str) -> Result<ZmqAddress> {
        if text.len() > limit::NAME {
            return Err(bad(format!("zmq address of {} bytes, at most {}", text.len(), limit::NAME)));
        }
        let mut fields = text.split(',');
        let host = field(fields.next(), "host", text)?;
        let handshake = port("handshake", field(fields.next(), "handshake", text)?)?;
        let notify = port("notify", field(fields.next(), "notify", text)?)?;
        if let Some(more) = fields.next() {
            return Err(bad(format!("zmq address {text:?} goes on with {more:?}")));
        }
        ZmqAddress::new(host, handshake, notify)
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Base of the handshake ports.
    pub fn handshake(&self) -> u16 {
        self.handshake
    }

    /// Base of the notify ports.
    pub fn notify(&self) -> u16 {
        self.notify
    }
}

impl fmt::Display for ZmqAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host:{},handshake:{},notify:{}", self.host, self.handshake, self.notify)
    }
}

/// Checks a "host:port"; an IPv6 host is in brackets.
///
/// # Errors
/// [`Status::InvalidArgument`] naming the field.
pub fn check_http_address(text: &str) -> Result<()> {
    let Some((host, number)) = text.rsplit_once(':') else {
        return Err(bad(format!("http_address {text:?} is not host:port")));
    };
    port("http", number)?;
    match host.strip_prefix('[').map(|h| h.strip_suffix(']')) {
        Some(Some(inside)) => check_host(inside),
        Some(None) => Err(bad(format!("http_address {text:?} has a bracket that does not close"))),
        None if host.contains(':') => Err(bad(format!("http_address {text:?}: an IPv6 host needs brackets"))),
        None => check_host(host),
    }
}

fn check_host(host: &str) -> Result<()> {
    // One character more than names have: the colon of IPv6 addresses, and the mark of their zone.
    let wrong = host.chars().find(|c| !(c.is_ascii_alphanumeric() || ".-_:%".contains(*c)));
    // The marks of a request id begin with an underscore each: "___prefill_addr_" must not appear in a host.
    match wrong {
        _ if host.is_empty() || host.len() > limit::HOST => {
            Err(bad(format!("host of {} bytes, must have 1..={}", host.len(), limit::HOST)))
        }
        Some(c) => Err(bad(format!("host {host:?} has the character {c:?}"))),
        None if host.contains("__") => Err(bad(format!("host {host:?} has two underscores in a row"))),
        None => Ok(()),
    }
}

fn field<'a>(part: Option<&'a str>, name: &str, text: &str) -> Result<&'a str> {
    let value = part.and_then(|p| p.strip_prefix(name)).and_then(|p| p.strip_prefix(':'));
    value.ok_or_else(|| bad(format!("zmq address {text:?}: {name} is missing, or not in its place")))
}

fn port(name: &str, text: &str) -> Result<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(n) if digits && n > 0 && !text.starts_with('0') => Ok(n),
        _ => Err(bad(format!("{name} port {text:?}, must be 1..=65535"))),
    }
}

fn bad(text: String) -> Error {
    Error::new(Status::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vllm_writes_is_read_and_written_alike() {
        for text in [
            "host:10.0.0.2,handshake:7301,notify:7501",
            "host:node-3.rack_1.example,handshake:1,notify:65535",
            "host:fe80::1%eth0,handshake:6301,notify:61005",
        ] {
            assert_eq!(ZmqAddress::parse(text).unwrap().to_string(), text);
        }
        let a = ZmqAddress::parse("host:fe80::1,handshake:1,notify:2").unwrap();
        assert_eq!((a.host(), a.handshake(), a.notify()), ("fe80::1", 1, 2));
    }

    #[test]
    fn every_field_is_validated() {
        for (text, named) in [
            ("", "host is missing"),
            ("host:,handshake:1,notify:2", "host of 0 bytes"),
            ("host:a b,handshake:1,notify:2", "' '"),
            ("host:a\0,handshake:1,notify:2", "'\\0'"),
            ("host:a/../b,handshake:1,notify:2", "'/'"),
            ("host:a___b,handshake:1,notify:2", "underscores"),
            ("handshake:1,host:a,notify:2", "host is missing"),
            ("host:a,notify:2,handshake:1", "handshake is missing"),
            ("host:a,handshake:1", "notify is missing"),
            ("host:a,handshake:0,notify:2", "handshake port \"0\""),
            ("host:a,handshake:65536,notify:2", "handshake port \"65536\""),
            ("host:a,handshake:1,notify:-2", "notify port \"-2\""),
            ("host:a,handshake:1,notify:+2", "notify port \"+2\""),
            ("host:a,handshake:01,notify:2", "handshake port \"01\""),
            ("host:a,handshake:1,notify:2,x:3", "goes on with"),
            ("host:a,handshake:\u{661},notify:2", "handshake port"),
        ] {
            let e = ZmqAddress::parse(text).unwrap_err();
            assert_eq!(e.status(), Status::InvalidArgument);
            assert!(e.message().contains(named), "{text:?}: {e}");
        }
        assert!(ZmqAddress::parse(&format!("host:{},handshake:1,notify:2", "a".repeat(300))).is_err());
        for text in ["a", "a:", ":1", "a:0", "a:1:2", "[::1:80", "a b:1", "::1:80"] {
            assert!(check_http_address(text).is_err(), "{text:?}");
        }
        for text in ["10.0.0.1:8000", "[::1]:80", "node-1:65535"] {
            check_http_address(text).unwrap();
        }
    }
}
