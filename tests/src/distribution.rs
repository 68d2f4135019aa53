//! A real upstream registry (CNCF Distribution) on a host of a test cluster, and what it was asked for.
//!
//! Two processes serve one storage folder: one over TLS at the registry's name, which nodes pull from directly, and one
//! over plain HTTP at [`PLAIN_PORT`], which caches are pointed at. So the two access logs tell apart what went past the
//! cache and what went through it.

mod access_log;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::sync::Mutex;

pub use access_log::{AccessLog, Cursor, Request};

use crate::cluster::{Cluster, Host, Part, until};
use crate::images::Image;

/// Where the plain HTTP listener is.
pub const PLAIN_PORT: u16 = 5001;
const HTTPS_PORT: u16 = 443;
const START_LIMIT: Duration = Duration::from_secs(20);

/// Where a registry is to be found.
#[derive(Debug, Clone)]
pub struct DistributionConfig {
    /// Its host name, which nodes and pods resolve.
    pub name: String,
    /// The port of its TLS listener; part of image names unless it is 443.
    pub port: u16,
    /// Whether it answers nobody without [`LOGIN`].
    pub private: bool,
}

/// User and password of a private registry.
pub const LOGIN: (&str, &str) = ("breakwater", "let-me-in");
/// The same as htpasswd writes it.
const HTPASSWD: &str = "breakwater:$2y$05$Ti/Ypr7KKst3O9JGOyivKeRW4x9SACgbbHobrE5pVHLBDvP6qKLPu\n";

impl DistributionConfig {
    /// A registry at `name` or `name:port`; without a port at 443.
    #[must_use]
    pub fn at(registry: &str) -> Self {
        let with_port = registry.split_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        let (name, port) = with_port.unwrap_or((registry, HTTPS_PORT));
        Self { name: name.to_owned(), port, private: false }
    }

    /// The same, for those with [`LOGIN`] only.
    #[must_use]
    pub fn private(self) -> Self {
        Self { private: true, ..self }
    }
}

/// A running registry with a host of its own.
#[derive(Debug)]
pub struct Distribution {
    config: DistributionConfig,
    host: Host,
    files: [PathBuf; 2],
    listeners: Mutex<Vec<Part>>,
}

impl Distribution {
    /// Starts a registry that holds nothing yet.
    ///
    /// # Errors
    /// Fails, with the end of its log, when it does not come up.
    pub async fn start(cluster: &Cluster, config: DistributionConfig) -> Result<Self> {
        let host = cluster.add_host(&config.name).await?;
        let identity = cluster.certificate(&config.name)?;
        let tls = json!({"certificate": identity.certificate, "key": identity.key});
        let storage = host.folder().join("storage");
        let listeners = [
            ("direct.json", json!({"addr": format!(":{}", config.port), "secret": "test", "tls": tls})),
            ("plain.json", json!({"addr": format!(":{PLAIN_PORT}"), "secret": "test"})),
        ];
        let files = listeners.each_ref().map(|(file, _)| host.folder().join(file));
        let logins = host.folder().join("htpasswd");
        std::fs::write(&logins, HTPASSWD).with_context(|| format!("write {}", logins.display()))?;
        for (path, (_, http)) in files.iter().zip(listeners) {
            let mut text = json!({
                "version": "0.1",
                "log": {"level": "warn"},
                "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": true}},
                "http": http,
            });
            if config.private {
                text["auth"] = json!({"htpasswd": {"realm": "test", "path": logins}});
            }
            std::fs::write(path, text.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
        let registry = Self { config, host, files, listeners: Mutex::default() };
        registry.resume(cluster).await?;
        Ok(registry)
    }

    /// The registry's name as image references have it, such as `registry-a.test` or `registry-b.test:5000`.
    #[must_use]
    pub fn registry(&self) -> String {
        match self.config.port {
            HTTPS_PORT => self.config.name.clone(),
            port => format!("{}:{port}", self.config.name),
        }
    }

    /// The URL that caches are pointed at, such as `http://registry-a.test:5001`.
    #[must_use]
    pub fn plain_url(&self) -> String {
        format!("http://{}:{PLAIN_PORT}", self.config.name)
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// Requests to the TLS listener: those that went past the cache.
    #[must_use]
    pub fn direct_log(&self) -> AccessLog {
        AccessLog::at(self.host.log("direct"))
    }

    /// Requests to the plain listener: those that came through the cache, and pushes.
    #[must_use]
    pub fn plain_log(&self) -> AccessLog {
        AccessLog::at(self.host.log("plain"))
    }

    /// Stores an image and returns its full reference.
    ///
    /// # Errors
    /// Fails when skopeo does.
    pub async fn push(&self, image: &Image) -> Result<String> {
        let layout = tempfile::tempdir_in(self.host.folder()).context("make a folder for an image")?;
        image.write_layout(layout.path())?;
        let from = format!("oci:{}:{}", layout.path().display(), image.tag());
        let to = format!("docker://127.0.0.1:{PLAIN_PORT}/{}", image.reference());
        let login = format!("--dest-creds={}:{}", LOGIN.0, LOGIN.1);
        let mut skopeo =
            vec!["skopeo", "copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &from, &to];
        if self.config.private {
            skopeo.push(&login);
        }
        self.host.machine().exec(&skopeo).await?;
        Ok(format!("{}/{}", self.registry(), image.reference()))
    }

    /// Kills it: connections to it are refused from now on.
    ///
    /// # Errors
    /// Fails when its end cannot be waited for.
    pub async fn stop(&self) -> Result<()> {
        for mut listener in self.listeners.lock().await.drain(..) {
            listener.kill().await?;
        }
        Ok(())
    }

    /// Starts it again over what it had stored.
    ///
    /// # Errors
    /// Fails, with the end of its log, when it does not come up.
    pub async fn resume(&self, cluster: &Cluster) -> Result<()> {
        let mut listeners = Vec::new();
        for (part, path) in ["direct", "plain"].into_iter().zip(&self.files) {
            let path = path.to_str().context("a path that is no text")?;
            // Otherwise it looks for a collector of traces and fills its log with complaints.
            let environment = [("OTEL_TRACES_EXPORTER", "none")];
            listeners.push(self.host.spawn(part, &["registry", "serve", path], &environment).await?);
        }
        let ready = until(START_LIMIT, "the registry to listen", async || {
            let direct = cluster.accepts_connections(self.address(), self.config.port).await?;
            Ok((direct && cluster.accepts_connections(self.address(), PLAIN_PORT).await?).then_some(()))
        })
        .await;
        ready.with_context(|| listeners.iter().map(Part::tail).collect::<Vec<_>>().join("\n"))?;
        *self.listeners.lock().await = listeners;
        Ok(())
    }

    /// Lets it hang: connections are accepted and never answered.
    ///
    /// # Errors
    /// Fails when it is not running.
    pub async fn freeze(&self) -> Result<()> {
        self.listeners.lock().await.iter().try_for_each(Part::freeze)
    }

    /// Ends [`Distribution::freeze`].
    ///
    /// # Errors
    /// Fails when it is not running.
    pub async fn thaw(&self) -> Result<()> {
        self.listeners.lock().await.iter().try_for_each(Part::thaw)
    }
}
