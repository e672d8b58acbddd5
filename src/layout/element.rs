//! Element types.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What one element is. Two sides must agree: bytes are moved, never converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// A record that is moved whole and never sliced (fp8_ds_mla, indexer keys with scales, packed fp4, ...).
    Opaque,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float, 4 exponent bits.
    F8E4m3,
    /// 8-bit float, 5 exponent bits.
    F8E5m2,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// IEEE binary64.
    F64,
    /// Signed 32-bit integer.
    I32,
}

impl DType {
    /// Every type, in the order of its ABI value.
    pub const ALL: &'static [DType] = &[
        DType::Opaque,
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::F8E4m3,
        DType::F8E5m2,
        DType::I8,
        DType::U8,
        DType::F64,
        DType::I32,
    ];

    /// Bytes of one element; `None` for [`DType::Opaque`], whose size is the layout's to say.
    pub fn bytes(self) -> Option<u32> {
        match self {
            DType::Opaque => None,
            DType::F8E4m3 | DType::F8E5m2 | DType::I8 | DType::U8 => Some(1),
            DType::F16 | DType::Bf16 => Some(2),
            DType::F32 | DType::I32 => Some(4),
            DType::F64 => Some(8),
        }
    }

    /// The ABI value.
    pub fn code(self) -> u32 {
        DType::ALL.iter().position(|d| *d == self).unwrap_or(0) as u32
    }

    /// The type with this ABI value.
    pub fn from_code(code: u32) -> Option<DType> {
        DType::ALL.get(code as usize).copied()
    }

    /// The usual short name.
    pub fn name(self) -> &'static str {
        match self {
            DType::Opaque => "opaque",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F8E4m3 => "f8_e4m3",
            DType::F8E5m2 => "f8_e5m2",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::F64 => "f64",
            DType::I32 => "i32",
        }
    }
}

/// Type and size of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Element {
    /// What it is.
    pub dtype: DType,
    /// Its size in bytes.
    pub bytes: u32,
}

impl Element {
    /// An element of a type with a size of its own. For [`DType::Opaque`] use [`Element::opaque`]: its size is 0 here,
    /// which no layout accepts.
    pub fn of(dtype: DType) -> Element {
        Element { dtype, bytes: dtype.bytes().unwrap_or(0) }
    }

    /// A record of `bytes` bytes that is moved whole.
    pub fn opaque(bytes: u32) -> Element {
        Element { dtype: DType::Opaque, bytes }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            DType::Opaque => write!(f, "opaque record of {} B", self.bytes),
            d => f.write_str(d.name()),
        }
    }
}
