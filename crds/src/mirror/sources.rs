//! Where a mirror's content comes from besides its url, with what credentials, by whose certificates and which way. Knows nothing of caches and nodes.

use super::rules::{bare_url, number, object_name, port};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A registry with the same content under the same names, or under names with a prefix.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Alternate {
    /// Where it lives: a scheme and a host, with no path.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = bare_url("must be http:// or https:// and a host with an optional port, with no path, user or query, such as https://public.ecr.aws"),
        validation = port(),
        validation = number()
    )]
    pub url: String,

    /// What its repositories' names begin with: with `docker`, `library/nginx` is `docker/library/nginx` there.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*$')")
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
    #[x_kube(validation = object_name("must be the name of a Secret in the operator's namespace: lower-case letters, digits, - and ."))]
    pub name: String,
}

/// Certificates to trust.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaBundle {
    /// The ConfigMap that holds them, in PEM. The cache has a copy: it restarts when the certificates change, and goes on with
    /// the last good ones when the ConfigMap is gone.
    pub config_map_ref: ConfigMapKey,
}

/// A key of a ConfigMap in the operator's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("must be the name of a ConfigMap in the operator's namespace: lower-case letters, digits, - and ."))]
    pub name: String,

    /// Its key.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$') && self != '.' && !self.startsWith('..')")
        .message("must be a key of a ConfigMap: letters, digits, -, _ and ., not . alone and not .. at its beginning"))]
    #[serde(default = "default_key")]
    pub key: String,
}

fn default_key() -> String {
    "ca.crt".to_owned()
}

/// A proxy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Where it lives: http:// or https:// and a host, with no path and no login.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = bare_url("must be http:// or https:// and a host with an optional port, such as http://proxy.example.com:3128; the login belongs into secretRef"),
        validation = port(),
        validation = number()
    )]
    pub url: String,

    /// The Secret with its login, in the keys `username` and `password`: type `kubernetes.io/basic-auth`, in the operator's
    /// namespace. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}
