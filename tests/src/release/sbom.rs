//! The bill of materials of the image: every crate that is linked into its binaries, in CycloneDX's JSON. It knows what `cargo
//! metadata` says, and no image.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::binaries::workspace;

/// The document; the same lock file gives the same bytes.
///
/// # Errors
/// Fails when cargo does.
pub(super) fn document(packages: &[&str], triple: &str) -> Result<Vec<u8>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", triple])
        .output()
        .context("start cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("parse what cargo metadata says")?;
    let linked = linked(&metadata, packages);
    let components: Vec<_> = array(&metadata["packages"])
        .filter(|package| package["id"].as_str().is_some_and(|id| linked.contains(id)))
        .map(component)
        .collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "breakwater", "version": env!("CARGO_PKG_VERSION")}},
        "components": components,
    });
    serde_json::to_vec_pretty(&document).context("write the bill of materials")
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Ids of all packages that these are built from, without what only builds or tests need.
fn linked<'a>(metadata: &'a Value, packages: &[&str]) -> BTreeSet<&'a str> {
    let named = |package: &&Value| package["name"].as_str().is_some_and(|name| packages.contains(&name));
    let mut open: Vec<&str> = array(&metadata["packages"]).filter(named).filter_map(|p| p["id"].as_str()).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        let nodes = array(&metadata["resolve"]["nodes"]).filter(|node| node["id"] == id);
        let normal = |dependency: &&Value| array(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
        open.extend(nodes.flat_map(|node| array(&node["deps"])).filter(normal).filter_map(|d| d["pkg"].as_str()));
    }
    found
}

fn component(package: &Value) -> Value {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let reference = format!("pkg:cargo/{}@{}", text("name"), text("version"));
    // Old manifests divide licences by a slash, which SPDX does not know.
    let licence = text("license").replace('/', " OR ");
    json!({
        "type": "library",
        "bom-ref": reference,
        "name": text("name"),
        "version": text("version"),
        "purl": reference,
        "licenses": [{"expression": licence}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lists_what_is_linked_and_nothing_that_only_tests_need() {
        let document = document(&["breakwater-crds"], "x86_64-unknown-linux-gnu").unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let names: Vec<_> = array(&document["components"]).filter_map(|c| c["name"].as_str()).collect();
        assert!(names.contains(&"breakwater-crds") && names.contains(&"kube") && names.contains(&"serde_json"));
        assert!(!names.contains(&"tokio-rustls") && !names.contains(&"proptest"), "{names:?}");
        assert!(array(&document["components"]).all(|c| c["licenses"][0]["expression"] != ""), "a crate has no licence");
    }
}
