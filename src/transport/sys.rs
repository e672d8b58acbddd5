//! Threads that copy.
#![allow(unsafe_code)]

use crate::error::{Error, Result, Status};
use std::thread::{Builder, JoinHandle};

/// Starts a thread that copies; those that it starts are like it. An engine that wakes it keeps its core: where all cores are
/// busy, it waits for one until somebody's share of time is over.
///
/// # Errors
/// [`Status::System`] where there is no thread to be had.
pub fn start_thread(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let failed = format!("starting the thread {name}");
    let polite = || {
        leave_cores_to_engines();
        work();
    };
    Builder::new().name(name).spawn(polite).map_err(|e| Error::new(Status::System, format!("{failed}: {e}")))
}

/// Threads that a process runs under another policy than the usual one keep it.
fn leave_cores_to_engines() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: both are about the calling thread, and `none` lives through the call.
    let refused = unsafe {
        libc::sched_getscheduler(0) == libc::SCHED_OTHER && libc::sched_setscheduler(0, libc::SCHED_BATCH, &none) != 0
    };
    if refused {
        log::debug!("kvlink: SCHED_BATCH: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As proc(5) has it.
    const POLICY: usize = 41;

    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, in brackets, is the second field.
        stat.rsplit(") ").next().unwrap().split(' ').nth(POLICY - 3).unwrap().to_string()
    }

    #[test]
    fn threads_that_copy_do_not_take_cores_from_engines() {
        assert_eq!(policy(), libc::SCHED_OTHER.to_string());
        let (tell, told) = std::sync::mpsc::channel();
        start_thread("kvlink test) x".into(), move || tell.send(policy()).unwrap()).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), libc::SCHED_BATCH.to_string());
    }
}
