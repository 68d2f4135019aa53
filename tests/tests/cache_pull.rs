//! What a client gets through a healthy cache of a healthy upstream: byte for byte, under the right headers, once from
//! upstream and from then on from disk.

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::cold;
use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Blob, Content, Fault, Image, On, Recorded, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";

/// An image with one layer behind a cache that has not seen it.
async fn cold() -> (Upstream, Cache, Image) {
    cold::image(REPOSITORY, &[300_000]).await
}

/// The same image, pulled once as a runtime does it.
async fn warm() -> (Upstream, Cache, Image) {
    let (upstream, cache, image) = cold().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end), (200, End::Complete));
    }
    (upstream, cache, image)
}

#[tokio::test]
async fn a_manifest_by_tag_arrives_byte_for_byte_with_its_headers() {
    let (_upstream, cache, image) = cold().await;
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, image.manifest.bytes);
    assert_eq!(answer.header("content-type"), Some(image.manifest.media_type.as_str()));
    assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    assert_eq!(answer.header("content-length"), Some(image.manifest.len().to_string().as_str()));
}

#[tokio::test]
async fn a_manifest_by_digest_is_a_hit_after_its_tag_was_pulled() {
    let (upstream, cache, image) = cold().await;
    cache.get(BY_TAG).await;
    let mark = upstream.mark();
    let answer = cache.get(&image.manifest.manifest_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn a_tag_within_its_ttl_asks_upstream_nothing() {
    let (upstream, cache, image) = cold().await;
    let miss = cache.get(BY_TAG).await;
    assert!(miss.cache_status().contains("fwd=miss"), "{:?}", miss.cache_status());
    let mark = upstream.mark();
    for _ in 0..3 {
        let hit = cache.get(BY_TAG).await;
        assert_eq!((hit.status, &hit.body[..]), (200, &image.manifest.bytes[..]));
        assert!(hit.cache_status().starts_with("breakwater; hit"), "{:?}", hit.cache_status());
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn an_index_is_kept_as_it_is_and_its_platforms_are_pulled_on_demand() {
    let upstream = Upstream::start().await;
    let (amd, arm) = (Content::image(2, &[1000]), Content::image(3, &[1000]));
    let index = Content::index(&[("linux/amd64", &amd), ("linux/arm64", &arm)]);
    upstream.push_index(REPOSITORY, "v1", &index, &[&amd, &arm]);
    let cache = Cache::start(&upstream).await;
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.body, index.bytes);
    assert_eq!(answer.header("content-type"), Some(index.media_type.as_str()));
    assert_eq!(cache.get(&amd.manifest.manifest_path(REPOSITORY)).await.body, amd.manifest.bytes);
    assert_eq!(upstream.bytes_sent(&arm.manifest.digest), 0, "nobody asked for arm64");
}

#[tokio::test]
async fn a_manifest_of_an_unknown_media_type_is_kept_with_it() {
    let upstream = Upstream::start().await;
    let strange = Blob::new("application/vnd.example.strange.v7+json", &b"{\"b\":1,\n\t\"a\":2}  "[..]);
    upstream.tag(REPOSITORY, "sha256-abc.sig", &strange);
    let cache = Cache::start(&upstream).await;
    for _ in 0..2 {
        let answer = cache.get("/v2/library/app/manifests/sha256-abc.sig").await;
        assert_eq!(answer.body, strange.bytes);
        assert_eq!(answer.header("content-type"), Some(strange.media_type.as_str()));
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let (_upstream, cache, image) = warm().await;
    let paths = [BY_TAG.to_owned(), image.manifest.manifest_path(REPOSITORY), image.layers[0].blob_path(REPOSITORY)];
    for path in paths {
        let (head, get) = (cache.head(&path).await, cache.get(&path).await);
        assert_eq!((head.status, get.status), (200, 200), "{path}");
        assert_eq!(head.content_headers(), get.content_headers(), "{path}");
    }
}

#[tokio::test]
async fn head_of_what_is_not_here_is_answered_as_get_would_be() {
    let (_upstream, cache, image) = cold().await;
    let tag = cache.head(BY_TAG).await;
    assert_eq!(tag.status, 200);
    assert_eq!(tag.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    let blob = cache.head(&image.layers[0].blob_path(REPOSITORY)).await;
    assert_eq!(blob.status, 200);
    assert_eq!(blob.header("content-length"), Some("300000"));
    let nothing = Content::blob(99, 10);
    assert_eq!(cache.head(&nothing.blob_path(REPOSITORY)).await.status, 404);
}

#[tokio::test]
async fn head_of_a_blob_is_answered_where_upstream_knows_only_get() {
    let (upstream, cache, image) = cold().await;
    upstream.fault_times(1, On::Blobs, Fault::Status(405)).await;
    let blob = cache.head(&image.layers[0].blob_path(REPOSITORY)).await;
    assert_eq!((blob.status, blob.header("content-length")), (200, Some("300000")));
}

#[tokio::test]
async fn a_failure_is_remembered_for_head_as_for_get() {
    let (upstream, cache, image) = cold().await;
    upstream.fault(On::Everything, Fault::Status(500)).await;
    for path in [image.manifest.manifest_path(REPOSITORY), image.layers[0].blob_path(REPOSITORY)] {
        assert_eq!(cache.head(&path).await.status, 503, "{path}");
        let mark = upstream.mark();
        assert_eq!(cache.head(&path).await.status, 503, "{path}");
        assert_eq!(upstream.content_requests_since(mark).len(), 0, "{path}");
    }
}

#[tokio::test]
async fn a_blob_is_a_miss_once_and_then_a_hit_without_upstream() {
    let (upstream, cache, image) = cold().await;
    let path = image.layers[0].blob_path(REPOSITORY);
    let miss = cache.get(&path).await;
    assert_eq!((miss.status, miss.end, &miss.body[..]), (200, End::Complete, &image.layers[0].bytes[..]));
    let mark = upstream.mark();
    let hit = cache.get(&path).await;
    assert_eq!((hit.status, hit.end, &hit.body[..]), (200, End::Complete, &image.layers[0].bytes[..]));
    assert!(hit.cache_status().starts_with("breakwater; hit"), "{:?}", hit.cache_status());
    assert_eq!(hit.header("docker-content-digest"), Some(image.layers[0].digest.as_str()));
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn ranges_of_a_hit_are_exact() {
    let (_upstream, cache, image) = warm().await;
    let layer = &image.layers[0];
    for (range, expected) in [
        ("0-0", 0..1),
        ("1000-1999", 1000..2000),
        ("299999-", 299_999..300_000),
        ("-500", 299_500..300_000),
        ("299990-400000", 299_990..300_000),
        ("-400000", 0..300_000),
    ] {
        let answer = cache.request("GET", &layer.blob_path(REPOSITORY)).range(range).answer().await;
        assert_eq!((answer.status, answer.end), (206, End::Complete), "{range}");
        let header = format!("bytes {}-{}/300000", expected.start, expected.end - 1);
        assert_eq!(answer.header("content-range"), Some(header.as_str()), "{range}");
        assert_eq!(&answer.body[..], &layer.bytes[expected], "{range}");
    }
}

#[tokio::test]
async fn a_range_past_the_end_is_416_with_the_size() {
    let (_upstream, cache, image) = warm().await;
    let path = image.layers[0].blob_path(REPOSITORY);
    let answer = cache.request("GET", &path).range("300000-").answer().await;
    assert_eq!(answer.status, 416);
    assert_eq!(answer.header("content-range"), Some("bytes */300000"));
}

#[tokio::test]
async fn two_requests_on_one_connection_are_both_answered() {
    let (_upstream, cache, image) = warm().await;
    let first = format!("GET {BY_TAG} HTTP/1.1\r\nHost: cache\r\n\r\n");
    let second = first.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let answers = exchange_raw(cache.address(), (first + &second).as_bytes()).await;
    let manifests = answers.windows(image.manifest.bytes.len());
    assert_eq!(manifests.filter(|window| *window == image.manifest.bytes).count(), 2);
}

#[tokio::test]
async fn bodies_are_never_content_encoded() {
    let (upstream, cache, image) = cold().await;
    for blob in image.blobs() {
        let request = cache.request("GET", &blob.blob_path(REPOSITORY));
        let answer = request.header("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8").answer().await;
        assert_eq!((answer.header("content-encoding"), &answer.body[..]), (None, &blob.bytes[..]));
    }
    let offers = |request: &Recorded| request.header("accept-encoding").is_some_and(|offer| offer != "identity");
    assert!(!upstream.requests().iter().any(offers), "upstream was invited to compress");
}

#[tokio::test]
async fn an_empty_blob_is_served() {
    let (upstream, cache, _image) = cold().await;
    let empty = Content::blob(1, 0);
    upstream.put_blob(REPOSITORY, &empty);
    for _ in 0..2 {
        let answer = cache.get(&empty.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")));
    }
}
