//! Manifests: kept byte for byte, read only to learn what they name. Pure.

use bytes::Bytes;
use serde::Deserialize;

use crate::digest::Digest;

/// The distribution spec's limit.
pub const MOST_BYTES: usize = 4 * 1024 * 1024;
/// A manifest that names more is not read further: each name costs a file.
const MOST_NAMES: usize = 4096;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What upstream is told that we take: everything, so that it never converts.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// A manifest whose digest is that of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Upstream's media type.
    pub media_type: String,
    /// Upstream's bytes.
    pub bytes: Bytes,
}

/// Something that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size: u64,
    /// For entries of an index: `os/architecture/variant`.
    pub platform: Option<String>,
}

/// What a manifest names, and so what an image needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Manifests: the entries of an index, as far as they are any.
    pub manifests: Vec<Named>,
    /// Blobs: config and layers, and what an index lists of them, as those do that hold a builder's cache.
    pub blobs: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    urls: Vec<String>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What `bytes` names; nothing if they are no manifest that we know.
pub fn names(bytes: &[u8]) -> Names {
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return Names::default() };
    let Document { schema_version: _, media_type: _, manifests, config, layers, blobs } = document;
    let (manifests, listed): (Vec<_>, Vec<_>) = manifests.into_iter().flatten().partition(may_be_manifest);
    let blobs = config.into_iter().chain(layers.into_iter().flatten()).chain(blobs.into_iter().flatten());
    let blobs = blobs.chain(listed);
    Names {
        manifests: manifests.into_iter().filter_map(named).take(MOST_NAMES).collect(),
        // Foreign layers have places of their own; runtimes never ask a registry for them.
        blobs: blobs.filter(|descriptor| descriptor.urls.is_empty()).filter_map(named).take(MOST_NAMES).collect(),
    }
}

/// Whatever is neither a layer nor a configuration by its media type may be one.
fn may_be_manifest(descriptor: &Descriptor) -> bool {
    !["layer", "rootfs", "config"].iter().any(|word| descriptor.media_type.contains(word))
}

fn named(descriptor: Descriptor) -> Option<Named> {
    let Descriptor { digest, media_type, size, platform, urls: _ } = descriptor;
    let platform = platform
        .map(|Platform { os, architecture, variant }| format!("{os}/{architecture}/{}", variant.unwrap_or_default()));
    Some(Named { digest: digest.parse().ok()?, media_type, size, platform })
}

/// The media type of content that must be a manifest by its shape; `None` if it is none.
pub fn recognise(bytes: &[u8]) -> Option<String> {
    let document: Document = serde_json::from_slice(bytes).ok()?;
    document.schema_version?;
    match (document.media_type, document.manifests, document.config) {
        (Some(stated), _, _) => Some(stated),
        (None, Some(_), _) => Some(OCI_INDEX.to_owned()),
        (None, None, Some(_)) => Some(OCI_MANIFEST.to_owned()),
        (None, None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const B: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn an_image_names_config_and_layers() {
        let text = serde_json::json!({
            "schemaVersion": 2,
            "config": {"digest": A, "mediaType": "c", "size": 1},
            "layers": [{"digest": B, "mediaType": "l", "size": 2}, {"digest": "nonsense"}, {"digest": A, "urls": ["https://x"]}],
        });
        let found = names(text.to_string().as_bytes());
        assert_eq!(found.blobs.iter().map(|named| named.digest.to_string()).collect::<Vec<_>>(), [A, B]);
        assert_eq!(recognise(text.to_string().as_bytes()).as_deref(), Some(OCI_MANIFEST));
    }

    #[test]
    fn an_index_names_manifests_with_platforms() {
        let text = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"digest": A, "mediaType": "m", "size": 1, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}],
        });
        let found = names(text.to_string().as_bytes());
        assert_eq!(found.manifests[0].platform.as_deref(), Some("linux/arm/v7"));
        assert_eq!(recognise(text.to_string().as_bytes()).as_deref(), Some(OCI_INDEX));
    }

    #[test]
    fn a_config_is_no_manifest() {
        assert_eq!(recognise(br#"{"architecture":"amd64","os":"linux","config":{"digest":"x"}}"#), None);
        assert_eq!(recognise(b"\x1f\x8b"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            names(&bytes);
            recognise(&bytes);
        }
    }
}
