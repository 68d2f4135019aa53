//! `RegistryMirror`: what a user asks for, one upstream registry each. Holds no behaviour but defaults and look-ups.
//!
//! Rules carry messages that begin with "must" and end with the mend; the API server itself prints field and value.
//! Plain facts are bounds of the schema, all else is CEL, because one failed bound hides every CEL message.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Status",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RegistryMirrorSpec {
    /// The registry's host as it stands in image names, with the port if it has one: `docker.io`,
    /// `registry.example.com:5000`. It cannot be changed, because it names the cache and its volume.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("!self.matches('^([Hh][Tt][Tt][Pp][Ss]?://)') && !self.contains('/')")
            .message(Message::Expression(
                "'must be the host as it stands in image names, with no scheme or path: write ' + \
                 self.replace('https://', '').replace('http://', '').split('/')[0]".into())),
        validation = Rule::new(
            "self.contains('/') || self.matches('^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$')")
            .message("must be a host name with an optional port, such as docker.io or registry.example.com:5000"),
        validation = Rule::new("!(self in ['index.docker.io', 'registry-1.docker.io'])")
            .message("must be the name that images use for Docker Hub: write docker.io"),
        validation = Rule::new("self == oldSelf")
            .message("must not change, because it names the cache and its volume: create another RegistryMirror instead")
    )]
    pub registry: String,

    /// Where the registry lives, for the cache and as the nodes' way back: a scheme and a host, with no path.
    /// Default: `https://` and `registry`; the address of `docker.io` is known.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(BARE_URL)
        .message("must be http:// or https:// and a host with an optional port, with no path, user or query, such as https://registry.example.com:5000"))]
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

    /// The cache: its replicas, their volumes and their resources.
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
}

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

/// The cache of one mirror.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// How many Pods the cache has, 1 to 3, each with a volume of its own and able to serve everything: one is lost without a
    /// failed pull. A miss asks the other replicas before the upstream.
    #[schemars(range(min = 1, max = crate::names::MOST_REPLICAS))]
    #[serde(default = "one")]
    pub replicas: i32,

    /// Where content is kept.
    #[serde(default)]
    pub storage: StorageSpec,

    /// Compute resources of the cache's container. Default: requests of 50m CPU and 64Mi memory, no limits.
    #[schemars(schema_with = "crate::schema::resources")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self { replicas: one(), storage: StorageSpec::default(), resources: None }
    }
}

const fn one() -> i32 {
    1
}

/// The cache's storage. A claim's size and class cannot be changed once it exists.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.ephemeral || !has(self.storageClassName)")
        .field_path(".storageClassName")
        .message("must not be set together with ephemeral: true, which uses no claim: remove one of the two"),
    validation = Rule::new("self.ephemeral == oldSelf.ephemeral")
        .field_path(".ephemeral")
        .message("must not change: delete the RegistryMirror and create it anew"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && \
                            (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .field_path(".storageClassName")
        .message("must not change, because a claim keeps its class: delete the RegistryMirror and its claim, then create it anew")
)]
pub struct StorageSpec {
    /// Size of the volume, at least 100Mi; with `ephemeral` the limit of the emptyDir.
    #[schemars(with = "String", length(min = 1, max = 32))]
    #[serde(default = "default_size")]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('100Mi')) >= 0")
            .message("must be a quantity of at least 100Mi, such as 50Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) == 0")
            .message("must not change, because a claim keeps its size: delete the RegistryMirror and its claim, then create it anew")
    )]
    pub size: Quantity,

    /// StorageClass of the claim. Default: the cluster's default class.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,

    /// What happens to the claim when the mirror is deleted. A retained claim is used again by the next mirror of the
    /// same registry.
    #[serde(default)]
    pub when_deleted: WhenDeleted,

    /// Keep content in an emptyDir: it survives restarts of the cache's container, not the deletion of its Pod.
    #[serde(default)]
    pub ephemeral: bool,
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: default_size(), storage_class_name: None, when_deleted: WhenDeleted::default(), ephemeral: false }
    }
}

fn default_size() -> Quantity {
    Quantity("50Gi".into())
}

/// What happens to a claim when its mirror is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDeleted {
    /// The claim stays, so that no prune or move loses a cache in an outage.
    #[default]
    Retain,
    /// The claim is deleted with the mirror.
    Delete,
}

/// Freshness of tags. Content by digest never ages.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// A tag is served without asking the upstream for this long: `30s`, `5m`, `1h30m`; at most 720h.
    #[schemars(length(min = 1, max = 32), extend("default" = "1m"))]
    #[serde(default = "default_tag_ttl", rename = "tagTTL")]
    #[x_kube(validation = Rule::new(GO_DURATION).message(
        "must be a duration from 0s to 720h in hours, minutes and seconds, such as 30s, 5m or 1h30m"))]
    pub tag_ttl: Duration,

    /// In an outage a tag is served past its TTL for this long, counted from the upstream's last good answer; at most 720h.
    #[schemars(length(min = 1, max = 32), extend("default" = "168h"))]
    #[serde(default = "default_max_stale")]
    #[x_kube(validation = Rule::new(GO_DURATION).message(
        "must be a duration from 0s to 720h in hours, minutes and seconds, such as 24h or 168h"))]
    pub max_stale: Duration,

    /// What becomes of a tag past its TTL when the upstream fails, by the class of the failure.
    #[schemars(extend("default" = {}))]
    #[serde(default)]
    pub on_error: OnError,
}

/// What becomes of a tag that is here, by what the upstream does when it is asked again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct OnError {
    /// It cannot be resolved or connected to, fails at TLS, or says nothing in time.
    pub unreachable: StaleAction,
    /// It answers 5xx.
    pub server_error: StaleAction,
    /// It answers 429, or its announced budget is nearly used up.
    pub too_many_requests: StaleAction,
    /// It answers what no registry should, such as a login page.
    pub invalid_response: StaleAction,
    /// It answers, but its token service does not.
    pub token_service: StaleAction,
    /// It answers 401 or 403.
    pub unauthorized: StaleAction,
    /// It answers 404: the tag has been deleted.
    pub not_found: StaleAction,
}

impl Default for OnError {
    fn default() -> Self {
        let stale = StaleAction::ServeStale;
        Self {
            unreachable: stale,
            server_error: stale,
            too_many_requests: stale,
            invalid_response: stale,
            token_service: stale,
            unauthorized: stale,
            not_found: StaleAction::Deny,
        }
    }
}

/// What to do with an older answer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleAction {
    /// Serve it, for as long as `maxStale` allows.
    ServeStale,
    /// Pass the failure on.
    Deny,
}

/// A scheme and a host with an optional port.
const BARE_URL: &str = "self.matches('^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?/?$')";

const GO_DURATION: &str = "self.matches('^([0-9]{1,9}(\\\\.[0-9]{1,3})?(h|m|s|ms))+$') && \
                           duration(self) >= duration('0s') && duration(self) <= duration('720h')";

impl Default for Freshness {
    fn default() -> Self {
        Self { tag_ttl: default_tag_ttl(), max_stale: default_max_stale(), on_error: OnError::default() }
    }
}

fn default_tag_ttl() -> Duration {
    std::time::Duration::from_secs(60).into()
}

fn default_max_stale() -> Duration {
    std::time::Duration::from_secs(168 * 3600).into()
}

/// The nodes of one mirror.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodesSpec {
    /// Nodes by label; empty selects all.
    #[schemars(schema_with = "crate::schema::label_selector")]
    #[serde(default)]
    pub selector: LabelSelector,

    /// What a node does with a pull that the cache cannot serve.
    #[serde(default)]
    pub fallback: Fallback,
}

/// What a node does with a pull that the cache cannot serve.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Pull from the upstream itself.
    #[default]
    Upstream,
    /// Fail: images come through the cache or not at all.
    None,
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
