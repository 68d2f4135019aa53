//! The agent before a cache that has everything, both as users get them. No API server: the agent works from what it knew last.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::super::content::Content;
use super::super::load;
use super::super::peers::{self, Peer};
use super::super::process::Process;
use crate::agent;
use crate::agent::remembering::{self, SERVICE, remember};
use crate::cache::Identity;
use crate::ports::free_address;
use crate::release::NodePath;

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
        remember(folder.path(), &registry, tls, &identity.authority())?;
        let mut command = remembering::command(&programs.agent, relay, folder.path());
        let agent = Process::start(&mut command, &folder.path().join("agent.log"))?;
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
