//! The client of every watch: it keeps a pace before an API server that struggles. Client I/O; the rule is [`Pace`]'s.

use breakwater_crds::Pace;
use hyper::Request;
use kube::Client;
use kube::client::Body;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The same client, for watches alone: whatever they do, they begin anew with growing pauses.
#[must_use]
pub fn paced(client: &Client) -> Client {
    let pace = Arc::new(Mutex::new(Pace::default()));
    let inner = client.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let uri = request.uri();
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let wait = pace.lock().unwrap_or_else(PoisonError::into_inner).wait(path, query, Instant::now());
        let inner = inner.clone();
        async move {
            tokio::time::sleep(wait).await;
            inner.send(request).await
        }
    });
    Client::new(service, client.default_namespace())
}
