//! How replicas know each other: by plain HTTP if that is all a cache serves, else by TLS with the authority, the names
//! and the tokens of the own listener, as all replicas are given the same. Read again when the files change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderMap;
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{
    CertificateDer, ServerName, UnixTime,
    pem::{self, PemObject},
};
use tracing::{info, warn};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::{
    background::Background,
    tokens::{Role, Tokens},
    upstream::LookUps,
    watched::Watched,
};

/// Who signs the replicas.
const AUTHORITY: &str = "ca.crt";
/// The own certificate.
const CERTIFICATE: &str = "tls.crt";
/// A replica is near: a connection that takes longer is none.
const CONNECT: Duration = Duration::from_millis(300);
/// The last known addresses serve from then on.
const LOOK_UP: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_secs(10);

/// Why the replicas cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum PeersInvalid {
    /// A certificate cannot be read.
    #[error(
        "--peer: cannot read {path}; with --tls-listen, ca.crt in --tls-dir must hold the authority of the replicas, in PEM"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The TLS versions or a certificate of the authority cannot be used.
    #[error("--peer: TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// There is no authority.
    #[error("--peer: ca.crt in --tls-dir holds no certificate of an authority")]
    Authority(#[source] VerifierBuilderError),
    /// The HTTP client refused its settings.
    #[error("--peer: HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// What is needed to speak to a replica.
pub struct Trust {
    clients: Arc<ArcSwap<Clients>>,
    tokens: Option<Arc<Tokens>>,
}

/// With connections that are kept, and with fresh ones only.
pub(super) struct Clients {
    pub(super) kept: Client,
    pub(super) fresh: Client,
}

impl Trust {
    /// Replicas that serve plain HTTP.
    pub fn plain(background: Background) -> Result<Self, PeersInvalid> {
        let tls = builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let clients = clients(&LookUps::new(background), &tls)?;
        Ok(Self { clients: Arc::new(ArcSwap::from_pointee(clients)), tokens: None })
    }

    /// Replicas that serve TLS with what stands in the folder of the own certificate.
    pub fn tls(dir: &Path, tokens: Arc<Tokens>, background: &Background) -> Result<Self, PeersInvalid> {
        let look_ups = LookUps::new(background.clone());
        let watched = Watched::before_reading(dir, &[AUTHORITY, CERTIFICATE]);
        let current = Arc::new(ArcSwap::from_pointee(clients(&look_ups, &config(dir)?)?));
        background.spawn(keep_fresh(watched, dir.to_owned(), look_ups, Arc::clone(&current)));
        Ok(Self { clients: current, tokens: Some(tokens) })
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tokens.is_some() { "https" } else { "http" }
    }

    pub(super) fn clients(&self) -> Arc<Clients> {
        self.clients.load_full()
    }

    /// What opens the replicas.
    pub(super) fn permit(&self) -> HeaderMap {
        let shown = self.tokens.as_ref().and_then(|tokens| tokens.shown(Role::Relay));
        shown.map(|token| (http::header::AUTHORIZATION, token)).into_iter().collect()
    }
}

struct Names(Arc<LookUps>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let look_ups = Arc::clone(&self.0);
        Box::pin(async move {
            let found = look_ups.addresses(name.as_str(), LOOK_UP).await;
            let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::HostUnreachable))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

async fn keep_fresh(watched: Watched, dir: PathBuf, look_ups: Arc<LookUps>, current: Arc<ArcSwap<Clients>>) {
    let reread = || {
        current.store(Arc::new(clients(&look_ups, &config(&dir)?)?));
        info!("authority of the replicas read again");
        Ok(())
    };
    let told = |error: PeersInvalid| {
        warn!(error = &error as &dyn std::error::Error, "authority not renewed, the old one stays");
    };
    watched.follow(POLL, reread, told).await;
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, PeersInvalid> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(PeersInvalid::Tls)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn config(dir: &Path) -> Result<ClientConfig, PeersInvalid> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(dir.join(AUTHORITY))? {
        roots.add(certificate).map_err(PeersInvalid::Tls)?;
    }
    let authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let names = certificates(dir.join(CERTIFICATE))?.first().map(names_in).unwrap_or_default();
    let verifier = SameNames { authority: authority.map_err(PeersInvalid::Authority)?, names };
    Ok(builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, PeersInvalid> {
    let found = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    found.map_err(|source| PeersInvalid::Read { path, source })
}

fn names_in(certificate: &CertificateDer<'_>) -> Vec<ServerName<'static>> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => ServerName::try_from((*name).to_owned()).ok(),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Replicas are found at addresses that no certificate names, or by names of their own, but are all given the same
/// certificate. So one of the authority's that holds for a name of ours is as good as one for the host.
#[derive(Debug)]
struct SameNames {
    authority: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for SameNames {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name| self.authority.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        verify(host).or_else(|error| self.names.iter().find_map(|name| verify(name).ok()).ok_or(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}

fn clients(look_ups: &Arc<LookUps>, tls: &ClientConfig) -> Result<Clients, PeersInvalid> {
    let client = |kept| {
        Client::builder()
            .tls_backend_preconfigured(tls.clone())
            // Replicas move: a name is looked up for each new connection.
            .dns_resolver(Arc::new(Names(Arc::clone(look_ups))))
            .redirect(Policy::none())
            .no_proxy()
            .http1_only()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(kept)
            .build()
            .map_err(PeersInvalid::Client)
    };
    Ok(Clients { kept: client(32)?, fresh: client(0)? })
}
