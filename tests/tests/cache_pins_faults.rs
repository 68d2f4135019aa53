//! Pins under faults: of upstream, of the process, of the disk. In the end every image is complete.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::pins::{
    all_of, assert_held, assert_pulled, await_complete, await_pins, pin, pins, size_of,
};
use breakwater_tests::cache::{Cache, PATIENCE};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};
use serde_json::{Value, json};

const APP: &str = "library/app";

#[tokio::test]
async fn a_kill_in_the_middle_loses_neither_pins_nor_bytes() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000, 8 << 20]);
    upstream.push(APP, "v1", &image);
    let big = &image.layers[1];
    upstream.fault(On::Path(big.digest.clone()), Fault::StallAt(4 << 20)).await;
    let mut cache = Cache::start(&upstream).await;
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    upstream.wait_for("half of the layer", |_| upstream.bytes_sent(&big.digest) >= 4 << 20).await;
    await_pins(&cache, "partial", |images| images[0]["state"] == "partial").await;
    let partial = cache.data().join("partial").join(big.hex());
    let deadline = Instant::now() + PATIENCE;
    while std::fs::metadata(&partial).map_or(0, |partial| partial.len()) < 4 << 20 {
        assert!(Instant::now() < deadline, "the first half was not written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cache.kill9().await;
    upstream.heal().await;
    cache.restart().await;
    await_complete(&cache).await;
    assert_held(&cache, all_of(&image));
    assert!(upstream.bytes_sent(&big.digest) < big.len() + (1 << 20), "the first half came twice");
}

#[tokio::test]
async fn a_restart_in_an_outage_still_says_complete() {
    let upstream = Upstream::start().await;
    let (amd, arm) = (Content::image(1, &[50_000]), Content::image(2, &[50_000]));
    upstream.push_index(APP, "v1", &Content::index(&[("linux/amd64", &amd), ("linux/arm64", &arm)]), &[&amd, &arm]);
    let mut cache = Cache::of(&upstream).flag("--tag-ttl", "1ms").start().await;
    pin(&cache, &json!([{"image": "library/app:v1", "platforms": ["linux/amd64"]}])).await;
    let complete = await_complete(&cache).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    assert_eq!(pins(&cache).await, complete);
    let metrics = cache.admin("/metrics").await.body;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name) && !line.contains("partial") && !line.contains("missing"));
        line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.to_owned())
    };
    assert_eq!(value("breakwater_cache_pins{"), Some("1".to_owned()), "{metrics}");
    assert_eq!(value("breakwater_cache_pinned_bytes"), Some(complete[0]["bytes"].to_string()));
}

#[tokio::test]
async fn an_outage_in_the_middle_ends_with_the_image_complete() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000, 100_000, 100_000]);
    upstream.push(APP, "v1", &image);
    upstream.fault(On::Path(image.layers[1].digest.clone()), Fault::Silence).await;
    let cache = Cache::start(&upstream).await;
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    await_pins(&cache, "partial", |images| images[0]["state"] == "partial").await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    await_pins(&cache, "failing", |images| images[0]["error"] != Value::Null).await;
    upstream.heal().await;
    let returned = Instant::now();
    await_complete(&cache).await;
    assert!(returned.elapsed() < Duration::from_secs(12), "it took {:?}", returned.elapsed());
}

#[tokio::test]
async fn what_upstream_does_not_have_is_missing_and_hinders_no_other() {
    let upstream = Upstream::start().await;
    let (image, broken) = (Content::image(1, &[50_000]), Content::image(2, &[50_000, 60_000]));
    upstream.push(APP, "v1", &image);
    upstream.tag("library/broken", "v1", &broken.manifest);
    for blob in [&broken.config, &broken.layers[1]] {
        upstream.put_blob("library/broken", blob);
    }
    let cache = Cache::start(&upstream).await;
    pin(&cache, &json!([{"image": "library/none:v1"}, {"image": "library/broken:v1"}, {"image": "library/app:v1"}]))
        .await;
    let told = await_pins(&cache, "told", |images| {
        images[0]["error"] == "not_found" && images[1]["error"] == "not_found" && images[2]["state"] == "complete"
    })
    .await;
    assert_eq!((&told[0]["state"], &told[1]["state"]), (&json!("missing"), &json!("partial")));
    assert_eq!(told[0]["digest"], Value::Null);
    // Its other blobs come all the same.
    let here = size_of(&[broken.manifest.clone(), broken.config.clone(), broken.layers[1].clone()]);
    await_pins(&cache, "partly here", |images| images[1]["bytes"] == here).await;
    upstream.push("library/none", "v1", &Content::image(3, &[10]));
    upstream.put_blob("library/broken", &broken.layers[0]);
    await_complete(&cache).await;
}

#[tokio::test]
async fn a_rate_limit_is_not_hammered() {
    let upstream = Upstream::start().await;
    let images: Vec<_> = (1..=8).map(|seed| Content::image(seed, &[1000, 1000])).collect();
    for (place, image) in images.iter().enumerate() {
        upstream.push(&format!("library/app{place}"), "v1", image);
    }
    let cache = Cache::start(&upstream).await;
    upstream.fault(On::Registry, Fault::TooManyRequests(Some(60))).await;
    let mark = upstream.mark();
    let list: Vec<_> = (0..8).map(|place| json!({"image": format!("library/app{place}:v1")})).collect();
    pin(&cache, &json!(list)).await;
    await_pins(&cache, "told", |images| images[0]["error"] == "too_many_requests").await;
    let asked = upstream.content_requests_since(mark).len();
    assert!(asked <= 4, "{asked} requests");
    // Several ticks later it still waits.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(upstream.content_requests_since(mark).len(), asked);
}

#[tokio::test]
async fn a_pinned_tag_is_kept_fresh_and_its_elder_stays_until_the_newcomer_is_complete() {
    let upstream = Upstream::start().await;
    let (old, new) = (Content::image(1, &[50_000]), Content::image(2, &[50_000, 60_000]));
    upstream.push(APP, "v1", &old);
    let mut cache = Cache::of(&upstream).flag("--tag-ttl", "200ms").start().await;
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    await_complete(&cache).await;
    upstream.fault(On::Path(new.layers[1].digest.clone()), Fault::Status(500)).await;
    let mark = upstream.mark();
    upstream.push(APP, "v1", &new);
    await_pins(&cache, "moved", |images| images[0]["digest"] == new.manifest.digest).await;
    let asked: Vec<_> =
        upstream.requests_since(mark).into_iter().filter(|request| request.path.ends_with("/manifests/v1")).collect();
    assert!(!asked.is_empty() && asked.iter().all(|request| request.method == "HEAD"), "a tag is asked for by HEAD");
    await_pins(&cache, "partial", |images| images[0]["state"] == "partial" && images[0]["error"] == "server_error")
        .await;
    // Now upstream goes: the elder is served, after a restart too.
    upstream.fault(On::Everything, Fault::Refuse).await;
    // Within its time to live nobody asks whether upstream is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_pulled(&cache, APP, "v1", &old).await;
    cache.restart().await;
    assert_pulled(&cache, APP, "v1", &old).await;
    upstream.heal().await;
    await_complete(&cache).await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    assert_pulled(&cache, APP, "v1", &new).await;
}

#[tokio::test]
async fn what_disappears_from_disk_is_fetched_again() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[50_000, 60_000]);
    upstream.push(APP, "v1", &image);
    let cache = Cache::start(&upstream).await;
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    await_complete(&cache).await;
    let path = |blob: &Blob| cache.committed(blob).expect("it is here");
    std::fs::remove_file(path(&image.manifest)).expect("a manifest can be removed");
    std::fs::remove_file(path(&image.layers[0])).expect("a layer can be removed");
    let cut = std::fs::OpenOptions::new().write(true).open(path(&image.layers[1])).expect("a layer can be opened");
    cut.set_len(100).expect("a layer can be cut off");
    let is_whole = |blob: &Blob| {
        let held = cache.committed(blob).and_then(|path| std::fs::metadata(path).ok());
        held.is_some_and(|held| held.len() == blob.len())
    };
    // Asking for the state is what makes it look at once.
    await_pins(&cache, "whole again", |_| all_of(&image).iter().all(is_whole)).await;
    await_complete(&cache).await;
}

#[tokio::test]
async fn broken_pins_on_disk_are_none() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(APP, "v1", &image);
    let mut cache = Cache::start(&upstream).await;
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    await_complete(&cache).await;
    cache.kill9().await;
    std::fs::write(cache.data().join("pins.json"), "{\"images\":[{").expect("pins.json can be spoilt");
    cache.restart().await;
    assert_eq!(pins(&cache).await, json!([]));
    assert!(cache.output().contains("pins.json is broken"));
    pin(&cache, &json!([{"image": "library/app:v1"}])).await;
    await_complete(&cache).await;
}
