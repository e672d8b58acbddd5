//! `kvlink-mori-check`, the program that looks at a machine.

use crate::mori::library;
use std::path::Path;
use std::process::Command;

/// Its last line, and whether it was content.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Option<(bool, String)> {
    let output = Command::new(library()?.join("kvlink-mori-check"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((output.status.success(), said.lines().last().unwrap_or_default().to_string()))
}

#[test]
fn moves_bytes_between_two_processes() {
    for arguments in [
        &[][..],
        &["--qp-per-transfer", "4", "--num-workers", "4"],
        &["--poll", "event"],
        &["--backend", "xgmi", "--memory", "gpu"],
    ] {
        let Some(found) = run(arguments, &[]) else { return };
        assert_eq!(found, (true, "passed: MoRI 1.2.4".into()), "{arguments:?}");
    }
}

#[test]
fn names_the_option_that_it_does_not_know() {
    let Some((content, said)) = run(&["--qp-per-transfer", "many"], &[]) else { return };
    assert!(!content && said.contains("--qp-per-transfer many"), "{said}");
    let Some((content, said)) = run(&["--backend", "tcp"], &[]) else { return };
    assert!(!content && said.contains("rdma or xgmi"), "{said}");
}

#[test]
fn a_mori_that_hangs_is_ended() {
    let Some((content, said)) = run(&["--preflight", "--seconds", "1"], &[("STANDIN_SMI_ADDRESS", "hang")]) else {
        return;
    };
    assert_eq!((content, said.as_str()), (false, "ended: has not come back while starting MoRI"));
}

/// What MoRI's users know as `availDevices.size() > 0`: the kernel has a card, and libibverbs does not fit its driver.
#[test]
fn a_user_space_driver_that_does_not_fit_the_kernels() {
    if library().is_none() {
        return;
    }
    let sys = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mori-sys");
    let _ = std::fs::remove_dir_all(&sys);
    let (card, verbs) = (sys.join("class/infiniband/bnxt_re0/device"), sys.join("class/infiniband_verbs/uverbs0"));
    std::fs::create_dir_all(&card).unwrap();
    std::fs::create_dir_all(&verbs).unwrap();
    std::os::unix::fs::symlink("/sys/bus/auxiliary/drivers/bnxt_re", card.join("driver")).unwrap();
    std::fs::write(verbs.join("ibdev"), "bnxt_re0\n").unwrap();
    std::fs::write(verbs.join("abi_version"), "7\n").unwrap();
    let warning = "libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of 7 (supports 1 to 6)";
    let variables = [("STANDIN_VERBS_DEVICES", "0"), ("STANDIN_VERBS_WARNING", warning)];
    let (content, said) = run(&["--preflight", "--sysfs", sys.to_str().unwrap()], &variables).unwrap();
    assert!(!content);
    for part in ["the RDMA device bnxt_re0 (driver bnxt_re, kernel ABI 7), which libibverbs does not know", warning] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}
