//! A replica that is dead, silent, slow or wrong costs one short wait and never a wrong byte.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::replicas::{downloads, two};
use breakwater_tests::cache::{Cache, End, PATIENCE};
use breakwater_tests::upstream::{Content, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

/// A cache, and a scripted server that plays its only other replica.
async fn beside_a_stranger() -> (Upstream, Upstream, Cache) {
    let (upstream, stranger) = (Upstream::start().await, Upstream::start().await);
    let cache = Cache::of(&upstream).flag("--peer", &stranger.host()).start().await;
    (upstream, stranger, cache)
}

#[tokio::test]
async fn a_replica_that_does_not_answer_costs_one_short_wait_and_then_nothing() {
    for fault in [Fault::Refuse, Fault::BlackHole, Fault::Silence, Fault::SlowHeader(Duration::from_millis(200))] {
        let (upstream, stranger, cache) = beside_a_stranger().await;
        stranger.fault(On::Everything, fault.clone()).await;
        let mut took = Vec::new();
        for seed in 1..=6 {
            let image = Content::image(seed, &[1000]);
            upstream.push(REPOSITORY, &format!("v{seed}"), &image);
            let answer = cache.get(&image.layers[0].blob_path(REPOSITORY)).await;
            assert_eq!((answer.status, answer.body == image.layers[0].bytes), (200, true), "{fault:?}");
            let tag = cache.get(&format!("/v2/{REPOSITORY}/manifests/v{seed}")).await;
            assert_eq!(tag.status, 200);
            took.push(answer.took.max(tag.took));
            // Longer than it is left alone before the first probe.
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        assert!(took[0] < Duration::from_millis(2000), "{fault:?}: {took:?}");
        // Asking it again would cost each of them 300 ms.
        assert!(second_least(&took[1..]) < Duration::from_millis(200), "{fault:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_replica_that_answers_nothing_but_probes_is_asked_ever_more_rarely() {
    let (upstream, stranger, cache) = beside_a_stranger().await;
    // As one does whose volume hangs.
    stranger.fault(On::Blobs, Fault::Silence).await;
    let began = Instant::now();
    let (mut asked, mut waited) = (0, 0);
    while began.elapsed() < Duration::from_secs(15) {
        let blob = Content::blob(asked, 1000);
        upstream.put_blob(REPOSITORY, &blob);
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!(answer.status, 200);
        asked += 1;
        waited += u32::from(answer.took > Duration::from_millis(800));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(waited <= 6, "{waited} of {asked} pulls waited for it");
}

#[tokio::test]
async fn a_replica_that_sends_hardly_anything_is_left_for_upstream_and_left_alone() {
    let (upstream, stranger, cache) = beside_a_stranger().await;
    stranger.fault(On::Blobs, Fault::Drip(2048)).await;
    for (seed, most) in [(1, Duration::from_secs(9)), (2, Duration::from_secs(2))] {
        let blob = Content::blob(seed, MIB);
        upstream.put_blob(REPOSITORY, &blob);
        stranger.put_blob(REPOSITORY, &blob);
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
        assert!(answer.took < most, "{:?}", answer.took);
    }
}

/// More of several that are slow are the machine's noise.
fn second_least(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[1]
}

#[tokio::test]
async fn a_replica_that_answers_again_is_asked_again() {
    let (upstream, stranger, cache) = beside_a_stranger().await;
    stranger.fault(On::Everything, Fault::Silence).await;
    let first = Content::blob(1, 1000);
    upstream.put_blob(REPOSITORY, &first);
    cache.get(&first.blob_path(REPOSITORY)).await;
    stranger.heal().await;
    let deadline = Instant::now() + PATIENCE;
    for seed in 2.. {
        let blob = Content::blob(seed, 1000);
        upstream.put_blob(REPOSITORY, &blob);
        stranger.put_blob(REPOSITORY, &blob);
        assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.status, 200);
        if downloads(&upstream, &blob) == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "it was never asked again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_replica_that_stalls_in_mid_body_is_gone_on_from_upstream_and_left_alone() {
    let (upstream, stranger, cache) = beside_a_stranger().await;
    stranger.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut took = Vec::new();
    for seed in 1..=4 {
        let blob = Content::blob(seed, 2 * MIB);
        upstream.put_blob(REPOSITORY, &blob);
        stranger.put_blob(REPOSITORY, &blob);
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
        took.push(answer.took);
        assert_eq!(upstream.bytes_sent(&blob.digest), if seed == 1 { MIB as u64 } else { blob.len() });
    }
    assert!(took[0] < Duration::from_millis(2500), "{took:?}");
    assert!(second_least(&took[1..]) < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn a_frozen_replica_is_gone_on_from_upstream_within_two_seconds() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, 8 * MIB);
    upstream.put_blob(REPOSITORY, &blob);
    let (one, other) = two(&upstream).await;
    upstream.fault_times(1, On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let path = blob.blob_path(REPOSITORY);
    let mut first = one.request("GET", &path).send().await;
    first.read(3 * MIB).await;
    let mut second = other.request("GET", &path).send().await;
    assert!(second.read(3 * MIB).await == blob.bytes[..3 * MIB]);
    one.freeze();
    let frozen = Instant::now();
    assert_eq!(second.rest_equals(&blob.bytes).await, End::Complete);
    assert!(frozen.elapsed() < Duration::from_secs(4), "{:?}", frozen.elapsed());
    one.thaw();
}

#[tokio::test]
async fn a_replica_that_lies_costs_one_reader_and_is_left_alone() {
    let (upstream, stranger, cache) = beside_a_stranger().await;
    stranger.fault(On::Everything, Fault::WrongBytes).await;
    let blobs = [1, 2].map(|seed| Content::blob(seed, MIB));
    for blob in &blobs {
        upstream.put_blob(REPOSITORY, blob);
        stranger.put_blob(REPOSITORY, blob);
    }
    let path = blobs[0].blob_path(REPOSITORY);
    assert_eq!(cache.get(&path).await.end, End::CutByFin, "it had begun to read");
    assert_eq!(cache.committed(&blobs[0]), None);
    let mark = stranger.mark();
    for blob in &blobs {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    }
    assert_eq!(stranger.content_requests_since(mark).len(), 0, "it is not asked again");
}

#[tokio::test]
async fn a_manifest_that_a_replica_spoils_comes_from_upstream() {
    for fault in [Fault::WrongBytes, Fault::Html, Fault::TruncateAt(10), Fault::StallAt(10), Fault::Status(500)] {
        let (upstream, stranger, cache) = beside_a_stranger().await;
        let image = Content::image(1, &[1000]);
        upstream.push(REPOSITORY, "v1", &image);
        stranger.push(REPOSITORY, "v1", &image);
        stranger.fault(On::Manifests, fault.clone()).await;
        let answer = cache.get(&image.manifest.manifest_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.body == image.manifest.bytes), (200, true), "{fault:?}");
    }
}

#[tokio::test]
async fn a_cache_is_ready_whatever_its_replicas_are() {
    let upstream = Upstream::start().await;
    let stranger = Upstream::start().await;
    stranger.fault(On::Everything, Fault::BlackHole).await;
    let cache = Cache::of(&upstream);
    let cache = cache.flag("--peer", &stranger.host()).flag("--peer", "no-such-host.invalid:5000").start().await;
    assert_eq!(cache.admin("/readyz").await.status, 200);
    assert!(stranger.requests().is_empty(), "nobody is asked before there is a question");
}

#[tokio::test]
async fn a_replica_that_dies_in_mid_body_is_gone_on_from_upstream() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, 8 * MIB);
    upstream.put_blob(REPOSITORY, &blob);
    let (mut one, other) = two(&upstream).await;
    upstream.fault_times(1, On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let path = blob.blob_path(REPOSITORY);
    let mut first = one.request("GET", &path).send().await;
    first.read(3 * MIB).await;
    let mut second = other.request("GET", &path).send().await;
    assert!(second.read(3 * MIB).await == blob.bytes[..3 * MIB]);
    one.kill9().await;
    assert_eq!(second.rest_equals(&blob.bytes).await, End::Complete);
    let resumed = upstream.requests().iter().any(|request| request.header("range").is_some());
    assert!(resumed, "what the other replica had sent was fetched again");
}
