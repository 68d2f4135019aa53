//! A cache keeps no more than it may: the least recently used goes first, over restarts too, and nothing that is in use.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

/// Blobs of one MiB each, and a cache that may keep three of them.
async fn room_for_three(count: u64) -> (Upstream, Cache, Vec<Blob>) {
    let upstream = Upstream::start().await;
    let blobs: Vec<Blob> = (0..count).map(|seed| Content::blob(seed, MIB)).collect();
    for blob in &blobs {
        upstream.put_blob(REPOSITORY, blob);
    }
    let cache = Cache::of(&upstream).flag("--cache-size", "3500Ki").start().await;
    (upstream, cache, blobs)
}

async fn pull(cache: &Cache, blob: &Blob) {
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    assert!(answer.body == blob.bytes, "the right bytes");
}

async fn pull_and_keep(cache: &Cache, blob: &Blob) {
    pull(cache, blob).await;
    cache.await_kept(REPOSITORY, blob).await;
}

fn kept(cache: &Cache, blobs: &[Blob]) -> Vec<bool> {
    blobs.iter().map(|blob| cache.committed(blob).is_some()).collect()
}

/// Bytes of all files below a folder.
fn bytes_under(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.fold(0, |sum, entry| match entry.metadata() {
        Ok(found) if found.is_dir() => sum + bytes_under(&entry.path()),
        Ok(found) => sum + found.len(),
        Err(_) => sum,
    })
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let (upstream, cache, blobs) = room_for_three(4).await;
    for blob in &blobs[..3] {
        pull_and_keep(&cache, blob).await;
    }
    pull(&cache, &blobs[0]).await;
    pull_and_keep(&cache, &blobs[3]).await;
    cache.until("one of four has gone", async || kept(&cache, &blobs) == [true, false, true, true]).await;
    let mark = upstream.mark();
    for blob in [&blobs[0], &blobs[2], &blobs[3]] {
        pull(&cache, blob).await;
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "what stayed is a hit");
    assert!(bytes_under(cache.data()) <= 3500 * 1024, "{} bytes", bytes_under(cache.data()));
    let metrics = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
    assert!(metrics.contains("breakwater_cache_evicted_total{") && metrics.contains("breakwater_cache_limit_bytes{"));
    let state = cache.upstream_state().await;
    assert_eq!(state["cachedBytes"], 3 * MIB as u64);
}

#[tokio::test]
async fn the_order_of_use_outlives_a_stop_and_a_kill() {
    for is_killed in [false, true] {
        let (_upstream, mut cache, blobs) = room_for_three(4).await;
        for blob in &blobs[..3] {
            pull_and_keep(&cache, blob).await;
        }
        let path = cache.committed(&blobs[0]).expect("kept");
        let pulled = modified(&path);
        pull(&cache, &blobs[0]).await;
        if is_killed {
            cache.until("the use is written down", async || modified(&path) > pulled).await;
        } else {
            assert_eq!(cache.terminate().await, Some(0));
        }
        cache.restart().await;
        pull_and_keep(&cache, &blobs[3]).await;
        cache.until("one of four has gone", async || kept(&cache, &blobs) == [true, false, true, true]).await;
    }
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path).and_then(|found| found.modified()).expect("a file")
}

#[tokio::test]
async fn a_smaller_limit_is_kept_after_a_restart() {
    let (upstream, cache, blobs) = room_for_three(3).await;
    for blob in &blobs {
        pull_and_keep(&cache, blob).await;
    }
    let data = tempfile::tempdir().expect("a folder");
    let cache_data = data.path().join("data");
    drop_and_move(cache, &cache_data).await;
    let cache = Cache::of(&upstream).data(&cache_data).flag("--cache-size", "1100Ki").start().await;
    cache.until("only the youngest is left", async || kept(&cache, &blobs) == [false, false, true]).await;
    let state = cache.await_upstream_state("its size", |state| state["cachedBytes"] == MIB as u64).await;
    assert_eq!(state["cachedBytes"], MIB as u64);
}

async fn drop_and_move(mut cache: Cache, to: &Path) {
    assert_eq!(cache.terminate().await, Some(0));
    std::fs::rename(cache.data(), to).expect("the data can be moved");
}

#[tokio::test]
async fn what_a_slow_client_reads_is_neither_evicted_nor_cut() {
    let upstream = Upstream::start().await;
    let slow = Content::blob(100, 16 * MIB);
    let others: Vec<Blob> = (0..8).map(|seed| Content::blob(seed, 4 * MIB)).collect();
    for blob in others.iter().chain([&slow]) {
        upstream.put_blob(REPOSITORY, blob);
    }
    let cache = Cache::of(&upstream).flag("--cache-size", "25Mi").start().await;
    pull_and_keep(&cache, &slow).await;
    let mut reading = cache.request("GET", &slow.blob_path(REPOSITORY)).send().await;
    let first = reading.read(MIB).await;
    assert!(first == slow.bytes[..MIB]);
    for blob in &others {
        pull_and_keep(&cache, blob).await;
    }
    cache.until("the others made room", async || kept(&cache, &others).iter().filter(|kept| **kept).count() <= 2).await;
    assert!(cache.committed(&slow).is_some(), "removing it would have freed nothing");
    assert_eq!(reading.rest_equals(&slow.bytes).await, End::Complete);
}

#[tokio::test]
async fn a_blob_larger_than_the_cache_is_served_and_not_kept() {
    let (upstream, cache, blobs) = room_for_three(2).await;
    let large = Content::blob(9, 8 * MIB);
    upstream.put_blob(REPOSITORY, &large);
    for blob in &blobs {
        pull_and_keep(&cache, blob).await;
    }
    let mark = upstream.mark();
    let path = large.blob_path(REPOSITORY);
    let (one, other) = tokio::join!(cache.get(&path), cache.get(&path));
    for answer in [one, other] {
        assert_eq!((answer.status, answer.end, answer.body == large.bytes), (200, End::Complete, true));
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 1, "one download for both");
    cache.until("nothing of it is left", async || bytes_under(&cache.data().join("partial")) == 0).await;
    assert_eq!((kept(&cache, &blobs), cache.committed(&large)), (vec![true, true], None));
}

#[tokio::test]
async fn room_is_made_while_a_download_runs_and_an_unfinished_one_counts() {
    let (upstream, cache, blobs) = room_for_three(4).await;
    for blob in &blobs[..3] {
        pull_and_keep(&cache, blob).await;
    }
    upstream.fault(On::Blobs, Fault::StallAt(1000)).await;
    let _reading = cache.request("GET", &blobs[3].blob_path(REPOSITORY)).send().await;
    cache.until("the oldest makes room", async || kept(&cache, &blobs) == [false, true, true, false]).await;
}

#[tokio::test]
async fn what_nobody_comes_back_for_is_collected() {
    let (_upstream, mut cache, blobs) = room_for_three(1).await;
    pull_and_keep(&cache, &blobs[0]).await;
    cache.kill9().await;
    let (data, long_ago) = (cache.data().to_owned(), SystemTime::now() - Duration::from_secs(40 * 24 * 3600));
    let old = |path: &str| {
        let path = data.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, b"{}").expect("a file");
        let file = std::fs::File::options().write(true).open(&path).expect("a file");
        file.set_modified(long_ago).expect("an old file");
        path
    };
    let (hex, links) = ("ab".repeat(32), "repositories/library/app/_links");
    let gone = [
        old(&format!("partial/{hex}")),
        old("partial/7.tmp"),
        old(&format!("{links}/{hex}")),
        old("repositories/library/app/_tags/old"),
    ];
    let stays = [old(&format!("{links}/{}", blobs[0].hex())), data.join("partial").join("cd".repeat(32))];
    std::fs::write(&stays[1], b"young").expect("a young download");
    cache.restart().await;
    cache.until("orphans are collected", async || gone.iter().all(|path| !path.exists())).await;
    assert!(stays.iter().all(|path| path.exists()));
}

#[tokio::test]
async fn a_size_that_is_none_is_refused_with_the_mend() {
    let upstream = Upstream::start().await;
    for bad in ["0", "40GB", "0%", "120%"] {
        let (code, _) = Cache::of(&upstream).flag("--cache-size", bad).start_refused().await;
        assert_eq!(code, Some(2), "{bad}");
    }
}
