//! The client of the watches: it keeps a pace before an API server that ends each watch at once, which no error tells. Client I/O; the rule
//! is [`Pace`]'s.

use breakwater_crds::Pace;
use http::Request;
use kube::Client;
use kube::client::Body;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The same client, for watches alone.
pub(super) fn paced(client: &Client) -> Client {
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use http::Response;
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use kube::runtime::watcher::{Config, watcher};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn a_watch_that_ends_at_once_is_not_begun_again_at_once() {
        let watches = Arc::new(AtomicUsize::new(0));
        let counted = watches.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
            counted.fetch_add(usize::from(is_watch), Ordering::Relaxed);
            let list = r#"{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
            let body = if is_watch { Vec::new() } else { list.into() };
            async move { Ok::<_, Infallible>(Response::new(Body::from(body))) }
        });
        let secrets: Api<Secret> = Api::namespaced(paced(&Client::new(service, "default")), "default");
        let all = watcher(secrets, Config::default()).for_each(async |_| {});
        drop(tokio::time::timeout(Duration::from_millis(900), all).await);
        assert_eq!(watches.load(Ordering::Relaxed), 1, "the second comes after a second");
    }
}
