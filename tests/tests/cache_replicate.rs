//! What one replica gets from upstream, the others get from it in the background: its loss in an outage costs no pull.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use breakwater_tests::cache::pins::Pinning;
use breakwater_tests::cache::replicas::{ports, private, replica, two};
use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Blob, Content, Fault, Image, On, Upstream};

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;
/// Each request for a tag asks upstream.
const ALWAYS_ASK: [(&str, &str); 1] = [("--tag-ttl", "0s")];

async fn pull(cache: &Cache, tag: &str, image: &Image) {
    let manifest = cache.get(&format!("/v2/{REPOSITORY}/manifests/{tag}")).await;
    assert_eq!((manifest.status, manifest.body == image.manifest.bytes), (200, true), "{tag}");
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    }
}

fn record(cache: &Cache, tag: &str) -> PathBuf {
    cache.data().join("repositories").join(REPOSITORY).join("_tags").join(tag)
}

/// Everything that a pull by tag needs.
async fn await_image(cache: &Cache, tag: &str, image: &Image) {
    for blob in image.blobs().chain([&image.manifest]) {
        cache.await_kept(REPOSITORY, blob).await;
    }
    let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let names_it = async || {
        let asked = cache.request("HEAD", &path).header("Cache-Control", "only-if-cached, max-stale");
        asked.answer().await.header("docker-content-digest") == Some(&image.manifest.digest)
    };
    cache.until(&format!("{tag} names the image"), names_it).await;
}

async fn metric(cache: &Cache, series: &str) -> u64 {
    let text = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
    let of_series = |line: &&str| line.starts_with(&format!("breakwater_cache_{series}"));
    let values = text.lines().filter(of_series).filter(|line| !line.contains("source=") || line.contains("\"peer\""));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// A tag list's pages and the referrers of an image.
fn lists(image: &Image) -> [String; 4] {
    let of = format!("/v2/{REPOSITORY}/referrers/{}", image.manifest.digest);
    let filtered = format!("{of}?artifactType=application%2Fvnd.example%2Bjson");
    let tags = format!("/v2/{REPOSITORY}/tags/list");
    [format!("{tags}?n=1&last=a%26b"), tags, of, filtered]
}

fn everything(image: &Image) -> Vec<&Blob> {
    image.blobs().chain([&image.manifest]).collect()
}

#[tokio::test]
async fn an_image_outlives_the_replica_that_pulled_it() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[4 * MIB, 1000, 0]);
    upstream.push(REPOSITORY, "v1", &image);
    let (mut one, other) = two(&upstream).await;
    pull(&one, "v1", &image).await;
    await_image(&other, "v1", &image).await;
    for blob in everything(&image) {
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "once for both: {}", blob.digest);
    }
    upstream.fault(On::Everything, Fault::Refuse).await;
    one.kill9().await;
    pull(&other, "v1", &image).await;
}

#[tokio::test]
async fn a_replica_that_was_away_is_told_when_it_is_back() {
    let upstream = Upstream::start().await;
    let images = [1, 2, 3].map(|seed| Content::image(seed, &[MIB, 1000]));
    let both = ports::<2>();
    let mut one = replica(&upstream, both[0], &both, &[]).await;
    for (image, tag) in images.iter().zip(["v1", "v2", "v3"]) {
        upstream.push(REPOSITORY, tag, image);
        pull(&one, tag, image).await;
    }
    one.until("all is queued", async || metric(&one, "replication_queued").await > 10).await;
    let mark = upstream.mark();
    let other = replica(&upstream, both[1], &both, &[]).await;
    for (image, tag) in images.iter().zip(["v1", "v2", "v3"]) {
        await_image(&other, tag, image).await;
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
    one.until("nothing is queued", async || metric(&one, "replication_queued").await == 0).await;
    one.kill9().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    pull(&other, "v2", &images[1]).await;
}

#[tokio::test]
async fn a_replica_that_lost_its_disk_gets_what_is_in_use() {
    let upstream = Upstream::start().await;
    let (old, new) = (Content::image(1, &[MIB, 1000]), Content::image(2, &[1000]));
    upstream.push(REPOSITORY, "old", &old);
    upstream.push(REPOSITORY, "new", &new);
    let both = ports::<2>();
    let mut one = replica(&upstream, both[0], &both, &ALWAYS_ASK).await;
    let mut other = replica(&upstream, both[1], &both, &ALWAYS_ASK).await;
    pull(&one, "old", &old).await;
    await_image(&other, "old", &old).await;
    other.kill9().await;
    std::fs::remove_dir_all(other.data()).expect("the disk is lost");
    pull(&one, "new", &new).await;
    other.restart().await;
    await_image(&other, "new", &new).await;
    assert_eq!(one.head(&format!("/v2/{REPOSITORY}/manifests/old")).await.status, 200);
    await_image(&other, "old", &old).await;
    assert_eq!(upstream.bytes_sent(&old.layers[0].digest), MIB as u64);
    one.kill9().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    pull(&other, "old", &old).await;
}

#[tokio::test]
async fn a_tag_moves_at_both_once_its_image_is_complete() {
    let upstream = Upstream::start().await;
    let (elder, newer) = (Content::image(1, &[1000]), Content::image(2, &[4 * MIB]));
    upstream.push(REPOSITORY, "v1", &elder);
    let both = ports::<2>();
    let mut one = replica(&upstream, both[0], &both, &ALWAYS_ASK).await;
    let other = replica(&upstream, both[1], &both, &ALWAYS_ASK).await;
    pull(&one, "v1", &elder).await;
    await_image(&other, "v1", &elder).await;
    upstream.push(REPOSITORY, "v1", &newer);
    upstream.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    assert!(one.get(&format!("/v2/{REPOSITORY}/manifests/v1")).await.body == newer.manifest.bytes);
    let path = newer.layers[0].blob_path(REPOSITORY);
    let mut reading = one.request("GET", &path).send().await;
    reading.read(MIB / 2).await;
    other.await_kept(REPOSITORY, &newer.manifest).await;
    one.until("only the tag is queued", async || metric(&one, "replication_queued").await == 1).await;
    let known = std::fs::read_to_string(record(&other, "v1")).expect("a record");
    assert!(known.contains(&elder.manifest.digest) && !known.contains(&newer.manifest.digest), "{known}");
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&newer.layers[0].bytes).await, End::Complete);
    pull(&one, "v1", &newer).await;
    await_image(&other, "v1", &newer).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    one.kill9().await;
    pull(&other, "v1", &newer).await;
}

#[tokio::test]
async fn an_image_of_which_nodes_have_a_layer_outlives_the_replica_that_served_the_rest() {
    let upstream = Upstream::start().await;
    let (image, foreign) = (Content::image(1, &[MIB, 1000]), Content::image(2, &[1000]));
    upstream.push(REPOSITORY, "single", &image);
    let index = Content::index(&[("linux/amd64", &image), ("linux/arm64", &foreign)]);
    upstream.push_index(REPOSITORY, "multi", &index, &[&image, &foreign]);
    let both = ports::<2>();
    let mut one = replica(&upstream, both[0], &both, &[("--tag-ttl", "1s")]).await;
    let other = replica(&upstream, both[1], &both, &[("--tag-ttl", "1s")]).await;
    let tags = ["single", "multi"].map(|tag| format!("/v2/{REPOSITORY}/manifests/{tag}"));
    let rest = [image.manifest.manifest_path(REPOSITORY), image.layers[0].blob_path(REPOSITORY)];
    for path in tags.iter().chain(&rest) {
        assert_eq!(one.get(path).await.status, 200, "{path}");
    }
    one.until("nothing is queued", async || metric(&one, "replication_queued").await == 0).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    one.kill9().await;
    for path in tags.iter().chain(&rest) {
        assert_eq!(other.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn private_content_that_was_told_of_stays_private() {
    let (upstream, secret, logins) = private().await;
    let folder = logins.path().display().to_string();
    let both = ports::<2>();
    let flags = [("--credentials-dir", folder.as_str())];
    let one = replica(&upstream, both[0], &both, &flags).await;
    let other = replica(&upstream, both[1], &both, &flags).await;
    assert_eq!(one.get(&secret.blob_path("team/secret")).await.status, 200);
    other.await_kept("team/secret", &secret).await;
    // Who tells of it for another repository opens nothing either.
    let told = other.request("HEAD", &secret.blob_path("library/stranger")).header("Breakwater-Peer", "somebody");
    assert_eq!(told.answer().await.status, 504);
    assert_eq!(other.get(&secret.blob_path("library/stranger")).await.status, 404);
    let mark = upstream.mark();
    let answer = other.get(&secret.blob_path("team/secret")).await;
    assert_eq!((answer.status, answer.body == secret.bytes), (200, true));
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn of_three_replicas_two_are_told_and_tell_nobody() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[2 * MIB, 1000, 100]);
    upstream.push(REPOSITORY, "v1", &image);
    let all = ports::<3>();
    let replicas = futures::future::join_all(all.iter().map(|own| replica(&upstream, *own, &all, &[]))).await;
    pull(&replicas[0], "v1", &image).await;
    for other in &replicas[1..] {
        await_image(other, "v1", &image).await;
    }
    replicas[0].until("nothing is queued", async || metric(&replicas[0], "replication_queued").await == 0).await;
    let size: u64 = image.blobs().map(Blob::len).sum();
    for other in &replicas[1..] {
        assert_eq!(metric(other, "content_bytes_total").await, size, "fetched once");
        let told = metric(other, "replicated_total").await + metric(other, "replication_queued").await;
        assert_eq!(told, 0, "who was told tells nobody");
    }
    assert_eq!(metric(&replicas[0], "replication_dropped_total").await, 0);
    for blob in everything(&image) {
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    }
}

#[tokio::test]
async fn what_is_told_costs_upstream_nothing_where_no_replica_has_it() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let (_one, other) = two(&upstream).await;
    let paths = [image.layers[0].blob_path(REPOSITORY), image.manifest.manifest_path(REPOSITORY)];
    for path in paths.iter().map(String::as_str).chain(["/v2/library/app/manifests/v1", "/v2/library/app/tags/list"]) {
        for method in ["HEAD", "GET"] {
            let told = other.request(method, path).header("Breakwater-Peer", "somebody").answer().await;
            assert_eq!(told.status, 504, "{path}");
        }
    }
    assert!(upstream.requests().iter().all(|request| !request.asks_for_content()));
}

#[tokio::test]
async fn a_kill_in_the_middle_leaves_the_other_consistent_and_the_rest_follows() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[8 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]);
    upstream.push(REPOSITORY, "v1", &image);
    let both = ports::<2>();
    let mut one = replica(&upstream, both[0], &both, &ALWAYS_ASK).await;
    pull(&one, "v1", &image).await;
    for blob in everything(&image) {
        one.await_kept(REPOSITORY, blob).await;
    }
    let other = replica(&upstream, both[1], &both, &ALWAYS_ASK).await;
    other.until("something is there", async || image.layers.iter().any(|layer| other.committed(layer).is_some())).await;
    one.kill9().await;
    for blob in everything(&image) {
        if let Some(path) = other.committed(blob) {
            assert!(std::fs::read(path).expect("content") == blob.bytes, "nothing is committed but what is right");
        }
    }
    if record(&other, "v1").exists() {
        assert!(everything(&image).into_iter().all(|blob| other.committed(blob).is_some()), "the tag comes last");
    }
    one.restart().await;
    assert_eq!(one.head(&format!("/v2/{REPOSITORY}/manifests/v1")).await.status, 200);
    await_image(&other, "v1", &image).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    one.kill9().await;
    pull(&other, "v1", &image).await;
}

#[tokio::test]
async fn lists_outlive_the_replica_that_asked_for_them() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let (mut one, other) = two(&upstream).await;
    for path in lists(&image) {
        let answer = one.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        let known = async || {
            let here = other.request("GET", &path).header("Cache-Control", "only-if-cached").answer().await;
            here.status == 200 && here.body == answer.body && here.content_headers() == answer.content_headers()
        };
        other.until(&path, known).await;
    }
    let mark = upstream.mark();
    upstream.fault(On::Everything, Fault::Refuse).await;
    one.kill9().await;
    for path in lists(&image) {
        assert_eq!(other.get(&path).await.status, 200, "{path}");
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn in_an_outage_lists_fill_from_the_other_replica_and_keep_their_age() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let both = ports::<2>();
    let one = replica(&upstream, both[0], &both, &ALWAYS_ASK).await;
    for path in lists(&image) {
        assert_eq!(one.get(&path).await.status, 200, "{path}");
    }
    upstream.fault(On::Everything, Fault::Refuse).await;
    let fresh = replica(&upstream, both[1], &both, &ALWAYS_ASK).await;
    for path in lists(&image) {
        let (here, there) = (one.get(&path).await, fresh.get(&path).await);
        assert_eq!((there.status, there.body == here.body), (200, true), "{path}");
        assert!(there.header("age").is_some_and(|age| age != "0"), "no younger than there: {:?}", there.header("age"));
    }
    let unknown = format!("/v2/{REPOSITORY}/tags/list?n=7");
    assert_eq!(fresh.get(&unknown).await.status, 503, "nobody has it");
}

#[tokio::test]
async fn a_pin_that_both_complete_is_one_download() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[4 * MIB, 2 * MIB, 1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let both = Pinning::two(&upstream).await;
    let pins = serde_json::json!([{"image": format!("{REPOSITORY}:v1"), "platforms": ["linux/amd64"]}]);
    let (one, other) = tokio::join!(both[0].pin(&pins), both[1].pin(&pins));
    assert_eq!((one.as_array().map(Vec::len), other.as_array().map(Vec::len)), (Some(1), Some(1)));
    for replica in &both {
        replica.await_pins("complete", |images| images[0]["state"] == "complete").await;
    }
    for blob in everything(&image) {
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "once for both: {}", blob.digest);
    }
}
