//! Wires the parts together, runs them until a signal, and stops them in order. Asks upstream nothing by itself.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use reqwest::Url;
use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::{error, info};

use crate::{
    admin::Admin,
    args::{AlternateAt, Args, Listen},
    background::Background,
    body::Body,
    metrics::{self, Listener, Metrics},
    on_error::OnError,
    peer::{Peers, PeersInvalid, Trust},
    pins::{self, Pins},
    pull::Pull,
    registry_host::RegistryHost,
    server::{self, Unbound},
    source::{Alternate, Sources},
    store::{Store, Unusable, contact::LastContact},
    tag::Limits,
    tls::{Certificate, TlsInvalid},
    tokens::{Role, Tokens, TokensUnreadable},
    upkeep,
    upstream::{Outlet, ProxyInvalid, ProxyUrl, TransportInvalid, Upstream, credentials::CredentialStore},
};

const DEFAULT_LISTEN: Listen = Listen::At(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5000));
/// Bodies on their way get this long at the end; a relay resumes them elsewhere.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the cache could not start. Each message names the flag and the mend.
#[derive(Debug, thiserror::Error)]
pub enum StartFailed {
    /// The folder.
    #[error(transparent)]
    Store(Unusable),
    /// An address.
    #[error(transparent)]
    Listen(Unbound),
    /// The TLS listener.
    #[error(transparent)]
    Tls(TlsInvalid),
    /// Its tokens.
    #[error(transparent)]
    Tokens(TokensUnreadable),
    /// A CA file.
    #[error("--ca-file: cannot read {path}; it must hold certificates in PEM")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate in a CA file.
    #[error("--ca-file: {path} holds a certificate that cannot be used")]
    CaCertificate {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(ProxyInvalid),
    /// The HTTP client.
    #[error(transparent)]
    Client(TransportInvalid),
    /// What is needed to speak to the other replicas.
    #[error(transparent)]
    Peers(PeersInvalid),
    /// The host of an alternate is odd.
    #[error("--alternate: {0} has a host that no image name could hold")]
    Alternate(Url),
    /// The default URL of a registry whose name is odd.
    #[error("--upstream-registry: {0} gives no URL; set --upstream-url")]
    Url(RegistryHost),
    /// Signals.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the cache until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), StartFailed> {
    let began = Instant::now();
    let mut terminated = signal(SignalKind::terminate()).map_err(StartFailed::Signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(StartFailed::Signals)?;
    let background = Background::default();
    let Cache { registry, store, upstream, metrics, pull, tag_ttl, admin, plain, secure, admin_socket } =
        Cache::assemble(args, &background).await?;

    announce(plain.as_ref(), secure.as_ref().map(|(listener, _)| listener), &admin_socket, &registry);
    let parts = pins::Parts {
        registry: registry.clone(),
        store: Arc::clone(&store),
        upstream: Arc::clone(&upstream),
        pull: Arc::clone(&pull),
        metrics: Arc::clone(&metrics),
        tag_ttl,
        background: background.clone(),
    };
    let pins = Arc::new(Pins::keep(parts));
    let stopping = background.stopping();
    let mut servers = JoinSet::new();
    if let Some(listener) = plain {
        let (open, handler) = (metrics.connections(Listener::plain), open_to_all(Arc::clone(&pull)));
        servers.spawn(server::serve(listener, None, open, handler, stopping.clone(), DRAIN));
    }
    if let Some((listener, TlsParts { certificate, tokens })) = secure {
        let config = certificate.server_config().map_err(StartFailed::Tls)?;
        background.spawn(certificate.keep_fresh());
        background.spawn(Arc::clone(&tokens).keep_fresh());
        let (open, handler) = (metrics.connections(Listener::tls), open_to_holders(pull, Arc::clone(&pins), tokens));
        servers.spawn(server::serve(listener, Some(config), open, handler, stopping.clone(), DRAIN));
    }
    let handler = move |request: Request<Incoming>| std::future::ready(admin.answer(&request));
    let open = metrics.connections(Listener::admin);
    servers.spawn(server::serve(admin_socket, None, open, handler, stopping.clone(), DRAIN));
    background.spawn(upstream.keep_informed());
    upkeep::start(&store, &background);
    info!(version = env!("CARGO_PKG_VERSION"), %registry, elapsed = ?began.elapsed(), "ready");

    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    info!(%registry, "stopping");
    background.stop(Duration::from_secs(1)).await;
    while let Some(ended) = servers.join_next().await {
        if let Err(error) = ended {
            error!(%error, "listener ended badly");
        }
    }
    upkeep::finish(store).await;
    Ok(())
}

/// All parts, put together but not yet running.
struct Cache {
    registry: RegistryHost,
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    pull: Arc<Pull>,
    tag_ttl: Duration,
    admin: Arc<Admin>,
    plain: Option<TcpListener>,
    secure: Option<(TcpListener, TlsParts)>,
    admin_socket: TcpListener,
}

impl Cache {
    /// Takes the folder and binds the addresses, so that whatever is wrong is said before anything runs.
    async fn assemble(args: Args, background: &Background) -> Result<Self, StartFailed> {
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

/// The plain listener: whoever can reach it may pull.
fn open_to_all(pull: Arc<Pull>) -> impl Fn(Request<Incoming>) -> Answering + Clone {
    move |request| {
        let pull = Arc::clone(&pull);
        Box::pin(async move { pull.answer(&request).await })
    }
}

/// The TLS listener: a relay's token opens pulls, the operator's pins.
fn open_to_holders(
    pull: Arc<Pull>,
    pins: Arc<Pins>,
    tokens: Arc<Tokens>,
) -> impl Fn(Request<Incoming>) -> Answering + Clone {
    move |request| {
        let (pull, pins, tokens) = (Arc::clone(&pull), Arc::clone(&pins), Arc::clone(&tokens));
        Box::pin(async move {
            let is_of_pins = request.uri().path() == pins::PATH;
            let role = if is_of_pins { Role::Operator } else { Role::Relay };
            match (tokens.admit(request.headers(), role), is_of_pins) {
                (false, _) => pull.refuse(&request),
                (true, true) => pins.answer(request).await,
                (true, false) => pull.answer(&request).await,
            }
        })
    }
}

type Answering = BoxFuture<'static, Response<Body>>;

struct TlsParts {
    certificate: Arc<Certificate>,
    tokens: Arc<Tokens>,
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

/// One line per listener, for people and for scripts that asked for port 0.
fn announce(plain: Option<&TcpListener>, secure: Option<&TcpListener>, admin: &TcpListener, registry: &RegistryHost) {
    let address = |listener: Option<&TcpListener>| listener.and_then(|listener| listener.local_addr().ok());
    for (what, listener) in
        [("listening on http", plain), ("listening on https", secure), ("admin on http", Some(admin))]
    {
        if let Some(address) = address(listener) {
            println!("{what}://{address}");
        }
    }
    if let Some(address) = address(plain) {
        let folder = format!("/etc/containerd/certs.d/{registry}/hosts.toml");
        eprintln!(r#"use it: put [host."http://{address}"] into {folder}, or ask it: curl http://{address}/v2/"#);
    }
}
