//! The servers that are compared, each started with nothing in its cache.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::load;
use super::nginx::{self, Part};
use super::process::Process;
use crate::ports::free_address;

const START_LIMIT: Duration = Duration::from_secs(10);

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) breakwater: PathBuf,
    pub(super) distribution: PathBuf,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Breakwater,
    Distribution,
    NginxCache,
    NginxFiles,
    NginxFilesRead,
    Relay,
}

impl Kind {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Breakwater => "breakwater",
            Self::Distribution => "distribution",
            Self::NginxCache => "nginx proxy_cache",
            Self::NginxFiles => "nginx",
            Self::NginxFilesRead => "nginx, sendfile off",
            Self::Relay => "bare relay",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    pub(super) process: Process,
    folder: TempDir,
}

impl Programs {
    /// Starts a cache of `upstream`, or the files of `root` themselves, and waits until it answers.
    pub(super) fn start(&self, kind: Kind, upstream: SocketAddr, root: &Path) -> Result<Peer> {
        let folder = tempfile::tempdir().context("make a folder for a server")?;
        let data = folder.path().join("data");
        let mut peer = self.launch(kind, upstream, root, folder, &data)?;
        peer.await_answer()?;
        Ok(peer)
    }

    /// Starts it without waiting.
    pub(super) fn launch(
        &self,
        kind: Kind,
        upstream: SocketAddr,
        root: &Path,
        folder: TempDir,
        data: &Path,
    ) -> Result<Peer> {
        let address = free_address()?;
        let log = folder.path().join("log");
        let process = match kind {
            Kind::Breakwater => Process::start(&mut breakwater(&self.breakwater, upstream, address, data), &log),
            Kind::Distribution => distribution(&self.distribution, upstream, address, data, folder.path())
                .and_then(|mut command| Process::start(&mut command, &log)),
            Kind::NginxCache => nginx::start(&Part::Cache { upstream, data }, address, folder.path()),
            Kind::NginxFiles => files(root, true, address, folder.path()),
            Kind::NginxFilesRead => files(root, false, address, folder.path()),
            Kind::Relay => Process::start(&mut relay(upstream, address, data)?, &log),
        };
        let process = process.with_context(|| format!("start {}", kind.title()))?;
        Ok(Peer { kind, address, process, folder })
    }
}

/// Starts an upstream that serves `root`.
pub(super) fn upstream(root: &Path, limit: Option<u64>) -> Result<Peer> {
    let folder = tempfile::tempdir().context("make a folder for the upstream")?;
    let address = free_address()?;
    let part = Part::Files { root, sendfile: true, limit, counted: true };
    let process = nginx::start(&part, address, folder.path())?;
    let mut peer = Peer { kind: Kind::NginxFiles, address, process, folder };
    peer.await_answer()?;
    Ok(peer)
}

impl Peer {
    /// Body bytes that this upstream has sent so far.
    pub(super) fn sent_bytes(&self) -> Result<u64> {
        nginx::sent_bytes(self.folder.path())
    }

    fn await_answer(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !load::is_served(self.address, "/v2/") {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            self.process.still_runs().with_context(|| format!("{}: {}", self.kind.title(), log()))?;
            ensure!(Instant::now() < deadline, "{} does not answer: {}", self.kind.title(), log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn files(root: &Path, sendfile: bool, address: SocketAddr, folder: &Path) -> Result<Process> {
    nginx::start(&Part::Files { root, sendfile, limit: None, counted: false }, address, folder)
}

pub(super) fn breakwater(program: &Path, upstream: SocketAddr, address: SocketAddr, data: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_remove("RUST_LOG")
        .args(["--upstream-registry", &upstream.to_string(), "--upstream-url", &format!("http://{upstream}")])
        .args(["--listen", &address.to_string(), "--admin-listen", "127.0.0.1:0", "--tag-ttl", "1h"])
        .arg("--data-dir")
        .arg(data);
    command
}

fn distribution(
    program: &Path,
    upstream: SocketAddr,
    address: SocketAddr,
    data: &Path,
    folder: &Path,
) -> Result<Command> {
    let text = json!({
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": data}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": address.to_string(), "secret": "bench"},
        "proxy": {"remoteurl": format!("http://{upstream}")},
    });
    let path = folder.join("config.json");
    fs::write(&path, text.to_string()).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new(program);
    command.env("OTEL_TRACES_EXPORTER", "none").arg("serve").arg(path);
    Ok(command)
}

/// This program again, as the relay.
fn relay(upstream: SocketAddr, address: SocketAddr, data: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(["--relay", &upstream.to_string(), &address.to_string()]).arg(data);
    Ok(command)
}
