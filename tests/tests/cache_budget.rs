//! Upstream's rate limit is a budget: what is at hand stops being asked for before misses do, and nobody waits.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::{Cache, PATIENCE};
use breakwater_tests::upstream::{Content, Fault, Image, On, Recorded, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
/// What needs no upstream, on a noisy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn warm() -> (Upstream, Cache, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    upstream.push("library/other", "v1", &image);
    let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    assert_eq!(cache.get("/v2/library/other/manifests/v1").await.body, image.manifest.bytes);
    (upstream, cache, image)
}

fn manifests(requests: &[Recorded]) -> usize {
    requests.iter().filter(|request| request.is_manifest()).count()
}

#[tokio::test]
async fn the_budget_is_exported() {
    let (upstream, cache, _image) = warm().await;
    assert!(cache.upstream_state().await["rateLimitRemaining"].is_null());
    upstream.announce_rate_limit(42);
    cache.get(BY_TAG).await;
    let state = cache.upstream_state().await;
    assert_eq!((&state["rateLimit"], &state["rateLimitRemaining"]), (&100.into(), &42.into()), "{state}");
    assert!(state["rateLimitResetSeconds"].as_u64().is_some_and(|left| (3500..=3600).contains(&left)), "{state}");
    let metrics = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
    for (name, value) in [("limit", "100"), ("remaining", "42")] {
        let line = metrics.lines().find(|line| line.starts_with(&format!("breakwater_upstream_ratelimit_{name}{{")));
        assert!(line.is_some_and(|line| line.ends_with(&format!(" {value}"))), "{name}: {line:?}");
    }
}

#[tokio::test]
async fn a_small_budget_is_left_to_misses() {
    let (upstream, cache, image) = warm().await;
    upstream.announce_rate_limit(9);
    // This one learns how little is left.
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    let mark = upstream.mark();
    for path in [BY_TAG, "/v2/library/other/manifests/v1", BY_TAG] {
        let answer = cache.get(path).await;
        assert_eq!(answer.body, image.manifest.bytes);
        assert_eq!(answer.cache_status(), "breakwater; fwd=stale; detail=too_many_requests");
        assert!(answer.took < AT_ONCE, "{:?}", answer.took);
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
    let unseen = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "unseen", &unseen);
    assert_eq!(cache.get("/v2/library/app/manifests/unseen").await.body, unseen.manifest.bytes, "a miss is tried");
    upstream.announce_rate_limit(90);
    let more = Content::image(3, &[1000]);
    upstream.push(REPOSITORY, "more", &more);
    assert_eq!(cache.get("/v2/library/app/manifests/more").await.body, more.manifest.bytes);
    assert!(cache.get(BY_TAG).await.cache_status().contains("revalidated"), "the budget is large again");
}

#[tokio::test]
async fn a_retry_after_stops_revalidation_and_keeps_nobody_waiting() {
    let (upstream, cache, image) = warm().await;
    upstream.fault(On::Manifests, Fault::TooManyRequests(Some(3600))).await;
    let mark = upstream.mark();
    for _ in 0..10 {
        for path in [BY_TAG, "/v2/library/other/manifests/v1"] {
            let answer = cache.get(path).await;
            assert_eq!(answer.body, image.manifest.bytes);
            assert!(answer.cache_status().contains("fwd=stale; detail=too_many_requests"), "{}", answer.cache_status());
            assert!(answer.took < AT_ONCE, "{:?}", answer.took);
        }
    }
    assert_eq!(manifests(&upstream.requests_since(mark)), 1, "one 429 is enough for all tags");
    let reset = cache.upstream_state().await["rateLimitResetSeconds"].as_u64();
    assert!(reset.is_some_and(|left| (3500..=3600).contains(&left)), "{reset:?}");

    // The rest of what is at hand never needed upstream.
    assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 200);
    // Blobs are not counted by it: the pull that is under way goes on.
    assert_eq!(cache.get(&image.layers[0].blob_path(REPOSITORY)).await.body, image.layers[0].bytes);
}

#[tokio::test]
async fn misses_are_tried_in_spite_of_a_429_but_not_again_and_again() {
    let (upstream, cache, _image) = warm().await;
    upstream.fault(On::Path("/library/app/".to_owned()), Fault::TooManyRequests(Some(3600))).await;
    let mark = upstream.mark();
    for seed in 10..20 {
        let answer = cache.get(&Content::image(seed, &[10]).manifest.manifest_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"));
        assert_eq!(answer.header("retry-after"), None);
        assert!(answer.took < AT_ONCE, "{:?}", answer.took);
    }
    assert_eq!(manifests(&upstream.requests_since(mark)), 1);
    let other = Content::image(30, &[10]);
    upstream.push("library/third", "v1", &other);
    assert_eq!(cache.get("/v2/library/third/manifests/v1").await.body, other.manifest.bytes, "another repository");
}

#[tokio::test]
async fn a_tag_whose_manifest_a_429_kept_away_is_tried_again() {
    let (upstream, cache, _image) = warm().await;
    let unseen = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "unseen", &unseen);
    // As Docker Hub counts: HEAD is free.
    let refused = On::Path(format!("manifests/{}", unseen.manifest.digest));
    upstream.fault_times(1, refused, Fault::TooManyRequests(Some(3600))).await;
    let path = "/v2/library/app/manifests/unseen";
    assert_eq!(cache.get(path).await.status, 503);
    let pulled = async { while cache.get(path).await.body != unseen.manifest.bytes {} };
    tokio::time::timeout(PATIENCE, pulled).await.expect("what is not here is tried");
}

#[tokio::test]
async fn after_a_short_retry_after_tags_are_asked_for_again() {
    let (upstream, cache, _image) = warm().await;
    upstream.fault_times(1, On::Manifests, Fault::TooManyRequests(Some(1))).await;
    assert!(cache.get(BY_TAG).await.cache_status().contains("too_many_requests"));
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    let fresh = async { while cache.get(BY_TAG).await.body != newer.manifest.bytes {} };
    tokio::time::timeout(PATIENCE, fresh).await.expect("the newcomer is seen");
}

#[tokio::test]
async fn upstream_is_told_who_asks() {
    let (upstream, _cache, _image) = warm().await;
    let agent = format!("breakwater-registry/{}", env!("CARGO_PKG_VERSION"));
    assert!(upstream.requests().iter().all(|request| request.header("user-agent") == Some(&agent)));
}

#[tokio::test]
async fn slow_blobs_are_bounded_and_keep_no_tag_waiting() {
    let (upstream, cache, image) = warm().await;
    let blobs: Vec<_> = (0..80).map(|seed| Content::blob(1000 + seed, 100_000)).collect();
    blobs.iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    upstream.fault(On::Blobs, Fault::StallAt(1000)).await;
    let mark = upstream.mark();
    let mut readings = Vec::new();
    for blob in &blobs {
        readings.push(tokio::spawn(cache.request("GET", &blob.blob_path(REPOSITORY)).send()));
    }
    let blobs_asked = |requests: &[Recorded]| requests.iter().filter(|request| request.is_blob()).count();
    upstream.wait_for("64 blobs asked for", |requests| blobs_asked(requests) >= 64).await;
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.body, image.manifest.bytes);
    assert!(answer.cache_status().contains("revalidated"), "{}", answer.cache_status());
    assert_eq!(blobs_asked(&upstream.requests_since(mark)), 64, "more at once than promised");
    upstream.heal().await;
    for reading in readings {
        let answer = reading.await.expect("a reader");
        // Who waited too long for a place was told to go elsewhere.
        assert!([200, 503].contains(&answer.status), "{}", answer.status);
    }
    for blob in &blobs {
        // The download waited on.
        cache.await_kept(REPOSITORY, blob).await;
    }
}

#[tokio::test]
async fn blobs_that_hardly_come_make_room_for_others() {
    let (upstream, cache, _image) = warm().await;
    upstream.fault(On::Path("library/slow".to_owned()), Fault::Drip(10)).await;
    let blobs: Vec<_> = (0..64).map(|seed| Content::blob(1000 + seed, 100_000)).collect();
    let mut readings = Vec::new();
    for blob in &blobs {
        upstream.put_blob("library/slow", blob);
        readings.push(tokio::spawn(cache.request("GET", &blob.blob_path("library/slow")).send()));
    }
    for reading in readings {
        assert_eq!(reading.await.expect("a reader").status, 200);
    }
    let other = Content::blob(1, 100_000);
    upstream.put_blob(REPOSITORY, &other);
    // All places are taken, nobody reads on; a machine that was slow to take them has left some by now.
    let first = cache.get(&other.blob_path(REPOSITORY)).await.status;
    assert!([200, 503].contains(&first), "{first}");
    cache.await_kept(REPOSITORY, &other).await;
}

#[tokio::test]
async fn manifests_that_hardly_come_make_room_for_others() {
    let (upstream, cache, image) = warm().await;
    upstream.fault(On::Path("library/slow".to_owned()), Fault::Drip(10)).await;
    let slow: Vec<_> = (0..40).map(|seed| Content::image(1000 + seed, &[1000]).manifest).collect();
    let mark = upstream.mark();
    let mut readings = Vec::new();
    for manifest in &slow {
        upstream.put_manifest("library/slow", manifest);
        readings.push(tokio::spawn(cache.request("GET", &manifest.manifest_path("library/slow")).send()));
    }
    let places = |_: &[Recorded]| manifests(&upstream.requests_since(mark)) >= 32;
    upstream.wait_for("all places taken", places).await;
    upstream.push(REPOSITORY, "other", &image);
    let answer = cache.get("/v2/library/app/manifests/other").await;
    assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
    for reading in readings {
        assert_eq!(reading.await.expect("a reader").status, 503);
    }
}
