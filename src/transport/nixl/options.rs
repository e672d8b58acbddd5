//! Options of the NIXL transport.

use crate::error::{Error, Result, Status};
use crate::transport::vendor::{Landing, VendorOptions};
use std::path::PathBuf;
use std::time::Duration;

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
    /// These, but UCX uses the loopback device alone, unless the parameters name devices.
    pub fn on_loopback(self) -> NixlOptions {
        self.configured("NET_DEVICES=", "NET_DEVICES=lo")
    }

    /// These, but UCX answers reads over TCP in segments that are as long as those that it takes by default, unless the user
    /// says how long either may be. Its own default is an eighth of that, and each is a system call.
    pub fn in_long_segments(&self) -> NixlOptions {
        let limited = std::env::var_os("UCX_TCP_RX_SEG_SIZE").is_some();
        if limited { self.clone() } else { self.clone().configured("X_SEG_SIZE=", "TCP_TX_SEG_SIZE=64k") }
    }

    /// With a setting of UCX's, unless the parameters have one like it. NIXL prefers those of the environment.
    fn configured(mut self, like: &str, setting: &str) -> NixlOptions {
        if self.backend != "UCX" {
            return self;
        }
        match self.parameters.iter_mut().find(|(k, _)| k == "engine_config") {
            Some((_, config)) if config.contains(like) => {}
            Some((_, config)) => *config = format!("{config},{setting}"),
            None => self.parameters.push(("engine_config".into(), setting.into())),
        }
        self
    }
}

impl VendorOptions for NixlOptions {
    fn check(&self) -> Result<()> {
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

    fn report(&self) -> String {
        format!("nixl/{}", self.backend.to_lowercase())
    }

    fn backend(&self) -> &str {
        &self.backend
    }

    fn landing(&self) -> Landing {
        self.landing
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ucx_is_only_told_what_the_user_has_not_said() {
        let set = |backend: &str, given: &[(&str, &str)]| {
            let parameters = given.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let o = NixlOptions { backend: backend.into(), parameters, ..NixlOptions::default() };
            let o = o.on_loopback().in_long_segments();
            o.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(set("UCX", &[]), "engine_config=NET_DEVICES=lo,TCP_TX_SEG_SIZE=64k");
        let given = [("num_threads", "2"), ("engine_config", "TLS=tcp,TCP_TX_SEG_SIZE=8k")];
        assert_eq!(set("UCX", &given), "num_threads=2 engine_config=TLS=tcp,TCP_TX_SEG_SIZE=8k,NET_DEVICES=lo");
        let given = [("engine_config", "NET_DEVICES=eth0")];
        assert_eq!(set("UCX", &given), "engine_config=NET_DEVICES=eth0,TCP_TX_SEG_SIZE=64k");
        assert_eq!(set("LIBFABRIC", &[]), "");
    }
}
