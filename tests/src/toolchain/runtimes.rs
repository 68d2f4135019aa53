//! containerd in the versions that nodes have, each as one program: enough to pull by CRI, not to run Pods.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::folder::make_once;
use super::go::{self, Module};
use super::{CONTAINERD, debian};

const CONTAINERD_2_2: Module = Module {
    title: "containerd 2.2",
    name: "containerd",
    version: "v2.2.9",
    estimate: "about 1 minute",
    files: &[
        ("go.mod", include_str!("../../toolchain/containerd-2.2/go.mod")),
        ("go.sum", include_str!("../../toolchain/containerd-2.2/go.sum")),
    ],
    packages: &["github.com/containerd/containerd/v2/cmd/containerd"],
    ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.2.9",
    tags: "no_btrfs,no_devmapper,no_zfs",
    links: &[],
};

const CONTAINERD_1_7: Module = Module {
    title: "containerd 1.7",
    name: "containerd",
    version: "v1.7.35",
    estimate: "about 1 minute",
    files: &[
        ("go.mod", include_str!("../../toolchain/containerd-1.7/go.mod")),
        ("go.sum", include_str!("../../toolchain/containerd-1.7/go.sum")),
    ],
    packages: &["github.com/containerd/containerd/cmd/containerd"],
    ldflags: "-s -w -X github.com/containerd/containerd/version.Version=v1.7.35",
    tags: "no_btrfs,no_devmapper,no_zfs,no_aufs",
    links: &[],
};

/// A containerd of one version.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// `2.4`, as nodes are spoken of.
    pub series: &'static str,
    /// The exact version.
    pub version: String,
    /// Its program.
    pub program: PathBuf,
}

/// The series that there are, newest first.
pub const SERIES: [&str; 4] = ["2.4", "2.2", "1.7", "1.6"];

impl Runtime {
    /// The one of this series, built or unpacked if it is not there yet.
    ///
    /// # Errors
    /// Fails for a series that is none of [`SERIES`], and when it can be neither built nor fetched.
    pub fn of(series: &str) -> Result<Self> {
        let known = SERIES.into_iter().find(|known| *known == series);
        let series = known.with_context(|| format!("containerd must be of {SERIES:?}, not {series}"))?;
        let built = |module: &Module| anyhow::Ok((module.version.to_owned(), go::build(module)?.join("containerd")));
        let (version, program) = match series {
            "2.4" => built(&CONTAINERD)?,
            "2.2" => built(&CONTAINERD_2_2)?,
            "1.7" => built(&CONTAINERD_1_7)?,
            _ => unpacked()?,
        };
        Ok(Self { series, version, program })
    }
}

/// Debian's package, without installing it: it would start a service.
fn unpacked() -> Result<(String, PathBuf)> {
    let version = debian::candidate("containerd")?;
    let name = format!("containerd-debian-{}", version.replace(['~', '+', ':'], "-"));
    let folder = make_once(&name, "Debian's containerd", |folder| {
        debian::download("containerd", folder)?;
        unpack(folder)
    })?;
    Ok((version, folder.join("usr/bin/containerd")))
}

fn unpack(folder: &Path) -> Result<()> {
    let status = Command::new("sh")
        .args(["-euc", "dpkg-deb --extract ./*.deb . && rm ./*.deb"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .status()
        .context("run dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb ended with {status}");
    Ok(())
}
