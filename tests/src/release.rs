//! What users install: static binaries in one OCI image. It knows how they are built, not what they do.

mod sbom;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::binaries::{NODE_AGENT, OPERATOR, REGISTRY, workspace};
use crate::images::{Image, Layer, Run};
use crate::toolchain::Progress;

/// The image's name in config/default.
pub const IMAGE: &str = "breakwater.dev/breakwater";
/// Its tag.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
/// What the image holds.
const PACKAGES: [&str; 3] = [REGISTRY, OPERATOR, NODE_AGENT];
/// Linked statically against the C library, and relocations in the short form: in the long one a megabyte of each program is read at
/// its start, and stays resident on every node. The C library applies the short form itself since glibc 2.36.
const FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";
/// Nobody on any node.
const USER: &str = "65532:65532";

/// Builds the three binaries and writes the image's archive into the checkout's `out` folder: seconds when nothing changed.
///
/// # Errors
/// Fails when cargo does, or the disk.
pub fn image_archive() -> Result<PathBuf> {
    let binaries = build("building Breakwater's image")?;
    let mut layer = Layer::new();
    for package in PACKAGES {
        let path = binaries.join(package);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        layer.file(package, &bytes, 0o755)?;
    }
    layer.file("sbom.cdx.json", &sbom::document(&PACKAGES, &host_triple()?)?, 0o644)?;
    let image = Image::new(IMAGE, TAG, vec![layer], Run { user: USER.to_owned(), ..Run::default() })?;
    let folder = workspace().join("out");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let archive = folder.join(format!("breakwater-{TAG}.tar"));
    image.write_archive(&archive)?;
    Ok(archive)
}

/// What a pull goes through, as users get it.
pub struct NodePath {
    /// The node agent.
    pub agent: PathBuf,
    /// The cache.
    pub registry: PathBuf,
}

impl NodePath {
    /// Both, where a build has put them.
    #[must_use]
    pub fn within(folder: &Path) -> Self {
        Self { agent: folder.join(NODE_AGENT), registry: folder.join(REGISTRY) }
    }
}

/// Builds the node agent and the cache as users get them, and says where they are.
///
/// # Errors
/// Fails when cargo does.
pub fn node_path() -> Result<NodePath> {
    Ok(NodePath::within(&build("building the agent and the cache")?))
}

/// Builds the cache as users get it, and says where it is.
///
/// # Errors
/// Fails when cargo does.
pub fn registry() -> Result<PathBuf> {
    Ok(build("building the cache")?.join(REGISTRY))
}

/// Builds the operator as users get it, and says where it is.
///
/// # Errors
/// Fails when cargo does.
pub fn operator() -> Result<PathBuf> {
    Ok(build("building the operator")?.join(OPERATOR))
}

/// Builds everything in release mode and says where the binaries are. Always everything: built one by one, they would share
/// fewer of their dependencies, and be others than in the image.
fn build(title: &str) -> Result<PathBuf> {
    let triple = host_triple()?;
    let progress = Progress::start(title, "about 6 minutes the first time, seconds when nothing changed");
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--release", "--target", &triple])
        .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
        .arg("--bins")
        .arg("--target-dir")
        .arg(&target)
        .env(flags, FLAGS)
        .stdin(Stdio::null())
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo could not build the release binaries: see its messages above");
    let binaries = target.join(triple).join("release");
    PACKAGES.iter().try_for_each(|package| starts(&binaries.join(package)))?;
    progress.done();
    Ok(binaries)
}

/// An older C library links what it cannot start.
fn starts(program: &Path) -> Result<()> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("start {}", program.display()))?;
    ensure!(output.status.success(), "{} does not start: build it with glibc 2.36 or later", program.display());
    Ok(())
}

/// With `--target`, flags for the product do not reach build scripts and macros, which cannot be static.
fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("ask rustc for its host")?;
    let text = String::from_utf8(output.stdout).context("read rustc's answer")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(host.to_owned())
}
