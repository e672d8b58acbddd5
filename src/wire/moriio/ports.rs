//! Ports of ranks: a base and an offset.

use crate::error::{Error, Result, Status};

/// A rank in both of its dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRanks {
    /// Data-parallel rank on its host, and how many there are.
    pub dp: (u32, u32),
    /// Tensor-parallel rank, and how many there are.
    pub tp: (u32, u32),
}

/// The port that a rank listens on, as vLLM's connector counts it: `base + dp + tp`.
///
/// # Errors
/// [`Status::InvalidArgument`]: a rank that does not exist, a port above 65535, or both sizes above 1, where two ranks
/// would share a port.
pub fn port_of_rank(base: u16, ranks: PortRanks) -> Result<u16> {
    let bad = |text: String| Err(Error::new(Status::InvalidArgument, text));
    for (name, (rank, size)) in [("dp", ranks.dp), ("tp", ranks.tp)] {
        if rank >= size {
            return bad(format!("{name} rank {rank} of {size}"));
        }
    }
    let ((dp, dp_size), (tp, tp_size)) = (ranks.dp, ranks.tp);
    if dp_size > 1 && tp_size > 1 {
        return bad(format!(
            "dp_size {dp_size} with tp_size {tp_size}: ports are base + dp + tp, so that ranks (0, 1) and (1, 0) collide"
        ));
    }
    if base == 0 {
        return bad("base port 0, must be 1..=65535".into());
    }
    let port = u64::from(base) + u64::from(dp) + u64::from(tp);
    match u16::try_from(port) {
        Ok(p) => Ok(p),
        Err(_) => bad(format!("port {base} + {dp} + {tp} = {port} is above 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_ports_of_their_own_or_none() {
        let at = |base, dp, tp| port_of_rank(base, PortRanks { dp, tp });
        let tp: Vec<u16> = (0..4).map(|r| at(6301, (0, 1), (r, 4)).unwrap()).collect();
        assert_eq!(tp, [6301, 6302, 6303, 6304]);
        assert_eq!(at(6301, (2, 3), (0, 1)), Ok(6303));
        assert_eq!(at(65535, (0, 1), (0, 1)), Ok(65535));
        for (base, dp, tp, named) in [
            (6301, (0, 2), (1, 2), "collide"),
            (6301, (2, 2), (0, 1), "dp rank 2 of 2"),
            (6301, (0, 1), (0, 0), "tp rank 0 of 0"),
            (65535, (0, 1), (1, 2), "above 65535"),
            (65535, (0, 1), (u32::MAX - 1, u32::MAX), "above 65535"),
            (0, (0, 1), (0, 1), "base port 0"),
        ] {
            let e = at(base, dp, tp).unwrap_err();
            assert!(e.message().contains(named), "{e}");
        }
    }
}
