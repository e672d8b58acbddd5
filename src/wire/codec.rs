//! Little-endian primitives with checked lengths.

use crate::error::{Error, Result, Status};

/// Appends values to a buffer.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
}

macro_rules! put {
    ($($name:ident: $t:ty),*) => {$(
        /// Appends the value, little-endian.
        pub fn $name(&mut self, v: $t) {
            self.out.extend_from_slice(&v.to_le_bytes());
        }
    )*};
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Writer {
        Writer::default()
    }

    put!(u8: u8, u16: u16, u32: u32, u64: u64, i32: i32);

    /// Appends a length (u32) and the bytes.
    pub fn bytes(&mut self, v: &[u8]) {
        self.u32(v.len() as u32);
        self.out.extend_from_slice(v);
    }

    /// Appends a string.
    pub fn string(&mut self, v: &str) {
        self.bytes(v.as_bytes());
    }

    /// Appends a count (u32) and the values.
    pub fn u32s(&mut self, v: &[u32]) {
        self.u32(v.len() as u32);
        self.out.reserve(size_of_val(v));
        for x in v {
            self.u32(*x);
        }
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Takes values from untrusted bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! take {
    ($($name:ident: $t:ty),*) => {$(
        /// Takes a little-endian value.
        pub fn $name(&mut self, field: &str) -> Result<$t> {
            let bytes = self.take(std::mem::size_of::<$t>(), field)?;
            let array = bytes.try_into().map_err(|_| truncated(field, bytes.len(), 0))?;
            Ok(<$t>::from_le_bytes(array))
        }
    )*};
}

fn truncated(field: &str, needed: usize, left: usize) -> Error {
    Error::new(Status::Protocol, format!("{field} needs {needed} bytes, {left} are left"))
}

impl<'a> Reader<'a> {
    /// Reads from these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    fn take(&mut self, n: usize, field: &str) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(n) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(truncated(field, n, self.rest.len())),
        }
    }

    take!(u8: u8, u16: u16, u32: u32, u64: u64, i32: i32);

    /// Takes a count that is at most `max` and, at `item` bytes each, can still be there.
    pub fn count(&mut self, field: &str, max: usize, item: usize) -> Result<usize> {
        let n = self.u32(field)? as usize;
        if n > max {
            return Err(Error::new(Status::Protocol, format!("{field}: {n}, at most {max} are allowed")));
        }
        let needed = n.saturating_mul(item);
        if needed > self.rest.len() {
            return Err(truncated(field, needed, self.rest.len()));
        }
        Ok(n)
    }

    /// Takes bytes of at most `max`.
    pub fn bytes(&mut self, field: &str, max: usize) -> Result<&'a [u8]> {
        let n = self.count(field, max, 1)?;
        self.take(n, field)
    }

    /// Takes a UTF-8 string of at most `max` bytes.
    pub fn string(&mut self, field: &str, max: usize) -> Result<String> {
        let bytes = self.bytes(field, max)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_string()),
            Err(e) => Err(Error::new(Status::Protocol, format!("{field} is not UTF-8 at byte {}", e.valid_up_to()))),
        }
    }

    /// Takes at most `max` values.
    pub fn u32s(&mut self, field: &str, max: usize) -> Result<Vec<u32>> {
        let n = self.count(field, max, 4)?;
        let (values, _) = self.take(n.saturating_mul(4), field)?.as_chunks();
        Ok(values.iter().map(|v| u32::from_le_bytes(*v)).collect())
    }

    /// Takes a boolean: 0 or 1.
    pub fn flag(&mut self, field: &str) -> Result<bool> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(Error::new(Status::Protocol, format!("{field} is {n}, not 0 or 1"))),
        }
    }

    /// Nothing may be left.
    pub fn end(self, what: &str) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::new(Status::Protocol, format!("{what}: {} bytes too many", self.rest.len())))
    }
}
