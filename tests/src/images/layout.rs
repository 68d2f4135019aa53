//! An image as the files of an OCI layout. Pure.

use anyhow::{Context, Result};
use serde_json::json;

use super::{Image, MANIFEST_TYPE};

/// Path and content of every file.
pub(super) fn files(image: &Image) -> Result<Vec<(String, Vec<u8>)>> {
    let mut manifest = image.manifest.descriptor(MANIFEST_TYPE);
    manifest["annotations"] = json!({
        // What skopeo goes by, and what containerd goes by.
        "org.opencontainers.image.ref.name": image.tag,
        "io.containerd.image.name": image.reference(),
    });
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index).context("write an image's index")?),
    ];
    for blob in image.blobs() {
        files.push((format!("blobs/{}", blob.digest.replace(':', "/")), blob.bytes.clone()));
    }
    Ok(files)
}
