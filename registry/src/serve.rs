//! Turns content that is at hand into a response: what the request wishes, ranges, provenance. Asks nobody.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use tokio::sync::watch;

use crate::{
    body::{self, Body, Source},
    digest::Digest,
    manifest::Manifest,
    metrics::Metrics,
    progress::Progress,
    range::{ByteRange, Span},
    respond::{self, Described, Origin, Provenance},
    store::{blobs::StoredBlob, tags::Target},
    tag::{Freshness, Resolved},
};

/// A first byte that is not here by then is 503; the flight goes on. Shorter than the relay's patience.
const FIRST_BYTE: Duration = Duration::from_secs(4);
/// What every blob is served as: its real type stands in the manifest.
pub const BLOB_TYPE: &str = "application/octet-stream";

/// What the request wants of a content.
#[derive(Clone, Copy)]
pub struct Wish {
    /// Headers only.
    pub is_head: bool,
    /// A part only.
    pub range: Option<ByteRange>,
    /// A first byte that is not here by then is 503.
    pub deadline: Instant,
}

impl Wish {
    /// Of a request that came at `began`.
    pub fn of<B>(request: &Request<B>, began: Instant) -> Self {
        let range = request.headers().get(header::RANGE).and_then(|value| ByteRange::parse(value.to_str().ok()?));
        // The validator is the digest in the path; a client that holds another one wants everything.
        let holds_another = request.headers().get(header::IF_RANGE).is_some_and(|held| {
            let digest = request.uri().path().rsplit('/').next().unwrap_or_default();
            held.as_bytes() != format!("\"{digest}\"").as_bytes()
        });
        let is_head = request.method() == Method::HEAD;
        Self { is_head, range: range.filter(|_| !holds_another && !is_head), deadline: began + FIRST_BYTE }
    }
}

impl Provenance {
    /// Of an answer to a tag.
    pub fn of_tag(tag: &Resolved) -> Self {
        let origin = match tag.freshness {
            Freshness::Fresh => Origin::Hit,
            Freshness::Revalidated | Freshness::Asked => Origin::Revalidated,
            Freshness::Stale(failure) => Origin::Stale(failure),
        };
        Self { origin, age: tag.age }
    }

    /// Of content that is here: it was right when it came, and cannot change.
    pub fn hit(stored: SystemTime) -> Self {
        Self { origin: Origin::Hit, age: SystemTime::now().duration_since(stored).unwrap_or_default() }
    }
}

/// What a tag or digest stands for, without its bytes.
pub fn head(target: &Target, provenance: Provenance) -> Response<Body> {
    let Target { digest, media_type, size } = target;
    let described = Described { digest, media_type, size: Some(*size), span: None, provenance };
    respond::content(&described, body::whole(Bytes::new()))
}

/// Manifests serve ranges too: some runtimes ask for `bytes=0-` of everything.
pub fn manifest(manifest: Manifest, provenance: Provenance, wish: Wish) -> Response<Body> {
    let Manifest { digest, media_type, bytes } = manifest;
    let size = bytes.len() as u64;
    let span = match wish.range.map(|range| range.within(size)) {
        Some(None) => return respond::no_such_range(size, provenance),
        span => span.flatten(),
    };
    let described = Described { digest: &digest, media_type: &media_type, size: Some(size), span, provenance };
    let Span { start, end } = span.unwrap_or(Span { start: 0, end: size });
    let part = if wish.is_head { Bytes::new() } else { bytes.slice(start as usize..end as usize) };
    respond::content(&described, body::whole(part))
}

/// A whole blob that is here and is still being hashed: its end waits until it is known to be right.
pub fn unverified_blob(
    digest: &Digest,
    blob: &StoredBlob,
    known: watch::Receiver<Progress>,
    wish: Wish,
    metrics: &Arc<Metrics>,
) -> Response<Body> {
    let (size, provenance) = (Some(blob.size), Provenance::hit(blob.stored));
    let described = Described { digest, media_type: BLOB_TYPE, size, span: None, provenance };
    let body = if wish.is_head {
        body::whole(Bytes::new())
    } else {
        body::part(Source::Flight(known), 0, size, Arc::clone(metrics))
    };
    respond::content(&described, body)
}

/// A blob that is here, or the part of it that is wanted.
pub fn stored_blob(digest: &Digest, blob: &StoredBlob, wish: Wish, metrics: &Arc<Metrics>) -> Response<Body> {
    let provenance = Provenance::hit(blob.stored);
    let span = match wish.range.map(|range| range.within(blob.size)) {
        Some(None) => return respond::no_such_range(blob.size, provenance),
        span => span.flatten(),
    };
    let described = Described { digest, media_type: BLOB_TYPE, size: Some(blob.size), span, provenance };
    let Span { start, end } = span.unwrap_or(Span { start: 0, end: blob.size });
    let source = Source::Stored(blob.clone());
    let body = if wish.is_head {
        body::whole(Bytes::new())
    } else {
        body::part(source, start, Some(end), Arc::clone(metrics))
    };
    respond::content(&described, body)
}
