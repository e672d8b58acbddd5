//! What vLLM's `moriio` router and the instances behind it exchange: registrations, addresses in request ids, and
//! `kv_transfer_params`. docs/router.md explains them.

mod address;
mod base64;
mod params;
mod ports;
mod register;
mod request;

pub use address::{ZmqAddress, check_http_address};
pub use params::{Answer, Params};
pub use ports::{PortRanks, port_of_rank};
pub use register::{Register, Role, TransferMode};
pub use request::RequestRoute;
