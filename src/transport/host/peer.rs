//! A link: the peer's memory, its sockets and streams.

use super::identity;
use super::metadata::{Identity, Metadata, way};
use super::options::HostOptions;
use super::remote::Remote;
use super::stream::Streams;
use crate::error::{Error, Result, Status};
use crate::transport::Link;

/// A linked peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub remote: Remote,
    pub link: Link,
    /// Slots of its sockets.
    pub sockets: Vec<usize>,
    pub streams: Streams,
    /// Why nothing works any more.
    pub broken: Option<Error>,
}

impl Peer {
    /// Probes what works and decides.
    pub fn new(meta: &Metadata, own: &Identity, options: &HostOptions) -> Result<Peer> {
        let (remote, found) = Remote::probe(meta, own, options.ways());
        let mut rejected = found.rejected;
        let stream = options.tcp && meta.ways & way::TCP != 0;
        if !stream {
            let whose = if options.tcp { "the peer's" } else { "our" };
            rejected.push(format!("host/tcp: switched off by {whose} options"));
        }
        let pull = found.shm || found.cma;
        let name = match (found.shm, found.cma, stream) {
            (true, _, _) => "host/shm",
            (_, true, _) => "host/cma",
            (_, _, true) => "host/tcp",
            _ => {
                let what = format!("no way to process {}: {}", meta.identity.pid, rejected.join("; "));
                return Err(Error::new(Status::TransportUnavailable, what));
            }
        };
        let streams = if stream { options.streams.min(meta.streams as usize) } else { 0 };
        let link = Link { name: name.into(), pull, streams, rejected };
        Ok(Peer { remote, link, sockets: Vec::new(), streams: Streams::default(), broken: None })
    }

    /// Whether jobs may still be posted.
    pub fn alive(&self) -> Result<()> {
        self.broken.clone().map_or(Ok(()), Err)
    }
}

/// What we are to peers, less our regions.
#[derive(Debug)]
pub(super) struct Own {
    pub identity: Identity,
    /// Peers read it to be sure that it is us. Boxed: its address is public.
    nonce: Box<[u8; 16]>,
}

impl Own {
    pub fn new() -> Result<Own> {
        Ok(Own { identity: identity::own()?, nonce: Box::new(identity::nonce()?) })
    }

    pub fn nonce(&self) -> ([u8; 16], u64) {
        (*self.nonce, self.nonce.as_ptr() as u64)
    }
}

impl Drop for Own {
    /// A peer that still reads here must not mistake what it finds for us.
    fn drop(&mut self) {
        *self.nonce = [0; 16];
        std::hint::black_box(&self.nonce);
    }
}
