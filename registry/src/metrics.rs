//! What the cache counts. Labels are enums: never a repository, a digest or a client.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use http::{Response, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use tracing::debug;

use crate::{body::Body, registry_host::RegistryHost, route::Route};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum Kind {
    manifest,
    blob,
    list,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum Outcome {
    hit,
    miss,
    stale,
    denied,
    error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: Kind,
    result: Outcome,
}

/// A family without labels shows nothing until it has a value.
type NoLabels = [(&'static str, &'static str); 0];

/// All metrics of one cache.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    first_byte: Histogram,
    sent: Counter,
    received: Counter,
    used: Gauge,
    reachable: Gauge,
    /// Exported only once upstream has named a budget.
    rate_limit: Family<NoLabels, Gauge>,
    remaining: AtomicI64,
}

impl Metrics {
    /// With all counters at zero, so that the first fault shows as a rate.
    pub fn new(upstream: &RegistryHost) -> Self {
        let label = [("registry".into(), upstream.to_string().into())];
        let mut registry = Registry::with_prefix_and_labels("breakwater", label.into_iter());
        let (requests, sent, received) = (Family::<Labels, Counter>::default(), Counter::default(), Counter::default());
        for kind in [Kind::manifest, Kind::blob, Kind::list] {
            for result in [Outcome::hit, Outcome::miss, Outcome::stale, Outcome::denied, Outcome::error] {
                drop(requests.get_or_create(&Labels { kind, result }));
            }
        }
        let first_byte = Histogram::new([0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]);
        let (used, reachable) = (Gauge::default(), Gauge::default());
        let rate_limit = Family::<NoLabels, Gauge>::default();
        registry.register("cache_requests", "Requests answered", requests.clone());
        registry.register("cache_first_byte_seconds", "Time from a request to its answer's header", first_byte.clone());
        registry.register("cache_sent_bytes", "Bytes of blobs read for clients", sent.clone());
        registry.register("cache_used_bytes", "Bytes of committed content", used.clone());
        registry.register("upstream_received_bytes", "Bytes of content received from upstream", received.clone());
        registry.register("upstream_reachable", "Whether upstream answers", reachable.clone());
        registry.register("upstream_ratelimit_remaining", "Pulls that upstream still allows", rate_limit.clone());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What is running", version);
        Self {
            registry,
            requests,
            first_byte,
            sent,
            received,
            used,
            reachable,
            rate_limit,
            remaining: AtomicI64::new(-1),
        }
    }

    /// Counts a request, and tells it to the log.
    pub fn answered(&self, route: &Route, response: &Response<Body>, elapsed: Duration) {
        let cache_status =
            response.headers().get("cache-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let result = match response.status() {
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Outcome::denied,
            status if !status.is_success() => Outcome::error,
            _ if cache_status.starts_with("breakwater; hit") => Outcome::hit,
            _ if cache_status.starts_with("breakwater; fwd=stale") => Outcome::stale,
            _ => Outcome::miss,
        };
        let (kind, repository, what) = match route {
            Route::Base => return,
            Route::Manifest { repository, reference } => (Kind::manifest, repository, reference.to_string()),
            Route::Blob { repository, digest } => (Kind::blob, repository, digest.short().to_owned()),
            Route::List { repository, .. } => (Kind::list, repository, "list".to_owned()),
        };
        self.requests.get_or_create(&Labels { kind, result }).inc();
        self.first_byte.observe(elapsed.as_secs_f64());
        debug!(%repository, what, status = response.status().as_u16(), cache_status, elapsed = ?elapsed, "answered");
    }

    /// Bytes of a blob read for a client.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// Bytes of content received from upstream.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    /// Upstream has said how many pulls it still allows.
    pub fn set_rate_limit_remaining(&self, remaining: u32) {
        self.remaining.store(remaining.into(), Ordering::Relaxed);
        self.rate_limit.get_or_create(&[]).set(remaining.into());
    }

    /// How many pulls upstream still allows, if it has said so.
    pub fn rate_limit_remaining(&self) -> Option<u32> {
        u32::try_from(self.remaining.load(Ordering::Relaxed)).ok()
    }

    /// The text that Prometheus reads. Gauges are set from what is true now.
    pub fn text(&self, used: u64, is_reachable: bool) -> Result<String, std::fmt::Error> {
        self.used.set(i64::try_from(used).unwrap_or(i64::MAX));
        self.reachable.set(is_reachable.into());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
