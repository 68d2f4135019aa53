//! `--on-error`: for each class of failure, what an older answer is worth.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Content, Fault, Image, On, Recorded, Scheme, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";

/// A complete image behind a cache that holds its tag to be old after a millisecond.
async fn warm(rules: &[&str]) -> (Upstream, Cache, Image) {
    let upstream = Upstream::start().await;
    upstream.require(Scheme::Bearer, &[]);
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let builder = Cache::of(&upstream).flag("--tag-ttl", "0s");
    let cache = rules.iter().fold(builder, |builder, rule| builder.flag("--on-error", rule)).start().await;
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    for blob in image.blobs() {
        assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::Complete);
        cache.await_kept(REPOSITORY, blob).await;
    }
    (upstream, cache, image)
}

async fn is_denied(class: &str, on: On, fault: Fault, status: u16) {
    let (upstream, mut cache, image) = warm(&[&format!("{class}=deny")]).await;
    upstream.revoke_tokens();
    upstream.fault(on, fault).await;
    for _ in 0..2 {
        for _ in 0..3 {
            let answer = cache.get(BY_TAG).await;
            assert_eq!(answer.status, status, "{class}: {}", answer.cache_status());
            assert_ne!(answer.error_code(), "");
        }
        let by_digest = cache.get(&image.manifest.manifest_path(REPOSITORY)).await;
        assert_eq!(by_digest.body, image.manifest.bytes, "{class}: digests are no matter of policy");
        cache.restart().await;
    }
}

async fn is_served(class: &str, on: On, fault: Fault) {
    // Every other class is denied, so that no other rule can be what serves it.
    let classes = [
        "unreachable",
        "server-error",
        "too-many-requests",
        "invalid-response",
        "token-service",
        "unauthorized",
        "not-found",
    ];
    let rules: Vec<String> = classes.iter().filter(|other| **other != class).map(|c| format!("{c}=deny")).collect();
    let rules = format!("{},{class}=serve-stale", rules.join(","));
    let (upstream, mut cache, image) = warm(&[&rules]).await;
    upstream.revoke_tokens();
    upstream.fault(on, fault).await;
    for _ in 0..2 {
        for _ in 0..3 {
            let answer = cache.get(BY_TAG).await;
            assert_eq!(answer.status, 200, "{class}: {}", answer.cache_status());
            assert_eq!(answer.body, image.manifest.bytes);
            assert!(answer.cache_status().starts_with("breakwater; fwd=stale; detail="), "{}", answer.cache_status());
        }
        cache.restart().await;
    }
}

async fn check(class: &str, on: On, fault: Fault, denied: u16) {
    tokio::join!(is_denied(class, on.clone(), fault.clone(), denied), is_served(class, on, fault));
}

#[tokio::test]
async fn unreachable() {
    check("unreachable", On::Registry, Fault::Refuse, 503).await;
}

#[tokio::test]
async fn silent() {
    check("unreachable", On::Registry, Fault::Silence, 503).await;
}

#[tokio::test]
async fn server_error() {
    check("server-error", On::Registry, Fault::Status(502), 503).await;
}

#[tokio::test]
async fn too_many_requests() {
    check("too-many-requests", On::Registry, Fault::TooManyRequests(Some(600)), 503).await;
}

#[tokio::test]
async fn invalid_response() {
    check("invalid-response", On::Registry, Fault::Html, 503).await;
}

#[tokio::test]
async fn token_service() {
    check("token-service", On::Tokens, Fault::Refuse, 503).await;
}

#[tokio::test]
async fn unauthorized() {
    check("unauthorized", On::Registry, Fault::Status(403), 404).await;
}

#[tokio::test]
async fn not_found() {
    check("not-found", On::Manifests, Fault::Status(404), 404).await;
}

#[tokio::test]
async fn a_purged_image_stays_pullable_where_deletions_are_not_believed() {
    let (upstream, mut cache, image) = warm(&["not-found=serve-stale"]).await;
    upstream.untag(REPOSITORY, "v1");
    upstream.fault(On::Registry, Fault::Status(404)).await;
    for _ in 0..2 {
        assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
        assert_eq!(cache.get(&image.layers[0].blob_path(REPOSITORY)).await.body, image.layers[0].bytes);
        cache.restart().await;
    }
    upstream.heal().await;
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    let back = async { while cache.get(BY_TAG).await.body != newer.manifest.bytes {} };
    tokio::time::timeout(breakwater_tests::cache::PATIENCE, back).await.expect("a tag that is back is seen");
}

#[tokio::test]
async fn what_upstream_deleted_stays_deleted_in_a_later_outage() {
    let (upstream, mut cache, _image) = warm(&[]).await;
    upstream.untag(REPOSITORY, "v1");
    assert_eq!(cache.get(BY_TAG).await.status, 404);
    upstream.fault(On::Everything, Fault::Refuse).await;
    assert_eq!(cache.get(BY_TAG).await.status, 404);
    cache.restart().await;
    assert_eq!(cache.get(BY_TAG).await.status, 404);
}

#[tokio::test]
async fn a_moved_tag_whose_manifest_does_not_come_yields_to_the_elder() {
    let (upstream, cache, elder) = warm(&[]).await;
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    upstream.fault(On::Path(newer.manifest.digest.clone()), Fault::Status(500)).await;
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.body, elder.manifest.bytes, "{} {}", answer.status, answer.cache_status());
    assert!(answer.cache_status().contains("fwd=stale; detail=server_error"), "{}", answer.cache_status());
}

#[tokio::test]
async fn a_manifest_that_fails_is_asked_for_once_in_five_seconds() {
    let (upstream, cache, _image) = warm(&[]).await;
    let other = Content::image(3, &[10]);
    upstream.push(REPOSITORY, "other", &other);
    upstream.fault(On::Manifests, Fault::Status(500)).await;
    let mark = upstream.mark();
    for _ in 0..5 {
        assert_eq!(cache.get(&other.manifest.manifest_path(REPOSITORY)).await.status, 503);
    }
    let asked = |request: &&Recorded| request.is_manifest();
    assert_eq!(upstream.requests_since(mark).iter().filter(asked).count(), 1);
}

#[tokio::test]
async fn an_unknown_class_is_refused_with_the_mend() {
    let upstream = Upstream::start().await;
    let (code, _) = Cache::of(&upstream).flag("--on-error", "dns=deny").start_refused().await;
    assert_eq!(code, Some(2));
}
