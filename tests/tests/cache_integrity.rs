//! After a header come right bytes or a cut connection, whatever upstream, a crash or the disk does to a download.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use breakwater_tests::cache::{Answer, Cache, End, PATIENCE, cold};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

async fn cold(size: usize) -> (Upstream, Cache, Blob) {
    cold::blob(REPOSITORY, size).await
}

/// Never a whole body of wrong bytes, never a foreign byte: an error before the header or a prefix and a FIN.
fn assert_honest(answer: &Answer, truth: &Blob) {
    if answer.status != 200 {
        assert_eq!((answer.status, answer.end), (503, End::Complete));
        assert_ne!(answer.error_code(), "");
        return;
    }
    assert_eq!(answer.end, End::CutByFin, "a client resumes after a FIN, not after a reset");
    assert!(answer.body.len() < truth.bytes.len());
}

/// Asks until the whole blob comes; refusals in between are remembered for some seconds by design.
async fn eventually_whole(cache: &Cache, blob: &Blob) {
    let whole = async {
        loop {
            let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
            if answer.status == 200 && answer.end == End::Complete {
                return answer.body;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let body = tokio::time::timeout(PATIENCE, whole).await.expect("the whole blob");
    assert!(body == blob.bytes, "the right bytes");
}

#[tokio::test]
async fn wrong_bytes_are_never_whole_and_never_kept() {
    let sizes = [1, 100, 70_000, 3 * MIB];
    futures::future::join_all(sizes.map(wrong_bytes_are_refused)).await;
}

async fn wrong_bytes_are_refused(size: usize) {
    let (upstream, cache, blob) = cold(size).await;
    upstream.fault(On::Blobs, Fault::WrongBytes).await;
    for _ in 0..2 {
        assert_honest(&cache.get(&blob.blob_path(REPOSITORY)).await, &blob);
    }
    assert_eq!(cache.committed(&blob), None, "{size}");
    upstream.heal().await;
    eventually_whole(&cache, &blob).await;
}

#[tokio::test]
async fn no_reader_of_a_wrong_download_gets_it_whole() {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    upstream.fault(On::Blobs, Fault::WrongBytes).await;
    let path = blob.blob_path(REPOSITORY);
    let tail = cache.request("GET", &path).range("4194300-").answer();
    let (first, second, tail) = tokio::join!(cache.get(&path), cache.get(&path), tail);
    assert_honest(&first, &blob);
    assert_honest(&second, &blob);
    assert!(tail.status == 503 || tail.end == End::CutByFin, "{tail:?}");
}

#[tokio::test]
async fn a_wrong_manifest_is_an_error_before_the_header() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[10]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Cache::start(&upstream).await;
    upstream.fault(On::Manifests, Fault::WrongBytes).await;
    for path in [image.manifest.manifest_path(REPOSITORY), "/v2/library/app/manifests/v1".to_owned()] {
        let answer = cache.get(&path).await;
        assert_eq!((answer.status, answer.end), (503, End::Complete), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_by_range() {
    for fault in [Fault::TruncateAt(MIB as u64), Fault::ResetAt(2 * MIB as u64)] {
        let (upstream, cache, blob) = cold(4 * MIB).await;
        upstream.fault_times(1, On::Blobs, fault.clone()).await;
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end), (200, End::Complete), "{fault:?}");
        assert!(answer.body == blob.bytes, "{fault:?}");
        let resumed = upstream.requests().iter().any(|request| request.header("range").is_some());
        assert!(resumed, "{fault:?}: it was fetched anew from the start");
    }
}

#[tokio::test]
async fn a_broken_body_is_right_even_where_upstream_ignores_ranges() {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    upstream.fault(On::Blobs, Fault::IgnoreRange).await;
    upstream.fault_times(1, On::Blobs, Fault::TruncateAt(MIB as u64)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == blob.bytes[..answer.body.len()], "right bytes or a cut");
    eventually_whole(&cache, &blob).await;
}

#[tokio::test]
async fn a_body_that_stalls_is_taken_up_again() {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    upstream.fault_times(1, On::Blobs, Fault::StallAt(MIB as u64)).await;
    eventually_whole(&cache, &blob).await;
}

#[tokio::test]
async fn when_upstream_dies_in_mid_body_the_client_sees_a_fin_after_right_bytes() {
    tokio::join!(dies_in_mid_body(Fault::TruncateAt(MIB as u64)), dies_in_mid_body(Fault::ResetAt(MIB as u64)));
}

async fn dies_in_mid_body(fault: Fault) {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    upstream.fault(On::Blobs, Fault::Status(503)).await;
    upstream.fault_times(1, On::Blobs, fault).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_honest(&answer, &blob);
    assert!(blob.bytes.starts_with(&answer.body) || answer.status == 503, "foreign bytes");
    upstream.heal().await;
    eventually_whole(&cache, &blob).await;
}

#[tokio::test]
async fn strange_framing_by_upstream_yields_right_bytes_or_none() {
    for fault in [Fault::Chunked, Fault::NoDigest, Fault::Gzip, Fault::Html] {
        let (upstream, cache, blob) = cold(MIB).await;
        upstream.fault(On::Blobs, fault.clone()).await;
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        if answer.status == 200 && answer.end == End::Complete {
            assert!(answer.body == blob.bytes, "{fault:?}");
        } else {
            assert!(!matches!(fault, Fault::Chunked | Fault::NoDigest), "{fault:?} is allowed: {answer:?}");
            assert_honest(&answer, &blob);
        }
    }
}

#[tokio::test]
async fn a_manifest_without_digest_header_or_length_is_pulled() {
    for fault in [Fault::Chunked, Fault::NoDigest] {
        let upstream = Upstream::start().await;
        let image = Content::image(1, &[10]);
        upstream.push(REPOSITORY, "v1", &image);
        let cache = Cache::start(&upstream).await;
        upstream.fault(On::Manifests, fault.clone()).await;
        let answer = cache.get("/v2/library/app/manifests/v1").await;
        assert_eq!((answer.status, &answer.body[..]), (200, &image.manifest.bytes[..]), "{fault:?}");
        assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.digest.as_str()), "{fault:?}");
    }
}

#[tokio::test]
async fn a_cache_killed_in_mid_download_serves_the_right_bytes_afterwards() {
    let (upstream, mut cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(2 * MIB).await;
    cache.kill9().await;
    assert_eq!(cache.committed(&blob), None, "half a blob is not a blob");
    upstream.heal().await;
    cache.restart().await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    let mark = upstream.mark();
    assert!(cache.get(&blob.blob_path(REPOSITORY)).await.body == blob.bytes);
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn a_partial_download_spoilt_on_disk_never_reaches_a_client_whole() {
    let (upstream, mut cache, blob) = cold(8 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(4 * MIB as u64)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(2 * MIB).await;
    cache.kill9().await;
    spoil(&cache.data().join("partial"));
    upstream.heal().await;
    cache.restart().await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert!(answer.body == blob.bytes || answer.end == End::CutByFin || answer.status == 503);
    eventually_whole(&cache, &blob).await;
}

#[tokio::test]
async fn a_truncated_or_emptied_blob_on_disk_is_fetched_anew() {
    for left in [0, 1000] {
        let (_upstream, cache, blob) = cold(MIB).await;
        eventually_whole(&cache, &blob).await;
        let path = cache.await_kept(REPOSITORY, &blob).await;
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("the blob's file");
        file.set_len(left).expect("a shorter file");
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert!(answer.status != 200 || answer.end != End::Complete || answer.body == blob.bytes, "{left}");
        eventually_whole(&cache, &blob).await;
    }
}

/// Flips a byte of every file in a folder.
fn spoil(folder: &Path) {
    let files = std::fs::read_dir(folder).expect("the folder of partial downloads");
    for file in files {
        let path = file.expect("a file").path();
        let mut bytes = std::fs::read(&path).expect("a partial download");
        if let Some(byte) = bytes.get_mut(100) {
            *byte ^= 0xFF;
        }
        std::fs::write(&path, bytes).expect("a partial download");
    }
}
