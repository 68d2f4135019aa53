//! What is counted of telling the other replicas what has come here from a registry.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Blobs, manifests, tags and lists; each counts once for each replica.
#[derive(Default)]
pub struct Replication {
    /// Not told yet.
    pub queued: Gauge,
    /// Told, and there now.
    pub replicated: Counter,
    /// Given up.
    pub dropped: Counter,
}

impl Replication {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "cache_replication_queued",
            "What other replicas are still to be told of: blobs, manifests, tags and lists, each once for each replica",
            self.queued.clone(),
        );
        registry.register(
            "cache_replicated",
            "What came from a registry and is at another replica too, as it was told",
            self.replicated.clone(),
        );
        registry.register(
            "cache_replication_dropped",
            "What another replica was not told of or could not take: too many while it was away, or an hour of refusals",
            self.dropped.clone(),
        );
    }
}
