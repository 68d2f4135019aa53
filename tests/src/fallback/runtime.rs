//! One containerd of some version beside others: its store and its socket are its own, `certs.d` is what the agent writes. It runs
//! no Pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cri::Cri;
use crate::cluster::{Machine, Part, until};
use crate::toolchain::Runtime;

const LIMIT: Duration = Duration::from_secs(30);

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    _part: Part,
    socket: PathBuf,
    /// How the kubelet speaks to it.
    pub cri: Cri,
}

impl Containerd {
    /// Starts it in this machine and waits until it answers.
    ///
    /// # Errors
    /// Fails when it does not, with its log's end.
    pub async fn start(machine: &Machine, runtime: &Runtime, folder: &Path, certs_d: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let config = folder.join("config.toml");
        std::fs::write(&config, configuration(runtime, folder, certs_d)).context("write containerd's config.toml")?;
        let arguments = [&runtime.program.to_string_lossy(), "--config", &config.to_string_lossy()];
        let part = machine.spawn("containerd", &arguments, &[], &folder.join("log")).await?;
        let socket = folder.join("sock");
        let connected = until(LIMIT, "containerd", async || {
            let Ok(cri) = Cri::connect(&socket).await else { return Ok(None) };
            Ok(cri.is_ready().await.then_some(cri))
        });
        let cri = connected.await.with_context(|| part.tail())?;
        Ok(Self { _part: part, socket, cri })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// One folder for everything, and for everybody's `hosts.toml` the agent's.
fn configuration(runtime: &Runtime, folder: &Path, certs_d: &Path) -> String {
    let (folder, certs_d) = (folder.display(), certs_d.display());
    let version = if runtime.series.starts_with("1.") { 2 } else { 3 };
    let images = match version {
        2 => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.images",
    };
    format!(
        "version = {version}\nroot = '{folder}/root'\nstate = '{folder}/state'\n[grpc]\naddress = '{folder}/sock'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{folder}/opt'\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'{images}'.registry]\nconfig_path = '{certs_d}'\n"
    )
}
