//! Reads Secrets by name, once per version. Client I/O; Secrets are watched by metadata alone, so that foreign ones stay unread.

use crate::credentials::{Finding, judge};
use crate::pki::{Leaf, SecretData, Tokens};
use crate::references::{self, InvalidReference};
use crate::watches::{Watched, readable};
use breakwater_crds::names::{cache_name, hashed_cache_name, tls_secret, tokens_secret};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why a Secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailed {
    /// The API server does not give it.
    #[error("the API server does not give it")]
    Call(#[source] kube::Error),
    /// No answer in time.
    #[error("no answer within {}s", CALL_DEADLINE.as_secs())]
    Timeout,
}

/// What was read, by name and version.
#[derive(Debug)]
pub struct SecretReader {
    api: Api<Secret>,
    leaves: Versions<Option<Leaf>>,
    tokens: Versions<Option<Tokens>>,
    credentials: Versions<Finding>,
    proxy_logins: Versions<Result<(), InvalidReference>>,
}

impl SecretReader {
    /// A reader of the Secrets of one namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            leaves: Versions::default(),
            tokens: Versions::default(),
            credentials: Versions::default(),
            proxy_logins: Versions::default(),
        }
    }

    /// The certificate in a Secret. A Secret that the watch does not show may still be on its way there: what was last read or
    /// written stands for it, or a second one would be made.
    pub(crate) async fn leaf(&self, name: &str, version: Option<&str>) -> Result<Option<Leaf>, ReadFailed> {
        self.read(&self.leaves, name, version, |data| data.and_then(Leaf::parse)).await
    }

    /// The tokens in a Secret; as [`Self::leaf`].
    pub(crate) async fn tokens(&self, name: &str, version: Option<&str>) -> Result<Option<Tokens>, ReadFailed> {
        self.read(&self.tokens, name, version, |data| data.and_then(Tokens::parse)).await
    }

    /// Whether a Secret of credentials can be used.
    pub(crate) async fn credential(&self, name: &str, version: &str) -> Result<Finding, ReadFailed> {
        self.read(&self.credentials, name, Some(version), |data| data.map_or(Finding::NotFound, judge)).await
    }

    /// Whether a Secret has a proxy's login; without a version there is no such Secret.
    pub(crate) async fn proxy_login(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<Result<(), InvalidReference>, ReadFailed> {
        if version.is_none() {
            return Ok(references::proxy_login(name, None));
        }
        self.read(&self.proxy_logins, name, version, |data| references::proxy_login(name, data)).await
    }

    async fn read<T: Clone>(
        &self,
        known: &Versions<T>,
        name: &str,
        version: Option<&str>,
        parse: impl FnOnce(Option<&SecretData>) -> T,
    ) -> Result<T, ReadFailed> {
        if let Some(value) = known.get(name, version) {
            return Ok(value);
        }
        let Some(version) = version else { return Ok(parse(None)) };
        let secret = match tokio::time::timeout(CALL_DEADLINE, self.api.get_opt(name)).await {
            Ok(found) => found.map_err(ReadFailed::Call)?,
            Err(_) => return Err(ReadFailed::Timeout),
        };
        let data = secret.map(|secret| secret.data.unwrap_or_default());
        let value = parse(data.as_ref());
        known.put(name, version, value.clone());
        Ok(value)
    }

    /// Forgets all but what the caches of these mirrors are served by: no key stays in memory for longer than its mirror. One that
    /// cannot be read may have any cache. What holds no key is read anew.
    pub(crate) fn keep_only_of(&self, mirrors: &[Watched]) {
        if readable(mirrors).count() < mirrors.len() {
            return;
        }
        let registries = readable(mirrors).map(|mirror| mirror.spec.registry.as_str());
        let caches: Vec<_> =
            registries.flat_map(|registry| [cache_name(registry), hashed_cache_name(registry)]).collect();
        self.leaves.keep_only(&caches.iter().map(|cache| tls_secret(cache)).collect());
        self.tokens.keep_only(&caches.iter().map(|cache| tokens_secret(cache)).collect());
        self.credentials.keep_only(&HashSet::new());
        self.proxy_logins.keep_only(&HashSet::new());
    }

    /// Remembers a certificate that was just written.
    pub(crate) fn wrote_leaf(&self, name: &str, version: &str, leaf: Leaf) {
        self.leaves.put(name, version, Some(leaf));
    }

    /// Remembers tokens that were just written.
    pub(crate) fn wrote_tokens(&self, name: &str, version: &str, tokens: Tokens) {
        self.tokens.put(name, version, Some(tokens));
    }
}

#[derive(Debug)]
struct Versions<T>(Mutex<HashMap<String, (String, T)>>);

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Versions<T> {
    /// The value of this version; of any version when none is given.
    fn get(&self, name: &str, version: Option<&str>) -> Option<T> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(of, _)| version.is_none_or(|version| of == version)).map(|(_, value)| value.clone())
    }

    fn keep_only(&self, names: &HashSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
    }

    fn put(&self, name: &str, version: &str, value: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), (version.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{authority, mirror, now};
    use kube::core::DeserializeGuard;
    use std::sync::Arc;

    fn watched(spec: &str) -> Watched {
        Arc::new(DeserializeGuard(Ok((*mirror("m", 1, spec)).clone())))
    }

    fn unreadable() -> Watched {
        let text =
            "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {name: m}, spec: {registry: 1}}";
        Arc::new(serde_saphyr::from_str(text).unwrap())
    }

    #[tokio::test]
    async fn keys_are_kept_for_as_long_as_there_is_a_mirror_for_them() {
        let client = Client::new(
            tower::service_fn(|_: http::Request<kube::client::Body>| async {
                Ok::<_, std::io::Error>(http::Response::new(kube::client::Body::empty()))
            }),
            "x",
        );
        let secrets = SecretReader::new(client, "x");
        let authority = authority();
        for cache in ["cache-a-b", "cache-c-d"] {
            let leaf = Leaf::renewed(None, &authority, &[cache.to_owned()], now()).unwrap();
            secrets.wrote_leaf(&tls_secret(cache), "1", leaf);
            secrets.wrote_tokens(&tokens_secret(cache), "1", Tokens::completed(None, &authority, cache).unwrap());
        }
        let kept = || {
            let of = |cache| secrets.leaves.get(&tls_secret(cache), None).is_some();
            let tokens = |cache| secrets.tokens.get(&tokens_secret(cache), None).is_some();
            ["cache-a-b", "cache-c-d"].map(|cache| of(cache) && tokens(cache))
        };
        secrets.keep_only_of(&[watched("{registry: a.b}"), unreadable()]);
        assert_eq!(kept(), [true, true], "a mirror that cannot be read may be of any registry");
        secrets.keep_only_of(&[watched("{registry: a.b}")]);
        assert_eq!(kept(), [true, false]);
        secrets.keep_only_of(&[]);
        assert_eq!(kept(), [false, false]);
    }
}
