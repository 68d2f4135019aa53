//! Holds the workspace to its own rules: crate arrows, module comments, file sizes, generated files, documented reasons.

mod chart;
mod columns;
mod commands;
mod links;
mod monitoring;

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a file before its tests. Beyond this a file tells more than one story.
const MAX_LINES: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn rust_files() -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .context("list files with git")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let files: Vec<_> = String::from_utf8(listed.stdout)?.lines().map(|line| root().join(line)).collect();
    ensure!(files.len() > 20, "found only {} Rust files", files.len());
    Ok(files.into_iter().filter(|file| file.exists()).collect())
}

/// The crates of this workspace that a crate depends on, tests' own dependencies included.
fn arrows_from(folder: &str) -> Result<BTreeSet<String>> {
    let manifest = read(&root().join(folder).join("Cargo.toml"))?;
    Ok(["crds", "registry", "operator", "node-agent", "tests"]
        .into_iter()
        .filter(|other| manifest.lines().any(|line| line.starts_with(&format!("breakwater-{other}"))))
        .map(str::to_owned)
        .collect())
}

#[test]
fn crates_depend_only_on_what_the_architecture_allows() -> Result<()> {
    for (folder, allowed) in
        [("crds", vec![]), ("registry", vec![]), ("operator", vec!["crds"]), ("node-agent", vec!["crds"])]
    {
        let expected: BTreeSet<String> = allowed.into_iter().map(str::to_owned).collect();
        assert_eq!(arrows_from(folder)?, expected, "crates that {folder} depends on");
    }
    Ok(())
}

#[test]
fn versions_stand_in_the_workspace_manifest_alone() -> Result<()> {
    for folder in ["crds", "registry", "operator", "node-agent", "tests"] {
        let manifest = read(&root().join(folder).join("Cargo.toml"))?;
        let (_, dependencies) = manifest.split_once("[dependencies]").context("has no dependencies")?;
        for line in dependencies.lines().filter(|line| line.contains('=') && !line.starts_with('#')) {
            assert!(
                line.contains("workspace = true")
                    || line.contains("name =")
                    || line.contains("path = \"src")
                    || line.ends_with("= []")
                    || line.contains("required-features"),
                "{folder}/Cargo.toml: {line}: must take its version from the workspace"
            );
        }
    }
    Ok(())
}

#[test]
fn every_module_says_what_it_holds() -> Result<()> {
    for file in rust_files()? {
        let text = read(&file)?;
        assert!(text.starts_with("//! "), "{}: must begin with a `//!` line", file.display());
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(&text).lines().count();
        assert!(code <= MAX_LINES, "{}: {code} lines before its tests; split it at {MAX_LINES}", file.display());
    }
    Ok(())
}

#[test]
fn the_committed_definitions_are_the_generated_ones() -> Result<()> {
    for definition in breakwater_crds::yaml::definitions() {
        let name = &definition.spec.names.plural;
        let committed = read(&root().join("config/crd").join(format!("{name}.yaml")))?;
        let generated = breakwater_crds::yaml::document(&definition)?;
        assert!(committed == generated, "config/crd/{name}.yaml differs from crds/src: run `make manifests`");
    }
    let reference = breakwater_crds::reference::page(&breakwater_crds::yaml::definitions());
    let committed = read(&root().join("docs/reference.md"))?;
    assert!(committed == reference, "docs/reference.md differs from crds/src: run `make manifests`");
    Ok(())
}

#[test]
fn every_reason_is_documented_with_its_mend() -> Result<()> {
    let source = read(&root().join("crds/src/conditions.rs"))?;
    let docs = read(&root().join("docs/conditions.md"))?;
    let (_, reasons) = source.split_once("pub mod reason {").context("has no reasons")?;
    let reasons: Vec<_> =
        reasons.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1)).collect();
    ensure!(reasons.len() > 20, "found only {} reasons", reasons.len());
    for reason in reasons {
        assert!(docs.contains(&format!("`{reason}`")), "docs/conditions.md: must explain `{reason}`");
    }
    Ok(())
}

#[test]
fn make_help_lists_every_target() -> Result<()> {
    let makefile = read(&root().join("Makefile"))?;
    let help = Command::new("make").arg("help").current_dir(root()).output().context("run make help")?;
    let help = String::from_utf8(help.stdout)?;
    for line in makefile.lines().filter(|line| !line.starts_with(['\t', '#', '.', ' '])) {
        if let Some((target, _)) = line.split_once(':').filter(|(target, _)| !target.contains([' ', '='])) {
            assert!(help.contains(target), "make help: must list {target}");
        }
    }
    Ok(())
}

#[test]
fn the_image_has_one_name_and_version() -> Result<()> {
    let kustomization = read(&root().join("config/default/kustomization.yaml"))?;
    let version = env!("CARGO_PKG_VERSION");
    assert!(kustomization.contains(&format!("newTag: {version}")), "config/default: newTag must be {version}");
    let chart = read(&root().join("charts/breakwater/Chart.yaml"))?;
    for field in ["version", "appVersion"] {
        assert!(chart.contains(&format!("\n{field}: {version}\n")), "Chart.yaml: {field} must be {version}");
    }
    Ok(())
}

/// Dotted paths of every field below a schema.
fn fields(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields(below, &path, found);
        fields(&below["items"], &path, found);
        found.push(path);
    }
}

#[test]
fn every_field_of_a_mirror_is_documented() -> Result<()> {
    let [mirror, _] = breakwater_crds::yaml::definitions();
    let schema = serde_json::to_value(&mirror.spec.versions[0].schema)?;
    let mut found = Vec::new();
    fields(&schema["openAPIV3Schema"]["properties"]["spec"], "spec", &mut found);
    ensure!(found.len() > 15, "found only {found:?}");
    let docs = read(&root().join("docs/mirrors.md"))?;
    // Below these, fields are Kubernetes' own.
    let foreign = ["spec.nodes.selector.", "spec.cache.resources.", "spec.cache.affinity.", "spec.cache.tolerations."];
    for field in found.iter().filter(|field| !foreign.iter().any(|prefix| field.starts_with(prefix))) {
        let name = field.rsplit('.').next().unwrap_or(field);
        assert!(docs.contains(&format!("{name}:")), "docs/mirrors.md: must explain {field}");
    }
    Ok(())
}

#[test]
fn every_shared_dependency_is_used_by_a_crate() -> Result<()> {
    let workspace = read(&root().join("Cargo.toml"))?;
    let (_, shared) = workspace.split_once("[workspace.dependencies]").context("has no shared dependencies")?;
    let (shared, _) = shared.split_once("[workspace.lints").context("has no lints")?;
    let crates: Vec<String> = ["crds", "registry", "operator", "node-agent", "tests"]
        .iter()
        .map(|folder| read(&root().join(folder).join("Cargo.toml")))
        .collect::<Result<_>>()?;
    for line in shared.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, _)) = line.split_once(" = ") {
            let used = |manifest: &String| {
                manifest.lines().any(|l| l.starts_with(&format!("{name}.")) || l.starts_with(&format!("{name} =")))
            };
            assert!(crates.iter().any(used), "Cargo.toml: no crate uses {name}: remove it");
        }
    }
    Ok(())
}
