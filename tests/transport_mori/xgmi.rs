//! The xGMI backend over a stand-in for HIP, whose GPUs have memory of the host. Not run on hardware here.

use crate::node::{PATIENCE, options};
use kvlink::error::Status;
use kvlink::layout::Span;
use kvlink::memory::Memory;
use kvlink::transport::mori::{Backend, Mori, MoriOptions};
use kvlink::transport::{Action, Job, JobId, LinkId, Poller, Ready, Slice, Transport};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;

/// GPU memory, from the stand-in that MoRI uses.
fn allocate() -> *mut u8 {
    let stand_in = crate::mori::library().unwrap().join("../../package/libamdhip64.so.7").canonicalize().unwrap();
    let name = std::ffi::CString::new(stand_in.to_str().unwrap()).unwrap();
    let mut out = std::ptr::null_mut();
    unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        let at = libc::dlsym(library, c"hipMalloc".as_ptr());
        let malloc: unsafe extern "C" fn(*mut *mut c_void, usize) -> i32 = std::mem::transmute(at);
        assert_eq!(malloc(&mut out, LEN), 0);
    }
    out.cast()
}

#[test]
fn memory_of_gpus_is_read_and_other_memory_refused() {
    let Some(o) = options() else { return };
    let o = MoriOptions { backend: Backend::Xgmi, ..o };
    let poller = Arc::new(Poller::new().unwrap());
    let mut source = Mori::new(Arc::new(Poller::new().unwrap()), 0, o.clone()).unwrap();
    let mut sink = Mori::new(poller.clone(), 0, o).unwrap();
    let host = vec![0u8; LEN];
    let e = sink.register(0, &Memory::new(host.as_ptr() as usize, LEN).unwrap()).unwrap_err();
    assert_eq!(e.status(), Status::Backend);
    assert!(e.message().contains("xGMI joins GPUs, and this is memory of the host"), "{e}");
    let (from, to) = (allocate(), allocate());
    for i in 0..LEN {
        unsafe { from.add(i).write((i / 7) as u8) };
    }
    source.register(0, &Memory::new(from as usize, LEN).unwrap()).unwrap();
    sink.register(0, &Memory::new(to as usize, LEN).unwrap()).unwrap();
    assert_eq!(sink.connect(LinkId(1), &source.metadata()).unwrap().name, "mori/xgmi");
    let span = |i: u64| Span { src_offset: i * 4096, dst_offset: i * 8192, len: 4096, src_region: 0, dst_region: 0 };
    let spans: Vec<Span> = (0..LEN as u64 / 8192).map(span).collect();
    let (id, link) = (JobId(1), LinkId(1));
    sink.post(Job { id, link, action: Action::Pull, spans: spans.clone(), staged: false, mark: None }).unwrap();
    let (deadline, mut done, mut ready) = (Instant::now() + PATIENCE, Vec::new(), Vec::<Ready>::new());
    while done.is_empty() {
        let more = sink.progress(&ready, Slice::of(0), &mut done);
        let left = if more || !done.is_empty() { Duration::ZERO } else { deadline.duration_since(Instant::now()) };
        poller.wait(Some(left), &mut ready).unwrap();
    }
    done.remove(0).result.unwrap();
    for s in &spans {
        let part = |at: *mut u8, offset: u64| unsafe { std::slice::from_raw_parts(at.add(offset as usize), 4096) };
        assert!(part(from, s.src_offset) == part(to, s.dst_offset));
    }
}
