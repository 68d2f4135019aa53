//! The HTTP clients: how they are made, what a request of theirs looks like, and what their errors say of a host.

use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue,
    header::{ACCEPT, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::Empty;
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioTimer},
};
use reqwest::Request;
use rustls::ClientConfig;
use tokio::sync::Notify;

use super::{
    address::Boundary,
    connector::Connector,
    proxy::ProxyUrl,
    resolver::{LookUps, Resolver, Unresolved},
};
use crate::{failure::Failure, metrics::Metrics};

/// Kept connections are closed after so long without a request.
const KEPT: Duration = Duration::from_secs(30);
/// Interim answers (1xx) before the one that counts; a registry has no use for any.
const MOST_INTERIM: usize = 16;
const OURSELVES: HeaderValue = HeaderValue::from_static(concat!("breakwater-registry/", env!("CARGO_PKG_VERSION")));

/// Two sets of connections: to upstream itself, and to wherever it leads us.
pub(super) struct Clients {
    pub(super) own: HttpClient,
    pub(super) foreign: HttpClient,
}

pub(super) type HttpClient = Client<Connector, Empty<Bytes>>;

/// What clients are made from.
pub(super) struct Recipe {
    pub(super) tls: ClientConfig,
    pub(super) proxy: Option<ProxyUrl>,
    pub(super) look_ups: Arc<LookUps>,
    pub(super) boundary: Arc<Boundary>,
    pub(super) metrics: Arc<Metrics>,
}

impl Recipe {
    /// A proxy resolves names itself, so what they lead to cannot be checked here: behind one, only addresses that stand
    /// literally in a URL are.
    ///
    /// HTTP/1.1 always: one HTTP/2 connection carries many blobs through one TCP window and one flow-control window, which
    /// costs throughput on every path that is long or loses packets, and a stall of it stalls everything. Manifests would
    /// gain a round trip in a cold start and nothing after that, as connections are kept.
    pub(super) fn clients(&self, kept: usize) -> Clients {
        let foreign = Some(Arc::clone(&self.boundary)).filter(|_| self.proxy.is_none());
        Clients { own: self.client(None, kept), foreign: self.client(foreign, kept) }
    }

    fn client(&self, boundary: Option<Arc<Boundary>>, kept: usize) -> HttpClient {
        let (look_ups, metrics) = (Arc::clone(&self.look_ups), Arc::clone(&self.metrics));
        let resolver = Resolver { look_ups, boundary, metrics: Arc::clone(&metrics) };
        // The environment's proxies are not asked: what is not on the command line has no effect.
        let connector = Connector::new(resolver, self.tls.clone(), self.proxy.clone(), metrics);
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(kept)
            .build(connector)
    }

    /// As it goes out.
    pub(super) fn request(&self, mut request: Request) -> Result<http::Request<Empty<Bytes>>, Failure> {
        let mut plain = http::Request::new(Empty::new());
        *plain.method_mut() = request.method().clone();
        // What a URL allows and a request line does not was upstream's idea: our own URLs are checked.
        *plain.uri_mut() = request.url().as_str().parse().map_err(|_| Failure::InvalidResponse)?;
        *plain.headers_mut() = std::mem::take(request.headers_mut());
        let headers = plain.headers_mut();
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(USER_AGENT, OURSELVES);
        // In a tunnel it is shown before the request.
        if let Some(login) = self.proxy.as_ref().and_then(ProxyUrl::login).filter(|_| request.url().scheme() == "http")
        {
            headers.insert(PROXY_AUTHORIZATION, login);
        }
        Ok(plain)
    }
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    Client(legacy::Error),
    Flooded,
}

/// The answer that counts. Interim ones cost no memory and so are without bound for the client; a host that goes on with
/// them is left.
pub(super) async fn answer_of(
    client: &HttpClient,
    mut request: http::Request<Empty<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, NoAnswer> {
    let flooded = Arc::new((AtomicUsize::new(0), Notify::new()));
    let seen = Arc::clone(&flooded);
    hyper::ext::on_informational(&mut request, move |_| {
        if seen.0.fetch_add(1, Ordering::Relaxed) == MOST_INTERIM {
            seen.1.notify_one();
        }
    });
    tokio::select! {
        answer = client.request(request) => answer.map_err(NoAnswer::Client),
        () = flooded.1.notified() => Err(NoAnswer::Flooded),
    }
}

/// What an error of the client says of the host.
pub(super) fn classify(error: &legacy::Error) -> Failure {
    let mut is_late = false;
    let mut source = error.source();
    while let Some(cause) = source {
        match cause.downcast_ref() {
            Some(Unresolved::Dns) => return Failure::Dns,
            Some(Unresolved::Forbidden) => return Failure::ForbiddenAddress,
            None => {}
        }
        if cause.is::<rustls::Error>() {
            return Failure::Tls;
        }
        if cause.downcast_ref().is_some_and(hyper::Error::is_parse) {
            return Failure::InvalidResponse;
        }
        let io = cause.downcast_ref::<io::Error>();
        is_late |= io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
        // The source of an I/O error is that of the error in it, which is the one looked for.
        let wrapped = io.and_then(io::Error::get_ref);
        source = wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| cause.source());
    }
    match (is_late, error.is_connect()) {
        (true, true) => Failure::ConnectTimeout,
        (true, false) => Failure::HeaderTimeout,
        (false, true) => Failure::Connect,
        (false, false) => Failure::Disconnected,
    }
}
