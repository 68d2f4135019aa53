//! What is counted of telling the other replicas what has come here.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Blobs, manifests and tags; each counts once for each replica.
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
            "Blobs, manifests and tags that another replica is still to be told of; each counts once for each replica",
            self.queued.clone(),
        );
        registry.register(
            "cache_replicated",
            "Blobs, manifests and tags that came from a registry and are at another replica too, as it was told of them",
            self.replicated.clone(),
        );
        registry.register(
            "cache_replication_dropped",
            "Those that another replica was not told of or could not take: too many while it was away, or an hour of refusals",
            self.dropped.clone(),
        );
    }
}
