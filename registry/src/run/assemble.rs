//! Puts the parts of the cache together from its flags: takes the folder and binds the addresses, so that whatever is
//! wrong is said before anything runs.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::Url;
use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use tokio::net::TcpListener;
use tracing::info;

use super::failed::StartFailed;
use crate::{
    admin::Admin,
    args::{AlternateAt, Args, Listen},
    background::Background,
    metrics::{self, Metrics},
    on_error::OnError,
    peer::{Peers, Trust},
    pull::Pull,
    registry_host::RegistryHost,
    server,
    source::{Alternate, Sources},
    store::{Store, contact::LastContact},
    tag::Limits,
    tls::Certificate,
    tokens::Tokens,
    upstream::{Outlet, ProxyUrl, Upstream, credentials::CredentialStore},
};

const DEFAULT_LISTEN: Listen = Listen::At(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000));

/// All parts, put together but not yet running.
pub(super) struct Cache {
    pub(super) registry: RegistryHost,
    pub(super) store: Arc<Store>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pull: Arc<Pull>,
    pub(super) tag_ttl: Duration,
    pub(super) admin: Arc<Admin>,
    pub(super) plain: Option<TcpListener>,
    pub(super) secure: Option<(TcpListener, TlsParts)>,
    pub(super) admin_socket: TcpListener,
}

impl Cache {
    /// Asks nobody yet.
    pub(super) async fn assemble(args: Args, background: &Background) -> Result<Self, StartFailed> {
        // Without `..`: a new flag that nobody uses does not compile.
        let Args {
            upstream_registry: registry,
            upstream_url,
            alternate,
            peer,
            credentials_dir,
            ca_file,
            proxy_url,
            proxy_credentials_dir,
            tag_ttl,
            max_stale,
            on_error,
            data_dir,
            cache_size,
            listen,
            tls_listen,
            tls_dir,
            token_dir,
            admin_listen,
            log_format: _,
        } = args;
        let url = match upstream_url {
            Some(url) => url,
            None => registry.default_url().parse().map_err(|_| StartFailed::Url(registry.clone()))?,
        };
        let proxy = proxy_url.map(|text| ProxyUrl::parse(&text)).transpose().map_err(StartFailed::Proxy)?;
        let proxy = proxy.map(|proxy| proxy.with_login_from(proxy_credentials_dir));
        if let Some(proxy) = &proxy {
            info!(proxy = proxy.as_str(), "upstream is asked by way of a proxy");
        }
        let roots = roots(&ca_file)?;
        let metrics = Arc::new(Metrics::new(&registry));
        let store = Arc::new(Store::open(data_dir, &registry, cache_size).map_err(StartFailed::Store)?);
        let secure = match (tls_listen, &tls_dir, token_dir) {
            (Some(listen), Some(tls_dir), Some(token_dir)) => {
                let parts = TlsParts::open(tls_dir.clone(), token_dir, &metrics)?;
                Some((bind("--tls-listen", listen).await?, parts))
            }
            _ => None,
        };
        let plain = match listen.or_else(|| secure.is_none().then_some(DEFAULT_LISTEN)) {
            Some(listen) => Some(bind("--listen", listen).await?),
            None => None,
        };
        let admin_socket = bind("--admin-listen", admin_listen).await?;

        let trust = match (&secure, &tls_dir) {
            (Some((_, parts)), Some(dir)) if !peer.is_empty() => Trust::tls(dir, Arc::clone(&parts.tokens), background),
            _ => Trust::plain(background.clone()),
        };
        let peers = Peers::new(peer, trust.map_err(StartFailed::Peers)?, (&store, &metrics), background);
        let reach = |counted, host: RegistryHost, url, contact| {
            let credentials = CredentialStore::open(credentials_dir.clone(), host.clone());
            let outlet = Outlet { url, roots: roots.clone(), proxy: proxy.clone() };
            Upstream::new(counted, host, outlet, credentials, contact, Arc::clone(&metrics), background)
                .map_err(StartFailed::Client)
        };
        let upstream = reach(metrics::Source::upstream, registry.clone(), url, Arc::clone(&store.contact))?;
        let alternates = alternate.into_iter().map(|AlternateAt { url, prefix }| {
            let upstream = reach(metrics::Source::alternate, host_of(&url)?, url, Arc::new(LastContact::unkept()))?;
            background.spawn(Arc::clone(&upstream).keep_informed());
            Ok(Alternate { upstream, prefix })
        });
        let alternates = alternates.collect::<Result<Vec<_>, StartFailed>>()?;
        let sources = Sources::new(Arc::clone(&upstream), alternates, peers, background.clone());
        let limits = Limits { tag_ttl, max_stale, on_error: OnError::of(&on_error) };
        let parts = (registry.clone(), Arc::clone(&store), Arc::clone(&upstream), Arc::clone(&metrics));
        let pull = Arc::new(Pull::new(parts.0, parts.1, parts.2, sources, limits, parts.3, background));
        let (own, held) = (registry.clone(), Arc::clone(&store));
        let (way, counts) = (Arc::clone(&upstream), Arc::clone(&metrics));
        let admin = Arc::new(Admin { registry: own, store: held, upstream: way, metrics: counts });
        Ok(Self { registry, store, upstream, metrics, pull, tag_ttl, admin, plain, secure, admin_socket })
    }
}

pub(super) struct TlsParts {
    pub(super) certificate: Arc<Certificate>,
    pub(super) tokens: Arc<Tokens>,
}

impl TlsParts {
    fn open(tls_dir: PathBuf, token_dir: PathBuf, metrics: &Arc<Metrics>) -> Result<Self, StartFailed> {
        let certificate = Certificate::open(tls_dir, Arc::clone(metrics)).map_err(StartFailed::Tls)?;
        let tokens = Arc::new(Tokens::open(token_dir).map_err(StartFailed::Tokens)?);
        Ok(Self { certificate, tokens })
    }
}

async fn bind(flag: &'static str, listen: Listen) -> Result<TcpListener, StartFailed> {
    server::bind(flag, listen).await.map_err(StartFailed::Listen)
}

/// The host by which an alternate's logins are found.
fn host_of(url: &Url) -> Result<RegistryHost, StartFailed> {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = format!("{}{port}", url.host_str().unwrap_or_default());
    host.parse().map_err(|_| StartFailed::Alternate(url.clone()))
}

/// The public roots are compiled in, as an image without a system has none.
fn roots(ca_files: &[PathBuf]) -> Result<RootCertStore, StartFailed> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for path in ca_files {
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(|source| StartFailed::CaCertificate { path: path.clone(), source })?;
        }
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StartFailed> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.and_then(|found| if found.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(found) });
    read.map_err(|source| StartFailed::CaFile { path: path.to_owned(), source })
}
