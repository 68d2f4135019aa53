//! Step 1, client I/O: gathers all that concerns one mirror. Most of it is in the watches' stores; Secrets are read by name.
//!
//! Judges nothing: what is found is handed on as it is.

use crate::credentials::{Credential, Finding};
use crate::fleet::Fleet;
use crate::images::ImagesReport;
use crate::pki::{Leaf, Tokens};
use crate::references::{self, References};
use crate::secrets::{ReadFailed, SecretReader};
use crate::upstream::UpstreamReport;
use crate::watches::{Stores, Watched};
use breakwater_crds::RegistryMirror;
use breakwater_crds::names::{MOST_REPLICAS, cache_name, claim_name, hashed_cache_name, tls_secret, tokens_secret};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// All that is known of one mirror.
#[derive(Debug)]
pub struct Observed {
    /// The mirror.
    pub mirror: Arc<RegistryMirror>,
    /// All mirrors, this one included.
    pub mirrors: Vec<Watched>,
    /// What is there under the plain name of its cache.
    pub plain: Candidate,
    /// What is there under the name with a hash.
    pub hashed: Candidate,
    /// Its credentials, in the order of the spec.
    pub credentials: Vec<Credential>,
    /// What else its spec refers to.
    pub references: References,
    /// All nodes.
    pub fleet: Arc<Fleet>,
    /// What the caches say of their upstreams, by cache.
    pub upstreams: Arc<HashMap<String, UpstreamReport>>,
    /// How the images in use fare.
    pub images: Images,
    /// For how long this operator has said the same of its cache; nothing where it was not there when that turned.
    pub said_for: Option<Duration>,
}

/// How the images in use fare, as far as anybody knows.
#[derive(Clone, Debug)]
pub enum Images {
    /// The cache tells.
    Known(Arc<ImagesReport>),
    /// This operator has just begun, and the cache has not told it yet.
    Awaited,
    /// Nobody knows.
    Unknown,
}

impl Images {
    /// What the cache tells.
    #[must_use]
    pub fn report(&self) -> Option<&ImagesReport> {
        match self {
            Self::Known(report) => Some(report),
            Self::Awaited | Self::Unknown => None,
        }
    }
}

/// What is there under one name.
#[derive(Debug, Default)]
pub struct Candidate {
    /// The name.
    pub name: String,
    /// The StatefulSet with that name, without its Pod template.
    pub statefulset: Option<Arc<StatefulSet>>,
    /// The claim of its first Pod.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// The claims of the others.
    pub other_claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Its Pods.
    pub pods: Vec<Arc<Pod>>,
    /// The certificate stored for it.
    pub leaf: Option<Leaf>,
    /// The tokens stored for it.
    pub tokens: Option<Tokens>,
}

impl Observed {
    /// What is there under this one of the two names.
    #[must_use]
    pub fn candidate(&self, name: &str) -> &Candidate {
        if self.hashed.name == name { &self.hashed } else { &self.plain }
    }
}

/// Why a mirror could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveFailed {
    /// A Secret could not be read.
    #[error("cannot read Secret {name}")]
    Secret {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ReadFailed,
    },
}

/// Gathers all that concerns `mirror`.
///
/// # Errors
/// A Secret could not be read.
pub async fn observe(
    mirror: Arc<RegistryMirror>,
    stores: &Stores,
    secrets: &SecretReader,
    upstreams: Arc<HashMap<String, UpstreamReport>>,
    images: Images,
    said_for: Option<Duration>,
) -> Result<Observed, ObserveFailed> {
    let plain = cache_name(&mirror.spec.registry);
    let hashed = hashed_cache_name(&mirror.spec.registry);
    let mut credentials = Vec::new();
    for source in &mirror.spec.credentials {
        let name = source.secret_ref.name.clone();
        let finding = match stores.secret_version(&name) {
            None => Finding::NotFound,
            Some(version) => secrets.credential(&name, &version).await.map_err(failed(&name))?,
        };
        credentials.push(Credential { name, finding });
    }
    Ok(Observed {
        references: references(&mirror, stores, secrets).await?,
        mirrors: stores.mirrors(),
        plain: candidate(plain, stores, secrets).await?,
        hashed: candidate(hashed, stores, secrets).await?,
        credentials,
        fleet: stores.fleet(),
        upstreams,
        images,
        said_for,
        mirror,
    })
}

async fn references(
    mirror: &RegistryMirror,
    stores: &Stores,
    secrets: &SecretReader,
) -> Result<References, ObserveFailed> {
    let ca_bundle = mirror.spec.ca_bundle.as_ref().map(|bundle| {
        let reference = &bundle.config_map_ref;
        references::ca_bundle(reference, stores.config_map(&reference.name).as_deref())
    });
    let login = mirror.spec.proxy.as_ref().and_then(|proxy| proxy.secret_ref.as_ref());
    let proxy_login = match login {
        None => None,
        Some(secret) => {
            let version = stores.secret_version(&secret.name);
            Some(secrets.proxy_login(&secret.name, version.as_deref()).await.map_err(failed(&secret.name))?)
        }
    };
    Ok(References { ca_bundle, proxy_login })
}

async fn candidate(name: String, stores: &Stores, secrets: &SecretReader) -> Result<Candidate, ObserveFailed> {
    let (tls, tokens) = (tls_secret(&name), tokens_secret(&name));
    Ok(Candidate {
        statefulset: stores.statefulset(&name),
        claim: stores.claim(&claim_name(&name, 0)),
        other_claims: (1..MOST_REPLICAS).filter_map(|ordinal| stores.claim(&claim_name(&name, ordinal))).collect(),
        pods: stores.cache_pods(&name),
        leaf: secrets.leaf(&tls, stores.secret_version(&tls).as_deref()).await.map_err(failed(&tls))?,
        tokens: secrets.tokens(&tokens, stores.secret_version(&tokens).as_deref()).await.map_err(failed(&tokens))?,
        name,
    })
}

fn failed(name: &str) -> impl FnOnce(ReadFailed) -> ObserveFailed + use<> {
    let name = name.to_owned();
    |source| ObserveFailed::Secret { name, source }
}
