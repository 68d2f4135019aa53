//! The agent before a cache that has everything, both as users get them. No API server: the agent works from what it knew last.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakwater_crds::names;
use serde_json::json;
use tempfile::TempDir;

use super::super::content::Content;
use super::super::load;
use super::super::peers::{self, Peer, free_address};
use super::super::process::Process;
use crate::agent;
use crate::cache::Identity;
use crate::release::NodePath;

const SERVICE: &str = "cache-test";
const START_LIMIT: Duration = Duration::from_secs(15);

/// Everything that runs.
pub(super) struct Scene {
    pub(super) agent: Process,
    pub(super) relay: SocketAddr,
    /// The cache without TLS.
    pub(super) cache: SocketAddr,
    pub(super) content: Content,
    /// What the cache stands in for, by the name that it knows.
    registry: String,
    _cache: Process,
    _upstream: Peer,
    _folders: [TempDir; 2],
}

impl Scene {
    pub(super) fn set(programs: &NodePath) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder")?;
        let content = Content::create(folder.path().join("content"))?;
        let probe = content.blob(0, 64)?;
        let upstream = peers::upstream(content.root(), None)?;
        let (identity, identity_folder) = Identity::with_token(&agent::token(SERVICE)?);
        let (cache, tls, relay) = (free_address()?, free_address()?, free_address()?);
        let mut command = peers::breakwater(&programs.registry, upstream.address, cache, &folder.path().join("data"));
        command.args(identity.flags(tls.port()));
        let cache_process = Process::start(&mut command, &folder.path().join("cache.log"))?;
        let registry = upstream.address.to_string();
        write_known(folder.path(), &registry, tls, &identity.authority())?;
        let agent = start_agent(&programs.agent, relay, folder.path())?;
        let mut scene = Self {
            agent,
            relay,
            cache,
            content,
            registry,
            _cache: cache_process,
            _upstream: upstream,
            _folders: [folder, identity_folder],
        };
        scene.await_answer(&probe)?;
        Ok(scene)
    }

    /// The path of a blob that the cache has on its disk, as the cache is asked for it.
    pub(super) fn warm_blob(&self, seed: u64, size: usize) -> Result<String> {
        let path = self.content.blob(seed, size)?;
        load::get(self.cache, &path).context("fill the cache")?;
        Ok(path)
    }

    /// As a runtime asks the relay for it.
    pub(super) fn relayed(&self, path: &str) -> String {
        format!("{path}?ns={}", self.registry)
    }

    fn await_answer(&mut self, probe: &str) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !load::is_served(self.relay, &self.relayed(probe)) {
            self.agent.still_runs()?;
            ensure!(Instant::now() < deadline, "the relay does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn write_known(folder: &Path, registry: &str, cache: SocketAddr, authority: &str) -> Result<()> {
    let known = json!({
        "mirrors": {"bench": {
            "apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "bench"},
            "spec": {"registry": registry},
        }},
        "slices": {SERVICE: {"mirror": "bench", "service": SERVICE, "endpoints": [
            {"terminating": false, "pod": names::pod_name(SERVICE, 0), "address": cache},
        ]}},
        "trust": {"ca": authority, "key": agent::relay_key()},
        "node": {"uid": "bench", "labels": {}},
    });
    for name in ["state", "certs.d"] {
        fs::create_dir(folder.join(name)).with_context(|| format!("make {name}"))?;
    }
    fs::write(folder.join("state/known.json"), known.to_string()).context("write what the agent knew")?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench", "users": [{"name": "bench", "user": {}}],
        "clusters": [{"name": "bench", "cluster": {"server": format!("https://{}", free_address()?)}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    });
    fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).context("write a kubeconfig")
}

fn start_agent(program: &Path, relay: SocketAddr, folder: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command
        .env_remove("RUST_LOG")
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .args(["--node-name", "bench", "--cri-socket", "none", "--admin-listen", "127.0.0.1:0"])
        .args(["--relay-listen", &relay.to_string()])
        .arg("--certs-dir")
        .arg(folder.join("certs.d"))
        .arg("--state-dir")
        .arg(folder.join("state"));
    Process::start(&mut command, &folder.join("agent.log"))
}
