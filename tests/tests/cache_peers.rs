//! Replicas ask each other before upstream: one download for all of them, and a lost disk fills from the others.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::replicas::{downloads, ports, private, replica, two};
use breakwater_tests::cache::{Cache, End, Identity};
use breakwater_tests::upstream::{Content, Fault, Image, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

async fn pull(cache: &Cache, image: &Image) {
    let manifest = cache.get("/v2/library/app/manifests/v1").await;
    assert_eq!((manifest.status, manifest.body == image.manifest.bytes), (200, true));
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    }
}

#[tokio::test]
async fn what_one_replica_has_upstream_is_not_asked_for_again() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[MIB, 1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let (one, other) = two(&upstream).await;
    pull(&one, &image).await;
    for blob in image.blobs() {
        one.await_kept(REPOSITORY, blob).await;
    }
    let mark = upstream.mark();
    pull(&other, &image).await;
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "not even for the tag: it is fresh at the other");
}

#[tokio::test]
async fn in_an_outage_a_lost_disk_fills_from_the_others() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[MIB, 1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let both = ports::<2>();
    let one = replica(&upstream, both[0], &both, &[("--tag-ttl", "0s")]).await;
    pull(&one, &image).await;
    for blob in image.blobs() {
        one.await_kept(REPOSITORY, blob).await;
    }
    upstream.fault(On::Everything, Fault::Refuse).await;
    let fresh = replica(&upstream, both[1], &both, &[("--tag-ttl", "0s")]).await;
    pull(&fresh, &image).await;
    drop(one);
    pull(&fresh, &image).await;
}

#[tokio::test]
async fn a_tag_older_than_max_stale_is_no_answer_for_a_replica_either() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[10]);
    upstream.push(REPOSITORY, "v1", &image);
    let both = ports::<2>();
    let flags = [("--tag-ttl", "0s"), ("--max-stale", "1s")];
    let one = replica(&upstream, both[0], &both, &flags).await;
    pull(&one, &image).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let fresh = replica(&upstream, both[1], &both, &flags).await;
    assert_eq!(fresh.get("/v2/library/app/manifests/v1").await.status, 503);
}

#[tokio::test]
async fn a_growing_download_is_read_along_by_the_other_replica() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, 8 * MIB);
    upstream.put_blob(REPOSITORY, &blob);
    let (one, other) = two(&upstream).await;
    upstream.fault(On::Blobs, Fault::StallAt(2 * MIB as u64)).await;
    let path = blob.blob_path(REPOSITORY);
    let mut first = one.request("GET", &path).send().await;
    assert!(first.read(MIB).await == blob.bytes[..MIB]);
    let mut second = other.request("GET", &path).send().await;
    assert!(second.read(MIB).await == blob.bytes[..MIB]);
    upstream.heal().await;
    assert_eq!(first.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!(second.rest_equals(&blob.bytes).await, End::Complete);
    assert_eq!((downloads(&upstream, &blob), upstream.bytes_sent(&blob.digest)), (1, blob.len()));
}

#[tokio::test]
async fn replicas_that_begin_at_once_are_hardly_ever_two_downloads_and_never_wait_for_each_other() {
    let upstream = Upstream::start().await;
    let all = ports::<3>();
    let replicas = futures::future::join_all(all.iter().map(|own| replica(&upstream, *own, &all, &[]))).await;
    let mut too_many = 0;
    for seed in 1..=8 {
        let blob = Content::blob(seed, MIB);
        upstream.put_blob(REPOSITORY, &blob);
        let path = blob.blob_path(REPOSITORY);
        let answers = futures::future::join_all(replicas.iter().map(|replica| replica.get(&path))).await;
        for answer in answers {
            assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
            assert!(answer.header_after < Duration::from_secs(3), "{:?}", answer.header_after);
        }
        too_many += downloads(&upstream, &blob) - 1;
    }
    // On a machine so busy that a replica takes 60 ms to begin with what it was told is nowhere. Without a word between them it would be 16.
    assert!(too_many <= 5, "{too_many} downloads too many of 8 blobs");
}

#[tokio::test]
async fn upstream_may_take_its_time_for_two_replicas_at_once() {
    let upstream = Upstream::start().await;
    let (one, other) = two(&upstream).await;
    let mut too_many = 0;
    for seed in 1..=4 {
        let blob = Content::blob(seed, MIB);
        upstream.put_blob(REPOSITORY, &blob);
        upstream.fault(On::Blobs, Fault::SlowHeader(Duration::from_millis(2))).await;
        let path = blob.blob_path(REPOSITORY);
        let (first, second) = tokio::join!(one.get(&path), other.get(&path));
        for answer in [first, second] {
            assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
        }
        too_many += downloads(&upstream, &blob) - 1;
    }
    // One may be this machine's: neither had begun when the other asked.
    assert!(too_many <= 1, "one waits for the other, but {too_many} of 4 were fetched twice");
}

#[tokio::test]
async fn a_manifest_that_two_replicas_miss_at_once_is_asked_for_once() {
    let upstream = Upstream::start().await;
    let (one, other) = two(&upstream).await;
    upstream.fault(On::Manifests, Fault::SlowHeader(Duration::from_millis(2))).await;
    let mut too_many = 0;
    for seed in 1..=4 {
        let image = Content::image(seed, &[1000]);
        upstream.push(REPOSITORY, "v1", &image);
        let path = image.manifest.manifest_path(REPOSITORY);
        let (first, second) = tokio::join!(one.get(&path), other.get(&path));
        assert!(first.body == image.manifest.bytes && second.body == image.manifest.bytes);
        too_many += downloads(&upstream, &image.manifest) - 1;
    }
    // One may be this machine's: neither had begun when the other asked.
    assert!(too_many <= 1, "{too_many} of 4 counted twice against a rate limit");
}

#[tokio::test]
async fn a_replica_that_is_this_one_is_not_asked_twice() {
    let upstream = Upstream::start().await;
    let alone = ports::<1>();
    let cache = replica(&upstream, alone[0], &alone, &[]).await;
    for seed in 1..=5 {
        let blob = Content::blob(seed, 1000);
        upstream.put_blob(REPOSITORY, &blob);
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
    }
    let metrics = cache.admin("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let asked = |line: &&str| line.contains("kind=\"blob\"") && line.contains("result=\"denied\"");
    let asked = text.lines().find(asked).and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok());
    assert_eq!(asked, Some(1));
}

#[tokio::test]
async fn private_content_stays_private_at_the_next_replica() {
    let (upstream, secret, logins) = private().await;
    let folder = logins.path().display().to_string();
    let both = ports::<2>();
    let flags = [("--credentials-dir", folder.as_str())];
    let one = replica(&upstream, both[0], &both, &flags).await;
    assert_eq!(one.get(&secret.blob_path("team/secret")).await.status, 200);
    one.await_kept("team/secret", &secret).await;
    let other = replica(&upstream, both[1], &both, &flags).await;
    assert_eq!(other.get(&secret.blob_path("library/stranger")).await.status, 404, "the other replica proves it too");
    assert_eq!(other.get(&secret.blob_path("team/secret")).await.status, 200);
    other.await_kept("team/secret", &secret).await;
    assert_eq!(
        other.get(&secret.blob_path("library/stranger")).await.status,
        404,
        "it came from a replica, still private"
    );
}

#[tokio::test]
async fn only_if_cached_is_answered_from_here_or_by_504() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
    let paths = ["/v2/library/app/manifests/v1".to_owned(), image.layers[0].blob_path(REPOSITORY)];
    let ask = async |path: &str, control: &str| {
        cache.request("GET", path).header("Cache-Control", control).answer().await.status
    };
    for path in &paths {
        assert_eq!(ask(path, "only-if-cached").await, 504, "{path}");
    }
    assert!(upstream.requests().iter().all(|request| !request.asks_for_content()));
    pull(&cache, &image).await;
    cache.await_kept(REPOSITORY, &image.layers[0]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mark = upstream.mark();
    assert_eq!(ask(&paths[0], "only-if-cached").await, 504, "past its TTL");
    assert_eq!(ask(&paths[0], "only-if-cached, max-stale").await, 200);
    assert_eq!(ask(&paths[1], "only-if-cached").await, 200);
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn replicas_with_a_tls_listener_speak_tls_and_show_a_token() {
    let upstream = Upstream::start().await;
    let (identity, _folder) = Identity::with_token("relay-token");
    let one = Cache::of(&upstream).identity(identity.again()).start().await;
    let token = ("Authorization", "Bearer relay-token");
    let (stranger, _other_folder) = Identity::with_token("relay-token");
    for (seed, (peer, identity, is_trusted)) in [
        ("localhost", identity.again(), true),
        // The certificate has no address, but names that are this replica's too.
        ("127.0.0.1", identity.again(), true),
        ("127.0.0.1", stranger, false),
    ]
    .into_iter()
    .enumerate()
    {
        let blob = Content::blob(seed as u64, MIB);
        upstream.put_blob(REPOSITORY, &blob);
        let path = blob.blob_path(REPOSITORY);
        assert_eq!(one.request("GET", &path).header(token.0, token.1).answer().await.status, 200);
        one.await_kept(REPOSITORY, &blob).await;
        let peer = format!("{peer}:{}", one.address().port());
        let other = Cache::of(&upstream).identity(identity).flag("--peer", &peer).start().await;
        let answer = other.request("GET", &path).header(token.0, token.1).answer().await;
        assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
        assert_eq!(downloads(&upstream, &blob), if is_trusted { 1 } else { 2 }, "{peer}");
    }
}
