//! One registry's cache as this node finds it: how it stands, and an exchange with it within the deadlines.

use super::ask::{Content, Digest, Kind};
use super::body::Cut;
use super::connect::{ConnectFault, Connection, Pool};
use super::health::{Health, Standing};
use super::route::{Route, Suspended};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// Headers must be here, over all Pods together.
const HEADERS: Duration = Duration::from_secs(5);
/// A cache that was not asked yet is asked at once; a request waits this long for the first verdict.
const FIRST_VERDICT: Duration = Duration::from_secs(1);

/// One registry's cache.
#[derive(Debug)]
pub(super) struct Cache {
    registry: String,
    route: ArcSwapOption<Route>,
    health: Mutex<Health>,
    standing: watch::Sender<Standing>,
    trouble: Mutex<Option<String>>,
    suspended: Mutex<Suspended>,
    pool: Pool,
    pub(super) look_now: Notify,
    changed: Arc<Notify>,
}

/// Why the cache does not serve a request; the runtime goes on to the next host.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unserved {
    #[error("the cache does not answer")]
    Out,
    #[error("an answer for this digest broke off a moment ago")]
    Suspended,
    #[error("{0}")]
    Connect(#[source] ConnectFault),
    #[error("no headers within {HEADERS:?}")]
    Late,
    #[error("the cache answered {0}")]
    Status(http::StatusCode),
    #[error("the cache's answer is not fit to be passed on: {0}")]
    Unfit(&'static str),
    #[error("{0}")]
    Cut(#[source] Cut),
}

/// What the agent reports of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// How it stands.
    pub standing: Standing,
    /// Whether an address is known.
    pub has_address: bool,
    /// What went wrong last.
    pub trouble: Option<String>,
}

impl Cache {
    pub(super) fn new(registry: &str, route: Option<Arc<Route>>, changed: Arc<Notify>) -> Self {
        Self {
            registry: registry.to_owned(),
            route: ArcSwapOption::new(route),
            health: Mutex::default(),
            standing: watch::Sender::new(Standing::Unknown),
            trouble: Mutex::default(),
            suspended: Mutex::default(),
            pool: Pool::default(),
            look_now: Notify::new(),
            changed,
        }
    }

    /// Replaces the way to the cache; what is known of its health stays.
    pub(super) fn set_route(&self, route: Option<Arc<Route>>) {
        self.route.store(route);
        self.look_now.notify_one();
    }

    pub(super) fn route(&self) -> Option<Arc<Route>> {
        self.route.load_full()
    }

    pub(super) fn view(&self) -> View {
        View {
            standing: *self.standing.borrow(),
            has_address: self.route.load().as_ref().is_some_and(|route| !route.endpoints.is_empty()),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether the prober may take its time.
    pub(super) fn is_settled(&self) -> bool {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).is_settled()
    }

    /// Takes a sign of life, or of none, into account.
    pub(super) fn witness(&self, sign: Result<(), &ConnectFault>) {
        let (before, after) = {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let before = health.standing();
            match &sign {
                Ok(()) => health.succeed(Instant::now()),
                Err(_) => health.fail(Instant::now()),
            }
            (before, health.standing())
        };
        let trouble = sign.err().map(ToString::to_string);
        let told =
            std::mem::replace(&mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner), trouble.clone());
        if before == after {
            if after != Standing::In && told != trouble {
                self.changed.notify_one();
            }
            return;
        }
        let (registry, error) = (&self.registry, trouble.as_deref().unwrap_or_default());
        match after {
            Standing::In => tracing::info!(registry, "cache answers, pulls go through it"),
            Standing::Out => tracing::warn!(registry, error, "cache does not answer, pulls go to the upstream"),
            Standing::Unproven => {
                tracing::warn!(registry, error, "cache does not answer yet, pulls go to the upstream");
            }
            Standing::Unknown => {}
        }
        self.standing.send_replace(after);
        self.changed.notify_one();
    }

    pub(super) fn release(&self, connection: Connection) {
        self.pool.put(connection);
    }

    /// A body broke off: its digest is asked elsewhere for a while, or the runtime would resume here again and again.
    pub(super) fn cut(&self, blob: Option<Digest>, cut: &Cut) {
        let digest = blob.as_ref().map(Digest::short).unwrap_or_default().to_owned();
        tracing::warn!(registry = self.registry, digest, error = %cut, "answer broke off, the runtime resumes elsewhere");
        if let Some(blob) = blob {
            self.suspended.lock().unwrap_or_else(PoisonError::into_inner).suspend(blob, Instant::now());
        }
        self.look_now.notify_one();
    }

    /// Asks the cache and returns its headers, or says within the deadlines that it will not serve.
    pub(super) async fn ask(
        &self,
        method: &Method,
        content: &Content,
        headers: &HeaderMap,
    ) -> Result<(Response<Incoming>, Connection), Unserved> {
        self.admit(content).await?;
        let route = self.route().ok_or(Unserved::Out)?;
        let deadline = Instant::now() + HEADERS;
        let mut standing = self.standing.subscribe();
        let gone_out = async {
            // Whatever waits for a hung cache is let go with the rest.
            if standing.wait_for(|standing| *standing == Standing::Out).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answered = timeout_at(deadline, self.exchange(&route, method, content, headers)) => match answered {
                Ok(answered) => answered.map_err(Unserved::Connect),
                Err(_) => {
                    self.look_now.notify_one();
                    Err(Unserved::Late)
                }
            },
            () = gone_out => Err(Unserved::Out),
        }
    }

    async fn admit(&self, content: &Content) -> Result<(), Unserved> {
        let mut standing = self.standing.subscribe();
        let verdict = timeout(FIRST_VERDICT, standing.wait_for(|standing| *standing != Standing::Unknown)).await;
        if !matches!(verdict, Ok(Ok(standing)) if *standing == Standing::In) {
            return Err(Unserved::Out);
        }
        match &content.kind {
            Kind::Blob(digest) | Kind::Manifest(Some(digest)) => {
                let mut suspended = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
                if suspended.holds(digest, Instant::now()) { Err(Unserved::Suspended) } else { Ok(()) }
            }
            Kind::Manifest(None) | Kind::Other => Ok(()),
        }
    }

    /// One request over a pooled connection if one lives, else over a fresh one to the first Pod that takes it.
    async fn exchange(
        &self,
        route: &Arc<Route>,
        method: &Method,
        content: &Content,
        headers: &HeaderMap,
    ) -> Result<(Response<Incoming>, Connection), ConnectFault> {
        while let Some(mut connection) = self.pool.take(route) {
            // The Pod may have closed it meanwhile, which says nothing about its health.
            if let Ok(response) = connection.send(request(route, method, content, headers)).await {
                self.witness(Ok(()));
                return Ok((response, connection));
            }
        }
        let mut last = ConnectFault::NoAddress;
        for endpoint in route.ranked(&content.repository) {
            let sent = async {
                let mut connection = Connection::open(route, endpoint.address).await?;
                let response = connection.send(request(route, method, content, headers)).await?;
                Ok((response, connection))
            };
            match sent.await {
                Ok(answered) => {
                    self.witness(Ok(()));
                    return Ok(answered);
                }
                Err(fault) => last = fault,
            }
        }
        if last.is_absence() {
            self.witness(Err(&last));
        }
        self.look_now.notify_one();
        Err(last)
    }

    /// Asks over a fresh connection whether anybody is there.
    pub(super) async fn probe(route: &Arc<Route>, within: Duration) -> Result<(), ConnectFault> {
        let asks = route.endpoints.iter().map(|endpoint| {
            let address = endpoint.address;
            Box::pin(async move {
                let asked = timeout(within, async {
                    let mut connection = Connection::open(route, address).await?;
                    let base = Request::get("/v2/")
                        .header(header::HOST, &route.host)
                        .header(header::AUTHORIZATION, &route.authorization)
                        .body(Empty::new())
                        .unwrap_or_default();
                    connection.send(base).await.map(|response| response.status())
                });
                match asked.await {
                    Err(_) => Err(ConnectFault::Silent { address, after: within }),
                    Ok(Ok(status)) if status == 401 || status == 403 => Err(ConnectFault::Refused { address, status }),
                    Ok(answered) => answered.map(drop),
                }
            })
        });
        let asks: Vec<_> = asks.collect();
        if asks.is_empty() {
            return Err(ConnectFault::NoAddress);
        }
        futures::future::select_ok(asks).await.map(drop)
    }
}

/// What of the runtime's headers reaches the cache; its credentials are for the upstream, not for us.
const FORWARDED: [header::HeaderName; 8] = [
    header::ACCEPT,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::USER_AGENT,
];

fn request(route: &Route, method: &Method, content: &Content, headers: &HeaderMap) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    // Parsed from a valid URI and of plain characters, so it is one again.
    *request.uri_mut() = content.target.parse().unwrap_or_default();
    // A manifest is verified as a whole before a byte goes out, so it is asked for as a whole.
    let whole = matches!(content.kind, Kind::Manifest(_));
    let to = request.headers_mut();
    for name in FORWARDED.into_iter().filter(|name| !(whole && (name == header::RANGE || name == header::IF_RANGE))) {
        for value in headers.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
    to.insert(header::HOST, route.host.clone());
    to.insert(header::AUTHORIZATION, route.authorization.clone());
    request
}
