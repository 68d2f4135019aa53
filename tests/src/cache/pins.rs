//! Pins as the operator asks for them and waits for them, and pulls of what is pinned.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Answer, Builder, Cache, End, Identity, PATIENCE, Request, replicas};
use crate::upstream::{Blob, Content, Image, Upstream};

const RELAY: &str = "5f6e1c";
const OPERATOR: &str = "0b5e7e";

/// A cache whose pins can be set: it has a TLS listener and a token for it.
#[derive(Debug)]
pub struct Pinning {
    cache: Cache,
    _identity: Arc<TempDir>,
}

impl Deref for Pinning {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.cache
    }
}

impl DerefMut for Pinning {
    fn deref_mut(&mut self) -> &mut Cache {
        &mut self.cache
    }
}

impl Pinning {
    /// Starts one with default settings.
    pub async fn start(upstream: &Upstream) -> Self {
        Self::with(Cache::of(upstream)).await
    }

    /// Starts one with flags.
    pub async fn with(builder: Builder) -> Self {
        let (identity, folder) = Identity::with_token(RELAY);
        Identity::add_token(folder.path(), "operator", OPERATOR);
        Self { cache: builder.identity(identity).start().await, _identity: Arc::new(folder) }
    }

    /// Starts two that know each other and are given the same Secrets.
    pub async fn two(upstream: &Upstream) -> [Self; 2] {
        let (identity, folder) = Identity::with_token(RELAY);
        Identity::add_token(folder.path(), "operator", OPERATOR);
        let (both, folder) = (replicas::ports::<2>(), Arc::new(folder));
        let peers = both.map(|port| format!("localhost:{port}"));
        let start = async |own| {
            let builder = Cache::of(upstream).port(own).flag("--peer", &peers[0]).flag("--peer", &peers[1]);
            Self { cache: builder.identity(identity.again()).start().await, _identity: Arc::clone(&folder) }
        };
        [start(both[0]).await, start(both[1]).await]
    }

    /// A request to the API with the operator's token.
    pub fn api(&self, method: &str) -> Request {
        self.request(method, "/v1/pins").header("Authorization", &format!("Bearer {OPERATOR}"))
    }

    /// A pull with the relay's token.
    pub async fn pull(&self, path: &str) -> Answer {
        self.request("GET", path).header("Authorization", &format!("Bearer {RELAY}")).answer().await
    }

    /// Asks it to pin these.
    pub async fn put(&self, images: &Value) -> Answer {
        self.api("PUT").body(json!({ "images": images }).to_string()).answer().await
    }

    /// Pins these, which must be accepted; gives the state of each.
    pub async fn pin(&self, images: &Value) -> Value {
        images_of(&self.put(images).await)
    }

    /// The state of each pin.
    pub async fn pins(&self) -> Value {
        images_of(&self.api("GET").answer().await)
    }

    /// Waits until the state of the pins satisfies the condition.
    pub async fn await_pins(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let images = self.pins().await;
            if condition(&images) {
                return images;
            }
            assert!(Instant::now() < deadline, "the pins were never {what}, but {images}\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all of them are complete.
    pub async fn await_complete(&self) -> Value {
        let is_complete = |image: &Value| image["state"] == "complete";
        self.await_pins("complete", |images| images.as_array().is_some_and(|images| images.iter().all(is_complete)))
            .await
    }

    /// Pulls so many blobs of a MiB that the oldest content of a small cache has to go.
    pub async fn crowd(&self, upstream: &Upstream, seeds: Range<u64>) {
        for blob in seeds.map(|seed| Content::blob(seed, 1 << 20)) {
            upstream.put_blob("library/crowd", &blob);
            assert_eq!(self.pull(&blob.blob_path("library/crowd")).await.status, 200);
            self.await_kept("library/crowd", &blob).await;
        }
    }

    /// Fails unless all of these are committed.
    pub fn assert_held(&self, blobs: impl IntoIterator<Item = Blob>) {
        for blob in blobs {
            assert!(self.committed(&blob).is_some(), "{} is not here", blob.digest);
        }
    }

    /// Pulls an image by its tag, and fails unless all of it comes and is right.
    pub async fn assert_pulled(&self, repository: &str, tag: &str, image: &Image) {
        let manifest = self.pull(&format!("/v2/{repository}/manifests/{tag}")).await;
        assert_eq!((manifest.status, manifest.end), (200, End::Complete), "{}", manifest.cache_status());
        assert!(manifest.body == image.manifest.bytes);
        for blob in image.blobs() {
            let answer = self.pull(&blob.blob_path(repository)).await;
            assert_eq!((answer.status, answer.end), (200, End::Complete), "{}", answer.cache_status());
            assert!(answer.body == blob.bytes);
        }
    }
}

fn images_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let body: Value = serde_json::from_slice(&answer.body).expect("the answer is JSON");
    body["images"].clone()
}

/// The image with its manifest.
pub fn all_of(image: &Image) -> Vec<Blob> {
    image.blobs().chain([&image.manifest]).cloned().collect()
}

/// The bytes of all of these.
pub fn size_of(blobs: &[Blob]) -> u64 {
    blobs.iter().map(Blob::len).sum()
}
