//! What NIXL cannot work with is refused with the reason.

use crate::nixl::packages;
use crate::node::*;
use crate::source::{Source, exit};
use crate::tools::skip;
use kvlink::error::Status;
use kvlink::layout::{Layout, LayoutDesc, Region};
use kvlink::transport::Poller;
use kvlink::transport::nixl::{Nixl, NixlOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

pub fn start(options: NixlOptions) -> Result<Nixl, String> {
    let poller = Arc::new(Poller::new().unwrap());
    Nixl::new(poller, 0, options).map_err(|e| {
        assert_eq!(e.status(), Status::TransportUnavailable, "{e}");
        e.message().to_string()
    })
}

/// A region and nothing in it.
pub fn layout() -> Arc<Layout> {
    Arc::new(Layout::new(LayoutDesc { regions: vec![Region { len: 4096 }], ..Default::default() }).unwrap())
}

#[test]
fn a_refusal_leaves_the_next_agent_alone() {
    let Some(o) = options(AUTO) else { return };
    let refused = |o: NixlOptions| start(o).err().expect("a refusal");
    let text = refused(NixlOptions { backend: "CARRIER_PIGEON".into(), ..o.clone() });
    assert!(text.contains("no backend \"CARRIER_PIGEON\"") && text.contains("UCX"), "{text}");
    let only_shared_memory = vec![("engine_config".to_string(), "TLS=posix".to_string())];
    let text = refused(NixlOptions { parameters: only_shared_memory, ..o.clone() });
    assert!(text.contains("backend UCX with engine_config=TLS=posix does not start"), "{text}");
    let copy = std::env::temp_dir().join(format!("kvlink-{}-libnixl_capi.so", std::process::id()));
    std::fs::write(&copy, "another").unwrap();
    let text = refused(NixlOptions { library: Some(copy.clone()), ..o.clone() });
    assert!(text.contains("already and cannot load") && text.contains("name the same"), "{text}");
    std::fs::remove_file(copy).unwrap();
    assert!(start(o).is_ok());
}

#[test]
fn options_that_cannot_be_are_refused() {
    let o = NixlOptions { library: Some(PathBuf::from("/nonexistent")), ..NixlOptions::default() };
    let pair = |k: &str, v: &str| vec![(k.to_string(), v.to_string())];
    for (o, part) in [
        (NixlOptions { backend: String::new(), ..o.clone() }, "backend \"\""),
        (NixlOptions { parameters: pair("", "1"), ..o.clone() }, "parameter \"\"=\"1\""),
        (NixlOptions { parameters: pair("a", "1\0"), ..o.clone() }, "parameter \"a\""),
        (NixlOptions { patience: Duration::ZERO, ..o.clone() }, "patience is 0ns"),
    ] {
        let e = Nixl::new(Arc::new(Poller::new().unwrap()), 0, o).err().unwrap();
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains(part), "{e}");
    }
}

/// A process with this environment refuses to start NIXL, in these words, and ends as it should.
fn refuses(environment: &[(&str, &str)], words: &[&str]) {
    let mut child = Source::start("start", environment);
    let answer = child.answer().expect("an answer");
    assert!(answer.starts_with("refused"), "{environment:?}: {answer}");
    for part in words {
        assert!(answer.contains(part), "{environment:?}: {part:?} is not in {answer:?}");
    }
    assert!(exit(&mut child).success(), "{environment:?}");
}

fn empty_directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn an_environment_that_nixl_cannot_work_in_is_named() {
    if options(AUTO).is_none() {
        return;
    }
    let nowhere = ["finds no backends", "/nonexistent, which is not there", "NIXL_PLUGIN_DIR is \"/nonexistent\""];
    refuses(&[("NIXL_PLUGIN_DIR", "/nonexistent")], &nowhere);
    let empty = empty_directory("no-plugins");
    refuses(&[("NIXL_PLUGIN_DIR", empty.to_str().unwrap())], &["no-plugins", "which has none"]);
    std::fs::remove_dir(empty).unwrap();
    let dead = ["notices a dead peer", "of this host (", "lo"];
    for (name, value) in [("UCX_TLS", "posix"), ("UCX_TLS", ""), ("UCX_TLS", "rc"), ("UCX_NET_DEVICES", "nothing")] {
        refuses(&[(name, value)], &[&dead[..], &[&format!("{name} is {value:?}")]].concat());
    }
}

#[test]
fn a_file_that_is_not_the_library_is_named() {
    let Some(packages) = packages() else { return };
    let beside = packages.join(".nixl_cu12.mesonpy.libs/libnixl.so");
    let words = [beside.to_str().unwrap(), "is not NIXL's C library, libnixl_capi.so", "pip install"];
    refuses(&[("KVLINK_NIXL_LIBRARY", beside.to_str().unwrap())], &words);
    refuses(&[("KVLINK_NIXL_LIBRARY", "/nonexistent.so")], &["there is no /nonexistent.so", "pip install"]);
    let old = empty_directory("old-wheel");
    std::fs::create_dir_all(old.join(".nixl_cu12.mesonpy.libs")).unwrap();
    refuses(&[("KVLINK_NIXL_LIBRARY", old.to_str().unwrap())], &["has no libnixl_capi.so", "another NIXL than"]);
    std::fs::remove_dir_all(old).unwrap();
}

#[test]
fn a_backend_that_cannot_work_is_named_with_the_reason() {
    if options(AUTO).is_none() {
        return;
    }
    let parameter = ["UCX with num_workers=many does not start", "a parameter may be wrong"];
    refuses(&[("KVLINK_NIXL_PARAMETERS", "num_workers=many")], &parameter);
    let posix = [("KVLINK_NIXL_BACKEND", "POSIX"), ("KVLINK_NIXL_PARAMETERS", "")];
    refuses(&posix, &["backend POSIX reads from storage, not from other processes", "use UCX"]);
    // A backend whose own libraries are not installed, as those for storage are without a GPU's.
    let dir = empty_directory("lost-plugin");
    let cc = |output: &str, flags: &[&str]| {
        let command = &mut Command::new("cc");
        let status = command.current_dir(&dir).args(["-shared", "-xc", "/dev/null", "-o", output]).args(flags).status();
        assert!(status.unwrap().success());
    };
    cc("libnowhere.so.1", &["-Wl,-soname,libnowhere.so.1"]);
    cc("libplugin_LOST.so", &["-Wl,--no-as-needed", "-L.", "-l:libnowhere.so.1"]);
    std::fs::remove_file(dir.join("libnowhere.so.1")).unwrap();
    let lost = [("NIXL_PLUGIN_DIR", dir.to_str().unwrap()), ("KVLINK_NIXL_BACKEND", "LOST")];
    refuses(&lost, &["backend LOST cannot be loaded: libnowhere.so.1: cannot open shared object file"]);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Bound to the functions of another copy, NIXL's would end the process.
#[test]
fn a_second_copy_of_ucx_is_refused_before_it_is_loaded() {
    let Some(packages) = packages() else { return };
    let mut bundled = std::fs::read_dir(packages.join("nixl_cu12.libs")).unwrap().map(|e| e.unwrap().path());
    let own = bundled.find(|p| p.to_str().is_some_and(|p| p.contains("/libucp-"))).expect("a bundled UCX");
    let mut child = Source::start("start", &[("LD_PRELOAD", own.to_str().unwrap())]);
    assert_eq!(child.answer().as_deref(), Some("started"), "the same copy is no second one");
    assert!(exit(&mut child).success());
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let Some(ucx) = system.map(|d| format!("{d}/libucp.so.0")).into_iter().find(|f| Path::new(f).exists()) else {
        return skip("the system's UCX is missing (libucx0)");
    };
    let words = ["backend UCX brings libucp-", "another copy of UCX", &ucx, "LD_PRELOAD is", "RTLD_GLOBAL"];
    refuses(&[("LD_PRELOAD", &ucx)], &words);
}

/// Required and not found, it says so instead of doing without.
#[test]
fn an_agent_that_requires_nixl_does_not_do_without() {
    let mut child = Source::start("required", &[("LD_LIBRARY_PATH", "")]);
    let answer = child.answer().expect("an answer");
    for part in ["libnixl_capi.so cannot be loaded", "No such file", "pip install"] {
        assert!(answer.contains(part), "{part:?} is not in {answer:?}");
    }
    assert!(exit(&mut child).success());
}
