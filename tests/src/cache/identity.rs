//! A certificate authority, the cache's certificate and the callers' tokens, as files that the cache is pointed at.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name that the certificate proves.
const SERVICE: &str = "cache-test.breakwater-system.svc";

/// What a TLS client needs for one connection.
pub(crate) type Connector = (TlsConnector, ServerName<'static>);

/// The cache's identity and who may call it.
#[derive(Debug, Clone)]
pub struct Identity {
    folder: PathBuf,
    authority: CertificateDer<'static>,
    address: Ipv4Addr,
    name: String,
}

impl Identity {
    /// A fresh authority with one certificate and one token, and the folder that holds them as long as it is kept.
    pub fn with_token(token: &str) -> (Self, TempDir) {
        let folder = tempfile::tempdir().expect("a folder for the identity");
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).expect("an authority");
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key");
        let names = vec![SERVICE.to_owned(), "cache-test".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).expect("names for a certificate");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        let mut past = CertificateParams::new(vec![SERVICE.to_owned()]).expect("names for a certificate");
        (past.not_before, past.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let expired = past.signed_by(&key, &issuer).expect("a certificate");
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            let parent = path.parent().expect("a file is in a folder");
            std::fs::create_dir_all(parent).expect("a folder for the identity");
            std::fs::write(path, text).expect("an identity file");
        };
        write("expired.crt", expired.pem());
        write("tls/tls.crt", leaf.pem());
        write("tls/tls.key", key.serialize_pem());
        write("tls/ca.crt", certificate.pem());
        write("tokens/relay", format!("{token}\n"));
        let authority = certificate.der().clone();
        let identity = Self {
            folder: folder.path().to_owned(),
            authority,
            address: Ipv4Addr::LOCALHOST,
            name: SERVICE.to_owned(),
        };
        (identity, folder)
    }

    /// The same files again, for another replica.
    pub fn again(&self) -> Self {
        Self {
            folder: self.folder.clone(),
            authority: self.authority.clone(),
            address: self.address,
            name: self.name.clone(),
        }
    }

    /// An identity that somebody else has made for this name: `tls` and `tokens` of the folder. Its cache listens at this address.
    pub fn given(folder: &Path, address: Ipv4Addr, name: String) -> Self {
        let authority = CertificateDer::from_pem_file(folder.join("tls/ca.crt")).expect("an authority's certificate");
        Self { folder: folder.to_owned(), authority, address, name }
    }

    /// Replaces the token in an identity's folder as the kubelet replaces a mounted Secret: in one step.
    pub fn rotate_token(folder: &Path, token: &str) {
        let fresh = folder.join("fresh");
        std::fs::write(&fresh, token).expect("a token file");
        std::fs::rename(fresh, folder.join("tokens/relay")).expect("a token file");
    }

    /// Puts a token file beside the first.
    pub fn add_token(folder: &Path, name: &str, token: &str) {
        std::fs::write(folder.join("tokens").join(name), token).expect("a token file");
    }

    /// Takes a token file away.
    pub fn remove_token(folder: &Path, name: &str) {
        std::fs::remove_file(folder.join("tokens").join(name)).expect("a token file");
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.folder.join("tls/ca.crt")).expect("an authority's certificate")
    }

    /// Who answers in the cache's place does so with this, or with a certificate that has expired.
    pub fn acceptor(&self, is_expired: bool) -> TlsAcceptor {
        let file = self.folder.join(if is_expired { "expired.crt" } else { "tls/tls.crt" });
        let certificate = CertificateDer::from_pem_file(file).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.folder.join("tls/tls.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(config))
    }

    /// For a cache that listens on this port.
    pub(crate) fn flags(&self, port: u16) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        vec![
            "--tls-listen".to_owned(),
            format!("{}:{port}", self.address),
            "--tls-dir".to_owned(),
            text(&self.folder.join("tls")),
            "--token-dir".to_owned(),
            text(&self.folder.join("tokens")),
        ]
    }

    /// A caller's TLS.
    pub(crate) fn connector(&self) -> Connector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).expect("an authority's certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.name.clone()).expect("a host name");
        (TlsConnector::from(Arc::new(config)), name)
    }
}
