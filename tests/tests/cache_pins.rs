//! Pins: what is asked for is completed, in the platforms and the space there are, and told truly.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use breakwater_tests::cache::Cache;
use breakwater_tests::cache::pins::{Pinning, all_of, size_of};
use breakwater_tests::upstream::{Blob, Content, Cursor, Fault, On, Upstream};
use serde_json::{Value, json};

const APP: &str = "library/app";

/// Upstream's requests for a content since the mark.
fn requests_for(upstream: &Upstream, mark: Cursor, blob: &Blob) -> usize {
    upstream.requests_since(mark).iter().filter(|request| request.path.ends_with(&blob.digest)).count()
}

#[tokio::test]
async fn a_pinned_image_is_completed_without_a_pull_and_outlives_its_upstream() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[300_000, 200_000, 10]);
    upstream.push(APP, "v1", &image);
    let cache = Pinning::start(&upstream).await;
    let accepted = cache.pin(&json!([{"image": "library/app:v1", "platforms": ["linux/amd64"]}])).await;
    assert_eq!((&accepted[0]["image"], &accepted[0]["platforms"]), (&json!("library/app:v1"), &json!(["linux/amd64"])));
    let complete = cache.await_complete().await;
    let size = size_of(&all_of(&image));
    assert_eq!(
        complete,
        json!([{
            "image": "library/app:v1", "platforms": ["linux/amd64"], "state": "complete", "digest": image.manifest.digest,
            "bytes": size, "totalBytes": size, "error": null, "message": null,
        }])
    );
    cache.assert_held(all_of(&image));
    for blob in all_of(&image) {
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "each byte comes once");
    }
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.assert_pulled(APP, "v1", &image).await;
}

#[tokio::test]
async fn only_the_platforms_asked_for_are_fetched() {
    let upstream = Upstream::start().await;
    let [amd, arm, s390x, statement] = [1, 2, 3, 4].map(|seed| Content::image(seed, &[50_000]));
    let entries =
        [("linux/amd64", &amd), ("linux/arm64", &arm), ("linux/s390x", &s390x), ("unknown/unknown", &statement)];
    let index = Content::index(&entries);
    upstream.push_index(APP, "v1", &index, &[&amd, &arm, &s390x, &statement]);
    let cache = Pinning::start(&upstream).await;
    let start = upstream.mark();
    cache.pin(&json!([{"image": "library/app:v1", "platforms": ["linux/amd64", "linux/s390x"]}])).await;
    let complete = cache.await_complete().await;
    assert_eq!(complete[0]["digest"], index.digest);
    for blob in all_of(&amd).iter().chain(&all_of(&s390x)).chain([&index]) {
        assert_eq!(requests_for(&upstream, start, blob), 1, "{}", blob.digest);
    }
    for blob in all_of(&arm).iter().chain(&all_of(&statement)) {
        assert_eq!(requests_for(&upstream, start, blob), 0, "{}", blob.digest);
    }
    // Without platforms: every one that is a platform.
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    cache.assert_held(all_of(&arm));
    assert_eq!(all_of(&statement).iter().map(|blob| requests_for(&upstream, start, blob)).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_platform_that_the_image_is_not_made_for_is_told() {
    let upstream = Upstream::start().await;
    let (amd, single) = (Content::image(1, &[50_000]), Content::image(2, &[50_000]));
    upstream.push_index(APP, "v1", &Content::index(&[("linux/amd64", &amd)]), &[&amd]);
    upstream.push("library/single", "v1", &single);
    let cache = Pinning::start(&upstream).await;
    let images = json!([
        {"image": "library/app:v1", "platforms": ["linux/amd64", "windows/amd64"]},
        {"image": "library/single:v1", "platforms": ["windows/amd64"]},
    ]);
    cache.pin(&images).await;
    let told = cache
        .await_pins("told", |images| {
            images[0]["error"] == "NoSuchPlatform"
                && images[0]["bytes"] == images[0]["totalBytes"]
                && images[1]["state"] == "complete"
        })
        .await;
    assert_eq!(told[0]["state"], "partial");
    assert!(told[0]["message"].as_str().expect("words").contains("windows/amd64"));
    // What it is made for is here all the same.
    cache.assert_held(all_of(&amd));
}

#[tokio::test]
async fn an_image_by_digest_asks_for_no_tag() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[50_000]);
    upstream.push(APP, "v1", &image);
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": format!("{APP}@{}", image.manifest.digest)}])).await;
    cache.await_complete().await;
    assert!(!upstream.requests().iter().any(|request| request.path.ends_with("/v1")));
    cache.assert_held(all_of(&image));
}

#[tokio::test]
async fn a_list_replaces_the_one_before_and_the_same_again_changes_nothing() {
    let upstream = Upstream::start().await;
    let (first, second) = (Content::image(1, &[50_000]), Content::image(2, &[50_000]));
    upstream.push(APP, "v1", &first);
    upstream.push(APP, "v2", &second);
    let cache = Pinning::start(&upstream).await;
    assert_eq!(cache.pins().await, json!([]));
    let list = json!([{"image": "library/app:v1"}, {"image": "library/app:v2"}]);
    cache.pin(&list).await;
    let complete = cache.await_complete().await;
    let mark = upstream.mark();
    assert_eq!(cache.pin(&list).await, complete);
    assert_eq!(cache.pin(&json!([{"image": "library/app:v2"}])).await, json!([complete[1]]));
    assert_eq!(cache.pin(&json!([])).await, json!([]));
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn a_bad_list_is_refused_with_the_entry_and_the_mend_and_changes_nothing() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(APP, "v1", &image);
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    let before = cache.await_complete().await;
    let refused = async |body: Vec<u8>, status: u16, code: &str, part: &str| {
        let answer = cache.api("PUT").body(body).answer().await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{text}");
        assert!(text.contains(part), "{text}");
    };
    let list = |images: Value| json!({ "images": images }).to_string().into_bytes();
    refused(list(json!([{"image": "a:1"}, {"image": "a"}])), 400, "PINS_INVALID", "images[1].image").await;
    refused(list(json!([{"image": "a:1", "platforms": ["amd64"]}])), 400, "PINS_INVALID", "linux/amd64").await;
    refused(list(json!([{"image": "../../LOCK:1"}])), 400, "PINS_INVALID", "images[0].image").await;
    refused(list(json!([{"image": "a:1", "platform": "x"}])), 400, "PINS_INVALID", "platform").await;
    refused(b"{".to_vec(), 400, "PINS_INVALID", "the body must be like").await;
    refused(vec![b' '; 5 << 20], 413, "SIZE_INVALID", "4 MiB").await;
    let posted = cache.api("POST").body("{}").answer().await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD, PUT")));
    assert_eq!(cache.pins().await, before);
}

#[tokio::test]
async fn pins_over_their_part_of_the_cache_are_refused_in_the_order_of_the_list() {
    let upstream = Upstream::start().await;
    let sizes = [3, 4, 1].map(|mebibytes| mebibytes << 20);
    let images: Vec<_> = sizes.iter().zip(1..).map(|(size, seed)| Content::image(seed, &[*size])).collect();
    for (image, name) in images.iter().zip(["a", "b", "c"]) {
        upstream.push(name, "v1", image);
    }
    // 80 % of it: the first and the third fit.
    let mut cache = Pinning::with(Cache::of(&upstream).flag("--cache-size", "6Mi")).await;
    let mark = upstream.mark();
    cache.pin(&json!([{"image": "a:v1"}, {"image": "b:v1"}, {"image": "c:v1"}])).await;
    let is_settled = |images: &Value| {
        images[0]["state"] == "complete" && images[1]["error"] == "NoSpace" && images[2]["state"] == "complete"
    };
    cache.await_pins("settled", is_settled).await;
    assert_eq!(requests_for(&upstream, mark, &images[1].layers[0]), 0, "what does not fit is not fetched");
    cache.restart().await;
    assert!(is_settled(&cache.pins().await));
    // With the first gone there is room.
    cache.pin(&json!([{"image": "b:v1"}])).await;
    cache.await_complete().await;
}

#[tokio::test]
async fn a_pinned_image_is_not_evicted_until_it_is_pinned_no_longer() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1 << 20, 1 << 20]);
    upstream.push(APP, "v1", &image);
    let mut cache = Pinning::with(Cache::of(&upstream).flag("--cache-size", "4Mi")).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    cache.crowd(&upstream, 10..16).await;
    cache.assert_held(all_of(&image));
    // What was pinned in an earlier run is protected from the first moment on.
    cache.restart().await;
    cache.crowd(&upstream, 20..26).await;
    cache.assert_held(all_of(&image));
    assert_eq!(cache.pins().await[0]["state"], "complete");
    assert_eq!(cache.pin(&json!([])).await, json!([]));
    cache.crowd(&upstream, 30..36).await;
    assert!(image.layers.iter().all(|layer| cache.committed(layer).is_none()), "what nobody pins makes room");
}

#[tokio::test]
async fn of_lists_put_at_the_same_time_one_holds_and_is_kept() {
    let upstream = Upstream::start().await;
    let mut cache = Pinning::start(&upstream).await;
    let lists: Vec<_> = (0..8).map(|n| json!([{"image": format!("a:{n}")}, {"image": format!("b:{n}")}])).collect();
    let answers = futures::future::join_all(lists.iter().map(|list| cache.put(list))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let images = |pins: &Value| json!([{"image": pins[0]["image"]}, {"image": pins[1]["image"]}]);
    let held = images(&cache.pins().await);
    assert!(lists.contains(&held), "{held}");
    cache.kill9().await;
    cache.restart().await;
    assert_eq!(images(&cache.pins().await), held);
}
