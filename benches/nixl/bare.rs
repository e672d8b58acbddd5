//! NIXL driven as vLLM drives it: lists of all blocks prepared once, one transfer per request, with a notification to the
//! source that its blocks were read, polled until it is complete.

use super::abi::{Config, DRAM, Handle, IN_PROGRESS, OK, READ};
use super::wheel;
use kvlink::memory::SharedMemory;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// What vLLM has is 0, which keeps a core busy: here the reference gets the better value.
const DELAY_US: u64 = 1000;
/// The argument that leaves the agents that read without a progress thread, as kvlink has it.
const NO_THREAD: &str = "--no-thread";

/// An agent with one region.
pub struct Bare {
    library: Handle,
    agent: Handle,
    backend: Handle,
    options: Handle,
}

/// Blocks of one size, in memory that begins at `base`.
#[derive(Clone, Copy)]
pub struct Blocks {
    pub base: usize,
    pub size: usize,
}

macro_rules! function {
    ($library:expr, $name:ident($($ty:ty),*)) => {{
        let name = concat!("nixl_capi_", stringify!($name), "\0");
        let f = unsafe { libc::dlsym($library, name.as_ptr().cast()) };
        assert!(!f.is_null(), "{name}");
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn($($ty),*) -> c_int>(f) }
    }};
}

macro_rules! call {
    ($library:expr, $name:ident($($arg:expr),*): ($($ty:ty),*)) => {{
        let f = function!($library, $name($($ty),*));
        unsafe { f($($arg),*) }
    }};
}

impl Bare {
    pub fn new(name: &str, engine: &str, memory: &SharedMemory) -> Bare {
        let path = wheel::packages().unwrap().join(".nixl_cu12.mesonpy.libs/libnixl_capi.so");
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let l = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!l.is_null());
        let delay = (!std::env::args().any(|a| a == NO_THREAD)).then_some(DELAY_US);
        let (name, config) = (CString::new(name).unwrap(), Config::new(delay));
        let mut new = [null_mut(); 5];
        let [agent, params, backend, options, list] = &mut new;
        let (key, value) = (c"engine_config", CString::new(engine).unwrap());
        let codes = [
            call!(l, create_configured_agent(name.as_ptr(), &config, agent): (*const c_char, *const Config, *mut Handle)),
            call!(l, create_params(params): (*mut Handle)),
            call!(l, params_add(*params, key.as_ptr(), value.as_ptr()): (Handle, *const c_char, *const c_char)),
            call!(l, create_backend(*agent, c"UCX".as_ptr(), *params, backend): (Handle, *const c_char, Handle, *mut Handle)),
            call!(l, create_opt_args(options): (*mut Handle)),
            call!(l, opt_args_add_backend(*options, *backend): (Handle, Handle)),
            call!(l, create_reg_dlist(DRAM, list): (c_int, *mut Handle)),
            call!(l, reg_dlist_add_desc(*list, memory.addr(), memory.len(), 0, std::ptr::null(), 0): (Handle, usize, usize, u64, *const c_void, usize)),
            call!(l, register_mem(*agent, *list, *options): (Handle, Handle, Handle)),
        ];
        assert_eq!(codes, [OK; 9]);
        Bare { library: l, agent: *agent, backend: *backend, options: *options }
    }

    pub fn metadata(&self) -> Vec<u8> {
        let (mut data, mut len) = (null_mut::<c_void>(), 0usize);
        let code =
            call!(self.library, get_local_md(self.agent, &mut data, &mut len): (Handle, *mut Handle, *mut usize));
        assert_eq!(code, OK);
        unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec()
    }

    /// Takes a peer's metadata and connects; returns its name.
    pub fn connect(&self, metadata: &[u8]) -> CString {
        let mut name = null_mut();
        let (data, len) = (metadata.as_ptr().cast(), metadata.len());
        let code = call!(self.library, load_remote_md(self.agent, data, len, &mut name): (Handle, *const c_void, usize, *mut *mut c_char));
        assert_eq!(code, OK);
        let name = unsafe { CStr::from_ptr(name) }.to_owned();
        let code = call!(self.library, agent_make_connection(self.agent, name.as_ptr(), self.options): (Handle, *const c_char, Handle));
        assert_eq!(code, OK);
        name
    }

    pub fn forget(&self, name: &CStr) {
        let code = call!(self.library, invalidate_remote_md(self.agent, name.as_ptr()): (Handle, *const c_char));
        assert_eq!(code, OK);
    }

    /// These of the blocks.
    fn list(&self, blocks: Blocks, ids: impl Iterator<Item = c_int>) -> Handle {
        let mut list = null_mut();
        assert_eq!(call!(self.library, create_xfer_dlist(DRAM, &mut list): (c_int, *mut Handle)), OK);
        let add = function!(self.library, xfer_dlist_add_desc(Handle, usize, usize, u64));
        for i in ids {
            unsafe { add(list, blocks.base + i as usize * blocks.size, blocks.size, 0) };
        }
        list
    }

    fn drop_list(&self, list: Handle) {
        assert_eq!(call!(self.library, destroy_xfer_dlist(list): (Handle)), OK);
    }

    /// A list of so many blocks: of ours, whose name is empty, or of a peer's.
    pub fn prepare(&self, name: &CStr, blocks: Blocks, count: c_int) -> Handle {
        let (list, mut prepared) = (self.list(blocks, 0..count), null_mut());
        let code = call!(self.library, prep_xfer_dlist(self.agent, name.as_ptr(), list, &mut prepared, self.options): (Handle, *const c_char, Handle, *mut Handle, Handle));
        assert_eq!(code, OK);
        self.drop_list(list);
        prepared
    }

    pub fn release(&self, prepared: Handle) {
        assert_eq!(call!(self.library, release_xfer_dlist_handle(self.agent, prepared): (Handle, Handle)), OK);
    }

    /// A request made from prepared lists.
    pub fn make(&self, local: Handle, to: &[c_int], remote: Handle, from: &[c_int]) -> Handle {
        self.make_with(self.options, local, to, remote, from)
    }

    fn make_with(&self, options: Handle, local: Handle, to: &[c_int], remote: Handle, from: &[c_int]) -> Handle {
        let mut request = null_mut();
        let (n, to, from) = (to.len(), to.as_ptr(), from.as_ptr());
        let code = call!(self.library, make_xfer_req(self.agent, READ, local, to, n, remote, from, n, &mut request, options): (Handle, c_int, Handle, *const c_int, usize, Handle, *const c_int, usize, *mut Handle, Handle));
        assert_eq!(code, OK);
        request
    }

    /// A request with a notification that names it, as vLLM's do.
    fn make_told(&self, name: &str, local: Handle, to: &[c_int], remote: Handle, from: &[c_int]) -> Handle {
        let l = self.library;
        let (mut options, text) = (null_mut(), format!("{name}:1"));
        let codes = [
            call!(l, create_opt_args(&mut options): (*mut Handle)),
            call!(l, opt_args_add_backend(options, self.backend): (Handle, Handle)),
            call!(l, opt_args_set_notif_msg(options, text.as_ptr().cast(), text.len()): (Handle, *const c_void, usize)),
            call!(l, opt_args_set_has_notif(options, true): (Handle, bool)),
        ];
        assert_eq!(codes, [OK; 4]);
        let request = self.make_with(options, local, to, remote, from);
        assert_eq!(call!(l, destroy_opt_args(options): (Handle)), OK);
        request
    }

    /// Takes the notifications that have come, as a source does in every step; returns how many agents sent some.
    pub fn notifications(&self) -> usize {
        let (mut map, mut agents) = (null_mut(), 0);
        let codes = [
            call!(self.library, create_notif_map(&mut map): (*mut Handle)),
            call!(self.library, get_notifs(self.agent, map, self.options): (Handle, Handle, Handle)),
            call!(self.library, notif_map_size(map, &mut agents): (Handle, *mut usize)),
            call!(self.library, destroy_notif_map(map): (Handle)),
        ];
        assert_eq!(codes, [OK; 4]);
        agents
    }

    /// A request of its own lists.
    pub fn create(&self, own: Blocks, to: &[c_int], peer: &CStr, far: Blocks, from: &[c_int]) -> Handle {
        let (local, remote) = (self.list(own, to.iter().copied()), self.list(far, from.iter().copied()));
        let mut request = null_mut();
        let code = call!(self.library, create_xfer_req(self.agent, READ, local, remote, peer.as_ptr(), &mut request, self.options): (Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle));
        assert_eq!(code, OK);
        self.drop_list(local);
        self.drop_list(remote);
        request
    }

    /// Posts a request and waits for its end; returns how long it took to post.
    pub fn run(&self, request: Handle) -> Duration {
        let begin = Instant::now();
        let mut code = call!(self.library, post_xfer_req(self.agent, request, null_mut()): (Handle, Handle, Handle));
        let posted = begin.elapsed();
        while code == IN_PROGRESS {
            std::thread::yield_now();
            code = call!(self.library, get_xfer_status(self.agent, request): (Handle, Handle));
        }
        assert_eq!(code, OK);
        call!(self.library, release_xfer_req(self.agent, request): (Handle, Handle));
        call!(self.library, destroy_xfer_req(request): (Handle));
        posted
    }

    /// One transfer of a request of this name; returns how long it took to post.
    pub fn read(&self, name: &str, local: Handle, to: &[c_int], remote: Handle, from: &[c_int]) -> Duration {
        let begin = Instant::now();
        let request = self.make_told(name, local, to, remote, from);
        begin.elapsed() + self.run(request)
    }
}

impl Drop for Bare {
    /// Its thread would go on beside what is measured next.
    fn drop(&mut self) {
        assert_eq!(call!(self.library, destroy_agent(self.agent): (Handle)), OK);
    }
}
