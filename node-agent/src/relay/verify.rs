//! Content that is read to its end and verified before a byte of it goes out: manifests, because runtimes believe what they are
//! told of them, and small blobs.

use super::ask::{Content, Digest, Kind};
use super::awake::{self, Time};
use super::cache::Unserved;
use super::forward::DOCKER_CONTENT_DIGEST;
use super::patience::{SLOWEST_HIT, SMALL, due};
use super::patient::Cut;
use super::resume::Source;
use super::trial::Trial;
use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Runtimes refuse larger manifests.
const MANIFEST_MAX: u64 = 4 * 1024 * 1024;
/// Small content that has begun to come ends within this time, or each answer of a dripping cache would cost a pull seconds.
const BEGUN: Duration = Duration::from_millis(2500);
/// What is being verified at once, in KiB: many of the usual size, a few of the largest.
const ROOM: usize = 16 * 1024;

/// Bounds the memory of what is being verified, over all caches of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Verifying(Arc<Semaphore>);

impl Default for Verifying {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

/// The digest that a manifest must have: the one asked for, or for a tag the one that the cache states.
pub(super) fn manifest_digest(content: &Content, headers: &HeaderMap) -> Result<Digest, Unserved> {
    let stated = headers.get(DOCKER_CONTENT_DIGEST).and_then(|value| value.to_str().ok()).and_then(Digest::parse);
    match (&content.kind, stated) {
        (Kind::Manifest(Some(asked)), Some(stated)) if *asked != stated => {
            Err(Unserved::Unfit("another manifest's digest"))
        }
        (_, Some(stated)) => Ok(stated),
        // Without it the runtime hashes what it gets, and does not fall back where that goes wrong.
        (_, None) => Err(Unserved::Unfit("a manifest without a digest")),
    }
}

/// A runtime takes a manifest for what its media type says, and gives up where that is nonsense.
pub(super) fn check_media_type(headers: &HeaderMap, manifest: &[u8]) -> Result<(), Unserved> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Declaring {
        media_type: Option<String>,
    }
    let stated = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let stated = stated.split(';').next().unwrap_or_default().trim();
    let declared = serde_json::from_slice(manifest).ok().and_then(|Declaring { media_type }| media_type);
    let fits = match declared {
        Some(declared) => declared.eq_ignore_ascii_case(stated),
        None => stated.starts_with("application/") && stated != "application/json",
    };
    if fits { Ok(()) } else { Err(Unserved::Unfit("a manifest of another media type than it has")) }
}

/// The configuration of an image, as a rule: each image has one, and so a cache that sends wrong blobs is found out before its
/// runtime has taken one.
pub(super) fn is_small(source: &Source) -> bool {
    source.size_hint().exact().is_some_and(|length| length <= SMALL)
}

impl Verifying {
    /// The content of this digest, or why it is not passed on.
    pub(super) async fn verified(
        &self,
        source: Source,
        content: &Arc<Content>,
        digest: &Digest,
        time: &mut Time,
        reserve: Duration,
    ) -> Result<Bytes, Unserved> {
        let (replica, origin) = (source.replica.clone(), source.origin);
        // Whoever waits for room waits for others, and holds that against nobody.
        let room = time.wait(reserve, self.0.acquire_many(room(&source))).await;
        let Some(Ok(_room)) = room else { return Err(Unserved::Busy) };
        let (before, due) = (time.left(), due(length(&source)));
        let reserve = reserve.max(before.saturating_sub(patience(&source)));
        let read = time.wait(reserve, read_whole(source, digest)).await.unwrap_or(Err(Unserved::Stalled));
        match &read {
            Ok(_) => replica.did_well(content),
            Err(stalled @ Unserved::Stalled) => replica.offended(stalled, Trial::whole(content, origin)),
            // No upstream can make a cache say that.
            Err(wrong @ Unserved::OtherContent) => {
                replica.offended(wrong, Trial::right(content));
            }
            _ => {}
        }
        replica.took_its_time(origin, before.saturating_sub(time.left()).saturating_sub(due), content);
        read
    }
}

/// What of [`ROOM`] the body needs.
fn room(source: &Source) -> u32 {
    u32::try_from(length(source).div_ceil(1024)).unwrap_or(u32::MAX)
}

/// How long the body may take: most are one packet or a few.
fn patience(source: &Source) -> Duration {
    BEGUN + Duration::from_secs(1) * (length(source) / SLOWEST_HIT) as u32
}

/// The body's length, or the most where that is not known.
fn length(source: &Source) -> u64 {
    source.size_hint().exact().unwrap_or(MANIFEST_MAX).min(MANIFEST_MAX)
}

/// The same without the room, of which one such reader needs little.
pub(super) async fn read_in_time(source: Source, digest: &Digest) -> Result<Bytes, Unserved> {
    awake::wait(patience(&source), read_whole(source, digest)).await.unwrap_or(Err(Unserved::Stalled))
}

async fn read_whole(mut source: Source, digest: &Digest) -> Result<Bytes, Unserved> {
    let collected = Limited::new(&mut source, MANIFEST_MAX as usize).collect().await;
    let bytes = collected.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => Unserved::Cut(Cut::Broken(*error)),
        Err(_) => Unserved::Unfit("a manifest of more than 4 MiB"),
    })?;
    let bytes = bytes.to_bytes();
    let Source { replica, connection, .. } = source;
    if let Some(connection) = connection {
        replica.release(connection);
    }
    if !digest.verifies(&bytes) {
        tracing::warn!(pod = replica.pod, digest = digest.short(), "content has another digest and is not passed on");
        return Err(Unserved::OtherContent);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_manifest_is_what_its_media_type_says() {
        const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
        let declaring = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{{"mediaType":"x"}}}}"#);
        let fits = |stated: Option<&str>, manifest: &str| {
            let mut headers = HeaderMap::new();
            stated.map(|stated| headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(stated).unwrap()));
            check_media_type(&headers, manifest.as_bytes()).is_ok()
        };
        for (stated, manifest, expected) in [
            (Some(OCI), declaring.as_str(), true),
            (Some(&*format!("{OCI}; charset=utf-8")), &declaring, true),
            (Some("application/vnd.oci.image.index.v1+json"), &declaring, false),
            (Some("text/html"), &declaring, false),
            (None, &declaring, false),
            (Some(OCI), r#"{"schemaVersion":2}"#, true),
            (Some("application/json"), r#"{"schemaVersion":2}"#, false),
            (Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "no JSON", true),
            (Some("text/html"), "<html>", false),
            (None, "", false),
        ] {
            assert_eq!(fits(stated, manifest), expected, "{stated:?} {manifest}");
        }
    }
}
