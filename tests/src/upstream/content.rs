//! Deterministic content: the same seed gives the same bytes, so a test knows what must arrive without keeping a copy.

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use bytes::Bytes;
use serde_json::json;

/// Media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes with the digest that names them.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Media type.
    pub media_type: String,
    /// `sha256:<hex>`.
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl Blob {
    /// Names some bytes by their digest.
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type: media_type.to_owned(), digest: sha256(&bytes), bytes }
    }

    /// Names some bytes by their digest under SHA-512.
    pub fn named_by_sha512(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let digest = format!("sha512:{}", hex::encode(digest(&SHA512, &bytes)));
        Self { media_type: "application/octet-stream".to_owned(), digest, bytes }
    }

    /// Its length.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The digest without its algorithm.
    pub fn hex(&self) -> &str {
        self.digest.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// Its path as a blob of a repository.
    pub fn blob_path(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", self.digest)
    }

    /// Its path as a manifest of a repository.
    pub fn manifest_path(&self, repository: &str) -> String {
        format!("/v2/{repository}/manifests/{}", self.digest)
    }

    pub(super) fn descriptor(&self) -> serde_json::Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image: its manifest and everything that the manifest names.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Image {
    /// The image of these layers, lowest first.
    pub fn of(seed: u64, layers: Vec<Blob>) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Labels": {"seed": seed.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob::new(CONFIG, config.to_string());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Self { manifest: Blob::new(MANIFEST, manifest.to_string()), config, layers }
    }

    /// The configuration and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// Makes content from a seed.
#[derive(Debug)]
pub struct Content;

impl Content {
    /// Pseudo-random bytes.
    pub fn blob(seed: u64, size: usize) -> Blob {
        Blob::new("application/octet-stream", random(seed, size))
    }

    /// An image with layers of these sizes.
    pub fn image(seed: u64, layer_sizes: &[usize]) -> Image {
        let layers: Vec<Blob> = layer_sizes
            .iter()
            .zip(seed.wrapping_mul(1000)..)
            .map(|(size, seed)| Blob::new(LAYER, random(seed, *size)))
            .collect();
        Image::of(seed, layers)
    }

    /// An index of images for platforms written `os/architecture`.
    pub fn index(platforms: &[(&str, &Image)]) -> Blob {
        let manifests: Vec<_> = platforms
            .iter()
            .map(|(platform, image)| {
                let (os, architecture) = platform.split_once('/').expect("os/architecture");
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({"os": os, "architecture": architecture});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        Blob::new(INDEX, index.to_string())
    }
}

/// The digest of some bytes as `sha256:<hex>`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes)))
}

fn random(seed: u64, size: usize) -> Bytes {
    // xorshift64*: never zero, and different seeds part at once.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}
