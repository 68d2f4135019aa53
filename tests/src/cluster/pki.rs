//! The cluster's certificate authority. Nodes trust it for registries too, so that test registries speak TLS.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A certificate's and its key's files.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A certificate authority with its files in one folder.
pub(super) struct Pki {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(super) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Breakwater's test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the authority's key")?;
        let issuer = CertifiedIssuer::self_signed(params, key).context("make the authority's certificate")?;
        let pki = Self { folder: folder.to_owned(), issuer };
        write(&pki.ca_file(), &pki.issuer.pem())?;
        Ok(pki)
    }

    /// The authority's certificate in PEM form.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub(super) fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server certificate for names and addresses.
    pub(super) fn server(&self, file: &str, names: &[String]) -> Result<Identity> {
        let mut params = CertificateParams::new(names).context("take the names of a certificate")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(file, &params)
    }

    /// A client certificate for a Kubernetes user.
    pub(super) fn client(&self, file: &str, user: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, &params)
    }

    /// A pair of keys alone, `<file>.key` and `<file>.pub`, as service account tokens are signed and checked with.
    pub(super) fn key_pair(&self, file: &str) -> Result<()> {
        let key = KeyPair::generate().context("make a key")?;
        write(&self.folder.join(format!("{file}.key")), &key.serialize_pem())?;
        write(&self.folder.join(format!("{file}.pub")), &key.public_key_pem())
    }

    fn issue(&self, file: &str, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        let identity = Identity {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

/// Subject alternative names of a server at these addresses.
pub(super) fn names(names: &[&str], addresses: &[IpAddr]) -> Vec<String> {
    names.iter().map(ToString::to_string).chain(addresses.iter().map(ToString::to_string)).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
