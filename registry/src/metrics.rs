//! What the cache counts. Labels are enums: never a repository, a digest or a client. `docs/metrics.md` lists all of it.

mod disk;
mod labels;
mod replication;

use std::{
    future::Future,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

pub use self::labels::{HostRole, Kind, Listener, Outcome, Phase, PinState, Source};
use self::{
    disk::Disk,
    labels::{Answered, At, From, InPhase, InState, OfHost, Result},
    replication::Replication,
};
use crate::{registry_host::RegistryHost, upstream::RateLimit};

/// The commit that the binary was built from, given by whoever builds the image.
const REVISION: &str = match option_env!("BREAKWATER_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
const SECONDS: [f64; 12] = [0.000_25, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0];

/// A family without labels shows nothing until it has a value.
type NoLabels = [(&'static str, &'static str); 0];

/// All metrics of one cache.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    first_byte: Family<Result, Histogram>,
    sent: Counter,
    content: Family<From, Counter>,
    readers: Gauge,
    flights: Gauge,
    connections: Family<At, Gauge>,
    used: Gauge,
    /// The folder.
    pub disk: Disk,
    /// What the other replicas are told.
    pub replication: Replication,
    pins: Family<InState, Gauge>,
    pinned: Gauge,
    log_lines_lost: Counter,
    reachable: Gauge,
    phases: Family<InPhase, Histogram>,
    open_breakers: Family<OfHost, Gauge>,
    /// Exported only once upstream has named a budget: limit, remaining, seconds until it is reset.
    rate_limit: [Family<NoLabels, Gauge>; 3],
    /// Exported only with a TLS listener.
    certificate_expiry: Family<NoLabels, Gauge>,
    certificate_errors: Counter,
}

/// Counts something as there for as long as it is held.
pub struct Held(Gauge);

impl Held {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// With all counters at zero, so that the first fault shows as a rate.
    pub fn new(upstream: &RegistryHost) -> Self {
        let label = [("registry".into(), upstream.to_string().into())];
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix_and_labels("breakwater", label.into_iter()),
            requests: Family::default(),
            first_byte: Family::new_with_constructor(histogram),
            sent: Counter::default(),
            content: Family::default(),
            readers: Gauge::default(),
            flights: Gauge::default(),
            connections: Family::default(),
            used: Gauge::default(),
            disk: Disk::default(),
            replication: Replication::default(),
            pins: Family::default(),
            pinned: Gauge::default(),
            log_lines_lost: Counter::default(),
            reachable: Gauge::default(),
            phases: Family::new_with_constructor(histogram),
            open_breakers: Family::default(),
            rate_limit: Default::default(),
            certificate_expiry: Family::default(),
            certificate_errors: Counter::default(),
        };
        metrics.create_children();
        metrics.register();
        metrics
    }

    fn create_children(&self) {
        for result in [Outcome::hit, Outcome::miss, Outcome::stale, Outcome::denied, Outcome::error] {
            for kind in [Kind::manifest, Kind::blob, Kind::list] {
                drop(self.requests.get_or_create(&Answered { kind, result }));
            }
            drop(self.first_byte.get_or_create(&Result { result }));
        }
        for result in [Outcome::hit, Outcome::denied] {
            drop(self.requests.get_or_create(&Answered { kind: Kind::other, result }));
        }
        for source in [Source::upstream, Source::alternate, Source::peer, Source::disk] {
            drop(self.content.get_or_create(&From { source }));
        }
        for phase in [Phase::resolve, Phase::connect, Phase::header, Phase::body] {
            drop(self.phases.get_or_create(&InPhase { phase }));
        }
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "cache_requests",
            "Requests answered; denied: upstream does not have it or refuses, or no token was shown, or there is no such path or range, or only-if-cached forbids to ask",
            self.requests.clone(),
        );
        registry.register(
            "cache_first_byte_seconds",
            "Time from a request to its answer's header and first byte",
            self.first_byte.clone(),
        );
        registry.register("cache_sent_bytes", "Bytes of blobs read for clients", self.sent.clone());
        registry.register(
            "cache_content_bytes",
            "Bytes of content by where they came from; disk: blobs that clients got without asking anyone",
            self.content.clone(),
        );
        registry.register("cache_readers", "Answers with a blob that are under way", self.readers.clone());
        registry.register("cache_flights", "Downloads of blobs that are under way", self.flights.clone());
        registry.register("cache_connections", "Connections that are open", self.connections.clone());
        registry.register("cache_used_bytes", "Bytes of committed content", self.used.clone());
        self.disk.register(registry);
        self.replication.register(registry);
        registry.register("cache_pins", "Pinned images, by how much of each is here", self.pins.clone());
        registry.register("cache_pinned_bytes", "Bytes that the pinned images need", self.pinned.clone());
        registry.register(
            "cache_log_lines_lost",
            "Log lines left out because nobody read them in time",
            self.log_lines_lost.clone(),
        );
        registry.register(
            "cache_tls_certificate_expiry_timestamp_seconds",
            "When the TLS listener's certificate ends, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "cache_tls_certificate_errors",
            "Times that tls.crt and tls.key had changed and could not be used; the old pair stays",
            self.certificate_errors.clone(),
        );
        registry.register("upstream_reachable", "Whether upstream answers", self.reachable.clone());
        registry.register(
            "upstream_phase_seconds",
            "Time that requests to upstream took, by phase; connect includes resolve and TLS, header includes connect",
            self.phases.clone(),
        );
        registry.register(
            "upstream_breakers_open",
            "Hosts that failed, so that requests to them fail at once until they answer again",
            self.open_breakers.clone(),
        );
        let [limit, remaining, reset] = &self.rate_limit;
        registry.register(
            "upstream_ratelimit_limit",
            "Pulls that upstream allows in a window, once it has said so",
            limit.clone(),
        );
        registry.register(
            "upstream_ratelimit_remaining",
            "Pulls that upstream still allows, once it has said so",
            remaining.clone(),
        );
        registry.register(
            "upstream_ratelimit_reset_seconds",
            "Time until upstream allows more, once it has said so or answered 429",
            reset.clone(),
        );
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("revision", REVISION)]);
        registry.register("build", "What is running", build);
    }

    /// Counts an answer whose header came after `elapsed`.
    pub fn answered(&self, kind: Kind, result: Outcome, elapsed: Duration) {
        self.requests.get_or_create(&Answered { kind, result }).inc();
        self.first_byte.get_or_create(&Result { result }).observe(elapsed.as_secs_f64());
    }

    /// Bytes of a blob read for a client.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// A client reads a blob.
    pub fn reader(&self) -> Held {
        Held::of(&self.readers)
    }

    /// A blob is being downloaded.
    pub fn flight(&self) -> Held {
        Held::of(&self.flights)
    }

    /// The count of a listener's open connections.
    pub fn connections(&self, listener: Listener) -> Connections {
        Connections(self.connections.get_or_create(&At { listener }).clone())
    }

    /// How many pins there are in each state.
    pub fn set_pins(&self, counts: [(PinState, usize); 3]) {
        for (state, count) in counts {
            self.pins.get_or_create(&InState { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// How much the pins need.
    pub fn set_pinned(&self, bytes: u64) {
        self.pinned.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Bytes of content came from `source`.
    pub fn content(&self, source: Source, bytes: u64) {
        self.content.get_or_create(&From { source }).inc_by(bytes);
    }

    /// Times a part of a request to upstream, also one that fails or is given up.
    pub async fn time<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        let _timer = self.timer(phase);
        work.await
    }

    /// Times the rest of what holds the timer.
    pub fn timer(&self, phase: Phase) -> Timer {
        Timer { histogram: self.phases.get_or_create(&InPhase { phase }).clone(), began: Instant::now() }
    }

    /// The certificate in use ends then, in seconds since 1970.
    pub fn set_certificate_expiry(&self, at: i64) {
        self.certificate_expiry.get_or_create(&[]).set(at);
    }

    /// A new certificate cannot be used.
    pub fn certificate_error(&self) {
        self.certificate_errors.inc();
    }

    /// The text that Prometheus reads. Gauges are set from what is true now.
    pub fn text(&self, now: &Now) -> std::result::Result<String, std::fmt::Error> {
        let Now { used, is_reachable, open_breakers, log_lines_lost, rate_limit } = now;
        self.used.set(i64::try_from(*used).unwrap_or(i64::MAX));
        self.reachable.set((*is_reachable).into());
        for (host, count) in open_breakers {
            self.open_breakers.get_or_create(&OfHost { host: *host }).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.log_lines_lost.inner().store(*log_lines_lost, Ordering::Relaxed);
        let RateLimit { limit, remaining, reset } = rate_limit;
        for (gauge, value) in self.rate_limit.iter().zip([*limit, *remaining, reset.map(|left| left.as_secs())]) {
            match value {
                Some(value) => drop(gauge.get_or_create(&[]).set(i64::try_from(value).unwrap_or(i64::MAX))),
                None => gauge.clear(),
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What others know best, read when the metrics are.
pub struct Now {
    /// Bytes of committed content.
    pub used: u64,
    /// Whether upstream answers.
    pub is_reachable: bool,
    /// How many breakers are open, by the part their hosts play.
    pub open_breakers: [(HostRole, usize); 3],
    /// Log lines that nobody read.
    pub log_lines_lost: u64,
    /// What upstream still allows.
    pub rate_limit: RateLimit,
}

/// Counts connections.
#[derive(Clone)]
pub struct Connections(Gauge);

impl Connections {
    /// One is open for as long as this is held.
    pub fn open(&self) -> Held {
        Held::of(&self.0)
    }
}

/// Measures until it is dropped.
pub struct Timer {
    histogram: Histogram,
    began: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histogram.observe(self.began.elapsed().as_secs_f64());
    }
}
