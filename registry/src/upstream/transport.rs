//! One request to one host: connections, deadlines, breakers and the address check. Knows nothing of registries' API,
//! of redirects or of credentials.

use std::{
    error::Error,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use reqwest::{Client, Request, Response, Url, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;
use tower::util::MapFutureLayer;
use tracing::{debug, info, warn};

use super::{
    address::Boundary,
    breaker::{Breakers, HostKey, Opened},
    redirect::is_same_origin,
    resolver::{LookUps, Resolver, Unresolved},
};
use crate::{
    background::Background,
    failure::Failure,
    metrics::{Metrics, Phase},
    reference::RepositoryName,
};

const CONNECT: Duration = Duration::from_secs(2);
/// From the first byte of a request to the last byte of the answer's header, token and redirects included.
pub(super) const HEADERS: Duration = Duration::from_secs(4);
/// A host with less time than this left is not to blame for being late.
const FAIR_SHARE: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const USER_AGENT: &str = concat!("breakwater-registry/", env!("CARGO_PKG_VERSION"));

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportInvalid {
    /// The TLS versions do not fit the crypto provider.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The HTTP client refused its settings.
    #[error("HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// Two sets of connections: to upstream itself, and to wherever it leads us.
struct Clients {
    own: Client,
    foreign: Client,
}

/// The way out.
pub(super) struct Transport {
    origin: Url,
    clients: ArcSwap<Clients>,
    /// Without kept connections: a probe must not be swallowed by one that died.
    probes: Clients,
    tls: ClientConfig,
    look_ups: Arc<LookUps>,
    boundary: Arc<Boundary>,
    pub(super) breakers: Breakers,
    metrics: Arc<Metrics>,
    background: Background,
}

impl Transport {
    /// Does no I/O yet.
    pub(super) fn new(
        origin: Url,
        roots: RootCertStore,
        metrics: Arc<Metrics>,
        background: Background,
    ) -> Result<Self, TransportInvalid> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TransportInvalid::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let look_ups = LookUps::new(background.clone());
        let boundary = Arc::new(Boundary::default());
        let clients = |kept| clients(&tls, &look_ups, &boundary, &metrics, kept).map_err(TransportInvalid::Client);
        let (kept, probes) = (clients(32)?, clients(0)?);
        Ok(Self {
            origin,
            clients: ArcSwap::from_pointee(kept),
            probes,
            tls,
            look_ups,
            boundary,
            breakers: Breakers::default(),
            metrics,
            background,
        })
    }

    pub(super) fn origin(&self) -> &Url {
        &self.origin
    }

    /// Sends `request` and waits for the answer's header until `deadline`.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request,
        repository: Option<&RepositoryName>,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let url = request.url().clone();
        let host = HostKey::of(&url);
        self.breakers.admit(&host)?;
        let clients = self.clients.load_full();
        let began = Instant::now();
        let answer = self.attempt(&clients, request, deadline).await;
        match &answer {
            Ok(response) if response.status().is_server_error() => {
                if let Some(repository) = repository
                    && self.breakers.server_error(&host, repository) == Opened::Now
                {
                    self.opened(&url, &host, Failure::ServerError);
                }
            }
            Ok(_) => {
                self.breakers.answered(&host);
            }
            Err(failure) => {
                let was_unfair = *failure == Failure::HeaderTimeout && deadline.duration_since(began) < FAIR_SHARE;
                if (failure.is_unconnected() || *failure == Failure::HeaderTimeout)
                    && !was_unfair
                    && self.breakers.silent(&host, began, *failure) == Opened::Now
                {
                    self.opened(&url, &host, *failure);
                }
            }
        }
        answer
    }

    async fn attempt(&self, clients: &Clients, request: Request, deadline: Instant) -> Result<Response, Failure> {
        let url = request.url().clone();
        let is_own = is_same_origin(&url, &self.origin);
        // Literal addresses never reach the resolver, so they are checked here.
        let literal: Option<IpAddr> = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        if !is_own && literal.is_some_and(|address| !self.boundary.allows(address)) {
            warn!(host = url.host_str(), "upstream leads to a forbidden address");
            return Err(Failure::ForbiddenAddress);
        }
        let client = if is_own { &clients.own } else { &clients.foreign };
        let answer = tokio::time::timeout_at(deadline.into(), client.execute(request));
        let answer = self.metrics.time(Phase::header, answer).await;
        let response = match answer {
            Err(_) => return Err(Failure::HeaderTimeout),
            Ok(Err(error)) => {
                let failure = classify(&error);
                debug!(
                    host = url.host_str(),
                    error = &error.without_url() as &dyn Error,
                    reason = failure.category(),
                    "no answer"
                );
                return Err(failure);
            }
            Ok(Ok(response)) => response,
        };
        if is_own && let Some(address) = response.remote_addr() {
            self.boundary.upstream_is_at(address.ip());
        }
        Ok(response)
    }

    /// A breaker has opened: drop connections that may be dead, and ask until the host answers again.
    fn opened(self: &Arc<Self>, url: &Url, host: &HostKey, failure: Failure) {
        warn!(host = host.as_str(), reason = failure.category(), "host does not answer, requests to it fail at once");
        match clients(&self.tls, &self.look_ups, &self.boundary, &self.metrics, 32) {
            Ok(fresh) => self.clients.store(Arc::new(fresh)),
            Err(error) => warn!(%error, "connections kept"),
        }
        let mut origin = url.clone();
        origin.set_path(if is_same_origin(url, &self.origin) { "/v2/" } else { "/" });
        origin.set_query(None);
        let (this, host) = (Arc::clone(self), host.clone());
        self.background.spawn(async move { this.probe_until_answered(origin, host, failure).await });
    }

    /// Probes start each second whether or not the one before has ended: what a dead host swallowed delays nothing.
    async fn probe_until_answered(self: Arc<Self>, url: Url, host: HostKey, failure: Failure) {
        let mut running = JoinSet::new();
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let (this, request) = (Arc::clone(&self), Request::new(http::Method::GET, url.clone()));
                    running.spawn(async move { this.attempt(&this.probes, request, Instant::now() + HEADERS).await });
                }
                Some(ended) = running.join_next() => {
                    let Ok(Ok(answer)) = ended else { continue };
                    // A host that was opened for its 5xx is back when it answers something else.
                    if failure != Failure::ServerError || !answer.status().is_server_error() {
                        self.breakers.answered(&host);
                        info!(host = host.as_str(), "host answers again");
                        return;
                    }
                }
            }
        }
    }
}

fn clients(
    tls: &ClientConfig,
    look_ups: &Arc<LookUps>,
    boundary: &Arc<Boundary>,
    metrics: &Arc<Metrics>,
    kept: usize,
) -> reqwest::Result<Clients> {
    let build = |boundary: Option<Arc<Boundary>>| {
        let (clock, metrics) = (Arc::clone(metrics), Arc::clone(metrics));
        Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .dns_resolver(Arc::new(Resolver { look_ups: Arc::clone(look_ups), boundary, metrics }))
            .connector_layer(MapFutureLayer::new(move |connecting| {
                let clock = Arc::clone(&clock);
                async move { clock.time(Phase::connect, connecting).await }
            }))
            .redirect(Policy::none())
            .no_proxy()
            .http1_only()
            .referer(false)
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15))
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(kept)
            .build()
    };
    Ok(Clients { own: build(None)?, foreign: build(Some(Arc::clone(boundary)))? })
}

/// What an error of the client says of the host.
fn classify(error: &reqwest::Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(unresolved) = cause.downcast_ref::<Unresolved>() {
            return match unresolved {
                Unresolved::Dns => Failure::Dns,
                Unresolved::Forbidden => Failure::ForbiddenAddress,
            };
        }
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return Failure::Tls;
        }
        source = cause.source();
    }
    match (error.is_timeout(), error.is_connect()) {
        (true, true) => Failure::ConnectTimeout,
        (true, false) => Failure::HeaderTimeout,
        (false, _) => Failure::Connect,
    }
}
