/* kvlink for C++17 and later: kvlink.h with types, and nothing else. Header only; link libkvlink.
 *
 * Errors. A call that can fail returns a Result<T>: its value, or an Error with the status and the sentence of
 * kvlink_last_error. Nothing here throws but allocation, and Result::value(), which exists if KVLINK_EXCEPTIONS is defined
 * before this header is included. Without exceptions everything else works unchanged (-fno-exceptions).
 *
 * Ownership. Layout, Plan, Agent and SharedMemory own what they name: they are moved, never copied, and end it in their
 * destructor. One that was moved from holds NULL: calls on it fail with Status::null_pointer, ending it does nothing. After
 * close() calls fail with Status::bad_handle. Ids (PeerId, TransferId, ...) are numbers and own nothing; a stale one is an
 * error.
 *
 * Lifetime. Descriptions (LayoutDescription, AgentConfig) own their fields. Requests (Offer, Read, Accept, Write,
 * PlanRequest) and Blocks only point to yours, which must live until the call has returned: block lists are not copied on
 * the way. Event payloads live until the agent's next poll.
 *
 * Threads. As in C: const member functions may be called from any thread at the same time; Agent::poll is not const, one
 * thread calls it at a time. close() may be called while other threads call; moving and destroying come last.
 *
 * Fields and calls mean what the ones of the same name in kvlink.h mean; only what differs is said here. */

#ifndef KVLINK_HPP
#define KVLINK_HPP

#include "kvlink/agent.hpp"
#include "kvlink/layout.hpp"
#include "kvlink/plan.hpp"
#include "kvlink/result.hpp"
#include "kvlink/router.hpp"

#endif
