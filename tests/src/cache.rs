//! The cache as a real process: started with flags, killed, frozen and started again on the same data.
//!
//! [`client`] speaks to it byte by byte; nothing here knows how the cache works inside.
#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails its test by panicking")]

pub mod client;
pub mod cold;
mod identity;
pub mod pins;
mod process;
pub mod replicas;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::upstream::{Blob, Upstream};

pub use client::{Answer, End, Reading, Request};
pub use identity::Identity;

use process::Process;

/// How long anything may take before the test fails: generous, as the machine is noisy.
pub const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a cache is started with.
#[derive(Debug)]
pub struct Builder {
    registry: String,
    url: String,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    most_files: Option<u32>,
    identity: Option<Identity>,
    data: Option<PathBuf>,
    port: u16,
}

impl Builder {
    /// Adds a flag with its value.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Sets a variable of its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets it have so many files and connections at once.
    pub fn most_files(mut self, count: u32) -> Self {
        self.most_files = Some(count);
        self
    }

    /// Names the registry otherwise than by the upstream's address.
    pub fn registry(mut self, registry: &str) -> Self {
        registry.clone_into(&mut self.registry);
        self
    }

    /// Asks upstream at another URL than that of the scripted registry itself.
    pub fn url(mut self, url: &str) -> Self {
        url.clone_into(&mut self.url);
        self
    }

    /// Serves by TLS with this identity, and only to callers that show one of its tokens.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Listens on this port, which others know before it starts.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Keeps its data in this folder in place of one of its own.
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// Starts the cache and waits until it is ready.
    pub async fn start(self) -> Cache {
        let mut cache = self.launch();
        cache.await_ready().await;
        cache
    }

    /// Starts a cache that is expected to end by itself: gives its exit code and the last line it printed.
    pub async fn start_refused(self) -> (Option<i32>, String) {
        let mut cache = self.launch();
        let code = cache.process.exited(PATIENCE).await;
        let last = cache.process.output().lines().last().unwrap_or_default().to_owned();
        (code, last)
    }

    fn launch(self) -> Cache {
        let folder = tempfile::tempdir().expect("a folder for the cache");
        let data = self.data.unwrap_or_else(|| folder.path().join("data"));
        let mut arguments = vec![
            "--upstream-registry".to_owned(),
            self.registry,
            "--upstream-url".to_owned(),
            self.url,
            "--data-dir".to_owned(),
            data.display().to_string(),
            "--admin-listen".to_owned(),
            "127.0.0.1:0".to_owned(),
        ];
        match &self.identity {
            Some(identity) => arguments.extend(identity.flags(self.port)),
            None => arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{}", self.port)]),
        }
        arguments.extend(self.flags);
        Cache {
            process: Process::start(&arguments, &self.environment, self.most_files),
            arguments,
            environment: self.environment,
            most_files: self.most_files,
            identity: self.identity,
            address: None,
            admin: None,
            data,
            _folder: folder,
        }
    }
}

/// A running cache. Dropping it kills the process; a failing test prints what it logged.
#[derive(Debug)]
pub struct Cache {
    process: Process,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    most_files: Option<u32>,
    identity: Option<Identity>,
    address: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    data: PathBuf,
    _folder: TempDir,
}

impl Cache {
    /// Starts a cache of this upstream with default settings and waits until it is ready.
    pub async fn start(upstream: &Upstream) -> Self {
        Self::of(upstream).start().await
    }

    /// A cache of this upstream, to be started with flags.
    pub fn of(upstream: &Upstream) -> Builder {
        Builder {
            registry: upstream.host(),
            url: upstream.url(),
            flags: Vec::new(),
            environment: Vec::new(),
            most_files: None,
            identity: None,
            data: None,
            port: 0,
        }
    }

    /// Where it serves pulls.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the cache is ready")
    }

    /// Where it serves health, metrics and state.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.expect("the cache is ready")
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The file of committed content, if it has been committed.
    pub fn committed(&self, blob: &Blob) -> Option<PathBuf> {
        let (algorithm, hex) = blob.digest.split_once(':')?;
        let path = self.data.join("blobs").join(algorithm).join(&hex[..2]).join(hex);
        path.exists().then_some(path)
    }

    /// Waits until content is committed and linked to a repository: a client may have its last byte a moment before that.
    pub async fn await_kept(&self, repository: &str, blob: &Blob) -> PathBuf {
        let link = self.data.join("repositories").join(repository).join("_links").join(blob.hex());
        let is_kept = async || self.committed(blob).is_some() && link.exists();
        self.until(&format!("{} is kept", blob.digest), is_kept).await;
        self.committed(blob).expect("it is committed")
    }

    /// Waits for something that it does by itself.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let met = async {
            while !condition().await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, met).await;
        assert!(in_time.is_ok(), "never: {what}\n{}", self.output());
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it printed since it was last started.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// A GET read to its end.
    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path).answer().await
    }

    /// A HEAD.
    pub async fn head(&self, path: &str) -> Answer {
        self.request("HEAD", path).answer().await
    }

    /// A request to be given headers, and read as the test likes.
    pub fn request(&self, method: &str, path: &str) -> Request {
        let tls = self.identity.as_ref().map(Identity::connector);
        Request::new(self.address(), tls, method, path)
    }

    /// A GET of the admin listener.
    pub async fn admin(&self, path: &str) -> Answer {
        Request::new(self.admin_address(), None, "GET", path).answer().await
    }

    /// What `/v1/upstream` says.
    pub async fn upstream_state(&self) -> Value {
        let answer = self.admin("/v1/upstream").await;
        assert_eq!(answer.status, 200, "/v1/upstream");
        serde_json::from_slice(&answer.body).expect("/v1/upstream is JSON")
    }

    /// Waits until `/v1/upstream` satisfies the condition.
    pub async fn await_upstream_state(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.upstream_state().await;
            if condition(&state) {
                return state;
            }
            assert!(Instant::now() < deadline, "/v1/upstream never showed {what}, but {state}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as the kernel would for want of memory.
    pub async fn kill9(&mut self) {
        self.process.kill().await;
    }

    /// Asks it to stop, and gives its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.process.terminate(PATIENCE).await
    }

    /// Starts it again on the same data, killing it first if it still runs; gives the time until it was ready.
    pub async fn restart(&mut self) -> Duration {
        self.kill9().await;
        let started = Instant::now();
        self.process = Process::start(&self.arguments, &self.environment, self.most_files);
        self.await_ready().await;
        started.elapsed()
    }

    /// Stops it in its tracks: its ports still take connections, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(rustix::process::Signal::CONT);
    }

    /// Its resident memory in bytes.
    pub fn resident_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the cache runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kibibytes.expect("VmRSS in kB") * 1024
    }

    async fn await_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let (address, admin) = self.process.addresses(deadline).await;
        (self.address, self.admin) = (Some(address), Some(admin));
        while Request::new(admin, None, "GET", "/readyz").try_answer().await.is_none_or(|answer| answer.status != 200) {
            assert!(Instant::now() < deadline, "the cache was not ready in time:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
