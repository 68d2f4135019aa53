//! One request through a cache: what comes back is passed on unchanged or not at all. A 503 sends the runtime to the next
//! host, a 404 says that the upstream has no such thing; other failures make runtimes retry here or give up, so none goes out.

use super::ask::{Content, Digest, Kind};
use super::awake::Time;
use super::body::{Cut, RelayBody};
use super::cache::{Cache, HEADERS, Unserved};
use super::conduct::Origin;
use super::patience::SMALL;
use super::replica::Replica;
use super::resume::{Rest, Source};
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Runtimes refuse larger manifests.
const MANIFEST_MAX: usize = 4 * 1024 * 1024;
/// So much of the time is kept for the other Pods: they answer at once what they have.
const RESERVE: Duration = Duration::from_secs(2);
/// Bounds the memory of what is being verified, in KiB: many of the usual size, a few of the largest.
static VERIFYING: Semaphore = Semaphore::const_new(16 * 1024);

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// How the cache says that it has something on its disk.
const FROM_DISK: [&[u8]; 2] = [b"breakwater; hit", b"breakwater; fwd=stale"];
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
    CACHE_STATUS,
];

/// Serves one request from the first Pod that can, all within one deadline.
pub(super) async fn forward(
    cache: &Arc<Cache>,
    method: &Method,
    content: &Content,
    headers: &HeaderMap,
) -> Result<Response<RelayBody>, Unserved> {
    let mut time = Time::new(HEADERS);
    let candidates = time.wait(Duration::ZERO, cache.candidates(content)).await.unwrap_or(Err(Unserved::Out))?;
    let mut left = candidates.len();
    let mut unserved = Unserved::Out;
    for replica in candidates {
        left -= 1;
        let reserve = if left > 0 { RESERVE } else { Duration::ZERO };
        let ask = Attempt { cache, replica: &replica, method, content, headers, time: &mut time, reserve };
        match ask.answer().await {
            Ok(response) => return Ok(response),
            Err(fault) => unserved = fault,
        }
        if time.is_over() {
            break;
        }
    }
    Err(unserved)
}

/// One Pod asked for one content.
struct Attempt<'a> {
    cache: &'a Arc<Cache>,
    replica: &'a Arc<Replica>,
    method: &'a Method,
    content: &'a Content,
    headers: &'a HeaderMap,
    time: &'a mut Time,
    /// Of the time, what is left to others.
    reserve: Duration,
}

impl Attempt<'_> {
    async fn answer(self) -> Result<Response<RelayBody>, Unserved> {
        let Self { cache, replica, method, content, headers, time, reserve } = self;
        let (response, connection) = replica.ask(method, content, headers, time, reserve).await?;
        let (mut parts, body) = response.into_parts();
        parts.headers = returned(&parts.headers);
        let source = Source { body, replica: replica.clone(), connection: Some(connection) };
        let origin = origin(&parts.headers);
        if method == Method::GET && parts.status.is_success() && replica.is_refused(origin) {
            return Err(Unserved::Offended);
        }
        match parts.status {
            StatusCode::OK if matches!(content.kind, Kind::Manifest(_)) => {
                let digest = manifest_digest(content, &parts)?;
                if method == Method::GET {
                    return verified(cache, parts, source, &digest, time, reserve).await;
                }
                if !parts.headers.contains_key(header::CONTENT_LENGTH) {
                    // The runtime would fetch it from here by GET and give up where that fails.
                    return Err(Unserved::Unfit("a manifest without a length"));
                }
            }
            StatusCode::OK if method == Method::GET && is_small(&source) => {
                if let Kind::Blob(digest) = &content.kind {
                    return verified(cache, parts, source, digest, time, reserve).await;
                }
            }
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {}
            StatusCode::PARTIAL_CONTENT
                if headers.contains_key(header::RANGE) && !matches!(content.kind, Kind::Manifest(_)) => {}
            StatusCode::NOT_MODIFIED if headers.contains_key(header::IF_NONE_MATCH) => {}
            status => return Err(Unserved::Status(status)),
        }
        let rest = if method == Method::GET { Rest::of(content, &parts) } else { None };
        let blob = match &content.kind {
            Kind::Blob(digest) => Some(digest.clone()),
            Kind::Manifest(_) | Kind::Other => None,
        };
        Ok(Response::from_parts(parts, RelayBody::streamed(source, cache.clone(), blob, rest, origin)))
    }
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

/// The configuration of an image, as a rule: each image has one, and so a cache that sends wrong blobs is found out before its
/// runtime has taken one.
fn is_small(source: &Source) -> bool {
    source.size_hint().exact().is_some_and(|length| length <= SMALL)
}

/// Passes content on only if it is the right one.
async fn verified(
    cache: &Cache,
    parts: Parts,
    source: Source,
    digest: &Digest,
    time: &mut Time,
    reserve: Duration,
) -> Result<Response<RelayBody>, Unserved> {
    let (origin, replica) = (origin(&parts.headers), source.replica.clone());
    // Whoever waits for room waits for others, and holds that against nobody.
    let room = time.wait(reserve, VERIFYING.acquire_many(room(&source))).await;
    let Some(Ok(_room)) = room else { return Err(Unserved::Busy) };
    let read = time.wait(reserve, read_whole(cache, parts, source, digest)).await.unwrap_or(Err(Unserved::Stalled));
    match &read {
        Err(stalled @ Unserved::Stalled) => replica.offended(origin, stalled),
        // No upstream can make a cache say that.
        Err(wrong @ Unserved::OtherContent) => replica.offended(Origin::Disk, wrong),
        _ => {}
    }
    read
}

/// What of [`VERIFYING`] the body needs: its length, or the most where that is not known.
fn room(source: &Source) -> u32 {
    let length = source.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let kibibytes = length.unwrap_or(MANIFEST_MAX).min(MANIFEST_MAX).div_ceil(1024);
    u32::try_from(kibibytes).unwrap_or(u32::MAX)
}

/// Reads a manifest, or another small thing, to its end.
async fn read_whole(
    cache: &Cache,
    mut parts: Parts,
    mut source: Source,
    digest: &Digest,
) -> Result<Response<RelayBody>, Unserved> {
    let collected = Limited::new(&mut source, MANIFEST_MAX).collect().await;
    let bytes = collected.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => Unserved::Cut(Cut::Broken(*error)),
        Err(_) => Unserved::Unfit("a manifest of more than 4 MiB"),
    })?;
    let bytes: Bytes = bytes.to_bytes();
    let Source { replica, connection, .. } = source;
    if let Some(connection) = connection {
        replica.release(connection);
    }
    if !digest.verifies(&bytes) {
        tracing::warn!(pod = replica.pod, digest = digest.short(), "content has another digest and is not passed on");
        return Err(Unserved::OtherContent);
    }
    cache.counters.bytes.add(bytes.len() as u64);
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Ok(Response::from_parts(parts, RelayBody::whole(bytes)))
}

fn origin(headers: &HeaderMap) -> Origin {
    let status = headers.get(CACHE_STATUS).map(HeaderValue::as_bytes).unwrap_or_default();
    if FROM_DISK.iter().any(|said| status.starts_with(said)) { Origin::Disk } else { Origin::Upstream }
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
