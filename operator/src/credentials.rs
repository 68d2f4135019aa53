//! Whether a Secret of `credentials` can be used. Pure; the content itself is read by the cache alone and kept nowhere here.

use crate::pki::SecretData;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The key of its Secrets that is read.
pub const KEY: &str = ".dockerconfigjson";

/// One Secret of `credentials`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name.
    pub name: String,
    /// What was found.
    pub finding: Finding,
}

/// What was found of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It can be used.
    Usable,
    /// It does not exist.
    NotFound,
    /// It has not the right form; why.
    Invalid(&'static str),
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Judges a Secret's data.
#[must_use]
pub fn judge(data: &SecretData) -> Finding {
    let Some(text) = data.get(KEY) else {
        return Finding::Invalid("has no key .dockerconfigjson; create it as type kubernetes.io/dockerconfigjson");
    };
    match serde_json::from_slice::<DockerConfig>(&text.0) {
        Ok(config) if config.auths.is_empty() => Finding::Invalid("lists no registry under auths"),
        Ok(_) => Finding::Usable,
        Err(_) => Finding::Invalid("has a .dockerconfigjson that is not JSON with auths"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn only_a_docker_config_with_registries_is_usable() {
        let check = |key: &str, text: &str| judge(&SecretData::from([(key.to_owned(), ByteString(text.into()))]));
        assert_eq!(check(KEY, r#"{"auths":{"docker.io":{"auth":"x"}}}"#), Finding::Usable);
        for (key, text) in [("password", "x"), (KEY, "x"), (KEY, r#"{"auths":{}}"#), (KEY, "{}")] {
            assert!(matches!(check(key, text), Finding::Invalid(_)), "{key} {text}");
        }
    }
}
