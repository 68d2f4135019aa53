//! Pins under lists and images that were made to do harm.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use breakwater_tests::cache::Cache;
use breakwater_tests::cache::pins::Pinning;
use breakwater_tests::upstream::content::{INDEX, MANIFEST};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};
use serde_json::{Value, json};

const APP: &str = "library/app";
const MIB: usize = 1 << 20;

fn named(blob: &Blob, size: usize) -> Value {
    json!({"mediaType": blob.media_type, "digest": blob.digest, "size": size})
}

fn index_of(manifests: &[&Blob]) -> Blob {
    let entries: Vec<_> = manifests.iter().map(|manifest| named(manifest, manifest.bytes.len())).collect();
    Blob::new(INDEX, json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string())
}

#[tokio::test]
async fn a_list_without_end_is_refused_and_costs_no_memory() {
    let upstream = Upstream::start().await;
    let cache = Pinning::start(&upstream).await;
    cache.pins().await;
    let before = cache.resident_memory();
    let refused = cache.api("PUT").body(vec![b' '; 32 * MIB]).answer().await;
    assert_eq!((refused.status, refused.error_code().as_str()), (413, "SIZE_INVALID"));
    let asking = cache.api("PUT").header("Expect", "100-continue").header("Content-Length", "104857600");
    assert_eq!(asking.answer().await.status, 413, "who asks before sending need not send");
    let images = vec![json!({"image": "a:1"}); 100_000];
    let refused = cache.put(&json!(images)).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "PINS_INVALID"));
    assert!(String::from_utf8_lossy(&refused.body).contains("at most 10000"));
    let grown = cache.resident_memory().saturating_sub(before);
    assert!(grown < 24 * MIB as u64, "{} MiB", grown >> 20);
    assert_eq!(cache.pins().await, json!([]));
}

#[tokio::test]
async fn ten_thousand_pins_are_kept_through_an_outage_and_a_restart() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(APP, "v1", &image);
    let mut cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    cache.await_complete().await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    let mut images: Vec<_> = (1..10_000).map(|n| json!({"image": format!("library/app{n}:v1")})).collect();
    images.push(json!({"image": "library/app:v1"}));
    let told = cache.pin(&json!(images)).await;
    assert_eq!(told.as_array().map(Vec::len), Some(10_000));
    let ready = cache.restart().await;
    assert!(ready.as_secs() < 4, "promised within 1 s, ready after {ready:?}");
    let told = cache.pins().await;
    assert_eq!((&told[0]["state"], &told[9999]["state"]), (&json!("missing"), &json!("complete")));
    let memory = cache.resident_memory();
    assert!(memory < 96 * MIB as u64, "{} MiB", memory >> 20);
}

#[tokio::test]
async fn indexes_in_indexes_are_followed_to_a_depth() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(APP, "v1", &image);
    let mut nested = image.manifest.clone();
    for depth in 1..=20 {
        nested = index_of(&[&nested]);
        upstream.tag(APP, &format!("depth{depth}"), &nested);
    }
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:depth20"}, {"image": "library/app:depth3"}])).await;
    let told = cache
        .await_pins("told", |images| images[0]["error"] == "invalid_response" && images[1]["state"] == "complete")
        .await;
    assert_eq!(told[0]["state"], "partial");
}

#[tokio::test]
async fn an_index_that_names_thousands_of_nothings_hinders_no_other() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(APP, "v1", &image);
    let nothings: Vec<_> = (0..10_000).map(|seed| Content::blob(seed, 16)).collect();
    upstream.tag(APP, "huge", &index_of(&nothings.iter().collect::<Vec<_>>()));
    let cache = Pinning::start(&upstream).await;
    let mark = upstream.mark();
    cache.pin(&json!([{"image": "library/app:huge"}, {"image": "library/app:v1"}])).await;
    cache.await_pins("told", |images| images[0]["error"] == "not_found" && images[1]["state"] == "complete").await;
    let asked = upstream.content_requests_since(mark).len();
    assert!(asked < 50, "{asked} requests");
}

#[tokio::test]
async fn a_manifest_that_lies_about_a_size_is_told_and_its_blob_comes_once() {
    let upstream = Upstream::start().await;
    let (config, layer) = (Content::blob(1, 100), Content::blob(2, 50_000));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": named(&config, 100), "layers": [named(&layer, 10)],
    });
    upstream.put_blob(APP, &config);
    upstream.put_blob(APP, &layer);
    upstream.tag(APP, "v1", &Blob::new(MANIFEST, manifest.to_string()));
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    let told = |images: &Value| images[0]["error"] == "invalid_response" && images[0]["bytes"] != 0;
    cache.await_pins("told", told).await;
    // Tried again more than once by now.
    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
    assert!(told(&cache.pins().await));
    assert_eq!(upstream.bytes_sent(&layer.digest), layer.len());
}

#[tokio::test]
async fn what_is_no_image_is_never_complete() {
    let upstream = Upstream::start().await;
    upstream.tag(APP, "v1", &Blob::new(MANIFEST, r#"{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:00"}]}"#));
    let cache = Pinning::start(&upstream).await;
    cache.pin(&json!([{"image": "library/app:v1"}])).await;
    let told = cache.await_pins("told", |images| images[0]["error"] == "invalid_response").await;
    assert_eq!(told[0]["state"], "partial");
}

#[tokio::test]
async fn no_other_listener_knows_of_pins() {
    let upstream = Upstream::start().await;
    let cache = Cache::start(&upstream).await;
    for (status, method) in [(404, "GET"), (405, "PUT")] {
        assert_eq!(cache.request(method, "/v1/pins").answer().await.status, status);
    }
    assert_eq!(cache.admin("/v1/pins").await.status, 404);
    assert!(!cache.data().join("pins.json").exists());
}
