//! Options of the MoRI transport.

use crate::error::{Error, Result, Status};
use crate::transport::vendor::{Landing, VendorOptions};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// How MoRI moves bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// RDMA cards.
    #[default]
    Rdma,
    /// Between GPUs of one node.
    Xgmi,
}

/// How MoRI's thread notices that something has completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollMode {
    /// It asks the cards.
    #[default]
    Polling,
    /// The cards tell.
    Event,
}

/// How a [`Mori`](super::Mori) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoriOptions {
    /// `libkvlink_mori.so`, or the directory that it is in; `None`: looked for beside libkvlink.
    pub library: Option<PathBuf>,
    /// MoRI's backend. Both sides need the same.
    pub backend: Backend,
    /// Address of this machine for MoRI's control port, which peers have to reach; `None`: loopback.
    pub host: Option<Ipv4Addr>,
    /// The control port; 0: any.
    pub port: u16,
    /// Names of RDMA devices, separated by commas; empty: all.
    pub devices: String,
    /// Queue pairs that one transfer is spread over.
    pub qp_per_transfer: u32,
    /// Work requests that are posted at once; `None`: MoRI's choice.
    pub post_batch_size: Option<u32>,
    /// Threads that post.
    pub num_workers: u32,
    /// How completions are noticed.
    pub poll_mode: PollMode,
    /// How long a read that is no longer wanted may go on before the MoRI engine that runs it is replaced.
    pub patience: Duration,
    /// Bytes that will be registered, for the check of what may be locked.
    pub expected: u64,
}

impl Default for MoriOptions {
    fn default() -> MoriOptions {
        MoriOptions {
            library: None,
            backend: Backend::Rdma,
            host: None,
            port: 0,
            devices: String::new(),
            qp_per_transfer: 1,
            post_batch_size: None,
            num_workers: 1,
            poll_mode: PollMode::Polling,
            patience: Duration::from_secs(3),
            expected: 0,
        }
    }
}

impl Backend {
    /// As options and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Rdma => "rdma",
            Backend::Xgmi => "xgmi",
        }
    }
}

impl MoriOptions {
    /// Where peers reach the control port.
    pub(super) fn host(&self) -> String {
        self.host.unwrap_or(Ipv4Addr::LOCALHOST).to_string()
    }
}

impl VendorOptions for MoriOptions {
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Status::InvalidArgument, format!("mori options: {what}")));
        let range = |what: &str, n: u32, most: u32| match n {
            0 => refuse(format!("{what} is 0, 1..={most} is allowed")),
            n if n > most => refuse(format!("{what} is {n}, 1..={most} is allowed")),
            _ => Ok(()),
        };
        range("qp_per_transfer", self.qp_per_transfer, 256)?;
        range("num_workers", self.num_workers, 256)?;
        range("post_batch_size", self.post_batch_size.unwrap_or(1), 1 << 16)?;
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ',');
        if !self.devices.strip_prefix('^').unwrap_or(&self.devices).chars().all(name) {
            return refuse(format!("devices {:?} are not names separated by commas", self.devices));
        }
        if self.patience.is_zero() || self.patience > Duration::from_secs(600) {
            return refuse(format!("patience is {:?}, more than 0 and at most 600 s is allowed", self.patience));
        }
        Ok(())
    }

    fn report(&self) -> String {
        format!("mori/{}", self.backend.name())
    }

    fn backend(&self) -> &str {
        self.backend.name()
    }

    /// A card goes on while the peer's process stands still, so that reads end soon, and nothing has to be copied twice.
    fn landing(&self) -> Landing {
        Landing::Direct
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_refused_by_name() {
        let d = MoriOptions::default;
        for (bad, part) in [
            (MoriOptions { qp_per_transfer: 0, ..d() }, "qp_per_transfer is 0"),
            (MoriOptions { num_workers: 1000, ..d() }, "num_workers is 1000, 1..=256"),
            (MoriOptions { post_batch_size: Some(0), ..d() }, "post_batch_size is 0"),
            (MoriOptions { devices: "mlx5_0;rm".into(), ..d() }, "mlx5_0;rm"),
            (MoriOptions { patience: Duration::ZERO, ..d() }, "patience"),
        ] {
            let e = bad.check().unwrap_err();
            assert_eq!(e.status(), Status::InvalidArgument);
            assert!(e.message().contains(part), "{e}");
        }
        MoriOptions { devices: "^mlx5_0,bnxt_re1".into(), ..d() }.check().unwrap();
    }
}
