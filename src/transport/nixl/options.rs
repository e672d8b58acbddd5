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
    pub fn on_loopback(mut self) -> NixlOptions {
        if self.backend != "UCX" {
            return self;
        }
        match self.parameters.iter_mut().find(|(k, _)| k == "engine_config") {
            Some((_, config)) if config.contains("NET_DEVICES=") => {}
            Some((_, config)) => *config = format!("{config},NET_DEVICES=lo"),
            None => self.parameters.push(("engine_config".into(), "NET_DEVICES=lo".into())),
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
    fn devices_are_only_chosen_where_the_user_has_not() {
        let set = |backend: &str, given: &[(&str, &str)]| {
            let parameters = given.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let o = NixlOptions { backend: backend.into(), parameters, ..NixlOptions::default() }.on_loopback();
            o.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(set("UCX", &[]), "engine_config=NET_DEVICES=lo");
        let given = [("num_threads", "2"), ("engine_config", "TLS=tcp")];
        assert_eq!(set("UCX", &given), "num_threads=2 engine_config=TLS=tcp,NET_DEVICES=lo");
        assert_eq!(set("UCX", &[("engine_config", "NET_DEVICES=eth0")]), "engine_config=NET_DEVICES=eth0");
        assert_eq!(set("LIBFABRIC", &[]), "");
    }
}
