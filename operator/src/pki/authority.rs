//! The certificate authority of all caches and the key that relay tokens derive from. No I/O.
//!
//! `ca.crt` is a bundle: the certificate that signs is the one that belongs to `ca.key`; all of them are trusted.

use super::{IssueFailed, SKEW, SecretData, plus, random_hex, set_life, text, value};
use breakwater_crds::RelayKey;
use breakwater_crds::names::{CA_CERTIFICATE_KEY, CA_PRIVATE_KEY, RELAY_KEY};
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt;

const LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Why the stored authority cannot be used. It is never replaced by a new one: all agents trust it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityInvalid {
    /// A key of the Secret is missing or no text.
    #[error("has no {0}")]
    Missing(&'static str),
    /// `ca.crt` holds something else than certificates.
    #[error("has a ca.crt that is not a list of PEM certificates")]
    Certificates,
    /// `ca.key` is no private key.
    #[error("has a ca.key that is not a PEM private key")]
    PrivateKey,
    /// No certificate of `ca.crt` belongs to `ca.key`.
    #[error("has no certificate authority in ca.crt that belongs to ca.key")]
    Mismatch,
    /// The certificate has run out.
    #[error("has a certificate that has run out")]
    Expired,
    /// `relay.key` is malformed.
    #[error("has a relay.key that is not 64 hexadecimal characters")]
    RelayKey,
}

/// A usable certificate authority. Its Debug form hides the keys.
pub struct Authority {
    bundle: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    identity: Identity,
    relay_key: RelayKey,
}

/// What tells one certificate authority from another, and its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    public_key: Vec<u8>,
    pub(super) begin: Timestamp,
    pub(super) end: Timestamp,
}

impl Authority {
    /// Makes a new authority and the Secret's data for it.
    ///
    /// # Errors
    /// No key could be made.
    pub fn create(now: Timestamp) -> Result<SecretData, IssueFailed> {
        let (certificate, key) = self_signed(now)?;
        Ok(SecretData::from([
            (CA_CERTIFICATE_KEY.to_owned(), value(&certificate)),
            (CA_PRIVATE_KEY.to_owned(), value(&key)),
            (RELAY_KEY.to_owned(), value(&random_hex()?)),
        ]))
    }

    /// Reads the authority from the Secret's data.
    ///
    /// # Errors
    /// The Secret is damaged; the error says in what way.
    pub fn parse(data: &SecretData, now: Timestamp) -> Result<Self, AuthorityInvalid> {
        let required = |key: &'static str| text(data, key).ok_or(AuthorityInvalid::Missing(key));
        let bundle = required(CA_CERTIFICATE_KEY)?.to_owned();
        let key = KeyPair::from_pem(required(CA_PRIVATE_KEY)?).map_err(|_| AuthorityInvalid::PrivateKey)?;
        let relay_key = RelayKey::parse(required(RELAY_KEY)?).map_err(|_| AuthorityInvalid::RelayKey)?;
        let (certificate, identity) = belonging(certificates(&bundle)?, &key)?;
        if identity.end <= now {
            return Err(AuthorityInvalid::Expired);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityInvalid::Certificates)?;
        Ok(Self { bundle, issuer, certificate, identity, relay_key })
    }

    /// The certificates to trust, PEM.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The key that relay tokens derive from.
    #[must_use]
    pub fn relay_key(&self) -> &RelayKey {
        &self.relay_key
    }

    /// When it ends.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        self.identity.end
    }

    /// What signs leaves.
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Its life.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate that belongs to [`Self::issuer`].
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

/// A new certificate authority: its certificate and its private key, PEM.
pub(super) fn self_signed(now: Timestamp) -> Result<(String, String), IssueFailed> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Breakwater CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, plus(now, -SKEW), plus(now, LIFE));
    let key = KeyPair::generate().map_err(IssueFailed::Certificate)?;
    let certificate = params.self_signed(&key).map_err(IssueFailed::Certificate)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The certificates of a bundle.
pub(super) fn certificates(bundle: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityInvalid> {
    CertificateDer::pem_slice_iter(bundle.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| AuthorityInvalid::Certificates)
}

/// The authority that belongs to a key.
pub(super) fn belonging(
    certificates: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<(CertificateDer<'static>, Identity), AuthorityInvalid> {
    let public_key = key.subject_public_key_info();
    for der in certificates {
        let (is_ca, identity) = identity(&der).ok_or(AuthorityInvalid::Certificates)?;
        if is_ca && identity.public_key == public_key {
            return Ok((der, identity));
        }
    }
    Err(AuthorityInvalid::Mismatch)
}

/// Whether a certificate is an authority's, and what tells it from others.
pub(super) fn identity(der: &CertificateDer<'_>) -> Option<(bool, Identity)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let life = parsed.validity();
    let public_key = parsed.public_key().raw.to_vec();
    Some((parsed.is_ca(), Identity { public_key, begin: time(life.not_before)?, end: time(life.not_after)? }))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("bundle", &self.bundle).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }
    const NOW: i64 = 1_800_000_000;

    #[test]
    fn what_was_made_can_be_read() {
        let data = Authority::create(at(NOW)).unwrap();
        let authority = Authority::parse(&data, at(NOW)).unwrap();
        assert!(authority.bundle().contains("BEGIN CERTIFICATE"));
        assert!(!format!("{authority:?}").contains("PRIVATE"));
        assert_eq!(Authority::parse(&data, at(NOW + 11 * 365 * 86400)).unwrap_err(), AuthorityInvalid::Expired);
    }

    #[test]
    fn the_signing_certificate_is_found_in_a_bundle() {
        let (mut ours, other) = (Authority::create(at(NOW)).unwrap(), Authority::create(at(NOW)).unwrap());
        let bundle = format!("{}{}", text(&other, "ca.crt").unwrap(), text(&ours, "ca.crt").unwrap());
        ours.insert("ca.crt".to_owned(), value(&bundle));
        assert_eq!(Authority::parse(&ours, at(NOW)).unwrap().bundle(), bundle);
    }

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let good = Authority::create(at(NOW)).unwrap();
        let other = Authority::create(at(NOW)).unwrap();
        let with = |key: &str, new: Option<&str>| {
            let mut data = good.clone();
            match new {
                Some(new) => data.insert(key.to_owned(), value(new)),
                None => data.remove(key),
            };
            Authority::parse(&data, at(NOW)).unwrap_err()
        };
        assert_eq!(with("ca.crt", None), AuthorityInvalid::Missing("ca.crt"));
        assert_eq!(with("ca.crt", Some("")), AuthorityInvalid::Mismatch);
        assert_eq!(
            with("ca.crt", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
            AuthorityInvalid::Certificates
        );
        assert_eq!(with("ca.crt", text(&other, "ca.crt")), AuthorityInvalid::Mismatch);
        assert_eq!(with("ca.key", Some("x")), AuthorityInvalid::PrivateKey);
        assert_eq!(with("relay.key", Some("x")), AuthorityInvalid::RelayKey);
    }
}
