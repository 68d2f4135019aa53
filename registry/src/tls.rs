//! The TLS listener's certificate, read again when its files change.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use tracing::{info, warn};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{metrics::Metrics, watched::Watched};

const POLL: Duration = Duration::from_secs(2);

/// Why the TLS listener cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsInvalid {
    /// A PEM file cannot be read.
    #[error("--tls-dir: cannot read {path}; it must be a PEM file")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// Certificate and key do not fit, or are of an unknown kind.
    #[error("--tls-dir: tls.crt and tls.key do not belong together")]
    Pair(#[source] rustls::Error),
    /// The certificate is none.
    #[error("--tls-dir: tls.crt does not begin with a certificate")]
    Certificate,
    /// The crypto provider has no fitting TLS version.
    #[error("TLS cannot be set up")]
    Versions(#[source] rustls::Error),
}

/// The certificate in use.
pub struct Certificate {
    dir: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    watched: Watched,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads `tls.crt` and `tls.key`.
    pub fn open(dir: PathBuf, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsInvalid> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let watched = Watched::before_reading(&dir, &["tls.crt", "tls.key"]);
        let (key, expiry) = load(&dir, &provider)?;
        let certificate = Self { dir, provider, current: ArcSwap::from_pointee(key), watched, metrics };
        certificate.tell_expiry(expiry);
        Ok(Arc::new(certificate))
    }

    /// The configuration of a listener that shows this certificate.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsInvalid> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsInvalid::Versions)?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Reads the files again whenever they change; a broken pair leaves the old one in use.
    pub async fn keep_fresh(self: Arc<Self>) {
        let reread = || {
            let (key, expiry) = load(&self.dir, &self.provider)?;
            self.current.store(Arc::new(key));
            info!("certificate renewed");
            self.tell_expiry(expiry);
            Ok(())
        };
        let told = |error: TlsInvalid| {
            self.metrics.certificate_error();
            warn!(error = &error as &dyn std::error::Error, "certificate not renewed, the old one stays");
        };
        self.watched.clone().follow(POLL, reread, told).await;
    }

    /// Shown even when it has ended: clients decide, and without it none of them could.
    fn tell_expiry(&self, expiry: i64) {
        self.metrics.set_certificate_expiry(expiry);
        if expiry <= jiff::Timestamp::now().as_second() {
            let ended = jiff::Timestamp::from_second(expiry).unwrap_or_default();
            warn!(%ended, "the certificate in --tls-dir has expired; most clients will refuse it");
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// The pair, and when the certificate ends in seconds since 1970.
fn load(dir: &Path, provider: &CryptoProvider) -> Result<(CertifiedKey, i64), TlsInvalid> {
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsInvalid::Read { path: certificate, source })?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|source| TlsInvalid::Read { path: key, source })?;
    let first = chain.first().ok_or(TlsInvalid::Certificate)?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|_| TlsInvalid::Certificate)?;
    let expiry = parsed.validity().not_after.timestamp();
    Ok((CertifiedKey::from_der(chain, key, provider).map_err(TlsInvalid::Pair)?, expiry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_is_named() {
        let metrics = Arc::new(Metrics::new(&"docker.io".parse().unwrap()));
        let error = Certificate::open("/nonexistent".into(), metrics).unwrap_err();
        assert_eq!(error.to_string(), "--tls-dir: cannot read /nonexistent/tls.crt; it must be a PEM file");
    }
}
