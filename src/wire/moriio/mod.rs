//! What vLLM's `moriio` router and the instances behind it exchange: registrations, addresses in request ids,
//! `kv_transfer_params` (docs/router.md), and what workers of its MoRIIOConnector tell each other (docs/moriio.md).

mod address;
mod base64;
mod handshake;
mod msgpack;
mod notify;
mod params;
mod ports;
mod register;
mod request;

pub use address::{ZmqAddress, check_http_address};
pub use handshake::{Blob, GET_META, Handshake, LayerMemory};
pub use notify::Notify;
pub use params::{Answer, Params};
pub use ports::{PortRanks, port_of_rank};
pub use register::{Register, Role, TransferMode};
pub use request::RequestRoute;
