//! How Flux and Argo CD judge the mirrors of a cluster, by the code of both. It knows no mirror.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::binaries::workspace;
use crate::cluster::Cluster;
use crate::toolchain::Toolchain;

/// What both make of one mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The mirror's name.
    pub mirror: String,
    /// kstatus, which Flux waits for: `InProgress`, `Current`, `Failed`.
    pub flux: String,
    /// Argo CD's word by config/argocd/health.lua: `Progressing`, `Healthy`, `Degraded`.
    pub argo: String,
    /// What Argo CD shows beside it.
    pub message: String,
}

/// Judges every mirror as it stands.
///
/// # Errors
/// Fails when the mirrors cannot be read, or a tool's code fails over one.
pub async fn assess(cluster: &Cluster) -> Result<Vec<Assessment>> {
    let objects = cluster.kubectl(&["get", "rmir", "-o", "json"]).await?;
    tokio::task::spawn_blocking(move || judge(&objects)).await.context("judge the mirrors")?
}

/// Judges the objects of a list, in JSON.
///
/// # Errors
/// Fails when a tool's code does.
pub fn judge(objects: &str) -> Result<Vec<Assessment>> {
    let mut child = Command::new(Toolchain::assess()?)
        .arg(workspace().join("config/argocd/health.lua"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start assess")?;
    child.stdin.take().context("write to assess")?.write_all(objects.as_bytes()).context("write to assess")?;
    let output = child.wait_with_output().context("wait for assess")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("read what assess says")?;
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<Assessment> {
    let mut parts = line.splitn(4, '\t').map(str::to_owned);
    let mut next = || parts.next().with_context(|| format!("take {line:?} for an assessment"));
    Ok(Assessment { mirror: next()?, flux: next()?, argo: next()?, message: next()? })
}
