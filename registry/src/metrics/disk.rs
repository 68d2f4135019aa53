//! What is counted of the cache's folder: how full it is, and what was done to keep it in order.

use std::sync::atomic::Ordering;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::store::{Store, Tally};

/// Metrics of the folder; set from what is true when they are read.
#[derive(Default)]
pub struct Disk {
    limit: Gauge,
    free: Gauge,
    partial: Gauge,
    evicted: Counter,
    evicted_bytes: Counter,
    quarantined: Counter,
    scrubbed_bytes: Counter,
}

impl Disk {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("cache_limit_bytes", "Bytes that may be kept; 0 if nobody knows", self.limit.clone());
        registry.register("cache_volume_free_bytes", "Bytes that are free on the volume", self.free.clone());
        registry.register("cache_partial_bytes", "Bytes of downloads that have not ended", self.partial.clone());
        registry.register("cache_evicted", "Files evicted to make room", self.evicted.clone());
        registry.register("cache_evicted_bytes", "Bytes evicted to make room", self.evicted_bytes.clone());
        registry.register("cache_quarantined", "Files on disk that were wrong and set aside", self.quarantined.clone());
        registry.register("cache_scrubbed_bytes", "Bytes hashed again in the background", self.scrubbed_bytes.clone());
    }

    /// Takes over what the store says.
    pub fn set(&self, store: &Store) {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.limit.set(bytes(store.space.limit().unwrap_or(0)));
        self.free.set(bytes(store.space.free()));
        self.partial.set(bytes(store.partials.used()));
        let Tally { evicted, evicted_bytes, quarantined, scrubbed_bytes } = &*store.tally;
        for (counter, value) in [
            (&self.evicted, evicted),
            (&self.evicted_bytes, evicted_bytes),
            (&self.quarantined, quarantined),
            (&self.scrubbed_bytes, scrubbed_bytes),
        ] {
            counter.inner().store(value.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
