//! Options of the NIXL transport.

use crate::error::{Error, Result, Status};
use std::path::PathBuf;
use std::time::Duration;

/// Where NIXL puts what it reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landing {
    /// Straight into the blocks where reads turn out to complete while they are posted, otherwise like `Staged`.
    #[default]
    Auto,
    /// Always straight into the blocks: nothing is copied twice, and a cancel lasts until NIXL has ended the read.
    Direct,
    /// Always into memory of kvlink's own, copied to the blocks when it is there: a cancel ends at once.
    Staged,
}

/// How a [`Nixl`](super::Nixl) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NixlOptions {
    /// `libnixl_capi.so`, or the directory that Python packages are installed in; `None`: looked for.
    pub library: Option<PathBuf>,
    /// NIXL's backend. Both sides need the same.
    pub backend: String,
    /// The backend's parameters.
    pub parameters: Vec<(String, String)>,
    /// Where data lands.
    pub landing: Landing,
    /// How long a read that is no longer wanted may go on before the NIXL agent that runs it is replaced.
    pub patience: Duration,
}

impl Default for NixlOptions {
    fn default() -> NixlOptions {
        NixlOptions {
            library: None,
            backend: "UCX".into(),
            parameters: Vec::new(),
            landing: Landing::Auto,
            patience: Duration::from_secs(3),
        }
    }
}

impl NixlOptions {
    /// How links are reported: "nixl/ucx".
    pub fn report(&self) -> String {
        format!("nixl/{}", self.backend.to_lowercase())
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Status::InvalidArgument, format!("nixl options: {what}")));
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !word(&self.backend) {
            return refuse(format!("backend {:?} is not the name of a NIXL backend", self.backend));
        }
        for (key, value) in &self.parameters {
            if !word(key) || value.contains('\0') {
                return refuse(format!("parameter {key:?}={value:?} is not a key and a value"));
            }
        }
        if self.patience.is_zero() || self.patience > Duration::from_secs(600) {
            return refuse(format!("patience is {:?}, more than 0 and at most 600 s is allowed", self.patience));
        }
        Ok(())
    }
}
