//! MessagePack: what the messages of vLLM's workers are made of, read strictly.

use crate::error::{Error, Result, Status};
use rmp::Marker;
use std::collections::BTreeSet;

/// Values within values that nobody looks at.
const DEPTH: usize = 16;

/// Bytes that are still to be read.
pub(super) struct Unpack<'a> {
    rest: &'a [u8],
}

impl<'a> Unpack<'a> {
    pub fn new(bytes: &'a [u8]) -> Unpack<'a> {
        Unpack { rest: bytes }
    }

    /// Reads a map with names as keys: `entry` takes the value of a name that it knows and says so; others are passed over.
    pub fn map(&mut self, what: &str, mut entry: impl FnMut(&'a str, &mut Unpack<'a>) -> Result<bool>) -> Result<()> {
        let entries = match self.marker(what)? {
            Marker::FixMap(n) => u64::from(n),
            Marker::Map16 => self.number(2, what)?,
            Marker::Map32 => self.number(4, what)?,
            m => return Err(wrong(what, m, "a map")),
        };
        let mut seen = BTreeSet::new();
        for _ in 0..entries {
            let key = self.text(&format!("a key of {what}"))?;
            if !seen.insert(key) {
                return Err(bad(format!("{what} has {key:?} twice")));
            }
            if !entry(key, self)? {
                self.skip(key, DEPTH)?;
            }
        }
        Ok(())
    }

    /// Reads an array, one call for each element.
    pub fn array(&mut self, what: &str, mut element: impl FnMut(&mut Unpack<'a>) -> Result<()>) -> Result<()> {
        let elements = match self.marker(what)? {
            Marker::FixArray(n) => u64::from(n),
            Marker::Array16 => self.number(2, what)?,
            Marker::Array32 => self.number(4, what)?,
            m => return Err(wrong(what, m, "an array")),
        };
        // Every element has a byte at least: what an array claims to hold costs nothing.
        (0..elements).try_for_each(|_| element(self))
    }

    pub fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = match self.marker(what)? {
            Marker::FixStr(n) => u64::from(n),
            Marker::Str8 => self.number(1, what)?,
            Marker::Str16 => self.number(2, what)?,
            Marker::Str32 => self.number(4, what)?,
            m => return Err(wrong(what, m, "a string")),
        };
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| bad(format!("{what} is not UTF-8 at byte {}", e.valid_up_to())))
    }

    pub fn blob(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = match self.marker(what)? {
            Marker::Bin8 => self.number(1, what)?,
            Marker::Bin16 => self.number(2, what)?,
            Marker::Bin32 => self.number(4, what)?,
            m => return Err(wrong(what, m, "bytes")),
        };
        self.take(len, what)
    }

    /// A number that is not negative.
    pub fn uint(&mut self, what: &str) -> Result<u64> {
        let (signed, n) = match self.marker(what)? {
            Marker::FixPos(n) => return Ok(u64::from(n)),
            Marker::U8 => return self.number(1, what),
            Marker::U16 => return self.number(2, what),
            Marker::U32 => return self.number(4, what),
            Marker::U64 => return self.number(8, what),
            Marker::I8 => (8, self.number(1, what)?),
            Marker::I16 => (16, self.number(2, what)?),
            Marker::I32 => (32, self.number(4, what)?),
            Marker::I64 => (64, self.number(8, what)?),
            m => return Err(wrong(what, m, "a number that is not negative")),
        };
        if n >> (signed - 1) == 0 { Ok(n) } else { Err(bad(format!("{what} is negative"))) }
    }

    /// A number of at most 32 bits.
    pub fn u32(&mut self, what: &str) -> Result<u32> {
        let n = self.uint(what)?;
        u32::try_from(n).map_err(|_| bad(format!("{what} is {n}, must be below 2^32")))
    }

    /// Whether an array comes next.
    pub fn is_array(&self) -> bool {
        let marker = self.rest.first().map(|b| Marker::from_u8(*b));
        matches!(marker, Some(Marker::FixArray(_) | Marker::Array16 | Marker::Array32))
    }

    /// Everything was read.
    pub fn end(&self, what: &str) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(bad(format!("{n} bytes follow {what}"))),
        }
    }

    fn skip(&mut self, what: &str, depth: usize) -> Result<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(bad(format!("{what} has more than {DEPTH} values within values")));
        };
        let (bytes, values) = match self.marker(what)? {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::FixExt4 => (5, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::FixStr(n) => (u64::from(n), 0),
            Marker::Str8 | Marker::Bin8 => (self.number(1, what)?, 0),
            Marker::Str16 | Marker::Bin16 => (self.number(2, what)?, 0),
            Marker::Str32 | Marker::Bin32 => (self.number(4, what)?, 0),
            Marker::Ext8 => (self.number(1, what)? + 1, 0),
            Marker::Ext16 => (self.number(2, what)? + 1, 0),
            Marker::Ext32 => (self.number(4, what)? + 1, 0),
            Marker::FixArray(n) => (0, u64::from(n)),
            Marker::Array16 => (0, self.number(2, what)?),
            Marker::Array32 => (0, self.number(4, what)?),
            Marker::FixMap(n) => (0, 2 * u64::from(n)),
            Marker::Map16 => (0, 2 * self.number(2, what)?),
            Marker::Map32 => (0, 2 * self.number(4, what)?),
            Marker::Reserved => return Err(wrong(what, Marker::Reserved, "a value")),
        };
        self.take(bytes, what)?;
        (0..values).try_for_each(|_| self.skip(what, depth))
    }

    fn marker(&mut self, what: &str) -> Result<Marker> {
        Ok(Marker::from_u8(self.number(1, what)? as u8))
    }

    /// A big-endian number of up to 8 bytes.
    fn number(&mut self, bytes: u64, what: &str) -> Result<u64> {
        Ok(self.take(bytes, what)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) =
            split.ok_or_else(|| bad(format!("{what} is cut off: {n} bytes, {} are there", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// MessagePack that is being written. Writing to memory cannot fail.
#[derive(Default)]
pub(super) struct Pack(pub Vec<u8>);

impl Pack {
    pub fn map(&mut self, entries: usize) -> &mut Pack {
        let _ = rmp::encode::write_map_len(&mut self.0, entries as u32);
        self
    }

    pub fn array(&mut self, elements: usize) -> &mut Pack {
        let _ = rmp::encode::write_array_len(&mut self.0, elements as u32);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Pack {
        let _ = rmp::encode::write_str(&mut self.0, text);
        self
    }

    pub fn blob(&mut self, bytes: &[u8]) -> &mut Pack {
        let _ = rmp::encode::write_bin(&mut self.0, bytes);
        self
    }

    pub fn uint(&mut self, n: u64) -> &mut Pack {
        let _ = rmp::encode::write_uint(&mut self.0, n);
        self
    }

    pub fn uints<N: Copy + Into<u64>>(&mut self, all: &[N]) -> &mut Pack {
        self.array(all.len());
        for n in all {
            self.uint((*n).into());
        }
        self
    }
}

pub(super) fn bad(text: String) -> Error {
    Error::new(Status::Protocol, text)
}

fn wrong(what: &str, marker: Marker, wanted: &str) -> Error {
    bad(format!("{what} is {marker:?}, must be {wanted}"))
}
