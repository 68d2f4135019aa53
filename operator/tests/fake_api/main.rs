//! The operator against a fake API server: conflicts and failures that a real one does not give on demand.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod certificate_authority;
mod report;
mod server;
