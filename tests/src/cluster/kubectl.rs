//! kubectl against a cluster.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Cluster;
use super::machine::run;

const LIMIT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// Fails, with what it printed, when it fails or takes longer than two minutes.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.kubectl_command()?;
        command.args(arguments);
        run(command, LIMIT).await.with_context(|| format!("run kubectl {}", arguments.join(" ")))
    }

    /// Applies manifests, YAML or JSON, server-side.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.kubectl_command()?;
        command.args(["apply", "--server-side", "--filename=-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl apply")?;
        let mut input = child.stdin.take().context("write to kubectl apply")?;
        let feed = async {
            // kubectl that ends before it has read all tells why by itself.
            let _ = input.write_all(manifests.as_bytes()).await;
            drop(input);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(LIMIT, feed)
            .await
            .context("kubectl apply took too long")?
            .context("wait for kubectl apply")?;
        if !output.status.success() {
            bail!("kubectl apply ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl_command(&self) -> Result<Command> {
        let mut command = Command::new(self.toolchain.program("kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.state().join("kubectl-cache"))
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }
}
