//! Canaries: tiny images that nobody but this relay has. A runtime that comes for one reads the files that we wrote.
//! Also tells whether a registry that waits for such a proof was asked for real content.

use super::ask::{Content, Digest, Kind};
use super::body::RelayBody;
use arc_swap::ArcSwap;
use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// No registry has a namespace of this name, and an unknown repository below it is never asked of a cache.
const REPOSITORIES: &str = "breakwater-canary/";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The canaries that are out, and the registries that wait for a proof.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    out: Mutex<BTreeMap<String, Image>>,
    awaited: ArcSwap<BTreeSet<String>>,
    asked: Mutex<BTreeSet<String>>,
    news: Notify,
}

#[derive(Debug)]
struct Image {
    registry: String,
    manifest: Blob,
    config: Blob,
    arrived: bool,
}

#[derive(Debug)]
struct Blob {
    name: String,
    digest: Option<Digest>,
    bytes: Bytes,
}

/// One canary. It can be pulled for as long as this lives.
#[derive(Debug)]
pub struct Canary {
    /// What to ask the runtime for.
    pub reference: String,
    repository: String,
    canaries: Arc<Canaries>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let name = format!("sha256:{}", hex::encode(digest::digest(&digest::SHA256, &bytes)));
        Self { digest: Digest::parse(&name), bytes: bytes.into(), name }
    }
}

impl Image {
    /// An image without layers, which the runtime has nothing to unpack of.
    fn new(registry: &str, nonce: &str) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Labels": {"breakwater.dev/canary": nonce}},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = Blob::new(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": CONFIG, "digest": config.name, "size": config.bytes.len()},
        });
        let manifest = Blob::new(manifest.to_string().into_bytes());
        Self { registry: registry.to_owned(), manifest, config, arrived: false }
    }

    fn part(&self, kind: &Kind) -> Option<(&Blob, &'static str)> {
        match kind {
            Kind::Manifest(digest) if *digest == self.manifest.digest => Some((&self.manifest, MANIFEST)),
            Kind::Blob(digest) if self.config.digest.as_ref() == Some(digest) => {
                Some((&self.config, "application/octet-stream"))
            }
            Kind::Manifest(_) | Kind::Blob(_) | Kind::Other => None,
        }
    }
}

impl Canaries {
    /// Lets one out for a registry; None without random numbers.
    pub(super) fn release(self: &Arc<Self>, registry: &str) -> Option<Canary> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).ok()?;
        let nonce = hex::encode(nonce);
        let repository = format!("{REPOSITORIES}{nonce}");
        let image = Image::new(registry, &nonce);
        let reference = format!("{registry}/{repository}@{}", image.manifest.name);
        self.out.lock().unwrap_or_else(PoisonError::into_inner).insert(repository.clone(), image);
        Some(Canary { reference, repository, canaries: self.clone() })
    }

    /// The registries that wait for a proof from now on.
    pub(super) fn await_proof(&self, registries: BTreeSet<String>) {
        self.awaited.store(Arc::new(registries));
    }

    /// Waits until an awaited registry was asked for content, and names all that were since the last call.
    pub(super) async fn asked(&self) -> BTreeSet<String> {
        loop {
            let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
            if !asked.is_empty() {
                return asked;
            }
            self.news.notified().await;
        }
    }

    /// The answer, if a canary is asked for. Real content of an awaited registry is taken note of.
    pub(super) fn answer(&self, method: &Method, content: &Content) -> Option<Response<RelayBody>> {
        if !content.repository.starts_with(REPOSITORIES) {
            self.witness(&content.registry);
            return None;
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let image = out.get_mut(&content.repository).filter(|image| image.registry == content.registry);
        let answer = image.and_then(|image| {
            image.arrived = true;
            let (blob, media_type) = image.part(&content.kind)?;
            Some(found(method, blob, media_type))
        });
        Some(answer.unwrap_or_else(|| super::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such canary")))
    }

    fn witness(&self, registry: &str) {
        if self.awaited.load().contains(registry) {
            let is_new = self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(registry.to_owned());
            if is_new {
                self.news.notify_one();
            }
        }
    }
}

impl Canary {
    /// Whether the runtime has come for it.
    #[must_use]
    pub fn arrived(&self) -> bool {
        let out = self.canaries.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.get(&self.repository).is_some_and(|image| image.arrived)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.canaries.out.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.repository);
    }
}

fn found(method: &Method, blob: &Blob, media_type: &'static str) -> Response<RelayBody> {
    let bytes = if method == Method::HEAD { Bytes::new() } else { blob.bytes.clone() };
    let mut response = Response::new(RelayBody::whole(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(blob.bytes.len()));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Ok(digest) = HeaderValue::try_from(&blob.name) {
        headers.insert("docker-content-digest", digest);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::super::ask::Ask;
    use super::*;
    use futures::FutureExt;
    use http_body_util::BodyExt;

    fn ask(path: &str) -> Content {
        match Ask::parse(&Method::GET, &path.parse().unwrap()) {
            Ok(Ask::Content(content)) => content,
            other => panic!("{path}: {other:?}"),
        }
    }

    async fn get(canaries: &Canaries, path: &str) -> Option<(u16, Bytes)> {
        let (parts, body) = canaries.answer(&Method::GET, &ask(path))?.into_parts();
        Some((parts.status.as_u16(), body.collect().await.unwrap().to_bytes()))
    }

    #[tokio::test]
    async fn a_canary_is_a_whole_image_of_its_registry_alone_while_it_is_out() {
        let canaries = Arc::new(Canaries::default());
        let canary = canaries.release("r.example:5000").unwrap();
        let (name, digest) = canary.reference.split_once('@').unwrap();
        let repository = name.strip_prefix("r.example:5000/").unwrap();
        let manifest = format!("/v2/{repository}/manifests/{digest}?ns=");
        assert_eq!(get(&canaries, &format!("{manifest}docker.io")).await.unwrap().0, 404);
        assert!(!canary.arrived());

        let (status, bytes) = get(&canaries, &format!("{manifest}r.example%3A5000")).await.unwrap();
        assert!(status == 200 && canary.arrived());
        assert!(Digest::parse(digest).unwrap().verifies(&bytes));
        let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let config = parsed["config"]["digest"].as_str().unwrap();
        let blob = format!("/v2/{repository}/blobs/{config}?ns=r.example%3A5000");
        let (status, bytes) = get(&canaries, &blob).await.unwrap();
        assert!(status == 200 && Digest::parse(config).unwrap().verifies(&bytes));
        assert_eq!(parsed["config"]["size"], bytes.len());

        drop(canary);
        assert_eq!(get(&canaries, &blob).await.unwrap().0, 404, "it never goes on to a cache");
    }

    #[tokio::test]
    async fn real_content_proves_what_waits_for_it() {
        let canaries = Arc::new(Canaries::default());
        let tag = |registry: &str| format!("/v2/library/nginx/manifests/1?ns={registry}");
        assert!(get(&canaries, &tag("docker.io")).await.is_none());
        canaries.await_proof(["docker.io".to_owned()].into());
        assert!(get(&canaries, &tag("quay.io")).await.is_none());
        assert_eq!(canaries.asked().now_or_never(), None);
        assert!(get(&canaries, &tag("docker.io")).await.is_none());
        assert_eq!(canaries.asked().await, ["docker.io".to_owned()].into());
    }
}
