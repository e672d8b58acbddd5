//! Sans-IO state machines: sessions, handshakes, transfers, leases, liveness.
//!
//! [`Endpoint`] is one agent's protocol without sockets, threads or a clock. It is told what happened (`handle_*`, and the
//! calls of the engine) with the current time, and answers with [`Output`]s to carry out ([`Endpoint::poll_output`]) and the
//! time at which it wants to be called again ([`Endpoint::poll_timeout`]). docs/requests.md states the contracts.

mod config;
mod counts;
mod coverage;
mod directory;
mod endpoint;
mod event;
mod id;
mod invalid;
mod join;
mod lease;
mod liveness;
mod moriio;
mod output;
mod peer;
mod read;
mod registration;
mod serve;
mod session;
mod sink;
mod work;
mod write;
mod zmq;

pub use config::Config;
pub use counts::Counts;
pub use directory::Directory;
pub use endpoint::{Endpoint, Identity};
pub use event::{Event, EventKind};
pub(crate) use id::Slab;
pub use id::{Id, Kind};
pub use lease::Offer;
pub use moriio::{LinkId, MORIIO_MESSAGE_MAX, Moriio, MoriioArgs, MoriioOutput, MoriioPort};
pub use output::{Action, ConnId, JobEnd, JobId, LinkInfo, Output};
pub use peer::Direction;
pub use read::ReadArgs;
pub use registration::{Registration, RegistrationOutput, RouterArgs};
pub use sink::AcceptArgs;
pub use work::Work;
pub use write::WriteArgs;
pub use zmq::Zmq;
