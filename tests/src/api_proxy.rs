//! A door before a real API server: a program that comes by it is counted, refused or held at the requests that a test chooses. It
//! knows nothing of what is asked.
//!
//! Whoever comes by it acts as one user, by impersonation, so that the API server holds it to that user's roles.
#![allow(clippy::expect_used, reason = "a harness fails its test by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::accept;

/// A request, as a rule sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its path without the query.
    pub path: String,
    /// Whether it watches.
    pub watches: bool,
}

impl Asked {
    /// Whether it changes anything but the lease, which is renewed all the time.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS) && !self.path.contains("/leases")
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It goes on to the API server.
    Pass,
    /// It is answered with this status and reason, and changes nothing.
    Refuse(u16, &'static str, &'static str),
    /// It is answered with 200 and nothing else, as a watch that ends at once.
    End,
    /// It is not answered any more, and changes nothing.
    HoldBefore,
    /// It goes on to the API server, and its answer does not come back.
    HoldAfter,
}

type Rule = Box<dyn FnMut(&Asked) -> Act + Send>;

/// A running door. Dropping it closes the port and every connection.
pub struct ApiProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

struct Shared {
    client: Client,
    identity: HeaderMap,
    rule: Mutex<Rule>,
    asked: Mutex<Vec<Asked>>,
    held: watch::Sender<usize>,
    cuts: watch::Sender<usize>,
}

impl ApiProxy {
    /// A door to the API server of an administrator's `client`, for a service account.
    ///
    /// # Errors
    /// Fails when no port can be had.
    pub async fn start(client: Client, namespace: &str, account: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("take a port")?;
        let address = listener.local_addr().context("ask for the port")?;
        let mut identity = HeaderMap::new();
        let user = format!("system:serviceaccount:{namespace}:{account}");
        identity.insert("impersonate-user", user.parse().context("name a user")?);
        for group in ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"]
        {
            identity.append("impersonate-group", group.parse().context("name a group")?);
        }
        let rule: Mutex<Rule> = Mutex::new(Box::new(|_| Act::Pass));
        let shared = Arc::new(Shared {
            client,
            identity,
            rule,
            asked: Mutex::default(),
            held: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let mut task = JoinSet::new();
        let known = Arc::clone(&shared);
        task.spawn(accept::each(listener, move |stream| {
            let shared = Arc::clone(&known);
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { shared.answer(request).await }
            });
            let mut cuts = known.cuts.subscribe();
            // Errors mean that one side went away, which is its right.
            async move {
                let serving =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = serving => {}
                    _ = cuts.changed() => {}
                }
            }
        }));
        Ok(Self { address, shared, _task: task })
    }

    /// From now on requests are treated by `rule`, and counted from zero.
    pub fn treat(&self, rule: impl FnMut(&Asked) -> Act + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
        lock(&self.shared.asked).clear();
        self.shared.held.send_replace(0);
    }

    /// What was asked since the last [`Self::treat`].
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Closes every connection, in the middle of whatever is under way on it.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Waits until a request is held.
    pub async fn held(&self) {
        let mut held = self.shared.held.subscribe();
        held.wait_for(|held| *held > 0).await.expect("the door is open");
    }

    /// Writes a kubeconfig that leads by this door.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "door", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "door", "user": {}}],
            "contexts": [{"name": "door", "context": {"cluster": "door", "user": "door"}}],
            "current-context": "door",
        });
        let path = folder.join(format!("kubeconfig-{}", self.address.port()));
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Shared {
    /// An error closes the connection, as when nobody listens there.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, kube::Error> {
        let watches =
            request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("watch=")));
        let asked = Asked { method: request.method().clone(), path: request.uri().path().to_owned(), watches };
        let act = (lock(&self.rule))(&asked);
        lock(&self.asked).push(asked);
        match act {
            Act::Pass => self.forward(request).await,
            Act::Refuse(code, reason, message) => Ok(refusal(code, reason, message)),
            Act::End => Ok(Response::new(Body::empty())),
            Act::HoldBefore => self.hold().await,
            Act::HoldAfter => {
                drop(self.forward(request).await);
                self.hold().await
            }
        }
    }

    async fn hold(&self) -> Result<Response<Body>, kube::Error> {
        self.held.send_modify(|held| *held += 1);
        std::future::pending().await
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, kube::Error> {
        let (mut parts, body) = request.into_parts();
        for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            parts.headers.remove(name);
        }
        parts.headers.extend(self.identity.clone());
        let Ok(body) = body.collect().await else { return Ok(refusal(400, "BadRequest", "broken off")) };
        self.client.send(Request::from_parts(parts, Body::from(body.to_bytes().to_vec()))).await
    }
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    let mut answer = Response::new(Body::from(status.to_string().into_bytes()));
    *answer.status_mut() = http::StatusCode::from_u16(code).expect("a status");
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
