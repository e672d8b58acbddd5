//! The embedded transport.
