//! Pins under faults: of upstream, of the process, of the disk. In the end every image is complete.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::Cache;
use breakwater_tests::cache::pins::{Pinning, all_of, size_of};
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
    let mut cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    upstream.wait_for("half of the layer", |_| upstream.bytes_sent(&big.digest) >= 4 << 20).await;
    cache.await_pins("partial", |images| images[0]["state"] == "partial").await;
    let partial = cache.data().join("partial").join(big.hex());
    let written = || std::fs::metadata(&partial).map_or(0, |partial| partial.len());
    cache.until("the first half is written", async || written() >= 4 << 20).await;
    cache.kill9().await;
    upstream.heal().await;
    cache.restart().await;
    cache.await_complete().await;
    cache.assert_held(all_of(&image));
    assert!(upstream.bytes_sent(&big.digest) < big.len() + (1 << 20), "the first half came twice");
}

#[tokio::test]
async fn a_restart_in_an_outage_still_says_complete() {
    let upstream = Upstream::start().await;
    let (amd, arm) = (Content::image(1, &[50_000]), Content::image(2, &[50_000]));
    upstream.push_index(APP, "v1", &Content::index(&[("linux/amd64", &amd), ("linux/arm64", &arm)]), &[&amd, &arm]);
    let mut cache = Pinning::with(Cache::of(&upstream).flag("--tag-ttl", "0s")).await;
    cache.pin(&json!([{"image": "library/app:v1", "platforms": ["linux/amd64"]}])).await;
    let complete = cache.await_complete().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    assert_eq!(cache.pins().await, complete);
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
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_pins("partial", |images| images[0]["state"] == "partial").await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.await_pins("failing", |images| images[0]["error"] != Value::Null).await;
    upstream.heal().await;
    let returned = Instant::now();
    cache.await_complete().await;
    assert!(returned.elapsed() < Duration::from_secs(12), "it took {:?}", returned.elapsed());
}

#[tokio::test]
async fn the_return_of_a_cdn_ends_long_waits() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(APP, "v1", &image);
    upstream.redirect_blobs();
    upstream.fault(On::Cdn, Fault::Refuse).await;
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_pins("failing", |images| images[0]["error"] != Value::Null).await;
    // Waits double: after so long the next one is longer than what a return may take to be noticed.
    tokio::time::sleep(Duration::from_secs(16)).await;
    upstream.heal().await;
    let returned = Instant::now();
    cache.await_complete().await;
    assert!(returned.elapsed() < Duration::from_secs(8), "it took {:?}", returned.elapsed());
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
    let cache = Pinning::start(&upstream).await;
    cache
        .pin(&json!([{"image": "library/none:v1"}, {"image": "library/broken:v1"}, {"image": "library/app:v1"}]))
        .await;
    let told = cache
        .await_pins("told", |images| {
            images[0]["error"] == "not_found" && images[1]["error"] == "not_found" && images[2]["state"] == "complete"
        })
        .await;
    assert_eq!((&told[0]["state"], &told[1]["state"]), (&json!("missing"), &json!("partial")));
    assert_eq!(told[0]["digest"], Value::Null);
    // Its other blobs come all the same.
    let here = size_of(&[broken.manifest.clone(), broken.config.clone(), broken.layers[1].clone()]);
    cache.await_pins("partly here", |images| images[1]["bytes"] == here).await;
    upstream.push("library/none", "v1", &Content::image(3, &[10]));
    upstream.put_blob("library/broken", &broken.layers[0]);
    cache.await_complete().await;
}

#[tokio::test]
async fn a_rate_limit_is_not_hammered() {
    let upstream = Upstream::start().await;
    let images: Vec<_> = (1..=8).map(|seed| Content::image(seed, &[1000, 1000])).collect();
    for (place, image) in images.iter().enumerate() {
        upstream.push(&format!("library/app{place}"), "v1", image);
    }
    let cache = Pinning::start(&upstream).await;
    upstream.fault(On::Registry, Fault::TooManyRequests(Some(60))).await;
    let mark = upstream.mark();
    let list: Vec<_> = (0..8).map(|place| json!({"image": format!("library/app{place}:v1")})).collect();
    cache.pin(&json!(list)).await;
    cache.await_pins("told", |images| images[0]["error"] == "too_many_requests").await;
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
    let mut cache = Pinning::with(Cache::of(&upstream).flag("--tag-ttl", "200ms").flag("--cache-size", "4Mi")).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    upstream.fault(On::Path(new.layers[1].digest.clone()), Fault::Status(500)).await;
    let mark = upstream.mark();
    upstream.push(APP, "v1", &new);
    cache.await_pins("moved", |images| images[0]["digest"] == new.manifest.digest).await;
    let asked: Vec<_> =
        upstream.requests_since(mark).into_iter().filter(|request| request.path.ends_with("/manifests/v1")).collect();
    assert!(!asked.is_empty() && asked.iter().all(|request| request.method == "HEAD"), "a tag is asked for by HEAD");
    cache.await_pins("partial", |images| images[0]["state"] == "partial" && images[0]["error"] == "server_error").await;
    // What is pulled meanwhile does not crowd out the elder.
    cache.crowd(&upstream, 10..16).await;
    // Now upstream goes: the elder is served, after a restart too.
    upstream.fault(On::Everything, Fault::Refuse).await;
    // Within its time to live nobody asks whether upstream is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    cache.assert_pulled(APP, "v1", &old).await;
    cache.restart().await;
    cache.assert_pulled(APP, "v1", &old).await;
    upstream.heal().await;
    cache.await_complete().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.assert_pulled(APP, "v1", &new).await;
}

#[tokio::test]
async fn what_disappears_from_disk_is_fetched_again() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[50_000, 60_000]);
    upstream.push(APP, "v1", &image);
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
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
    cache.await_pins("whole again", |_| all_of(&image).iter().all(is_whole)).await;
    cache.await_complete().await;
}

#[tokio::test]
async fn damage_is_noticed_told_and_mended() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[300_000]);
    upstream.push(APP, "v1", &image);
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    let complete = cache.await_complete().await;
    let layer = &image.layers[0];
    upstream.fault(On::Blobs, Fault::Status(500)).await;
    let mut damaged = layer.bytes.to_vec();
    damaged[150_000] ^= 1;
    std::fs::write(cache.committed(layer).expect("it is here"), &damaged).expect("a layer can be damaged");
    // Nobody pulls it.
    let partial = |images: &Value| images[0]["state"] == "partial" && images[0]["error"] == "server_error";
    cache.await_pins("partial", partial).await;
    upstream.heal().await;
    assert_eq!(cache.await_complete().await, complete);
    let here = std::fs::read(cache.committed(layer).expect("it is here")).expect("a layer can be read");
    assert!(layer.bytes == here);
}

#[tokio::test]
async fn a_damaged_list_is_told_and_frees_nothing_for_eviction() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1 << 20]);
    upstream.push(APP, "v1", &image);
    let mut cache = Pinning::with(Cache::of(&upstream).flag("--cache-size", "2Mi")).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    cache.kill9().await;
    std::fs::write(cache.data().join("pins.json"), "{\"images\":[{").expect("pins.json can be spoilt");
    cache.restart().await;
    let told = cache.api("GET").answer().await;
    assert_eq!((told.status, told.error_code().as_str()), (503, "UNAVAILABLE"));
    cache.until("the log says so", async || cache.output().contains("pins.json is of no use")).await;
    cache.crowd(&upstream, 10..14).await;
    cache.assert_held(all_of(&image));
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    cache.restart().await;
    cache.await_complete().await;
}

#[tokio::test]
async fn a_kill_and_an_outage_in_the_middle_are_told_truly() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000, 200_000]);
    upstream.push(APP, "v1", &image);
    upstream.fault(On::Path(image.layers[1].digest.clone()), Fault::StallAt(50_000)).await;
    let mut cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}, {"image": "library/app:v2"}])).await;
    let here = size_of(&[image.manifest.clone(), image.config.clone(), image.layers[0].clone()]);
    let first_is_here = |images: &Value| images[0]["bytes"] == here && images[0]["totalBytes"] == here + 200_000;
    cache.await_pins("partly here", first_is_here).await;
    cache.kill9().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    let told = cache.pins().await;
    assert!(first_is_here(&told), "{told}");
    assert_eq!((&told[0]["state"], &told[1]["state"]), (&json!("partial"), &json!("missing")));
    cache.await_pins("failing", |images| (0..2).all(|place| images[place]["error"] == "connect_refused")).await;
    upstream.heal().await;
    upstream.push(APP, "v2", &image);
    cache.await_complete().await;
}

#[tokio::test]
async fn what_upstream_deletes_or_refuses_stays_complete() {
    for status in [404, 401] {
        let upstream = Upstream::start().await;
        let image = Content::image(1, &[50_000]);
        upstream.push(APP, "v1", &image);
        let mut cache = Pinning::with(Cache::of(&upstream).flag("--tag-ttl", "100ms")).await;
        cache.pin(&json!([{"image": "library/app:v1"}])).await;
        let complete = cache.await_complete().await;
        upstream.fault(On::Everything, Fault::Status(status)).await;
        let mark = upstream.mark();
        upstream.wait_for("its word", |_| !upstream.content_requests_since(mark).is_empty()).await;
        assert_eq!(cache.pins().await, complete, "{status}");
        cache.restart().await;
        assert_eq!(cache.pins().await, complete, "{status} after a restart");
        let by_digest = cache.pull(&image.manifest.manifest_path(APP)).await;
        assert_eq!(by_digest.status, 200);
        cache.assert_held(all_of(&image));
    }
}
