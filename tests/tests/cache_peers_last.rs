//! Replicas of a cache while the upstream is gone, and one of them is all that is left: what it has comes, however it has it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use breakwater_tests::cache::replicas::{ports, replica};
use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Content, Fault, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(30);

/// Two replicas, of which the second has a blob of so many GiB on its disk that was not hashed since the machine booted; the path of
/// that blob.
async fn pair_with_large(upstream: &Upstream, gib: u64, folder: &Path) -> (Cache, Cache, String) {
    let zeros = folder.join("zeros");
    File::create(&zeros).unwrap().set_len(gib << 30).unwrap();
    let summed = Command::new("sha256sum").arg(&zeros).output().unwrap().stdout;
    let hex = String::from_utf8_lossy(&summed)[..64].to_owned();
    let data = folder.join("data");
    let shelf = data.join("blobs/sha256").join(&hex[..2]);
    fs::create_dir_all(&shelf).unwrap();
    fs::set_permissions(&zeros, PermissionsExt::from_mode(0o644)).unwrap();
    fs::rename(&zeros, shelf.join(&hex)).unwrap();
    let both = ports::<2>();
    let one = replica(upstream, both[0], &both, &[]).await;
    let other = Cache::of(upstream).port(both[1]).data(&data);
    let other = both.iter().fold(other, |other, port| other.flag("--peer", &format!("127.0.0.1:{port}")));
    (one, other.start().await, format!("/v2/{REPOSITORY}/blobs/sha256:{hex}"))
}

#[tokio::test]
async fn what_is_still_being_hashed_comes_from_a_replica() {
    let (upstream, folder) = (Upstream::start().await, tempfile::tempdir().unwrap());
    // Longer than a replica is waited for.
    let (one, _other, path) = pair_with_large(&upstream, 4, folder.path()).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    assert_eq!(one.request("GET", &path).send().await.status, 200);
}

#[tokio::test]
async fn a_replica_that_pauses_is_gone_on_with() {
    let (upstream, folder) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let (one, other, path) = pair_with_large(&upstream, 1, folder.path()).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    let began = Instant::now();
    while other.request("GET", &path).range("0-9").answer().await.status != 206 {
        assert!(began.elapsed() < LONG, "it is never hashed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut reading = one.request("GET", &path).send().await;
    assert_eq!(reading.status, 200);
    reading.read(MIB).await;
    other.freeze();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    other.thaw();
    let answer = reading.rest().await;
    assert_eq!((answer.end, answer.body.len()), (End::Complete, (1 << 30) - MIB));
}

#[tokio::test]
async fn a_slow_replica_is_better_than_none() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let cache = Cache::of(&upstream).flag("--peer", &other.host()).start().await;
    let blob = Content::blob(1, 300_000);
    other.put_blob(REPOSITORY, &blob);
    upstream.fault(On::Everything, Fault::Refuse).await;
    other.fault(On::Blobs, Fault::Drip(20 * 1024)).await;
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::Complete);
}

#[tokio::test]
async fn a_wrong_manifest_of_one_replica_is_asked_of_the_next() {
    let (upstream, liar, honest) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let cache = Cache::of(&upstream).flag("--peer", &liar.host()).flag("--peer", &honest.host()).start().await;
    let image = Content::image(1, &[1000]);
    for replica in [&liar, &honest] {
        replica.push(REPOSITORY, "v1", &image);
    }
    liar.fault(On::Manifests, Fault::WrongBytes).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 200);
}

#[tokio::test]
async fn a_manifest_comes_as_soon_as_a_replica_is_back() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let cache = Cache::of(&upstream).flag("--peer", &other.host()).start().await;
    let image = Content::image(1, &[1000]);
    other.push(REPOSITORY, "v1", &image);
    for one in [&upstream, &other] {
        one.fault(On::Everything, Fault::Refuse).await;
    }
    let path = image.manifest.manifest_path(REPOSITORY);
    assert_eq!(cache.get(&path).await.status, 503);
    other.heal().await;
    let began = Instant::now();
    while cache.get(&path).await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(4), "a replica is looked for again within a second or two");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_manifest_that_stalls_at_one_replica_comes_from_the_next() {
    let (upstream, stalled, slow) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let cache = Cache::of(&upstream).flag("--peer", &stalled.host()).flag("--peer", &slow.host()).start().await;
    let images = [1, 2].map(|seed| Content::image(seed, &[1000]));
    for (replica, tag) in [(&stalled, "v1"), (&slow, "v1")] {
        images.iter().for_each(|image| replica.push(REPOSITORY, tag, image));
    }
    stalled.fault(On::Manifests, Fault::StallAt(10)).await;
    // So that the other one is always the first to answer.
    slow.fault(On::Manifests, Fault::SlowHeader(Duration::from_millis(1))).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    for (image, most) in images.iter().zip([Duration::from_secs(4), Duration::from_millis(1500)]) {
        let answer = cache.get(&image.manifest.manifest_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.body == image.manifest.bytes), (200, true), "{}", answer.cache_status());
        assert!(answer.took < most, "it is left alone: {:?}", answer.took);
    }
}
