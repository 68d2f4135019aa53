//! The relay, over real sockets, before Pods that do as they are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on says so")]

mod lateness;
mod misbehaviour;
mod one_pod;
mod prober;
mod several_pods;
mod shared_time;
mod stand_in;
mod support;
mod trials;
mod verdicts;
