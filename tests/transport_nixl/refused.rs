//! What NIXL cannot work with is refused with the reason.

use crate::node::*;
use crate::source::{Source, exit};
use kvlink::error::Status;
use kvlink::layout::{Layout, LayoutDesc, Region};
use kvlink::transport::Poller;
use kvlink::transport::nixl::{Nixl, NixlOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub fn start(options: Option<NixlOptions>) -> Option<Result<Nixl, String>> {
    let poller = Arc::new(Poller::new().unwrap());
    Some(Nixl::new(poller, 0, options?).map_err(|e| {
        assert_eq!(e.status(), Status::TransportUnavailable, "{e}");
        e.message().to_string()
    }))
}

/// A region and nothing in it.
pub fn layout() -> Arc<Layout> {
    Arc::new(Layout::new(LayoutDesc { regions: vec![Region { len: 4096 }], ..Default::default() }).unwrap())
}

#[test]
fn backends_that_cannot_start_say_what_to_look_at() {
    let Some(o) = options(AUTO) else { return };
    let refused = |o: NixlOptions| start(Some(o)).unwrap().err().expect("a refusal");
    let text = refused(NixlOptions { backend: "CARRIER_PIGEON".into(), ..o.clone() });
    assert!(text.contains("no backend \"CARRIER_PIGEON\"") && text.contains("UCX"), "{text}");
    let only_shared_memory = vec![("engine_config".to_string(), "TLS=posix".to_string())];
    let text = refused(NixlOptions { parameters: only_shared_memory, ..o.clone() });
    for part in ["backend UCX with engine_config=TLS=posix does not start", "UCX_TLS is not set", "notices a dead peer"]
    {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let copy = std::env::temp_dir().join(format!("kvlink-{}-libnixl_capi.so", std::process::id()));
    std::fs::write(&copy, "another").unwrap();
    let text = refused(NixlOptions { library: Some(copy.clone()), ..o.clone() });
    assert!(text.contains("uses") && text.contains("already and cannot load"), "{text}");
    std::fs::remove_file(copy).unwrap();
    // None of this has hurt.
    assert!(start(Some(o)).unwrap().is_ok());
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

/// What the environment of the process does to NIXL, which reads it.
#[test]
fn an_environment_that_nixl_cannot_work_in_is_named() {
    if options(AUTO).is_none() {
        return;
    }
    for (name, value, parts) in [
        ("NIXL_PLUGIN_DIR", "/nonexistent", ["NIXL_PLUGIN_DIR", "/nonexistent"]),
        ("UCX_TLS", "posix", ["UCX_TLS is \"posix\"", "notices a dead peer"]),
        ("UCX_NET_DEVICES", "nothing", ["UCX", "does not start"]),
    ] {
        let mut child = Source::start("no-agent", &[(name, value)]);
        let answer = child.answer().expect("an answer");
        assert!(parts.iter().all(|p| answer.contains(p)), "{name}: {answer}");
        assert!(exit(&mut child).success(), "{name}");
    }
}

/// Required and not found, it says so instead of doing without.
#[test]
fn an_agent_that_requires_nixl_does_not_do_without() {
    let mut child = Source::start("required", &[("LD_LIBRARY_PATH", "")]);
    let answer = child.answer().expect("an answer");
    for part in ["libnixl_capi.so cannot be loaded", "pip install"] {
        assert!(answer.contains(part), "{part:?} is not in {answer:?}");
    }
    assert!(exit(&mut child).success());
}
