//! One request to one host: connections, deadlines, breakers and the address check. Knows nothing of registries' API,
//! of redirects or of credentials.

use std::{
    error::Error,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use reqwest::{Body, Request, Response, Url};
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{
    address::Boundary,
    breaker::{Breakers, HostKey, Opened},
    client::{Clients, NoAnswer, Recipe, answer_of, classify},
    connector::Peer,
    proxy::ProxyUrl,
    redirect::is_same_origin,
    resolver::LookUps,
};
use crate::{
    background::Background,
    coalesce::Coalesce,
    failure::Failure,
    metrics::{Metrics, Phase},
    reference::RepositoryName,
};

/// From the first byte of a request to the last byte of the answer's header, token and redirects included.
pub(super) const HEADERS: Duration = Duration::from_secs(4);
/// A host with less time than this left is not to blame for being late.
const FAIR_SHARE: Duration = Duration::from_secs(1);
/// After this long without a header the host is asked for something else.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// And has so long to answer: the verdict is there before the first request's time is up.
const VERDICT: Duration = Duration::from_millis(2500);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportInvalid {
    /// The TLS versions do not fit the crypto provider.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// How upstream is reached.
pub struct Outlet {
    /// Where it is.
    pub url: Url,
    /// What its certificate must descend from.
    pub roots: RootCertStore,
    /// What stands in between.
    pub proxy: Option<ProxyUrl>,
}

/// The way out.
pub(super) struct Transport {
    origin: Url,
    clients: ArcSwap<Clients>,
    /// Without kept connections: a probe must not be swallowed by one that died.
    probes: Clients,
    recipe: Recipe,
    boundary: Arc<Boundary>,
    pub(super) breakers: Breakers,
    suspicions: Coalesce<HostKey, ()>,
    metrics: Arc<Metrics>,
    background: Background,
}

impl Transport {
    /// Does no I/O yet.
    pub(super) fn new(outlet: Outlet, metrics: Arc<Metrics>, background: Background) -> Result<Self, TransportInvalid> {
        let Outlet { url: origin, roots, proxy } = outlet;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TransportInvalid::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let look_ups = LookUps::new(background.clone());
        let boundary = Arc::new(Boundary::default());
        if let Some(address) = literal(&origin).filter(|_| proxy.is_some()) {
            boundary.upstream_is_at(address);
        }
        let recipe = Recipe { tls, proxy, look_ups, boundary: Arc::clone(&boundary), metrics: Arc::clone(&metrics) };
        let (kept, probes) = (recipe.clients(32), recipe.clients(0));
        Ok(Self {
            origin,
            clients: ArcSwap::from_pointee(kept),
            probes,
            recipe,
            boundary,
            breakers: Breakers::default(),
            suspicions: Coalesce::new(background.clone()),
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
        let attempt = self.attempt(&clients, request, deadline);
        tokio::pin!(attempt);
        let answer = match tokio::time::timeout(SUSPICIOUS, &mut attempt).await {
            Ok(answer) => answer,
            Err(_) => {
                self.suspect(&url, &host);
                attempt.await
            }
        };
        match &answer {
            Ok(response) if response.status().is_server_error() => {
                if repository.is_some_and(|repository| self.breakers.server_error(&host, repository)) {
                    self.suspect(&url, &host);
                }
            }
            Ok(_) => {
                self.breakers.answered(&host, repository);
            }
            Err(failure) => self.failed(*failure, &url, &host, began, deadline),
        }
        answer
    }

    /// A request got no answer: is the host to blame?
    fn failed(self: &Arc<Self>, failure: Failure, url: &Url, host: &HostKey, began: Instant, deadline: Instant) {
        let is_silence = match failure {
            Failure::HeaderTimeout => deadline.duration_since(began) >= FAIR_SHARE,
            failure => failure.is_unconnected(),
        };
        if is_silence && self.breakers.silent(host, began, failure) == Opened::Now {
            self.opened(url, host, failure);
        }
        if failure == Failure::Disconnected {
            self.suspect(url, host);
        }
    }

    /// A request fares badly. That may be its repository's fault, so the host is asked for something else: an answer keeps
    /// its breaker closed, silence opens it, and so does a 5xx after those of several repositories.
    fn suspect(self: &Arc<Self>, url: &Url, host: &HostKey) {
        let (this, url, name) = (Arc::clone(self), self.something_else(url), host.clone());
        // The first to suspect asks for all.
        drop(self.suspicions.join(host.clone(), || async move {
            let began = Instant::now();
            match this.attempt(&this.probes, Request::new(http::Method::GET, url.clone()), began + VERDICT).await {
                Ok(answer) if answer.status().is_server_error() => {
                    this.breakers.heard(&name);
                    if this.breakers.sick(&name) == Opened::Now {
                        this.opened(&url, &name, Failure::ServerError);
                    }
                }
                Ok(_) => {
                    this.breakers.heard(&name);
                    this.breakers.sound(&name);
                }
                Err(failure) => {
                    let is_dead = failure.is_silence();
                    if is_dead && this.breakers.silent(&name, began, failure) == Opened::Now {
                        this.opened(&url, &name, failure);
                    }
                }
            }
        }));
    }

    /// What any repository's trouble has no part in.
    fn something_else(&self, url: &Url) -> Url {
        let mut other = url.clone();
        other.set_path(if is_same_origin(url, &self.origin) { "/v2/" } else { "/" });
        other.set_query(None);
        other
    }

    async fn attempt(&self, clients: &Clients, request: Request, deadline: Instant) -> Result<Response, Failure> {
        let url = request.url().clone();
        let is_own = is_same_origin(&url, &self.origin);
        // Literal addresses never reach the resolver, so they are checked here.
        if !is_own && literal(&url).is_some_and(|address| !self.boundary.allows(address)) {
            warn!(host = url.host_str(), "upstream leads to a forbidden address");
            return Err(Failure::ForbiddenAddress);
        }
        let client = if is_own { &clients.own } else { &clients.foreign };
        let answer = tokio::time::timeout_at(deadline.into(), answer_of(client, self.recipe.request(request)?));
        let answer = self.metrics.time(Phase::header, answer).await;
        let response = match answer {
            Err(_) => return Err(Failure::HeaderTimeout),
            Ok(Err(NoAnswer::Flooded)) => {
                warn!(host = url.host_str(), "host sends interim answers without end");
                return Err(Failure::InvalidResponse);
            }
            Ok(Err(NoAnswer::Client(error))) => {
                let failure = classify(&error);
                debug!(host = url.host_str(), error = &error as &dyn Error, reason = failure.category(), "no answer");
                return Err(failure);
            }
            Ok(Ok(response)) => response,
        };
        if is_own
            && self.recipe.proxy.is_none()
            && let Some(Peer(address)) = response.extensions().get()
        {
            self.boundary.upstream_is_at(address.ip());
        }
        Ok(response.map(Body::wrap).into())
    }

    /// A breaker has opened: drop connections that may be dead, and ask until the host answers again.
    fn opened(self: &Arc<Self>, url: &Url, host: &HostKey, failure: Failure) {
        warn!(host = host.as_str(), reason = failure.category(), "host does not answer, requests to it fail at once");
        self.clients.store(Arc::new(self.recipe.clients(32)));
        let (this, url, host) = (Arc::clone(self), self.something_else(url), host.clone());
        self.background.spawn(async move { this.probe_until_answered(url, host, failure).await });
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
                        self.breakers.answered(&host, None);
                        info!(host = host.as_str(), "host answers again");
                        return;
                    }
                }
            }
        }
    }
}

/// The address that stands as it is in a URL.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}
