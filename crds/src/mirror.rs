//! `RegistryMirror`: what a user asks for, one upstream registry each. Holds no behaviour but defaults and look-ups.
//!
//! Rules carry messages that begin with "must" and end with the mend; the API server itself prints field and value.
//! Plain facts are bounds of the schema, all else is CEL, because one failed bound hides every CEL message.

mod cache;
mod freshness;
mod images;
mod nodes;
mod rules;
mod sources;

pub use cache::{CacheSpec, StorageSpec, WhenDeleted};
pub use freshness::{Freshness, OnError, StaleAction};
pub use images::{ImagesSpec, NodeBootstrap};
pub use nodes::{Fallback, NodesSpec};
pub use sources::{Alternate, CaBundle, ConfigMapKey, CredentialSource, Proxy, SecretReference};

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use rules::{bare_url, host, number, port};

/// The desired state of one mirror: which registry, where it lives, how its cache and the nodes treat it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "breakwater.dev",
    version = "v1alpha1",
    kind = "RegistryMirror",
    plural = "registrymirrors",
    shortname = "rmir",
    category = "breakwater",
    doc = "A pull-through cache for one upstream registry, and the nodes that pull through it.",
    derive = "PartialEq",
    status = "crate::mirror_status::RegistryMirrorStatus",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("must have a name of at most 63 characters, because labels carry it: choose a shorter metadata.name"),
    printcolumn(name = "Registry", type_ = "string", json_path = ".spec.registry"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Upstream",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="UpstreamReachable")].status"#,
        description = "Whether the cache reaches the upstream registry"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.summary.nodes",
        description = "Nodes that pull through the cache, of those selected"
    ),
    printcolumn(
        name = "Survivable",
        type_ = "string",
        json_path = ".status.summary.survivable",
        description = "Images in use that would survive the loss of the registry"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Status",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.images.include) || self.images.include.all(image, \
                                 !image.matches('^[^/]*[.:][^/]*/') || image.startsWith(self.registry + '/'))")
    .field_path(".images.include")
    .message("must be images of this mirror's registry: leave their registry out, or give them a mirror of their own"))]
pub struct RegistryMirrorSpec {
    /// The registry's host as it stands in image names, with the port if it has one: `docker.io`,
    /// `registry.example.com:5000`. It cannot be changed, because it names the cache and its volume.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("!self.matches('^([Hh][Tt][Tt][Pp][Ss]?://)') && !self.contains('/')")
            .message(Message::Expression(
                "'must be the host as it stands in image names, with no scheme or path: write ' + \
                 self.replace('https://', '').replace('http://', '').split('/')[0]".into())),
        validation = host("must be a host name with an optional port, such as docker.io or registry.example.com:5000"),
        validation = port(),
        validation = number(),
        validation = Rule::new("self.contains('/') || self == 'localhost' || self.matches('[.:A-Z]')")
            .message("must have a dot or a port: what is before the first slash of an image's name is else taken for a part of Docker Hub"),
        validation = Rule::new("self == 'docker.io' || !(self.lowerAscii() in ['docker.io', 'index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com', 'hub.docker.com'])")
            .message("must be the name that images use for Docker Hub: write docker.io"),
        validation = Rule::new("self == oldSelf")
            .message("must not change, because it names the cache and its volume: create another RegistryMirror instead")
    )]
    pub registry: String,

    /// Where the registry lives, for the cache and as the nodes' way back: a scheme and a host, with no path.
    /// Default: `https://` and `registry`; the address of `docker.io` is known.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = bare_url("must be http:// or https:// and a host with an optional port, with no path, user or query, such as https://registry.example.com:5000"),
        validation = port(),
        validation = number()
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// Registries with the same content. Manifests and blobs are fetched from them by digest when the upstream fails, is late
    /// or has not got them; what a tag means is only ever asked of the upstream.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternates: Vec<Alternate>,

    /// Secrets of type `kubernetes.io/dockerconfigjson` in the operator's namespace. Of all their entries the one with
    /// the longest matching path is used. Content fetched with them is open to every Pod on the selected nodes.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialSource>,

    /// Certificates to trust the registry, its alternates, their token services and the proxy by, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<CaBundle>,

    /// The proxy that the cache reaches all of them by. Nodes do not use it on their way back to the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,

    /// The cache: its replicas, their volumes, resources and places.
    #[schemars(extend("default" = {}))]
    #[serde(default)]
    pub cache: CacheSpec,

    /// How long a tag is believed, and how long it outlives its upstream.
    #[schemars(extend("default" = {}))]
    #[serde(default)]
    pub freshness: Freshness,

    /// Which nodes pull through the cache, and what they do when it does not answer.
    #[serde(default)]
    pub nodes: NodesSpec,

    /// Which images the cache must hold completely, so that they outlive the loss of their registry.
    #[schemars(extend("default" = {}))]
    #[serde(default)]
    pub images: ImagesSpec,
}

impl RegistryMirrorSpec {
    /// The upstream's address: `url`, or the default of its registry, with no trailing slash.
    #[must_use]
    pub fn upstream_url(&self) -> String {
        match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => default_url(&self.registry),
        }
    }

    /// Whether the upstream's address is the one that a container runtime uses for this registry unasked.
    #[must_use]
    pub fn has_default_url(&self) -> bool {
        self.upstream_url() == default_url(&self.registry)
    }
}

/// The address that a container runtime uses for a registry unasked.
#[must_use]
pub fn default_url(registry: &str) -> String {
    match registry {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        host => format!("https://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    fn spec(yaml: &str) -> RegistryMirrorSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_smallest_mirror_has_sensible_defaults() {
        let spec = spec("registry: docker.io");
        assert_eq!(spec.upstream_url(), "https://registry-1.docker.io");
        assert_eq!(spec.cache.replicas, 1);
        assert_eq!(spec.cache.storage.size, Quantity("50Gi".into()));
        assert_eq!(spec.cache.storage.when_deleted, WhenDeleted::Retain);
        assert_eq!(spec.freshness.tag_ttl, std::time::Duration::from_secs(60));
        assert_eq!(spec.nodes.fallback, Fallback::Upstream);
    }

    #[test]
    fn a_url_equal_to_the_default_counts_as_default() {
        assert!(spec("{registry: docker.io, url: 'https://registry-1.docker.io/'}").has_default_url());
        assert!(spec("{registry: 'r.example:5000', url: 'https://r.example:5000'}").has_default_url());
        assert!(!spec("{registry: 'r.example:5000', url: 'http://r.example:5000'}").has_default_url());
    }
}
