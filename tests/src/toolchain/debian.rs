//! The programs that Debian packages well enough to take from there.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::progress::Progress;

/// What a test cluster needs.
pub(super) const CLUSTER: &[&str] = &[
    "runc",
    "containernetworking-plugins",
    "etcd-server",
    "busybox-static",
    "tini",
    "skopeo",
    "nftables",
    "iproute2",
    "util-linux",
];

/// Installs the packages that are missing, through apt.
pub(super) fn install_missing(packages: &[&'static str]) -> Result<()> {
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    // apt refuses to run twice at a time, and whoever waited finds nothing left to do.
    let _lock = super::folder::lock("debian-packages", "Debian packages")?;
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if super::find_program("apt-get").is_none() {
        bail!("these Debian packages are missing and there is no apt-get to install them with: {list}");
    }
    let progress = Progress::start(&format!("installing {list}"), "about 1 minute, once");
    if apt(&["install", "--yes", "--no-install-recommends"], &missing).is_err() {
        // Mostly the package lists are missing or old.
        apt(&["update"], &[])?;
        apt(&["install", "--yes", "--no-install-recommends"], &missing)?;
    }
    progress.done();
    Ok(())
}

/// The version of a package that apt would install.
pub(super) fn candidate(package: &str) -> Result<String> {
    let policy = || {
        let output = Command::new("apt-cache").args(["policy", package]).output().context("run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: ").map(str::to_owned));
        anyhow::Ok(version.filter(|version| version != "(none)"))
    };
    if let Some(version) = policy()? {
        return Ok(version);
    }
    apt(&["update"], &[])?;
    policy()?.with_context(|| format!("Debian has no package {package} for this machine"))
}

/// Downloads a package into a folder without installing it.
pub(super) fn download(package: &str, folder: &Path) -> Result<()> {
    let fetch = || {
        let mut command = Command::new("apt-get");
        // As root, or apt's own user could not write into the folder.
        command.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
        command.stdin(Stdio::null()).output().context("run apt-get")
    };
    let mut output = fetch()?;
    if !output.status.success() {
        apt(&["update"], &[])?;
        output = fetch()?;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "apt-get download {package} ended with {}:\n{said}", output.status);
    Ok(())
}

fn missing(packages: &[&'static str]) -> Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("ask dpkg-query for installed packages (this runs on Debian or a system made from it)")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(packages.iter().copied().filter(|package| !is_installed(&listing, package)).collect())
}

fn is_installed(listing: &str, package: &str) -> bool {
    listing.lines().any(|line| line.split_once(' ') == Some((package, "installed")))
}

fn apt(arguments: &[&str], packages: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // What a package brings as a service is not started: it is wanted as a program.
        .env("RUNLEVEL", "1")
        .args(arguments)
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .context("run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {} ended with {}:\n{}", arguments[0], output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_installed;

    #[test]
    fn a_removed_package_is_not_installed() {
        let listing = "runc installed\ntini config-files\n";
        assert!(is_installed(listing, "runc"));
        assert!(!is_installed(listing, "tini"));
        assert!(!is_installed(listing, "skopeo"));
    }
}
