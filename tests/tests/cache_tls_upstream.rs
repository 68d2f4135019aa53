//! Upstream by TLS: the certificate counts, and whatever goes wrong with it is an outage like any other.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::{Cache, PATIENCE};
use breakwater_tests::upstream::{Content, Front, Handshake, Image, Upstream};
use tempfile::TempDir;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
/// What "at once" may take on a noisy machine; who waits for upstream again takes 1 s.
const AT_ONCE: Duration = Duration::from_millis(900);

struct Scene {
    upstream: Upstream,
    front: Front,
    cache: Cache,
    image: Image,
    _folder: TempDir,
}

async fn scene() -> Scene {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let front = Front::start(upstream.address()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.crt");
    std::fs::write(&authority, front.authority()).expect("a file");
    let builder = Cache::of(&upstream).url(&front.url()).flag("--tag-ttl", "0s");
    let cache = builder.flag("--ca-file", &authority.display().to_string()).start().await;
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    for blob in image.blobs() {
        assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.body, blob.bytes);
        cache.await_kept(REPOSITORY, blob).await;
    }
    Scene { upstream, front, cache, image, _folder: folder }
}

async fn survives(handshake: Handshake, detail: &str) {
    let Scene { upstream, front, mut cache, image, _folder } = scene().await;
    front.shake(handshake);
    // Its connections of before the change are still good; a fresh process has none.
    for _ in 0..2 {
        cache.restart().await;
        let mark = upstream.mark();
        let tag = cache.get(BY_TAG).await;
        assert_eq!((tag.status, &tag.body[..]), (200, &image.manifest.bytes[..]));
        assert!(tag.cache_status().contains("fwd=stale"), "{}", tag.cache_status());
        assert!(tag.took < Duration::from_secs(3), "{:?}", tag.took);
        let blob = cache.get(&image.layers[0].blob_path(REPOSITORY)).await;
        assert!(blob.body == image.layers[0].bytes && blob.took < AT_ONCE, "{:?}", blob.took);
        let miss = cache.get("/v2/library/app/manifests/unseen").await;
        assert_eq!(miss.status, 503);
        assert!(miss.took < Duration::from_secs(7), "{:?}", miss.took);
        assert!(miss.cache_status().contains(detail), "{}", miss.cache_status());
        let again = cache.get(BY_TAG).await;
        assert!(again.took < AT_ONCE, "the breaker is open: {:?}", again.took);
        assert_eq!(upstream.requests_since(mark).len(), 0, "nothing is said to who proves nothing");
    }
    front.shake(Handshake::Good);
    let back = Instant::now();
    let revalidated = async { while !cache.get(BY_TAG).await.cache_status().contains("revalidated") {} };
    tokio::time::timeout(PATIENCE, revalidated).await.expect("upstream is back");
    assert!(back.elapsed() < Duration::from_secs(8), "promised within 2 s, took {:?}", back.elapsed());
}

#[tokio::test]
async fn an_expired_certificate() {
    survives(Handshake::Expired, "detail=tls").await;
}

#[tokio::test]
async fn a_certificate_of_a_stranger() {
    survives(Handshake::Untrusted, "detail=tls").await;
}

#[tokio::test]
async fn a_certificate_for_another_name() {
    survives(Handshake::OtherName, "detail=tls").await;
}

#[tokio::test]
async fn a_handshake_that_stalls() {
    survives(Handshake::Stalled, "detail=connect_timeout").await;
}
