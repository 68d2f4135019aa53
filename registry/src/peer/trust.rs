//! How replicas know each other: by plain HTTP if that is all a cache serves, else by TLS with the authority and the
//! tokens of the own listener, as all replicas are given the same. Read again when the authority changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use tracing::{info, warn};

use crate::{
    background::Background,
    tokens::{Role, Tokens},
    upstream::LookUps,
};

const AUTHORITY: &str = "ca.crt";
/// A replica is near: a connection that takes longer is none.
const CONNECT: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_secs(10);

/// Why the replicas cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum PeersInvalid {
    /// The authority cannot be read.
    #[error("--peer: cannot read {path}; with --tls-listen it must hold the authority that signs the replicas, in PEM")]
    Authority {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate or the TLS versions cannot be used.
    #[error("--peer: ca.crt in --tls-dir cannot be used")]
    Certificate(#[source] rustls::Error),
    /// The HTTP client refused its settings.
    #[error("--peer: HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// What is needed to speak to a replica.
pub struct Trust {
    client: Arc<ArcSwap<Client>>,
    tokens: Option<Arc<Tokens>>,
}

impl Trust {
    /// Replicas that serve plain HTTP.
    pub fn plain(background: Background) -> Result<Self, PeersInvalid> {
        let look_ups = LookUps::new(background);
        Ok(Self { client: Arc::new(ArcSwap::from_pointee(client(&look_ups, None)?)), tokens: None })
    }

    /// Replicas that serve TLS: their authority is `ca.crt` in the folder of the own certificate.
    pub fn tls(dir: &Path, tokens: Arc<Tokens>, background: &Background) -> Result<Self, PeersInvalid> {
        let path = dir.join(AUTHORITY);
        let look_ups = LookUps::new(background.clone());
        let current = Arc::new(ArcSwap::from_pointee(client(&look_ups, Some(read(&path)?))?));
        background.spawn(keep_fresh(path, look_ups, Arc::clone(&current)));
        Ok(Self { client: current, tokens: Some(tokens) })
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tokens.is_some() { "https" } else { "http" }
    }

    pub(super) fn client(&self) -> Arc<Client> {
        self.client.load_full()
    }

    /// The value of `Authorization`.
    pub(super) fn permit(&self) -> Option<HeaderValue> {
        self.tokens.as_ref()?.shown(Role::Relay)
    }
}

struct Names(Arc<LookUps>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let look_ups = Arc::clone(&self.0);
        Box::pin(async move {
            let found = look_ups
                .addresses(name.as_str())
                .await
                .ok_or_else(|| io::Error::from(io::ErrorKind::HostUnreachable))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

async fn keep_fresh(path: PathBuf, look_ups: Arc<LookUps>, current: Arc<ArcSwap<Client>>) {
    let mut seen = fingerprint(&path);
    loop {
        tokio::time::sleep(POLL).await;
        let now = fingerprint(&path);
        if now == seen {
            continue;
        }
        match read(&path).and_then(|roots| client(&look_ups, Some(roots))) {
            Ok(fresh) => {
                current.store(Arc::new(fresh));
                seen = now;
                info!("authority of the replicas renewed");
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "authority not renewed, the old one stays"),
        }
    }
}

/// Mounted Secrets are swapped by a symlink, so what it leads to counts.
fn fingerprint(path: &Path) -> Option<(PathBuf, SystemTime)> {
    let path = fs::canonicalize(path).ok()?;
    let modified = fs::metadata(&path).ok()?.modified().ok()?;
    Some((path, modified))
}

fn read(path: &Path) -> Result<RootCertStore, PeersInvalid> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|source| PeersInvalid::Authority { path: path.to_owned(), source })?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots.add(certificate).map_err(PeersInvalid::Certificate)?;
    }
    Ok(roots)
}

fn client(look_ups: &Arc<LookUps>, roots: Option<RootCertStore>) -> Result<Client, PeersInvalid> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(PeersInvalid::Certificate)?
        .with_root_certificates(roots.unwrap_or_else(RootCertStore::empty))
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        // Replicas move: a name is looked up for each new connection.
        .dns_resolver(Arc::new(Names(Arc::clone(look_ups))))
        .redirect(Policy::none())
        .no_proxy()
        .http1_only()
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(32)
        .build()
        .map_err(PeersInvalid::Client)
}
