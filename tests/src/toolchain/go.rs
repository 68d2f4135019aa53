//! Builds one Go module into the cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{Context as Hash, SHA256};

use super::folder::make_once;
use super::progress::Progress;

/// A Go module of ours that pins one program or several.
pub(super) struct Module {
    pub(super) title: &'static str,
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) estimate: &'static str,
    /// The module's files, compiled in so that a harness binary works away from its checkout.
    pub(super) files: &'static [(&'static str, &'static str)],
    pub(super) packages: &'static [&'static str],
    pub(super) ldflags: &'static str,
    pub(super) tags: &'static str,
    /// Further names of the one program built, for a program that acts by its name.
    pub(super) links: &'static [&'static str],
}

impl Module {
    /// Changes with anything that goes into the build.
    fn folder_name(&self) -> String {
        let mut hash = Hash::new(&SHA256);
        for (name, text) in self.files {
            hash.update(name.as_bytes());
            hash.update(text.as_bytes());
        }
        for text in self.packages.iter().chain(self.links).chain([&self.ldflags, &self.tags]) {
            hash.update(text.as_bytes());
            hash.update(b"\0");
        }
        let digest = hex::encode(hash.finish());
        format!("{}-{}-{}", self.name, self.version, &digest[..12])
    }
}

/// Returns the folder that holds the module's programs, building them if it is not there yet.
pub(super) fn build(module: &Module) -> Result<PathBuf> {
    make_once(&module.folder_name(), module.title, |folder| compile(module, folder))
}

fn compile(module: &Module, folder: &Path) -> Result<()> {
    let Some(go) = super::find_program("go") else {
        bail!(
            "Go is needed to build {} {} and was not found on PATH: install Go 1.26 or newer from https://go.dev/dl/ and run this again",
            module.title,
            module.version
        );
    };
    let source = tempfile::tempdir().context("make a folder for the module's source")?;
    for (name, text) in module.files {
        fs::write(source.path().join(name), text).with_context(|| format!("write {name}"))?;
    }
    let progress = Progress::start(
        &format!("building {} {}", module.title, module.version),
        &format!("{}, once", module.estimate),
    );
    let output = Command::new(go)
        .current_dir(source.path())
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", module.ldflags, "-tags", module.tags])
        .arg("-o")
        // The slash makes Go take it for a folder, whatever the number of packages.
        .arg(format!("{}/", folder.display()))
        .args(module.packages)
        .stdin(Stdio::null())
        .output()
        .context("run go build")?;
    if !output.status.success() {
        bail!(
            "go build of {} {} ended with {}:\n{}",
            module.title,
            module.version,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for link in module.links {
        std::os::unix::fs::symlink(module.name, folder.join(link)).with_context(|| format!("link {link}"))?;
    }
    progress.done();
    Ok(())
}
