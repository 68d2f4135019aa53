//! Container images made from nothing but bytes: the same input gives the same digest on every machine. It knows nothing
//! of clusters or registries.

mod layer;
mod layout;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

pub use layer::Layer;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed, so that a layer's size on the wire is what the test asked for.
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// From Debian's busybox-static: it runs in an image that holds nothing else.
const BUSYBOX: &str = "/bin/busybox";

/// One image for this machine's architecture.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    tag: String,
    layers: Vec<Blob>,
    config: Blob,
    manifest: Blob,
}

/// Bytes with their digest.
#[derive(Debug, Clone)]
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: format!("sha256:{}", hex::encode(digest(&SHA256, &bytes))), bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// How an image's container is started.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The program and its arguments.
    pub entrypoint: Vec<String>,
    /// `uid` or `uid:gid`; root if empty.
    pub user: String,
    /// Settings in the form `NAME=value`.
    pub environment: Vec<String>,
}

impl Image {
    /// Puts an image together. `name` is a repository without a registry, or with one for an image that is imported.
    ///
    /// # Errors
    /// Fails when JSON does.
    pub fn new(name: &str, tag: &str, layers: Vec<Layer>, run: Run) -> Result<Self> {
        let layers: Vec<Blob> = layers.into_iter().map(|layer| Blob::new(layer.into_bytes())).collect();
        let Run { entrypoint, user, environment } = run;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "User": user, "Env": environment},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>()},
        });
        let config = Blob::new(serde_json::to_vec(&config).context("write an image's config")?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(CONFIG_TYPE),
            "layers": layers.iter().map(|layer| layer.descriptor(LAYER_TYPE)).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(serde_json::to_vec(&manifest).context("write an image's manifest")?);
        Ok(Self { name: name.to_owned(), tag: tag.to_owned(), layers, config, manifest })
    }

    /// An image that runs until it is told to end, with busybox and further layers of `layers` random bytes each.
    /// Another `seed` gives other bytes, so that no two tests share a blob by chance.
    ///
    /// # Errors
    /// Fails when busybox-static is not installed.
    pub fn busybox_app(name: &str, seed: u64, layers: &[usize]) -> Result<Self> {
        // As process 1 it is sent SIGTERM in vain unless it asks for it.
        let wait = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";
        let entrypoint = ["/bin/sh", "-c", wait].map(str::to_owned).to_vec();
        Self::busybox(name, seed, layers, entrypoint)
    }

    /// Like [`Image::busybox_app`], with an entrypoint of the caller's, such as `/bin/busybox httpd -f`.
    ///
    /// # Errors
    /// As [`Image::busybox_app`].
    pub fn busybox(name: &str, seed: u64, layers: &[usize], entrypoint: Vec<String>) -> Result<Self> {
        let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX} of Debian's busybox-static"))?;
        let mut base = Layer::new();
        base.file("bin/busybox", &busybox, 0o755)?;
        base.link("bin/sh", "busybox")?;
        base.file("etc/seed", seed.to_string().as_bytes(), 0o644)?;
        let mut all = vec![base];
        for (number, size) in layers.iter().enumerate() {
            let mut layer = Layer::new();
            let stream = seed.wrapping_mul(1 << 20).wrapping_add(number as u64);
            layer.file(&format!("data/{number}"), &layer::random_bytes(stream, *size), 0o644)?;
            all.push(layer);
        }
        let environment = vec!["PATH=/bin".to_owned()];
        Self::new(name, "1", all, Run { entrypoint, environment, ..Run::default() })
    }

    /// What the sandbox of a pod runs; every kubelet needs one.
    ///
    /// # Errors
    /// As [`Image::busybox_app`].
    pub fn pause() -> Result<Self> {
        Self::busybox_app("breakwater.test/pause", 0, &[])
    }

    /// The same image under another tag.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..self.clone() }
    }

    /// Its repository.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its tag.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// `name:tag`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// The digest of its manifest.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// The digests of its layers, from the lowest up.
    #[must_use]
    pub fn layers(&self) -> Vec<&str> {
        self.layers.iter().map(|layer| layer.digest.as_str()).collect()
    }

    /// All bytes that a node pulls.
    #[must_use]
    pub fn size(&self) -> usize {
        self.blobs().map(|blob| blob.bytes.len()).sum()
    }

    /// Writes an OCI layout into a folder.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub fn write_layout(&self, folder: &Path) -> Result<()> {
        for (path, bytes) in layout::files(self)? {
            let path = folder.join(path);
            let parent = path.parent().context("a file of a layout without a folder")?;
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes an OCI archive, which `ctr images import` takes under [`Image::reference`].
    ///
    /// # Errors
    /// Fails when the disk does.
    pub fn write_archive(&self, path: &Path) -> Result<()> {
        let mut archive = Layer::new();
        for (name, bytes) in layout::files(self)? {
            archive.file(&name, &bytes, 0o644)?;
        }
        let mut file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        file.write_all(&archive.into_bytes()).with_context(|| format!("write {}", path.display()))
    }

    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config, &self.manifest])
    }
}

/// The architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_digest_and_another_another() {
        let digest = |seed| Image::busybox_app("a/b", seed, &[1000]).unwrap().digest().to_owned();
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }

    #[test]
    fn a_layer_carries_the_bytes_that_were_asked_for() {
        let image = Image::busybox_app("a/b", 1, &[100_000, 200_000]).unwrap();
        assert_eq!(image.layers().len(), 3);
        // A tar adds a header, padding and its end.
        assert!((100_000..104_000).contains(&image.layers[1].bytes.len()));
        assert!((200_000..204_000).contains(&image.layers[2].bytes.len()));
    }
}
