//! What a killed cache had downloaded is not downloaded again, is served at once, and heals if it is wrong.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use breakwater_tests::cache::{Cache, End, cold};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

async fn cold(size: usize) -> (Upstream, Cache, Blob) {
    cold::blob(REPOSITORY, size).await
}

fn partial(cache: &Cache, blob: &Blob) -> PathBuf {
    cache.data().join("partial").join(blob.hex())
}

fn partial_length(cache: &Cache, blob: &Blob) -> u64 {
    std::fs::metadata(partial(cache, blob)).map_or(0, |found| found.len())
}

/// Lets the cache download so much, and kills it.
async fn killed_at(upstream: &Upstream, cache: &mut Cache, blob: &Blob, length: usize) {
    let before = partial_length(cache, blob);
    upstream.fault(On::Blobs, Fault::StallAt(length as u64 - before)).await;
    drop(cache.request("GET", &blob.blob_path(REPOSITORY)).send().await);
    cache.until("the download grows", async || partial_length(cache, blob) >= length as u64).await;
    cache.kill9().await;
    upstream.heal().await;
}

fn ranges_asked(upstream: &Upstream, blob: &Blob) -> Vec<Option<String>> {
    let requests = upstream.requests();
    let blobs = requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(&blob.digest));
    blobs.map(|request| request.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn killed_again_and_again_it_never_fetches_a_byte_twice() {
    let (upstream, mut cache, blob) = cold(8 * MIB).await;
    for length in [MIB, 3 * MIB, 6 * MIB] {
        killed_at(&upstream, &mut cache, &blob, length).await;
        assert_eq!(cache.committed(&blob), None);
        cache.restart().await;
    }
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    let asked = ranges_asked(&upstream, &blob);
    let expected = [0, MIB, 3 * MIB, 6 * MIB].map(|at| (at > 0).then(|| format!("bytes={at}-")));
    assert_eq!(asked, expected);
    cache.await_kept(REPOSITORY, &blob).await;
    assert!(!partial(&cache, &blob).exists());
}

#[tokio::test]
async fn what_is_left_is_served_before_upstream_sends_more() {
    let (upstream, mut cache, blob) = cold(8 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, 4 * MIB).await;
    upstream.fault(On::Blobs, Fault::StallAt(0)).await;
    cache.restart().await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    assert!(reading.read(4 * MIB).await == blob.bytes[..4 * MIB]);
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&blob.bytes).await, End::Complete);
}

#[tokio::test]
async fn where_upstream_ignores_ranges_the_first_part_is_skipped() {
    let (upstream, mut cache, blob) = cold(4 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, MIB).await;
    upstream.fault(On::Blobs, Fault::IgnoreRange).await;
    cache.restart().await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    assert_eq!(ranges_asked(&upstream, &blob).len(), 2);
}

#[tokio::test]
async fn a_part_spoilt_on_disk_costs_one_reader_at_most() {
    let (upstream, mut cache, blob) = cold(8 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, 4 * MIB).await;
    spoil(&cache, &blob);
    cache.restart().await;
    let first = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!(first.end, End::CutByFin, "it had bytes of the spoilt part");
    assert_eq!(cache.committed(&blob), None);
    let second = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((second.status, second.end), (200, End::Complete), "upstream was right: nothing to remember");
    assert!(second.body == blob.bytes);
}

#[tokio::test]
async fn a_part_spoilt_on_disk_heals_unseen_where_nobody_has_read_it() {
    let (upstream, mut cache, blob) = cold(4 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, MIB).await;
    spoil(&cache, &blob);
    cache.restart().await;
    // Only the hash of everything lets the last byte go, so this reader has begun nothing before that.
    let last = blob.bytes.len() - 1;
    let answer = cache.request("GET", &blob.blob_path(REPOSITORY)).range(&format!("{last}-")).answer().await;
    assert_eq!((answer.status, &answer.body[..]), (206, &blob.bytes[last..]));
    let asked = ranges_asked(&upstream, &blob);
    assert_eq!(asked, [None, Some(format!("bytes={MIB}-")), None], "once from zero, within the same flight");
    let path = cache.await_kept(REPOSITORY, &blob).await;
    assert!(std::fs::read(path).expect("the blob") == blob.bytes);
}

#[tokio::test]
async fn all_of_it_left_uncommitted_needs_no_byte_more() {
    let (upstream, mut cache, blob) = cold(2 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, MIB).await;
    std::fs::write(partial(&cache, &blob), &blob.bytes).expect("what a kill before the commit leaves");
    upstream.fault(On::Registry, Fault::Refuse).await;
    cache.restart().await;
    let mark = upstream.mark();
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn all_of_it_for_another_repository_is_only_asked_about() {
    let (upstream, mut cache, blob) = cold(2 * MIB).await;
    killed_at(&upstream, &mut cache, &blob, MIB).await;
    std::fs::write(partial(&cache, &blob), &blob.bytes).expect("what a kill before the commit leaves");
    upstream.put_blob("library/other", &blob);
    cache.restart().await;
    let before = upstream.bytes_sent(&blob.digest);
    let answer = cache.get(&blob.blob_path("library/other")).await;
    assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
    assert!(upstream.bytes_sent(&blob.digest) - before < 1000, "a refusal at most");
    assert_eq!(cache.get(&blob.blob_path("library/stranger")).await.status, 200, "public content is anybody's");
}

#[tokio::test]
async fn more_than_the_blob_has_on_disk_starts_over() {
    let (upstream, mut cache, blob) = cold(MIB).await;
    killed_at(&upstream, &mut cache, &blob, MIB / 2).await;
    std::fs::write(partial(&cache, &blob), vec![7; 2 * MIB]).expect("a partial that is too long");
    cache.restart().await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
}

#[tokio::test]
async fn a_resume_that_speaks_of_another_size_is_not_mixed_in() {
    let (upstream, cache, blob) = cold(4 * MIB).await;
    upstream.fault_times(1, On::Blobs, Fault::ClaimTotal(5 * MIB as u64)).await;
    upstream.fault_times(1, On::Blobs, Fault::TruncateAt(MIB as u64)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    cache.await_kept(REPOSITORY, &blob).await;
    let mark = upstream.mark();
    assert!(cache.get(&blob.blob_path(REPOSITORY)).await.body == blob.bytes);
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "the size that was claimed first is forgotten");
}

#[tokio::test]
async fn a_size_of_ten_terabytes_is_refused_at_the_expense_of_nobody() {
    let (upstream, mut cache, kept) = cold(MIB).await;
    let (growing, fresh, liar) = (Content::blob(2, 2 * MIB), Content::blob(3, MIB), Content::blob(4, MIB));
    [&growing, &fresh, &liar].into_iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    cache.get(&kept.blob_path(REPOSITORY)).await;
    let path = cache.await_kept(REPOSITORY, &kept).await;
    // Used so long ago that it would go for a full disk.
    let long_ago = SystemTime::now() - Duration::from_secs(24 * 3600);
    std::fs::File::open(&path).and_then(|file| file.set_modified(long_ago)).expect("an older blob");
    cache.restart().await;
    upstream.fault_times(1, On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut reading = cache.request("GET", &growing.blob_path(REPOSITORY)).send().await;
    assert!(reading.read(MIB / 2).await == growing.bytes[..MIB / 2]);

    upstream.fault_times(1, On::Blobs, Fault::ClaimTotal(10 << 40)).await;
    let answer = cache.get(&liar.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end), (503, End::Complete), "known before the header");
    assert!(answer.cache_status().contains("detail=disk"), "{}", answer.cache_status());
    assert!(cache.resident_memory() < 200 << 20);

    let missed = cache.get(&fresh.blob_path(REPOSITORY)).await;
    assert_eq!((missed.status, missed.end, missed.body == fresh.bytes), (200, End::Complete, true));
    cache.await_kept(REPOSITORY, &fresh).await;
    let mark = upstream.mark();
    assert_eq!(cache.get(&kept.blob_path(REPOSITORY)).await.status, 200);
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "nothing was evicted for a lie");
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&growing.bytes).await, End::Complete, "a download under way goes on");
    assert_eq!((cache.committed(&liar), partial(&cache, &liar).exists()), (None, false));
}

#[tokio::test]
async fn wrong_bytes_are_remembered_for_some_seconds_and_then_tried_anew() {
    let (upstream, cache, blob) = cold(MIB).await;
    upstream.fault(On::Blobs, Fault::WrongBytes).await;
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::CutByFin);
    let mark = upstream.mark();
    upstream.heal().await;
    let again = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!(again.status, 503);
    assert!(again.cache_status().contains("wrong_digest"), "{}", again.cache_status());
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "not asked again within five seconds");
    assert!(!partial(&cache, &blob).exists(), "nothing wrong stays");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
}

#[tokio::test]
async fn digests_by_sha512_and_empty_blobs_are_like_any_other() {
    let upstream = Upstream::start().await;
    let large = Blob::named_by_sha512(Content::blob(1, MIB).bytes);
    let blobs = [large, Blob::named_by_sha512(""), Blob::new("application/octet-stream", "")];
    blobs.iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    let cache = Cache::start(&upstream).await;
    for blob in &blobs {
        let path = blob.blob_path(REPOSITORY);
        let cold = cache.get(&path).await;
        assert_eq!((cold.status, cold.end, cold.body == blob.bytes), (200, End::Complete, true), "{}", blob.digest);
        cache.await_kept(REPOSITORY, blob).await;
        let mark = upstream.mark();
        let warm = cache.get(&path).await;
        assert_eq!((warm.status, warm.body == blob.bytes), (200, true), "{}", blob.digest);
        assert_eq!(upstream.content_requests_since(mark).len(), 0, "{}", blob.digest);
    }
}

/// Flips a byte in the part that is on disk.
fn spoil(cache: &Cache, blob: &Blob) {
    let file = std::fs::OpenOptions::new().write(true).open(partial(cache, blob)).expect("the partial download");
    file.write_at(&[!blob.bytes[100]], 100).expect("one wrong byte");
}
