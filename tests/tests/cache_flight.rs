//! One download of one digest, with any number of readers: the first byte at once, one upstream transfer for all, and no
//! reader's leaving stops it.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::{Cache, End, cold};
use breakwater_tests::upstream::{Blob, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

/// A blob of this size behind a cache that has not seen it.
async fn cold(size: usize) -> (Upstream, Cache, Blob) {
    cold::blob(REPOSITORY, size).await
}

/// How often the blob itself was asked for, by GET.
fn downloads(upstream: &Upstream, blob: &Blob) -> usize {
    let requests = upstream.requests();
    requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(&blob.digest)).count()
}

#[tokio::test]
async fn the_first_byte_is_out_long_before_the_last_is_in() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    assert_eq!(reading.status, 200);
    assert_eq!(reading.read(MIB / 2).await, &blob.bytes[..MIB / 2], "upstream has sent 1 MiB of 8");
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&blob.bytes).await, End::Complete);
}

#[tokio::test]
async fn even_a_single_byte_is_passed_on_at_once() {
    let (upstream, cache, blob) = cold(MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(1)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    assert_eq!(reading.read(1).await, &blob.bytes[..1]);
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&blob.bytes).await, End::Complete);
}

#[tokio::test]
async fn fifty_clients_of_one_cold_blob_are_one_download() {
    let (upstream, cache, blob) = cold(16 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut reader = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
        reader.read(1).await;
        readers.push(reader);
    }
    upstream.heal().await;
    let ends = futures::future::join_all(readers.into_iter().map(|reader| reader.rest_equals(&blob.bytes))).await;
    assert!(ends.iter().all(|end| *end == End::Complete), "{ends:?}");
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    assert_eq!(downloads(&upstream, &blob), 1);
}

#[tokio::test]
async fn a_second_reader_gets_at_once_what_is_already_here() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let mut first = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    first.read(3 * MIB).await;
    let mut second = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    assert_eq!(second.read(3 * MIB).await, &blob.bytes[..3 * MIB]);
    upstream.heal().await;
    assert_eq!(first.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!(second.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!(downloads(&upstream, &blob), 1);
}

#[tokio::test]
async fn readers_leave_and_the_download_goes_on() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(1).await;
    drop(reading);
    upstream.heal().await;
    upstream.wait_for("the whole download", |_| upstream.bytes_sent(&blob.digest) == blob.len()).await;
    let later = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((later.end, later.body == blob.bytes), (End::Complete, true));
    assert_eq!(downloads(&upstream, &blob), 1);
}

#[tokio::test]
async fn a_slow_reader_holds_nobody_up() {
    let (upstream, cache, blob) = cold(32 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut slow = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    slow.read(1).await;
    let fast = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    upstream.heal().await;
    assert_eq!(fast.rest_equals(&blob.bytes).await, End::Complete, "while the slow one takes nothing");
    assert_eq!(slow.rest_equals(&blob.bytes).await, End::Complete);
}

#[tokio::test]
async fn a_range_within_a_download_is_served_from_what_is_here() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let mut whole = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    whole.read(3 * MIB).await;
    let part = cache.request("GET", &blob.blob_path(REPOSITORY)).range("1048576-1048675").answer().await;
    assert_eq!((part.status, part.end), (206, End::Complete));
    assert_eq!(part.header("content-range"), Some("bytes 1048576-1048675/8388608"));
    assert_eq!(&part.body[..], &blob.bytes[MIB..MIB + 100]);
    upstream.heal().await;
    assert_eq!(whole.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!(downloads(&upstream, &blob), 1);
}

#[tokio::test]
async fn a_range_that_the_download_does_not_reach_is_503_and_the_download_goes_on() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut whole = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    whole.read(1).await;
    let part = cache.request("GET", &blob.blob_path(REPOSITORY)).range("8388000-").answer().await;
    assert_eq!(part.status, 503);
    assert!(part.took < Duration::from_secs(6), "promised within 4 s, took {:?}", part.took);
    upstream.heal().await;
    assert_eq!(whole.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!(downloads(&upstream, &blob), 1);
}

#[tokio::test]
async fn a_range_of_a_cold_blob_is_right() {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    for range in ["0-", "3145728-"] {
        let answer = cache.request("GET", &blob.blob_path(REPOSITORY)).range(range).answer().await;
        let start: usize = range.trim_end_matches('-').parse().expect("a number");
        assert_eq!((answer.status, answer.end), (206, End::Complete), "{range}");
        assert!(answer.body == blob.bytes[start..], "{range}");
    }
    assert_eq!(downloads(&upstream, &blob), 1, "a range starts a download of the whole");
}

#[tokio::test]
async fn clients_that_take_a_chunk_of_an_open_range_and_leave_disturb_nothing() {
    let (upstream, cache, blob) = cold(8 * MIB).await;
    for start in (0..8 * MIB).step_by(MIB) {
        let range = format!("{start}-");
        let mut chunk = cache.request("GET", &blob.blob_path(REPOSITORY)).range(&range).send().await;
        assert_eq!(chunk.status, 206);
        assert!(chunk.read(MIB).await == blob.bytes[start..start + MIB], "from {start}");
    }
    assert_eq!(downloads(&upstream, &blob), 1);
}
