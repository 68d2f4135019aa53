//! The real operator as a process. Knows nothing of whose API server it is, nor of what it makes there.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::binaries::{OPERATOR, binary};
use crate::cluster::until;
use crate::direct;

/// How long it may take to say where it listens, or to end.
const LIMIT: Duration = Duration::from_secs(40);

/// The image that its caches run. Nothing pulls it.
pub const IMAGE: &str = "breakwater.test/breakwater:1";

/// A running operator, killed when this is dropped.
pub struct Operator {
    child: Child,
    log: PathBuf,
    /// Where its part of the log begins: others of this name may have run before.
    begins: usize,
}

impl Operator {
    /// Starts one that calls itself `name` and keeps its log in `folder`.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn start(name: &str, kubeconfig: &Path, folder: &Path) -> Result<Self> {
        Self::of(&binary(OPERATOR), name, kubeconfig, folder)
    }

    /// The same of this build.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn of(program: &Path, name: &str, kubeconfig: &Path, folder: &Path) -> Result<Self> {
        Self::spawn(program, IMAGE, name, kubeconfig, folder)
    }

    /// One of the build under test that has its caches run this image.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_image(image: &str, name: &str, kubeconfig: &Path, folder: &Path) -> Result<Self> {
        Self::spawn(&binary(OPERATOR), image, name, kubeconfig, folder)
    }

    fn spawn(program: &Path, image: &str, name: &str, kubeconfig: &Path, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).context("open a log")?;
        let begins = usize::try_from(file.metadata().context("look at a log")?.size()).context("a log is too long")?;
        let mut command = Command::new(program);
        direct::past_proxies(command.as_std_mut());
        let child = command
            .args(["--image", image, "--pod-name", name, "--listen", "127.0.0.1:0"])
            .args(["--log-format", "json"])
            .env("KUBECONFIG", kubeconfig)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .context("start the operator")?;
        Ok(Self { child, log, begins })
    }

    /// Fails, with its log, when it has ended by itself.
    ///
    /// # Errors
    /// It has.
    pub fn still_runs(&mut self) -> Result<()> {
        ensure!(self.child.try_wait().context("look at the operator")?.is_none(), "the operator ended: {}", self.log());
        Ok(())
    }

    /// Kills it as nothing can be prepared for.
    ///
    /// # Errors
    /// Fails when it has ended by itself.
    pub async fn kill9(&mut self) -> Result<()> {
        self.still_runs()?;
        self.child.kill().await.context("kill the operator")
    }

    /// The same, for the last time.
    ///
    /// # Errors
    /// As [`Self::kill9`].
    pub async fn kill(mut self) -> Result<()> {
        self.kill9().await
    }

    /// Its process.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn id(&self) -> Result<u32> {
        self.child.id().context("the operator has ended")
    }

    /// Sends it a signal: `STOP`, `CONT`, `TERM`.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.id()?;
        let sent = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status().await;
        ensure!(sent.context("run kill")?.success(), "kill -{signal} {id} failed");
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Fails when it does not.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        ended.context("the operator goes on")?.context("wait for the operator")
    }

    /// Where its own listener is.
    ///
    /// # Errors
    /// Fails when it does not say so in time.
    pub async fn admin(&self) -> Result<SocketAddr> {
        until(LIMIT, "the operator to listen", async || {
            let log = self.log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            Ok(lines.find_map(|line| line["listen"].as_str()?.parse().ok()))
        })
        .await
    }

    /// What a scrape of its metrics gets.
    ///
    /// # Errors
    /// Fails when it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        let url = format!("http://{}/metrics", self.admin().await?);
        let answer = direct::client()?.get(url).send().await.context("ask for metrics")?;
        answer.text().await.context("read the metrics")
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.begins..).unwrap_or_default()).into_owned()
    }
}
