//! The system calls that transports are made of.

use kvlink::transport::host::Host;
use kvlink::transport::{Job, Poller, Slice, Transport};
use std::time::Duration;

pub fn iovec(at: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at as *mut _, iov_len: len }
}

/// Calls until every piece of the list was moved, up to `most` pieces at a time.
pub fn vectored(list: &mut [libc::iovec], most: usize, call: impl Fn(&[libc::iovec]) -> isize) {
    let mut at = 0;
    while at < list.len() {
        let mut n = usize::try_from(call(&list[at..list.len().min(at + most)])).expect("bare call");
        while n > 0 {
            let take = n.min(list[at].iov_len);
            list[at].iov_base = (list[at].iov_base as usize + take) as *mut _;
            list[at].iov_len -= take;
            n -= take;
            at += usize::from(list[at].iov_len == 0);
        }
    }
}

pub fn send(fd: i32, part: &[libc::iovec]) -> isize {
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    (m.msg_iov, m.msg_iovlen) = (part.as_ptr().cast_mut(), part.len() as _);
    unsafe { libc::sendmsg(fd, &m, libc::MSG_NOSIGNAL) }
}

pub fn receive(fd: i32, part: &[libc::iovec]) -> isize {
    unsafe { libc::readv(fd, part.as_ptr(), part.len() as i32) }
}

/// Copies out of another process, 1,024 pieces a call.
pub fn pull(pid: i32, local: &[libc::iovec], remote: &[libc::iovec]) {
    for (l, r) in local.chunks(1024).zip(remote.chunks(1024)) {
        let n = unsafe { libc::process_vm_readv(pid, l.as_ptr(), l.len() as u64, r.as_ptr(), r.len() as u64, 0) };
        assert_eq!(n as u64, l.iter().map(|v| v.iov_len as u64).sum::<u64>(), "bare process_vm_readv");
    }
}

/// Drives a transport until a job has ended, in turns of `budget` bytes.
pub fn run(host: &mut Host, poller: &Poller, job: Job, budget: u64) {
    let (mut ready, mut done, mut more) = (Vec::new(), Vec::new(), true);
    host.post(job).unwrap();
    while done.is_empty() {
        let wait = if more { Duration::ZERO } else { Duration::from_secs(10) };
        poller.wait(Some(wait), &mut ready).unwrap();
        more = host.progress(&ready, Slice::of(budget), &mut done);
    }
    done.into_iter().for_each(|d| d.result.unwrap());
}
