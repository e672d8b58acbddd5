//! Machines that MoRI cannot work on are refused with the cause, and the process goes on.

use crate::mori::library;
use crate::process::is_alone;
use kvlink::agent::{Agent, AgentConfig, Require};
use kvlink::error::Status;
use kvlink::layout::{Layout, LayoutDesc, Region};
use kvlink::transport::mori::MoriOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REGION: u64 = 1 << 20;

fn agent(change: impl FnOnce(&mut MoriOptions)) -> Result<Agent, String> {
    let layout = Layout::new(LayoutDesc { regions: vec![Region { len: REGION }], ..Default::default() }).unwrap();
    let mut config = AgentConfig::new("a", 0, 1);
    config.require = Require::Named("mori".into());
    let mut options = MoriOptions { library: library(), ..MoriOptions::default() };
    change(&mut options);
    config.mori = Some(options);
    Agent::new(config, Arc::new(layout)).map_err(|e| {
        assert_eq!(e.status(), Status::TransportUnavailable, "{e}");
        e.message().to_string()
    })
}

/// In a process with these variables, an agent is refused, and all of this is said.
fn refused_with(variables: &[(&str, &str)], parts: &[&str]) {
    if library().is_none() || !is_alone(variables) {
        return;
    }
    refused(parts, agent(|_| {}));
}

fn refused(parts: &[&str], made: Result<Agent, String>) {
    let text = made.err().expect("a refusal");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// A directory in which the loader finds these files first.
fn shadow(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mori-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    for (file, content) in files {
        std::fs::write(dir.join(file), content).unwrap();
    }
    dir
}

#[test]
fn no_rdma_device() {
    refused_with(&[("STANDIN_VERBS_DEVICES", "0")], &["there is no RDMA device", "/sys/class/infiniband"]);
}

#[test]
fn a_port_that_is_down() {
    refused_with(&[("STANDIN_VERBS_PORT", "down")], &["no port of the RDMA devices standin0 is active"]);
}

#[test]
fn a_device_without_a_pci_address() {
    refused_with(&[("STANDIN_VERBS_SYSFS", "/sys")], &["standin0 has no PCI address (/sys)", "for ever", "^standin0"]);
}

#[test]
fn a_device_that_cannot_be_opened() {
    refused_with(&[("STANDIN_VERBS_OPEN", "refused")], &["standin0 cannot be opened: Permission denied"]);
}

#[test]
fn no_gpu() {
    refused_with(&[("STANDIN_SMI_GPUS", "0")], &["librocm_smi64 sees no AMD GPU"]);
}

#[test]
fn the_gpu_library_of_rocm_smi_is_missing() {
    let dir = shadow("smi", &[("librocm_smi64.so.1", b"not a library")]);
    refused_with(&[("LD_LIBRARY_PATH", dir.to_str().unwrap())], &["the GPU library librocm_smi64 cannot be loaded"]);
}

#[test]
fn the_gpu_library_of_hip_is_missing() {
    let dir = shadow("hip", &[("libamdhip64.so.7", b"not a library")]);
    let parts = ["libkvlink_mori.so cannot be loaded", "libamdhip64.so.7"];
    refused_with(&[("LD_LIBRARY_PATH", dir.to_str().unwrap())], &parts);
}

#[test]
fn another_build_of_mori() {
    let Some(built) = library() else { return };
    let package = built.join("../../package");
    let mut bytes = std::fs::read(package.join("libmori_io.so")).unwrap();
    bytes.push(0);
    let dir = shadow("build", &[("libmori_io.so", &bytes)]);
    let path = dir.join("libmori_io.so");
    for file in ["libmori_application.so", "libamdhip64.so.7", "libhsa-runtime64.so.1"] {
        std::fs::copy(package.join(file), dir.join(file)).unwrap();
    }
    let parts = [path.to_str().unwrap(), "is not the build of MoRI 1.2.4"];
    refused_with(&[("LD_LIBRARY_PATH", dir.to_str().unwrap())], &parts);
}

#[test]
fn variables_that_would_make_mori_do_something_else() {
    refused_with(&[("MORI_IO_ENABLE_NOTIFICATION", "1")], &["MORI_IO_ENABLE_NOTIFICATION is 1", "unset it"]);
}

#[test]
fn a_choice_between_backends_that_is_not_ours() {
    refused_with(&[("MORI_DISABLE_AUTO_XGMI", "0")], &["MORI_DISABLE_AUTO_XGMI is 0", "unset it"]);
}

#[test]
fn memory_that_cannot_be_registered() {
    refused_with(&[("STANDIN_VERBS_MEMORY", "1000")], &["standin0 cannot register 65536 bytes", "RLIMIT_MEMLOCK is"]);
}

#[test]
fn mori_exits() {
    refused_with(&[("STANDIN_SMI_ADDRESS", "exit")], &["MoRI called exit while starting MoRI", "a GPU has no address"]);
}

#[test]
fn mori_aborts() {
    refused_with(&[("STANDIN_SMI_ADDRESS", "abort")], &["MoRI aborted while starting MoRI"]);
}

#[test]
fn too_little_memory_may_be_locked() {
    if library().is_none() {
        return;
    }
    if !is_alone(&[]) {
        return;
    }
    // Whoever may lock all it likes, may not from here on; programs that it starts neither.
    let limit = libc::rlimit { rlim_cur: 65536, rlim_max: 65536 };
    const CAP_IPC_LOCK: i32 = 14;
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
    }
    refused(&["1048576 bytes have to be locked", "RLIMIT_MEMLOCK is 65536", "ulimit -l"], agent(|_| {}));
}

#[test]
fn a_control_port_that_is_taken() {
    if library().is_none() {
        return;
    }
    let port = super::tools::free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let text = format!("the control port 127.0.0.1:{port} cannot be used: Address already in use");
    refused(&[&text], agent(|o| o.port = port));
    drop(taken);
    // What has passed is not looked at again, and what MoRI would exit over is.
    let first = agent(|o| o.port = port).unwrap();
    refused(&[&text], agent(|o| o.port = port));
    drop(first);
    agent(|o| o.port = port).unwrap();
}

#[test]
fn devices_that_are_not_there() {
    if library().is_none() {
        return;
    }
    refused(&["there is no RDMA device mlx5_9", "there are: standin0"], agent(|o| o.devices = "mlx5_9".into()));
    refused(&["leaves no RDMA device of: standin0"], agent(|o| o.devices = "^standin0".into()));
    agent(|o| o.devices = "^mlx5_9".into()).unwrap();
}

#[test]
fn a_region_that_the_card_refuses() {
    if library().is_none() || !is_alone(&[("STANDIN_VERBS_MEMORY", "100000")]) {
        return;
    }
    let agent = agent(|_| {}).unwrap();
    let memory = vec![0u8; REGION as usize];
    let memory = kvlink::memory::Memory::new(memory.as_ptr() as usize, memory.len()).unwrap();
    let e = agent.register(0, memory).unwrap_err();
    assert_eq!(e.status(), Status::Backend);
    for part in ["region 0 of 1048576 bytes", "standin0 cannot register", "RLIMIT_MEMLOCK is"] {
        assert!(e.message().contains(part), "{e}");
    }
}
