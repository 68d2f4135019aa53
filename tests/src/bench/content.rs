//! What is pulled: a registry's answers as plain files, the path in the URL being the path in the folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

const REPOSITORY: &str = "v2/bench/image";
/// Media type of every manifest here.
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A folder of answers.
#[derive(Debug)]
pub(super) struct Content {
    root: PathBuf,
}

impl Content {
    pub(super) fn create(root: PathBuf) -> Result<Self> {
        for kind in ["blobs", "manifests"] {
            let folder = root.join(REPOSITORY).join(kind);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Adds a blob of this size that no other `seed` gives; returns its path.
    pub(super) fn blob(&self, seed: u64, size: usize) -> Result<String> {
        self.put("blobs", &noise(seed, size))
    }

    /// Adds a manifest that names one small blob, and the tag `latest` for it; returns the manifest's path.
    pub(super) fn manifest(&self) -> Result<String> {
        let layer = noise(0, 1024);
        self.put("blobs", &layer)?;
        let config = self.put("blobs", b"{}")?;
        let named = |path: &str, size: usize, kind: &str| {
            let digest = path.rsplit('/').next().unwrap_or_default();
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size})
        };
        let layer = self.put("blobs", &layer).map(|path| named(&path, 1024, "layer.v1.tar"))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": named(&config, 2, "config.v1+json"),
            // As many bytes as manifests in the field have.
            "layers": vec![layer; 8],
        });
        let bytes = manifest.to_string();
        self.write("manifests", "latest", bytes.as_bytes())?;
        self.put("manifests", bytes.as_bytes())
    }

    fn put(&self, kind: &str, bytes: &[u8]) -> Result<String> {
        self.write(kind, &format!("sha256:{}", hex::encode(digest(&SHA256, bytes))), bytes)
    }

    fn write(&self, kind: &str, name: &str, bytes: &[u8]) -> Result<String> {
        let path = format!("{REPOSITORY}/{kind}/{name}");
        fs::write(self.root.join(&path), bytes).with_context(|| format!("write {path}"))?;
        Ok(format!("/{path}"))
    }
}

/// The tag of the manifest.
pub(super) fn tag_path() -> String {
    format!("/{REPOSITORY}/manifests/latest")
}

/// Bytes that compress badly and differ by `seed`.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let block = digest(&SHA256, &seed.to_le_bytes());
    let mut bytes = block.as_ref().repeat(size.div_ceil(block.as_ref().len()));
    bytes.truncate(size);
    // Blocks of a file differ, so that nothing on the way can share them.
    for (number, chunk) in bytes.chunks_mut(4096).enumerate() {
        let number = (number as u64).to_le_bytes();
        let length = chunk.len().min(8);
        chunk[..length].copy_from_slice(&number[..length]);
    }
    bytes
}
