//! The bill of materials of the image: every crate that is linked into its binaries, in CycloneDX's JSON. It knows what `cargo
//! tree` says, and no image.

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
    // `cargo metadata` joins the features that any crate of the workspace asks for, and so names crates that are not linked.
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}\t{l}", "--target", triple])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .output()
        .context("start cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("read what cargo tree says")?;
    let crates: BTreeSet<_> = text.lines().filter_map(parse).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "breakwater", "version": env!("CARGO_PKG_VERSION")}},
        "components": crates.into_iter().map(component).collect::<Vec<_>>(),
    });
    serde_json::to_vec_pretty(&document).context("write the bill of materials")
}

/// Name, version and licence of `serde v1.0.229 (proc-macro)<tab>MIT OR Apache-2.0 (*)`.
fn parse(line: &str) -> Option<(&str, &str, &str)> {
    let (package, licence) = line.split_once('\t')?;
    let (name, rest) = package.split_once(" v")?;
    Some((name, rest.split_whitespace().next()?, licence.trim_end_matches("(*)").trim()))
}

fn component((name, version, licence): (&str, &str, &str)) -> Value {
    let reference = format!("pkg:cargo/{name}@{version}");
    // Old manifests divide licences by a slash, which SPDX does not know.
    let licence = licence.replace(" / ", " OR ").replace('/', " OR ");
    json!({
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
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
        let components = document["components"].as_array().unwrap();
        let names: Vec<_> = components.iter().filter_map(|c| c["name"].as_str()).collect();
        assert!(names.contains(&"breakwater-crds") && names.contains(&"kube") && names.contains(&"serde_json"));
        assert!(!names.contains(&"tokio") && !names.contains(&"proptest"), "{names:?}");
        assert!(
            components.iter().all(|c| c["licenses"][0]["expression"] != "" && c["version"] != ""),
            "a crate has no licence"
        );
    }
}
