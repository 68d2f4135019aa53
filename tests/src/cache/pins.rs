//! Pins as a client asks for them and waits for them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, Cache, End, PATIENCE};
use crate::upstream::{Blob, Image};

/// Asks the admin listener to pin these.
pub async fn put(cache: &Cache, images: &Value) -> Answer {
    let body = json!({ "images": images }).to_string();
    cache.admin_request("PUT", "/v1/pins").header("Content-Type", "application/json").body(body).answer().await
}

/// Pins these, which must be accepted.
pub async fn pin(cache: &Cache, images: &Value) -> Value {
    let answer = put(cache, images).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    images_of(&answer)
}

fn images_of(answer: &Answer) -> Value {
    let body: Value = serde_json::from_slice(&answer.body).expect("the answer is JSON");
    body["images"].clone()
}

/// What it says of the pins.
pub async fn pins(cache: &Cache) -> Value {
    let answer = cache.admin("/v1/pins").await;
    assert_eq!(answer.status, 200);
    images_of(&answer)
}

/// Waits until the state of the pins satisfies the condition.
pub async fn await_pins(cache: &Cache, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let images = pins(cache).await;
        if condition(&images) {
            return images;
        }
        assert!(Instant::now() < deadline, "the pins were never {what}, but {images}\n{}", cache.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all of them are complete.
pub async fn await_complete(cache: &Cache) -> Value {
    let is_complete = |image: &Value| image["state"] == "complete";
    await_pins(cache, "complete", |images| images.as_array().is_some_and(|images| images.iter().all(is_complete))).await
}

/// Fails unless all of these are committed.
pub fn assert_held(cache: &Cache, blobs: impl IntoIterator<Item = Blob>) {
    for blob in blobs {
        assert!(cache.committed(&blob).is_some(), "{} is not here", blob.digest);
    }
}

/// The image with its manifest.
pub fn all_of(image: &Image) -> Vec<Blob> {
    image.blobs().chain([&image.manifest]).cloned().collect()
}

/// The bytes of all of these.
pub fn size_of(blobs: &[Blob]) -> u64 {
    blobs.iter().map(Blob::len).sum()
}

/// Pulls an image by its tag, and fails unless all of it comes and is right.
pub async fn assert_pulled(cache: &Cache, repository: &str, tag: &str, image: &Image) {
    let manifest = cache.get(&format!("/v2/{repository}/manifests/{tag}")).await;
    assert_eq!((manifest.status, manifest.end), (200, End::Complete), "{}", manifest.cache_status());
    assert!(manifest.body == image.manifest.bytes);
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(repository)).await;
        assert_eq!((answer.status, answer.end), (200, End::Complete), "{}", answer.cache_status());
        assert!(answer.body == blob.bytes);
    }
}
