//! Listening and connecting.

use super::config::AgentConfig;
use crate::error::{Error, Result, Status};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

fn resolve(address: &str) -> Result<Vec<SocketAddr>> {
    let fail = |e: std::io::Error| Error::new(Status::Address, format!("address {address:?}: {e}"));
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(fail)?.collect();
    if found.is_empty() {
        return Err(Error::new(Status::Address, format!("address {address:?} resolves to nothing")));
    }
    Ok(found)
}

/// Listens where the configuration says.
pub(super) fn listen(config: &AgentConfig) -> Result<TcpListener> {
    listen_at(&config.listen, config.allow_remote)
}

/// Listens at "host:port", on other than loopback addresses only if that is allowed.
pub(super) fn listen_at(address: &str, allow_remote: bool) -> Result<TcpListener> {
    let found = resolve(address)?;
    if let (Some(a), false) = (found.iter().find(|a| !a.ip().is_loopback()), allow_remote) {
        let text = format!("{a} is not a loopback address: set allow_remote to listen there without authentication");
        return Err(Error::new(Status::Address, text));
    }
    let fail = |e: std::io::Error| Error::new(Status::Address, format!("listening on {address:?}: {e}"));
    let listener = TcpListener::bind(found.as_slice()).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

/// The address that others shall use.
pub(super) fn published(listener: &TcpListener, config: &AgentConfig) -> Result<String> {
    let fail = |e: std::io::Error| Error::new(Status::Address, format!("listening on {:?}: {e}", config.listen));
    let local = listener.local_addr().map_err(fail)?;
    if !config.advertise.is_empty() {
        // A name without a port gets the one that the system chose.
        let has_port = config.advertise.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let port = local.port();
        return Ok(if has_port { config.advertise.clone() } else { format!("{}:{port}", config.advertise) });
    }
    if local.ip().is_unspecified() {
        let text = format!("listening on {local}, which nobody can connect to: set advertise");
        return Err(Error::new(Status::Address, text));
    }
    Ok(local.to_string())
}

/// Connects; blocks up to `timeout`.
pub(super) fn connect(address: &str, timeout: Duration) -> Result<TcpStream> {
    let mut last = None;
    for a in resolve(address)? {
        match TcpStream::connect_timeout(&a, timeout) {
            Ok(s) => return Ok(s),
            Err(e) => last = Some(e),
        }
    }
    let why = last.map_or_else(|| "no address".to_string(), |e| e.to_string());
    Err(Error::new(Status::Unreachable, format!("connecting to {address}: {why}")))
}
