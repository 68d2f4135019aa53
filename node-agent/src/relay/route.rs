//! One registry's way to its cache, ready to be used: addresses, trust, token. Pure.

use crate::known::{Endpoint, Trust};
use crate::plan::CacheAddress;
use aws_lc_rs::digest::{SHA256, digest};
use breakwater_crds::{names, relay_token};
use http::HeaderValue;
use rustls::client::WebPkiServerVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;

/// A registry's way to its cache.
pub struct Route {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) server_name: ServerName<'static>,
    pub(super) host: HeaderValue,
    pub(super) authorization: HeaderValue,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) is_only_way: bool,
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum NoRoute {
    /// The CA is no PEM, or holds no certificate that can be used.
    #[error("{} of Secret {} holds no usable certificate", names::CA_CERTIFICATE_KEY, names::RELAY_SECRET)]
    Trust,
    /// The Service's name makes no host name.
    #[error("the cache's Service has an impossible name")]
    Name,
}

/// Trust in Breakwater's CA and in nothing else.
///
/// # Errors
/// The text holds no usable certificate.
pub fn trust_only(ca: &str) -> Result<Arc<ClientConfig>, NoRoute> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).filter_map(Result::ok));
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // A cache takes what its client likes best, and this costs both of them least.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|_| NoRoute::Trust)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| NoRoute::Trust)?
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Trust in the CA that was named last. Connections are bound to it, so it is made anew for another CA alone.
#[derive(Debug, Default)]
pub struct Trusting(Option<(String, Arc<ClientConfig>)>);

impl Trusting {
    /// Trust in this CA and in nothing else.
    ///
    /// # Errors
    /// The text holds no usable certificate.
    pub fn only(&mut self, ca: &str) -> Result<Arc<ClientConfig>, NoRoute> {
        if let Some((known, tls)) = &self.0
            && known == ca
        {
            return Ok(tls.clone());
        }
        let tls = trust_only(ca)?;
        self.0 = Some((ca.to_owned(), tls.clone()));
        Ok(tls)
    }
}

impl Route {
    /// The way to this cache.
    ///
    /// # Errors
    /// The Service's name makes no host name.
    pub fn new(cache: &CacheAddress, trust: &Trust, tls: Arc<ClientConfig>) -> Result<Self, NoRoute> {
        let name = names::cache_server_name(&cache.service);
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", relay_token(&trust.key, &cache.service)))
            .map_err(|_| NoRoute::Name)?;
        authorization.set_sensitive(true);
        Ok(Self {
            endpoints: cache.endpoints.clone(),
            host: HeaderValue::try_from(&name).map_err(|_| NoRoute::Name)?,
            server_name: ServerName::try_from(name).map_err(|_| NoRoute::Name)?,
            authorization,
            tls,
            is_only_way: cache.is_only_way,
        })
    }

    /// Whether connections that were opened by this route are as good as new ones by the other.
    pub(super) fn leads_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tls, &other.tls)
            && self.server_name == other.server_name
            && self.authorization == other.authorization
    }

    /// Addresses in the order to try for this repository: every node prefers the same Pod, so that it is filled once.
    pub(super) fn ranked(&self, repository: &str) -> Vec<&Endpoint> {
        let mut endpoints: Vec<_> = self.endpoints.iter().collect();
        if endpoints.len() > 1 {
            endpoints.sort_by_cached_key(|endpoint| {
                (endpoint.terminating, score(repository, &endpoint.pod), endpoint.address)
            });
        }
        endpoints
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route")
            .field("server_name", &self.server_name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Rendezvous hashing: <https://en.wikipedia.org/wiki/Rendezvous_hashing>
fn score(repository: &str, pod: &str) -> [u8; 32] {
    let mut score = [0; 32];
    score.copy_from_slice(digest(&SHA256, format!("{repository}\0{pod}").as_bytes()).as_ref());
    score
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakwater_crds::RelayKey;

    fn route(pods: &[(&str, bool)]) -> Route {
        let endpoints = pods.iter().map(|(pod, terminating)| Endpoint {
            terminating: *terminating,
            pod: (*pod).to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
        });
        let cache = CacheAddress { service: "cache-a".into(), endpoints: endpoints.collect(), is_only_way: false };
        let trust = Trust { ca: String::new(), key: RelayKey::parse(&"0a".repeat(32)).unwrap() };
        let certificate = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
        Route::new(&cache, &trust, trust_only(&certificate.cert.pem()).unwrap()).unwrap()
    }

    #[test]
    fn the_order_of_pods_depends_on_the_repository_and_survives_a_change_of_pods() {
        let (two, three) =
            (route(&[("p0", false), ("p1", false)]), route(&[("p2", false), ("p1", false), ("p0", false)]));
        let first = |route: &Route, repository: &str| route.ranked(repository)[0].pod.clone();
        let repositories: Vec<_> = (0..200).map(|i| format!("library/r{i}")).collect();
        let on_p0 = repositories.iter().filter(|r| first(&two, r) == "p0").count();
        assert!((60..140).contains(&on_p0), "{on_p0}");
        for repository in &repositories {
            let now = first(&three, repository);
            assert!(now == "p2" || now == first(&two, repository));
        }
        assert_eq!(first(&route(&[("p0", true), ("p1", false)]), "any"), "p1");
    }

    #[test]
    fn nothing_secret_is_printed_and_nothing_else_is_trusted() {
        let route = route(&[("p0", false)]);
        assert!(route.authorization.is_sensitive());
        assert!(!format!("{route:?}").contains("Bearer"));
        assert!(matches!(trust_only("no pem"), Err(NoRoute::Trust)));
    }

    #[test]
    fn trust_is_made_anew_for_another_ca_alone() {
        let [one, other] = ["one", "other"].map(|name| {
            let certificate = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            certificate.cert.pem()
        });
        let mut trusting = Trusting::default();
        let first = trusting.only(&one).unwrap();
        assert!(trusting.only("no pem").is_err());
        assert!(Arc::ptr_eq(&first, &trusting.only(&one).unwrap()));
        assert!(!Arc::ptr_eq(&first, &trusting.only(&other).unwrap()));
    }
}
