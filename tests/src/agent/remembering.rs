//! The agent without an API server: the real binary, whose relay works from what it knew last, of one cache. Needs no root.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_crds::names;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use super::relay_key;
use crate::binaries::{NODE_AGENT, binary};
use crate::direct;
use crate::ports::free_address;

/// The Service that the cache must have a certificate of.
pub const SERVICE: &str = "cache-test";
const NODE: &str = "forgotten";
const END_LIMIT: Duration = Duration::from_secs(20);

/// A running agent, killed when this is dropped.
pub struct Remembering {
    child: Child,
    relay: SocketAddr,
    folder: TempDir,
}

impl Remembering {
    /// Starts an agent that knows the cache of one registry.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn start(registry: &str, cache: SocketAddr, authority: &str) -> Result<Self> {
        let folder = TempDir::new().context("make a folder")?;
        remember(folder.path(), registry, cache, authority)?;
        let relay = free_address()?;
        let mut command = command(&binary(NODE_AGENT), relay, folder.path());
        let child = command.stdin(Stdio::null()).spawn().context("start the agent")?;
        Ok(Self { child, relay, folder })
    }

    /// Its relay.
    #[must_use]
    pub fn relay(&self) -> SocketAddr {
        self.relay
    }

    /// Starts another agent with the same folders and port and waits for its end: what it said, and whether it says that it failed.
    ///
    /// # Errors
    /// Fails when it cannot be started, or does not end.
    pub async fn another(&self) -> Result<(String, bool)> {
        let mut command = tokio::process::Command::from(command(&binary(NODE_AGENT), self.relay, self.folder.path()));
        let ended = timeout(END_LIMIT, command.kill_on_drop(true).output()).await;
        let ended = ended.context("another agent does not end")?.context("start another agent")?;
        Ok((String::from_utf8_lossy(&ended.stderr).into_owned(), ended.status.code() == Some(1)))
    }

    /// The text of a registry's `hosts.toml`, if there is one.
    #[must_use]
    pub fn hosts_toml(&self, registry: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join("certs.d").join(registry).join("hosts.toml")).ok()
    }

    /// Stops it in its tracks, or lets it go on.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let id = Pid::from_raw(self.child.id().cast_signed()).context("the agent has no id")?;
        kill_process(id, if frozen { Signal::STOP } else { Signal::CONT }).context("signal the agent")
    }
}

impl Drop for Remembering {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes down what the agent knew: one mirror, and the only Pod of its cache.
pub(crate) fn remember(folder: &Path, registry: &str, cache: SocketAddr, authority: &str) -> Result<()> {
    let known = json!({
        "mirrors": {"only": {
            "apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "only"},
            "spec": {"registry": registry},
        }},
        "slices": {SERVICE: {"mirror": "only", "service": SERVICE, "endpoints": [
            {"terminating": false, "pod": names::pod_name(SERVICE, 0), "address": cache},
        ]}},
        "trust": {"ca": authority, "key": relay_key()},
        "node": {"uid": NODE, "labels": {}},
    });
    for name in ["state", "certs.d"] {
        fs::create_dir(folder.join(name)).with_context(|| format!("make {name}"))?;
    }
    fs::write(folder.join("state/known.json"), known.to_string()).context("write what the agent knew")?;
    let nobody = format!("https://{}", free_address()?);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "gone", "users": [{"name": "gone", "user": {}}],
        "clusters": [{"name": "gone", "cluster": {"server": nobody}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "gone"}}],
    });
    fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).context("write a kubeconfig")
}

/// Starts an agent that remembers what [`remember`] wrote.
pub(crate) fn command(program: &Path, relay: SocketAddr, folder: &Path) -> Command {
    let mut command = Command::new(program);
    direct::past_proxies(&mut command)
        .env_remove("RUST_LOG")
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .args(["--node-name", NODE, "--cri-socket", "none", "--admin-listen", "127.0.0.1:0"])
        .args(["--relay-listen", &relay.to_string()])
        .arg("--certs-dir")
        .arg(folder.join("certs.d"))
        .arg("--state-dir")
        .arg(folder.join("state"));
    command
}
