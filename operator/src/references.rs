//! Whether what `caBundle` and `proxy` refer to can be used. Pure; a proxy's login is read by the cache alone and kept nowhere here.

use crate::pki::SecretData;
use breakwater_crds::ConfigMapKey;
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// What a mirror refers to, as it was found; nothing where the spec names nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The certificates, PEM.
    pub ca_bundle: Option<Result<String, InvalidReference>>,
    /// The login for the proxy.
    pub proxy_login: Option<Result<(), InvalidReference>>,
}

/// Why a reference cannot be used. The message names the field, the object and the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// The object does not exist.
    #[error("{field}: {kind} {name} does not exist in the operator's namespace; create it")]
    NotFound {
        /// The field that names it.
        field: &'static str,
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It has not the key.
    #[error("{field}: {kind} {name} has no key {wanted}; it has {found}")]
    NoKey {
        /// The field that names it.
        field: &'static str,
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        wanted: String,
        /// The keys that are there.
        found: String,
    },
    /// The value is not what it should be.
    #[error("{field}: {key} of {kind} {name} {problem}")]
    Unusable {
        /// The field that names it.
        field: &'static str,
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

const CA_BUNDLE: &str = "spec.caBundle.configMapRef";
const PROXY_LOGIN: &str = "spec.proxy.secretRef";

/// The certificates of a `caBundle`, if the cache will be able to use them.
///
/// # Errors
/// It will not.
pub fn ca_bundle(reference: &ConfigMapKey, found: Option<&ConfigMap>) -> Result<String, InvalidReference> {
    let ConfigMapKey { name, key } = reference;
    let (field, kind, name) = (CA_BUNDLE, "ConfigMap", name.clone());
    let Some(found) = found else { return Err(InvalidReference::NotFound { field, kind, name }) };
    let Some(text) = found.data.as_ref().and_then(|data| data.get(key)) else {
        let found = listed(found.data.iter().flatten().map(|(key, _)| key));
        return Err(InvalidReference::NoKey { field, kind, name, wanted: key.clone(), found });
    };
    let unusable = |problem| InvalidReference::Unusable { field, kind, name, key: key.clone(), problem };
    // As the cache judges them when it starts: one that it refuses must never reach it.
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable("holds no certificate in PEM")),
        Ok(certificates) => {
            let mut roots = RootCertStore::empty();
            let usable = certificates.into_iter().all(|certificate| roots.add(certificate).is_ok());
            if usable { Ok(text.clone()) } else { Err(unusable("holds a certificate that cannot be used")) }
        }
        Err(_) => Err(unusable("holds something that is not PEM")),
    }
}

/// Whether a Secret has a proxy's login.
///
/// # Errors
/// It has not.
pub fn proxy_login(name: &str, found: Option<&SecretData>) -> Result<(), InvalidReference> {
    let (field, kind, name) = (PROXY_LOGIN, "Secret", name.to_owned());
    let Some(data) = found else { return Err(InvalidReference::NotFound { field, kind, name }) };
    for key in ["username", "password"] {
        let Some(value) = data.get(key) else {
            return Err(InvalidReference::NoKey {
                field,
                kind,
                name,
                wanted: key.to_owned(),
                found: listed(data.keys()),
            });
        };
        if std::str::from_utf8(&value.0).is_err() {
            let (key, problem) = (key.to_owned(), "is no text");
            return Err(InvalidReference::Unusable { field, kind, name, key, problem });
        }
    }
    Ok(())
}

/// At most ten keys, for a message.
fn listed<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    let keys: Vec<_> = keys.take(10).map(String::as_str).collect();
    if keys.is_empty() { "none".to_owned() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{authority, parse};
    use k8s_openapi::ByteString;

    #[test]
    fn a_bundle_is_judged_as_the_cache_will_judge_it() {
        let reference: ConfigMapKey = parse("{name: corp}");
        let good = authority().bundle().to_owned();
        let judge = |data: &[(&str, &str)]| {
            let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let found = ConfigMap { data: Some(data), ..ConfigMap::default() };
            ca_bundle(&reference, Some(&found)).map_err(|error| error.to_string())
        };
        assert_eq!(judge(&[("ca.crt", &good)]), Ok(good.clone()));
        let twice = format!("# ours\n{good}\n{good}");
        assert_eq!(judge(&[("ca.crt", &twice)]), Ok(twice.clone()));
        let is = |problem: &str| Err(format!("spec.caBundle.configMapRef: {problem}"));
        assert_eq!(judge(&[]), is("ConfigMap corp has no key ca.crt; it has none"));
        assert_eq!(judge(&[("a.pem", ""), ("b", "")]), is("ConfigMap corp has no key ca.crt; it has a.pem, b"));
        assert_eq!(judge(&[("ca.crt", "")]), is("ca.crt of ConfigMap corp holds no certificate in PEM"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(
            judge(&[("ca.crt", &format!("{good}{broken}"))]),
            is("ca.crt of ConfigMap corp holds a certificate that cannot be used")
        );
        assert_eq!(
            judge(&[("ca.crt", "-----BEGIN CERTIFICATE-----\n")]),
            is("ca.crt of ConfigMap corp holds something that is not PEM")
        );
        assert_eq!(
            ca_bundle(&reference, None).unwrap_err().to_string(),
            "spec.caBundle.configMapRef: ConfigMap corp does not exist in the operator's namespace; create it"
        );
    }

    #[test]
    fn a_login_has_a_user_and_a_password() {
        let judge = |keys: &[&str]| {
            let data = keys.iter().map(|key| ((*key).to_owned(), ByteString(b"secret".to_vec()))).collect();
            proxy_login("squid", Some(&data)).map_err(|error| error.to_string())
        };
        assert_eq!(judge(&["username", "password"]), Ok(()));
        assert_eq!(
            judge(&["username", "pass"]),
            Err("spec.proxy.secretRef: Secret squid has no key password; it has pass, username".to_owned())
        );
    }
}
