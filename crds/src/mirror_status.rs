//! What the operator reports of a `RegistryMirror`. Plain data; who computes it is no concern of this module.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The observed state of one mirror.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RegistryMirrorStatus {
    /// The generation this status speaks of; -1 until the operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, CacheReady, NodesReady, UpstreamReachable, UpstreamCredentialsAccepted, ImagesSurvivable; Reconciling and Stalled while they apply.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,

    /// The cache that serves this mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,

    /// The upstream as the cache sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamStatus>,

    /// Figures joined for `kubectl get`, whose columns cannot join two fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,

    /// The selected nodes by what they do with this mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,

    /// The images in use that come from this registry, and whether they would survive its loss; absent until that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImagesStatus>,
}

/// The cache of a mirror.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// Name of its Service and StatefulSet in the operator's namespace.
    pub service: String,
    /// Replicas that are ready.
    pub ready_replicas: i32,
    /// Size of the cached content as a quantity, as last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// The upstream registry as the cache sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    /// Whether it answers; absent until it was first spoken to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable: Option<bool>,
    /// Since when `reachable` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// What went wrong, in one line; empty while it answers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Pulls left in the upstream's current rate limit window, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_remaining: Option<i64>,
}

/// Figures for `kubectl get`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Active nodes of desired ones: `39/40`.
    pub nodes: String,
    /// Images that would survive the loss of the registry, of those in use: `209/212`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub survivable: String,
}

/// The selected nodes of a mirror.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Ready nodes that the mirror selects.
    pub desired: i32,
    /// Of these, nodes that pull through the cache.
    pub active: i32,
    /// Nodes that go straight to the upstream because the cache does not answer them.
    pub bypassed: i32,
    /// Nodes that could not be configured.
    pub failed: i32,
}

/// The images in use that come from a mirror's registry, those of `spec.images.include` among them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImagesStatus {
    /// How many there are.
    pub in_use: i32,
    /// How many would survive the loss of the registry: at least one replica of the cache holds all of each, and keeps it.
    pub survivable: i32,
    /// Those that would not, at most 20 of them.
    #[schemars(length(max = 20))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<ExposedImage>,
}

/// An image that would not survive the loss of its registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExposedImage {
    /// Its full name.
    pub image: String,
    /// Why it would not: one of the reasons of ImagesSurvivable.
    pub reason: String,
    /// Since when it would not, whatever the reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}
