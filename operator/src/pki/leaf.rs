//! The server certificate of one cache. No I/O.

use super::{Authority, IssueFailed, SecretData, plus, set_life, text, value};
use breakwater_crds::names::CA_CERTIFICATE_KEY;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
const CERTIFICATE: &str = "tls.crt";
const PRIVATE_KEY: &str = "tls.key";

/// A certificate, its key and the bundle that verifies it, as stored. Its Debug form hides the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    certificate: String,
    private_key: String,
    bundle: String,
}

impl Leaf {
    /// Reads a leaf from a Secret's data; whether it is any good, [`Self::renewed`] judges.
    #[must_use]
    pub fn parse(data: &SecretData) -> Option<Self> {
        Some(Self {
            certificate: text(data, CERTIFICATE)?.to_owned(),
            private_key: text(data, PRIVATE_KEY)?.to_owned(),
            bundle: text(data, CA_CERTIFICATE_KEY).unwrap_or_default().to_owned(),
        })
    }

    /// The Secret's data.
    #[must_use]
    pub fn data(&self) -> SecretData {
        SecretData::from([
            (CERTIFICATE.to_owned(), value(&self.certificate)),
            (PRIVATE_KEY.to_owned(), value(&self.private_key)),
            (CA_CERTIFICATE_KEY.to_owned(), value(&self.bundle)),
        ])
    }

    /// The leaf to store: the one there with the authority's present bundle, or a new one when it is absent, damaged, of
    /// another authority, for other names or past half of its life.
    ///
    /// # Errors
    /// A new one was due and could not be made.
    pub fn renewed(
        stored: Option<&Self>,
        authority: &Authority,
        names: &[String],
        now: Timestamp,
    ) -> Result<Self, IssueFailed> {
        match stored.filter(|leaf| leaf.is_good(authority, names, now)) {
            Some(leaf) => Ok(Self { bundle: authority.bundle().to_owned(), ..leaf.clone() }),
            None => Self::issue(authority, names, now),
        }
    }

    fn issue(authority: &Authority, names: &[String], now: Timestamp) -> Result<Self, IssueFailed> {
        let mut params = CertificateParams::new(names).map_err(IssueFailed::Certificate)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let ca = authority.identity();
        // It begins with its authority, so that one made by a clock that was ahead does no harm once the clock is right; nor is one made
        // by a clock that is behind over before it begins.
        set_life(&mut params, ca.begin, ca.end.min(plus(now.max(ca.begin), LIFE)));
        let key = KeyPair::generate().map_err(IssueFailed::Certificate)?;
        let certificate = params.signed_by(&key, authority.issuer()).map_err(IssueFailed::Certificate)?;
        Ok(Self {
            certificate: certificate.pem(),
            private_key: key.serialize_pem(),
            bundle: authority.bundle().to_owned(),
        })
    }

    fn is_good(&self, authority: &Authority, names: &[String], now: Timestamp) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.certificate.as_bytes()) else { return false };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return false };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(authority.certificate()) else { return false };
        let Ok(key) = KeyPair::from_pem(&self.private_key) else { return false };
        let (end, last) = (parsed.validity().not_after.timestamp(), authority.identity().end.as_second());
        key.subject_public_key_info() == parsed.public_key().raw
            && signer(&parsed).is_some()
            && signer(&parsed) == own_identifier(&ca)
            && dns_names(&parsed) == names
            // None lives longer than its authority, whose successor signs in good time.
            && (now.as_second() < end - LIFE.as_secs() / 2 || end >= last)
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(dns).collect()
}

/// The identifier of the key that signed a certificate.
fn signer(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

/// The identifier of a certificate's own key.
fn own_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn authority() -> Authority {
        Authority::parse(&Authority::create(at(NOW)).unwrap(), at(NOW)).unwrap()
    }

    #[test]
    fn a_leaf_is_kept_until_half_of_its_life() {
        let (authority, names) = (authority(), ["a.ns.svc".to_owned(), "a".to_owned()]);
        let leaf = Leaf::renewed(None, &authority, &names, at(NOW)).unwrap();
        let stored = Leaf::parse(&leaf.data()).unwrap();
        let later = |days: i64| Leaf::renewed(Some(&stored), &authority, &names, at(NOW + days * DAY)).unwrap();
        assert_eq!(later(0), leaf);
        assert_eq!(later(182), leaf);
        assert_ne!(later(183), leaf);
        assert!(!format!("{leaf:?}").contains("PRIVATE"));
    }

    /// The life of a leaf made at a time given in days, in days.
    fn life(made: i64) -> (i64, i64) {
        let leaf = Leaf::renewed(None, &authority(), &["a".to_owned()], at(NOW + made * DAY)).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let days = |seconds: i64| (seconds - NOW).div_euclid(DAY);
        (days(parsed.validity().not_before.timestamp()), days(parsed.validity().not_after.timestamp()))
    }

    #[test]
    fn a_leaf_made_by_a_wrong_clock_does_no_harm_once_it_is_right() {
        let (authority, names) = (authority(), ["a".to_owned()]);
        assert_eq!(life(0), (-1, 365));
        assert_eq!(life(100), (-1, 465), "valid at once, however far the clock was ahead");
        let made = |days: i64| Leaf::renewed(None, &authority, &names, at(NOW + days * DAY)).unwrap();
        let kept = |leaf: &Leaf, days: i64| {
            Leaf::renewed(Some(leaf), &authority, &names, at(NOW + days * DAY)).unwrap() == *leaf
        };
        assert!(kept(&made(0), -5000), "a clock that is behind renews nothing");
        assert_eq!(life(-5000), (-1, 364), "what it makes is valid all the same");
        assert!(kept(&made(-5000), -5000) && kept(&made(-5000), 0));
        assert!(!kept(&made(-5000), 183), "and renewed at half of its life by a clock that is right");
    }

    #[test]
    fn a_clock_that_jumps_to_and_fro_makes_at_most_one_leaf_each_time() {
        let (authority, names) = (authority(), ["a".to_owned()]);
        let mut leaf = Leaf::renewed(None, &authority, &names, at(NOW)).unwrap();
        let mut made = 0;
        for hours in [2, 0, -2, 0, 400 * 24, 0, -400 * 24, 0, 400 * 24, 0, 1_000_000, 0, -1_000_000, 0] {
            for look in 0..3 {
                let now = at(NOW + hours * 3600 + look);
                let next = Leaf::renewed(Some(&leaf), &authority, &names, now).unwrap();
                made += i32::from(next != leaf);
                leaf = next;
            }
        }
        assert_eq!(made, 2, "at the first +400 days, and at the century that follows");
        let last = Timestamp::MAX;
        let beyond = Leaf::renewed(Some(&leaf), &authority, &names, last).unwrap();
        assert_eq!(
            Leaf::renewed(Some(&beyond), &authority, &names, last).unwrap(),
            beyond,
            "nor does it at the end of time"
        );
        assert!(Authority::create(last).is_ok() && Authority::create(Timestamp::MIN).is_ok());
    }

    #[test]
    fn a_leaf_ends_with_its_authority_and_is_then_not_renewed_all_the_time() {
        assert_eq!(life(3600), (-1, 3650));
        let (authority, names) = (authority(), ["a".to_owned()]);
        let last = Leaf::renewed(None, &authority, &names, at(NOW + 3600 * DAY)).unwrap();
        assert_eq!(Leaf::renewed(Some(&last), &authority, &names, at(NOW + 3640 * DAY)).unwrap(), last);
    }

    #[test]
    fn a_leaf_that_does_not_fit_is_replaced() {
        let (authority, names) = (authority(), ["a".to_owned()]);
        let leaf = Leaf::renewed(None, &authority, &names, at(NOW)).unwrap();
        let other = Leaf::renewed(None, &authority, &names, at(NOW)).unwrap();
        let replaced = |stored: &Leaf, authority: &Authority, names: &[String]| {
            Leaf::renewed(Some(stored), authority, names, at(NOW)).unwrap().certificate != stored.certificate
        };
        assert!(!replaced(&leaf, &authority, &names));
        assert!(replaced(&leaf, &authority, &["b".to_owned()]));
        assert!(replaced(&leaf, &self::authority(), &names));
        assert!(replaced(&Leaf { private_key: other.private_key, ..leaf.clone() }, &authority, &names));
        assert!(replaced(&Leaf { certificate: "x".to_owned(), ..leaf }, &authority, &names));
    }

    #[test]
    fn a_new_bundle_reaches_the_leaf_without_a_new_key() {
        let (authority, names) = (authority(), ["a".to_owned()]);
        let leaf = Leaf::renewed(None, &authority, &names, at(NOW)).unwrap();
        let stale = Leaf { bundle: "old".to_owned(), ..leaf.clone() };
        assert_eq!(Leaf::renewed(Some(&stale), &authority, &names, at(NOW)).unwrap(), leaf);
    }
}
