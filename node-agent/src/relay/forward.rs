//! One request through a cache: what comes back is passed on unchanged or not at all. A 503 sends the runtime to the next
//! host, a 404 says that the upstream has no such thing; other failures make runtimes retry here or give up, so none goes out.

use super::ask::{Content, Digest, Kind};
use super::body::{Cut, RelayBody};
use super::cache::{Cache, Unserved};
use super::connect::Connection;
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Runtimes refuse larger manifests.
const MANIFEST_MAX: usize = 4 * 1024 * 1024;
/// After its headers a manifest must be here within this time: nothing has gone out yet.
const MANIFEST_BODY: Duration = Duration::from_secs(5);
/// Bounds the memory of manifests under verification.
static VERIFYING: Semaphore = Semaphore::const_new(16);

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// What of the cache's headers reaches the runtime. No challenge, no redirect, nothing about the connection.
const RETURNED: [HeaderName; 14] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::CACHE_CONTROL,
    header::AGE,
    header::DATE,
    header::LINK,
    DOCKER_CONTENT_DIGEST,
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("cache-status"),
];

/// Serves one request from the cache.
pub(super) async fn forward(
    cache: &Arc<Cache>,
    method: &Method,
    content: &Content,
    headers: &HeaderMap,
) -> Result<Response<RelayBody>, Unserved> {
    let (response, connection) = cache.ask(method, content, headers).await?;
    let (mut parts, body) = response.into_parts();
    parts.headers = returned(&parts.headers);
    match parts.status {
        StatusCode::OK if matches!(content.kind, Kind::Manifest(_)) => {
            let digest = manifest_digest(content, &parts)?;
            if method == Method::GET {
                return verified(cache, parts, body, connection, &digest).await;
            }
            if !parts.headers.contains_key(header::CONTENT_LENGTH) {
                // The runtime would fetch it from here by GET and give up where that fails.
                return Err(Unserved::Unfit("a manifest without a length"));
            }
        }
        StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {}
        StatusCode::PARTIAL_CONTENT
            if headers.contains_key(header::RANGE) && !matches!(content.kind, Kind::Manifest(_)) => {}
        StatusCode::NOT_MODIFIED if headers.contains_key(header::IF_NONE_MATCH) => {}
        status => return Err(Unserved::Status(status)),
    }
    let blob = match &content.kind {
        Kind::Blob(digest) => Some(digest.clone()),
        Kind::Manifest(_) | Kind::Other => None,
    };
    Ok(Response::from_parts(parts, RelayBody::streamed(body, connection, cache.clone(), blob)))
}

/// The digest that a manifest must have: the one asked for, or for a tag the one that the cache states.
fn manifest_digest(content: &Content, parts: &Parts) -> Result<Digest, Unserved> {
    let stated = parts.headers.get(DOCKER_CONTENT_DIGEST).and_then(|value| value.to_str().ok()).and_then(Digest::parse);
    match (&content.kind, stated) {
        (Kind::Manifest(Some(asked)), Some(stated)) if *asked != stated => {
            Err(Unserved::Unfit("another manifest's digest"))
        }
        (_, Some(stated)) => Ok(stated),
        // Without it the runtime hashes what it gets, and does not fall back where that goes wrong.
        (_, None) => Err(Unserved::Unfit("a manifest without a digest")),
    }
}

/// Reads a manifest to its end and passes it on only if it is the right one.
async fn verified(
    cache: &Arc<Cache>,
    mut parts: Parts,
    body: Incoming,
    connection: Connection,
    digest: &Digest,
) -> Result<Response<RelayBody>, Unserved> {
    let read = async {
        let _permit = VERIFYING.acquire().await.map_err(|_| Unserved::Out)?;
        let collected = Limited::new(body, MANIFEST_MAX).collect().await;
        let bytes = collected.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => Unserved::Cut(Cut::Broken(*error)),
            Err(_) => Unserved::Unfit("a manifest of more than 4 MiB"),
        })?;
        Ok(bytes.to_bytes())
    };
    let bytes: Bytes = timeout(MANIFEST_BODY, read).await.unwrap_or(Err(Unserved::Late))?;
    cache.release(connection);
    if !digest.verifies(&bytes) {
        tracing::warn!(digest = digest.short(), "manifest from the cache has another digest and is not passed on");
        return Err(Unserved::Unfit("a manifest of another digest"));
    }
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Ok(Response::from_parts(parts, RelayBody::whole(bytes)))
}

fn returned(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in &RETURNED {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
    to
}
