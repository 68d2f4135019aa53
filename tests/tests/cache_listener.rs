//! The process around the pulls: listeners under attack, memory, metrics, state, start and stop.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::{Cache, End, cold};
use breakwater_tests::upstream::{Content, Fault, On, Upstream};
use tokio::io::AsyncWriteExt;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
const MIB: u64 = 1 << 20;

async fn started() -> (Upstream, Cache) {
    let (upstream, cache, _image) = cold::image(REPOSITORY, &[1000]).await;
    (upstream, cache)
}

#[tokio::test]
async fn a_tls_hello_on_the_plain_port_is_told_so_in_http() {
    let (_upstream, cache) = started().await;
    let hello = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[7; 506]].concat();
    let answer = exchange_raw(cache.address(), &hello).await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_bomb_of_headers_is_refused_and_nobody_else_notices() {
    let (_upstream, cache) = started().await;
    let header = format!("X-Filler: {}\r\n", "x".repeat(1000));
    let bomb = format!("GET {BY_TAG} HTTP/1.1\r\nHost: x\r\n{}", header.repeat(4000));
    let answer = exchange_raw(cache.address(), bomb.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn connections_that_never_ask_do_not_keep_others_out() {
    let (_upstream, cache) = started().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = tokio::net::TcpStream::connect(cache.address()).await.expect("a connection");
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHo").await.expect("half a header");
        idle.push(stream);
    }
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.status, 200);
    assert!(answer.took < Duration::from_secs(2));
}

#[tokio::test]
async fn a_hundred_paused_readers_of_a_large_blob_cost_little_memory() {
    let (upstream, cache) = started().await;
    let blob = Content::blob(5, 64 << 20);
    upstream.put_blob(REPOSITORY, &blob);
    let path = blob.blob_path(REPOSITORY);
    assert_eq!(cache.request("GET", &path).send().await.rest_equals(&blob.bytes).await, End::Complete);
    let mut paused = Vec::new();
    for _ in 0..100 {
        let mut reader = cache.request("GET", &path).send().await;
        reader.read(100).await;
        paused.push(reader);
    }
    // A small hit beside them shows that the buffers have filled and nothing is blocked.
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    let resident = cache.resident_memory();
    assert!(resident < 64 * MIB, "{} MiB", resident / MIB);
    assert_eq!(paused.remove(0).rest_equals(&blob.bytes).await, End::Complete);
}

#[tokio::test]
async fn a_large_miss_is_not_held_in_memory() {
    let (upstream, cache) = started().await;
    let blob = Content::blob(6, 96 << 20);
    upstream.put_blob(REPOSITORY, &blob);
    let mut reader = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reader.read(1).await;
    upstream.wait_for("the whole download", |_| upstream.bytes_sent(&blob.digest) == blob.len()).await;
    let resident = cache.resident_memory();
    assert!(resident < 64 * MIB, "{} MiB", resident / MIB);
}

#[tokio::test]
async fn health_and_readiness_do_not_depend_on_upstream() {
    let (upstream, cache) = started().await;
    upstream.fault(On::Everything, Fault::Silence).await;
    for path in ["/healthz", "/readyz"] {
        let answer = cache.admin(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.took < Duration::from_secs(3), "{path}");
    }
}

#[tokio::test]
async fn metrics_count_misses_hits_and_stale_answers() {
    let (_upstream, cache) = started().await;
    cache.get(BY_TAG).await;
    cache.get(BY_TAG).await;
    let metrics = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
    let requests: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("breakwater_cache_requests_total{")).collect();
    for result in ["miss", "hit"] {
        let labels = [format!("result=\"{result}\""), "kind=\"manifest\"".to_owned()];
        let line = requests.iter().find(|line| labels.iter().all(|label| line.contains(label)));
        assert!(line.is_some_and(|line| line.ends_with(" 1")), "{result}: {requests:?}");
    }
    assert!(metrics.contains("breakwater_upstream_reachable"), "{metrics}");
    assert!(!metrics.contains("sha256:") && !metrics.contains(REPOSITORY), "labels without bound");
}

#[tokio::test]
async fn the_state_of_upstream_is_known_without_any_pull_and_follows_it() {
    let upstream = Upstream::start().await;
    upstream.announce_rate_limit(12);
    upstream.push(REPOSITORY, "v1", &Content::image(1, &[100_000]));
    let cache = Cache::start(&upstream).await;
    let state = cache.await_upstream_state("that upstream is reachable", |state| state["reachable"] == true).await;
    assert_eq!(state["registry"], upstream.host());
    assert!(state["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{state}");
    assert!(state["credentialsAccepted"].is_null(), "{state}");
    cache.get(BY_TAG).await;
    let state = cache.upstream_state().await;
    assert_eq!(state["rateLimitRemaining"], 12);
    assert!(state["cachedBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{state}");
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.get("/v2/library/app/manifests/other").await;
    let state = cache.await_upstream_state("the outage", |state| state["reachable"] == false).await;
    assert!(state["message"].as_str().is_some_and(|message| !message.is_empty()), "{state}");
    upstream.heal().await;
    cache.await_upstream_state("the recovery, unasked", |state| state["reachable"] == true).await;
}

#[tokio::test]
async fn asked_to_stop_it_finishes_what_it_sends_and_exits_with_0() {
    let (upstream, mut cache) = started().await;
    let blob = Content::blob(7, 8 << 20);
    upstream.put_blob(REPOSITORY, &blob);
    let path = blob.blob_path(REPOSITORY);
    assert_eq!(cache.request("GET", &path).send().await.rest_equals(&blob.bytes).await, End::Complete);
    let mut reading = cache.request("GET", &path).send().await;
    reading.read(1).await;
    let (code, end) = tokio::join!(cache.terminate(), reading.rest_equals(&blob.bytes));
    assert_eq!((code, end), (Some(0), End::Complete));
}

#[tokio::test]
async fn asked_to_stop_in_mid_download_it_finishes_for_who_reads_it() {
    let (upstream, mut cache) = started().await;
    let blob = Content::blob(8, 8 << 20);
    upstream.put_blob(REPOSITORY, &blob);
    upstream.fault(On::Blobs, Fault::StallAt(1 << 20)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(1).await;
    let address = cache.address();
    let stopped_listening = async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        upstream.heal().await;
        reading.rest_equals(&blob.bytes).await
    };
    assert_eq!(tokio::join!(cache.terminate(), stopped_listening), (Some(0), End::Complete));
}

#[tokio::test]
async fn whoever_reads_on_it_has_stopped_before_its_pod_is_killed() {
    let pod = include_str!("../../operator/tests/snapshots/smallest-statefulset.yaml");
    let grace = pod.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    let grace = Duration::from_secs(grace.and_then(|seconds| seconds.parse().ok()).expect("a grace period"));
    let (upstream, mut cache) = started().await;
    let blob = Content::blob(9, 64 << 20);
    upstream.put_blob(REPOSITORY, &blob);
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(1).await;
    let told = Instant::now();
    assert_eq!(cache.terminate().await, Some(0));
    assert!(told.elapsed() < grace, "{:?} of {grace:?}", told.elapsed());
    drop(reading);
}

#[tokio::test]
async fn a_second_process_on_the_same_folder_is_refused_in_one_sentence() {
    let (upstream, cache) = started().await;
    let (code, last) = Cache::of(&upstream).data(cache.data()).start_refused().await;
    assert_eq!(code, Some(1));
    assert!(last.contains("--data-dir") && last.contains("another process"), "{last}");
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn the_folder_of_another_registry_is_refused_in_one_sentence() {
    let (upstream, mut cache) = started().await;
    cache.get(BY_TAG).await;
    cache.kill9().await;
    let stranger = Cache::of(&upstream).registry("ghcr.io").data(cache.data());
    let (code, last) = stranger.start_refused().await;
    assert_eq!(code, Some(1));
    assert!(last.contains(&upstream.host()), "{last}");
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    let (upstream, _cache) = started().await;
    let (code, _) = Cache::of(&upstream).flag("--tag-ttl", "soon").start_refused().await;
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn a_frozen_cache_goes_on_where_it_was() {
    let (_upstream, cache) = started().await;
    cache.freeze();
    let pending = cache.get(BY_TAG);
    tokio::pin!(pending);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut pending).await;
    assert!(early.is_err(), "a frozen process answered");
    cache.thaw();
    assert_eq!(pending.await.status, 200);
}
