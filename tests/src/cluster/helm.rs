//! Helm against a cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::Command;

use super::Cluster;
use super::machine::run;
use crate::toolchain::Toolchain;

const LIMIT: Duration = Duration::from_secs(240);

impl Cluster {
    /// Runs Helm as the administrator and returns what it printed.
    ///
    /// # Errors
    /// Fails, with what it printed, when it fails or takes longer than four minutes.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let program = tokio::task::spawn_blocking(Toolchain::helm).await.context("build Helm")??;
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        // Its own folders, so that nothing of the user's has a say.
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.state().join(name));
        }
        command.process_group(0).kill_on_drop(true);
        run(command, LIMIT).await.with_context(|| format!("run helm {}", arguments.join(" ")))
    }
}
