//! The mirror under test: a command line with placeholders, run by a shell in a process group of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::volume::Namespace;
use crate::binaries;
use crate::cache::client::Request;
use crate::toolchain::Toolchain;

/// How long a mirror may take to answer at its first start.
const START_LIMIT: Duration = Duration::from_secs(20);

const OURS: &str = "exec {binary} --upstream-registry {registry} --upstream-url {upstream} --data-dir {data} \
    --listen {listen} --admin-listen {listen-address}:0 --tag-ttl 1ms";
const DISTRIBUTION: &str = "exec {binary} serve {config}";
const DISTRIBUTION_CONFIG: &str = r#"{"version": "0.1", "log": {"level": "warn"},
    "storage": {"filesystem": {"rootdirectory": "{data}"}, "delete": {"enabled": true}},
    "http": {"addr": "{listen}", "secret": "chaos"}, "proxy": {"remoteurl": "{upstream}"}}"#;

/// How to start a mirror.
#[derive(Clone, Debug)]
pub struct MirrorSpec {
    /// Its name in the table.
    pub name: String,
    command: String,
    config: Option<String>,
    /// Whether it is to know upstream by name also where names do not fail.
    pub(super) by_name: bool,
}

impl MirrorSpec {
    /// The cache of this workspace, in the profile of the running program.
    pub fn ours() -> Self {
        let binary = binaries::binary(binaries::REGISTRY);
        let name = format!("Breakwater {}", env!("CARGO_PKG_VERSION"));
        Self { name, command: OURS.replace("{binary}", &binary.display().to_string()), config: None, by_name: false }
    }

    /// CNCF Distribution as a pull-through cache, built from its Go module.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn distribution() -> Result<Self> {
        let (binary, version) = Toolchain::distribution()?;
        let command = DISTRIBUTION.replace("{binary}", &binary.display().to_string());
        // Otherwise it looks for a collector of traces and fills its log with complaints.
        let command = format!("export OTEL_TRACES_EXPORTER=none; {command}");
        let name = format!("distribution {version}");
        Ok(Self { name, command, config: Some(DISTRIBUTION_CONFIG.to_owned()), by_name: true })
    }

    /// Any other, from a command line and the text of a configuration file, both with placeholders.
    pub fn custom(command: String, config: Option<String>) -> Self {
        Self { name: "MIRROR_CMD".to_owned(), command, config, by_name: true }
    }
}

/// Where one mirror runs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) upstream: String,
    pub(super) address: Ipv4Addr,
    pub(super) namespace: Option<Namespace>,
}

/// A loopback address that nobody else uses, so that fixed ports are free on it.
pub(super) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high.clamp(1, 254), low, NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Place {
    pub(super) fn listen(&self) -> SocketAddr {
        (self.address, 5000).into()
    }

    /// The data folder as the mirror knows it.
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The data folder as it is to be read from here.
    pub(super) fn visible_data(&self) -> PathBuf {
        self.namespace.as_ref().map_or_else(|| self.data(), Namespace::data)
    }

    fn fill_in(&self, template: &str) -> String {
        let authority = self.upstream.split_once("://").map_or(self.upstream.as_str(), |(_, authority)| authority);
        template
            .replace("{upstream}", &self.upstream)
            .replace("{registry}", authority)
            .replace("{data}", &self.data().display().to_string())
            .replace("{listen}", &self.listen().to_string())
            .replace("{listen-address}", &self.address.to_string())
            .replace("{config}", &self.config().display().to_string())
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config")
    }
}

/// A mirror, running or killed. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) place: Place,
    command: String,
    child: Option<Child>,
}

impl Mirror {
    /// Starts it and waits until it answers.
    pub(super) async fn start(spec: &MirrorSpec, place: Place) -> Result<Self> {
        if let Some(config) = &spec.config {
            std::fs::write(place.config(), place.fill_in(config)).context("write the mirror's configuration")?;
        }
        let command = place.fill_in(&spec.command);
        let mut mirror = Self { place, command, child: None };
        mirror.spawn()?;
        let deadline = Instant::now() + START_LIMIT;
        while Request::get(mirror.place.listen(), "/v2/").observe(START_LIMIT).await.status.is_none() {
            if Instant::now() > deadline || mirror.has_ended() {
                bail!("{} does not answer at {}:\n{}", mirror.command, mirror.place.listen(), mirror.output());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(mirror)
    }

    /// Starts it without waiting.
    pub(super) fn spawn(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).context("open the log")?;
        let mut words = self.place.namespace.as_ref().map(Namespace::prefix).unwrap_or_default();
        words.extend(["sh", "-c", &self.command].map(str::to_owned));
        let child = Command::new(&words[0])
            .args(&words[1..])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.command))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether it ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Kills it as the kernel would for want of memory.
    pub(super) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // Gone already, if it ended by itself.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
    }

    /// The end of what it printed.
    pub(super) fn output(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.place.folder.join("log")
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(namespace) = &self.place.namespace {
            namespace.release();
        }
        self.kill();
    }
}

/// Makes the folders of a place.
pub(super) fn prepare(folder: &Path) -> Result<PathBuf> {
    let data = folder.join("data");
    std::fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
    Ok(data)
}
