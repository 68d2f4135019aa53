//! Faults that come one after the other: what the first left behind must not spoil the second.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::{Cache, End, PATIENCE, cold};
use breakwater_tests::upstream::{Blob, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const SIZE: usize = 3 << 20;
const MIB: u64 = 1 << 20;

/// Lets a download get so many bytes, wherever it begins, and then stall.
async fn download_until(upstream: &Upstream, cache: &Cache, blob: &Blob, bytes: u64) {
    let partial = cache.data().join("partial").join(blob.hex());
    let written = || std::fs::metadata(&partial).map_or(0, |file| file.len());
    let before = written();
    upstream.fault_times(1, On::Blobs, Fault::StallAt(bytes)).await;
    let reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    cache.until("part of the blob is on disk", async || written() >= before + bytes).await;
    drop(reading);
}

async fn whole(cache: &Cache, blob: &Blob) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        if answer.status == 200 && answer.end == End::Complete {
            assert!(answer.body == blob.bytes, "the right bytes");
            return;
        }
        assert!(blob.bytes.starts_with(&answer.body) || answer.status != 200, "foreign bytes");
        assert!(Instant::now() < deadline, "it never came whole");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn killed_twice_in_one_download_no_part_is_fetched_twice() {
    let (upstream, mut cache, blob) = cold::blob(REPOSITORY, SIZE).await;
    download_until(&upstream, &cache, &blob, MIB).await;
    cache.restart().await;
    download_until(&upstream, &cache, &blob, MIB).await;
    cache.restart().await;
    whole(&cache, &blob).await;
    let sent = upstream.bytes_sent(&blob.digest);
    assert!(sent < SIZE as u64 + MIB / 2, "upstream sent {sent} bytes for {SIZE}");
}

#[tokio::test]
async fn a_download_whose_reader_left_outlives_a_restart_in_an_outage() {
    let (upstream, mut cache, blob) = cold::blob(REPOSITORY, SIZE).await;
    download_until(&upstream, &cache, &blob, 2 * MIB).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    let refused = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert!(refused.status == 503 || refused.end == End::CutByFin, "{}", refused.status);
    upstream.heal().await;
    whole(&cache, &blob).await;
    let sent = upstream.bytes_sent(&blob.digest);
    assert!(sent < SIZE as u64 + MIB / 2, "upstream sent {sent} bytes for {SIZE}");
}

#[tokio::test]
async fn readers_who_come_and_go_in_a_flapping_outage_cost_one_download() {
    let (upstream, cache, blob) = cold::blob(REPOSITORY, SIZE).await;
    upstream.fault(On::Blobs, Fault::TruncateAt(200_000)).await;
    let path = blob.blob_path(REPOSITORY);
    for _ in 0..20 {
        let mut reading = cache.request("GET", &path).send().await;
        if reading.status == 200 {
            let first = reading.read(1000).await;
            assert!(blob.bytes.starts_with(&first), "foreign bytes");
        }
    }
    whole(&cache, &blob).await;
    let sent = upstream.bytes_sent(&blob.digest);
    assert!(sent < SIZE as u64 + MIB / 2, "upstream sent {sent} bytes for {SIZE}");
}
