//! What one registry's cache was asked for through this relay, and what came of it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the registry is mirrored on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that the cache served.
    pub served: u64,
    /// Requests that it answered with 404: the upstream has no such thing.
    pub absent: u64,
    /// Requests that the runtime was sent to the upstream with.
    pub unserved: u64,
    /// Answers that broke off for good; the runtime resumes them at the upstream.
    pub cut: u64,
    /// Bytes of content that were passed on.
    pub bytes: u64,
}

/// The same, being counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) served: Count,
    pub(super) absent: Count,
    pub(super) unserved: Count,
    pub(super) cut: Count,
    pub(super) bytes: Count,
}

/// One number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn read(&self) -> Traffic {
        let Self { served, absent, unserved, cut, bytes } = self;
        Traffic {
            served: served.get(),
            absent: absent.get(),
            unserved: unserved.get(),
            cut: cut.get(),
            bytes: bytes.get(),
        }
    }
}
