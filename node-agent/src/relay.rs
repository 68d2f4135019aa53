//! The relay: the only address of ours that a container runtime knows. Sends each request to its registry's cache, and says
//! at once when that will not serve, so that the runtime goes to the upstream.

mod ask;
mod audit;
mod awake;
mod body;
mod bulk;
mod cache;
mod canary;
mod conduct;
mod connect;
mod fitness;
mod forward;
mod hang;
mod health;
mod hedge;
mod judge;
mod listen;
mod origin;
mod patience;
mod patient;
mod portion;
mod probe;
mod replica;
mod request;
mod resume;
mod route;
mod suspended;
mod traffic;
mod trial;
mod verify;

use crate::registry_host::RegistryHost;
use arc_swap::ArcSwap;
use ask::{Ask, Refusal};
use body::RelayBody;
use cache::Cache;
use canary::Canaries;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use listen::{Answer, Room};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use verify::Verifying;

pub use cache::View;
pub use canary::Canary;
pub use health::Standing;
pub use route::{NoRoute, Route, Trusting, trust_only};
pub use traffic::Traffic;

/// The agent counts as hung when its main loop has not turned for this long. Generous, because a loop that waits for a slow
/// disk harms no pull, and a restart would.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The relay of one node. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    caches: ArcSwap<BTreeMap<String, Arc<Cache>>>,
    canaries: Arc<Canaries>,
    changed: Arc<Notify>,
    verifying: Verifying,
    beat: ArcSwap<Instant>,
}

impl Default for Relay {
    fn default() -> Self {
        let beat = ArcSwap::from_pointee(Instant::now());
        Self(Arc::new(Inner {
            caches: ArcSwap::default(),
            canaries: Arc::default(),
            changed: Arc::default(),
            verifying: Verifying::default(),
            beat,
        }))
    }
}

impl Relay {
    /// Replaces the routes. A registry that stays keeps what is known of its cache's health.
    pub fn set_routes(&self, routes: BTreeMap<RegistryHost, Option<Arc<Route>>>) {
        let before = self.0.caches.load_full();
        let mut caches = BTreeMap::new();
        let Inner { changed, verifying, .. } = &*self.0;
        for (registry, route) in routes {
            let name = registry.as_str();
            let cache = match before.get(name) {
                Some(cache) => {
                    cache.set_route(route);
                    cache.clone()
                }
                None => Arc::new(Cache::new(name, route, changed.clone(), verifying.clone())),
            };
            caches.insert(name.to_owned(), cache);
        }
        self.0.caches.store(Arc::new(caches));
    }

    /// How each cache stands.
    #[must_use]
    pub fn views(&self) -> BTreeMap<String, View> {
        self.0.caches.load().iter().map(|(registry, cache)| (registry.clone(), cache.view())).collect()
    }

    /// What each cache was asked for.
    #[must_use]
    pub fn traffic(&self) -> BTreeMap<String, Traffic> {
        self.0.caches.load().iter().map(|(registry, cache)| (registry.clone(), cache.counters.read())).collect()
    }

    /// Waits until a view may have changed since the last wait.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Lets out an image that only this relay can serve; None without random numbers.
    #[must_use]
    pub fn release_canary(&self, registry: &str) -> Option<Canary> {
        self.0.canaries.release(registry)
    }

    /// From now on, real content asked of these registries is told by [`Self::asked`].
    pub fn await_proof(&self, registries: BTreeSet<String>) {
        self.0.canaries.await_proof(registries);
    }

    /// Waits until a runtime asked for real content of registries that wait for it.
    pub async fn asked(&self) -> BTreeSet<String> {
        self.0.canaries.asked().await
    }

    /// The main loop turned.
    pub fn beat(&self) {
        self.0.beat.store(Arc::new(Instant::now()));
    }

    /// Whether the main loop turned not long ago.
    #[must_use]
    pub fn beats(&self) -> bool {
        self.0.beats()
    }

    /// Serves until told to stop, then lets running downloads finish for a while.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        listen::serve(listener, self.0, stop).await;
    }
}

impl Answer for Inner {
    fn answer(&self, request: Request<Incoming>, room: Room) -> impl Future<Output = Response<RelayBody>> + Send {
        self.answer(request, room)
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>, room: Room) -> Response<RelayBody> {
        let started = Instant::now();
        let (parts, _) = request.into_parts();
        let content = match Ask::parse(&parts.method, &parts.uri) {
            Ok(Ask::Health) => return self.health(),
            _ if room == Room::None => return unserved("too many connections"),
            Ok(Ask::Base) => return plain(StatusCode::OK, "{}"),
            Ok(Ask::Content(content)) => Arc::new(content),
            Err(Refusal::Method) => return refuse_method(),
            Err(Refusal::Path) => return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such path"),
        };
        if let Some(answer) = self.canaries.answer(&parts.method, &content) {
            return answer;
        }
        let Some(cache) = self.caches.load().get(&content.registry).cloned() else {
            return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "this node has no mirror of that registry");
        };
        let answered = forward::forward(&cache, &parts.method, &content, &parts.headers).await;
        let status = answered.as_ref().map_or(StatusCode::SERVICE_UNAVAILABLE, Response::status);
        let counters = &cache.counters;
        let count = match (&answered, status) {
            (Err(_), _) => &counters.unserved,
            (Ok(_), StatusCode::NOT_FOUND) => &counters.absent,
            (Ok(_), _) => &counters.served,
        };
        count.add(1);
        tracing::debug!(
            registry = content.registry, repository = content.repository, method = %parts.method, target = content.target,
            status = status.as_u16(), error = answered.as_ref().err().map(tracing::field::display),
            elapsed = ?started.elapsed(), "relayed"
        );
        answered.unwrap_or_else(|fault| unserved(&fault.to_string()))
    }

    fn beats(&self) -> bool {
        self.beat.load().elapsed() < HEARTBEAT
    }

    fn health(&self) -> Response<RelayBody> {
        if self.beats() {
            plain(StatusCode::OK, "ok\n")
        } else {
            plain(StatusCode::SERVICE_UNAVAILABLE, "the main loop hangs\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<RelayBody> {
    let mut response = Response::new(RelayBody::whole(text));
    *response.status_mut() = status;
    response
}

fn unserved(message: &str) -> Response<RelayBody> {
    error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
}

fn refuse_method() -> Response<RelayBody> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "only GET and HEAD are served");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// An answer of the relay's own, in the form that registries use.
fn error(status: StatusCode, code: &str, message: &str) -> Response<RelayBody> {
    let body = json!({"errors": [{"code": code, "message": format!("breakwater relay: {message}")}]});
    let mut response = Response::new(RelayBody::whole(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
