//! Where a mirror's content comes from besides its url, and with what credentials. Knows nothing of caches and nodes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A scheme and a host with an optional port.
pub(super) const BARE_URL: &str = "self.matches('^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?/?$')";

/// A registry with the same content under the same names, or under names with a prefix.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Alternate {
    /// Where it lives: a scheme and a host, with no path.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(BARE_URL)
        .message("must be http:// or https:// and a host with an optional port, with no path, user or query, such as https://public.ecr.aws"))]
    pub url: String,

    /// What its repositories' names begin with: with `docker`, `library/nginx` is `docker/library/nginx` there.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$')")
        .message("must be the beginning of a repository's name with no slash at its end, such as docker or team/mirror"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_prefix: Option<String>,
}

/// One source of credentials.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSource {
    /// The Secret that holds them.
    pub secret_ref: SecretReference,
}

/// A Secret in the operator's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("must be the name of a Secret in the operator's namespace: lower-case letters, digits, - and ."))]
    pub name: String,
}
