//! Entries of test builds only: defects on purpose. Not in the header.

use super::guard::{guard, kvlink_status_t};
use super::handle::{agent, kvlink_agent_t};

/// Panics inside a call.
#[unsafe(no_mangle)]
pub extern "C" fn kvlink_test_panic() -> kvlink_status_t {
    guard(|| panic!("a panic on purpose"))
}

/// Panics inside a call that holds the agent's state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_test_panic_in_call(handle: *const kvlink_agent_t) -> kvlink_status_t {
    guard(|| agent(handle)?.agent.panic_in_call())
}

/// Makes the agent's reactor thread panic.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvlink_test_panic_in_reactor(handle: *const kvlink_agent_t) -> kvlink_status_t {
    guard(|| agent(handle)?.agent.panic_in_reactor())
}
