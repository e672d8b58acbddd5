//! Registrations, which are heartbeats too: one MessagePack map.

use super::{ZmqAddress, check_http_address};
use crate::error::{Error, Result, Status};
use crate::wire::limit;

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Prefill.
    Prefill,
    /// Decode.
    Decode,
}

/// Who moves the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferMode {
    /// The decode side pulls when the prefill side is done.
    Read,
    /// The prefill side pushes while it computes.
    Write,
}

/// An instance as the router knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// What it does.
    pub role: Role,
    /// Where its HTTP server listens, "host:port". The router tells instances apart by it.
    pub http_address: String,
    /// Where the other kind of instance reaches it.
    pub zmq_address: ZmqAddress,
    /// Data-parallel size.
    pub dp_size: u32,
    /// Tensor-parallel size.
    pub tp_size: u32,
    /// Who moves the data; the router takes instances of one mode only.
    pub mode: TransferMode,
}

impl Register {
    /// # Errors
    /// [`Status::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        check_http_address(&self.http_address)?;
        for (name, size) in [("dp_size", self.dp_size), ("tp_size", self.tp_size)] {
            if size == 0 || size as usize > limit::RANKS {
                let text = format!("{name} is {size}, must be 1..={}", limit::RANKS);
                return Err(Error::new(Status::InvalidArgument, text));
            }
        }
        Ok(())
    }

    /// The map.
    pub fn encode(&self) -> Vec<u8> {
        use rmp::encode::{write_map_len, write_str, write_uint};
        let role = match self.role {
            Role::Prefill => "P",
            Role::Decode => "D",
        };
        let mode = match self.mode {
            TransferMode::Read => "READ",
            TransferMode::Write => "WRITE",
        };
        let zmq = self.zmq_address.to_string();
        let texts =
            [("type", role), ("http_address", &self.http_address), ("zmq_address", &zmq), ("transfer_mode", mode)];
        let numbers = [("dp_size", self.dp_size), ("tp_size", self.tp_size)];
        let mut out = Vec::new();
        // Writing to a vector cannot fail.
        let _ = write_map_len(&mut out, (texts.len() + numbers.len()) as u32);
        for (key, value) in texts {
            let _ = write_str(&mut out, key).and_then(|()| write_str(&mut out, value));
        }
        for (key, value) in numbers {
            let _ = write_str(&mut out, key).and_then(|()| write_uint(&mut out, u64::from(value)).map(|_| ()));
        }
        out
    }
}
