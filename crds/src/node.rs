//! `MirrorNode`: what the agent of one node reports. Cluster-scoped, named as its Node, written by that node's agent alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing is asked of a node here: a `MirrorNode` only reports.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "breakwater.dev",
    version = "v1alpha1",
    kind = "MirrorNode",
    plural = "mirrornodes",
    shortname = "mnode",
    category = "breakwater",
    no_spec,
    doc = "How one node uses the mirrors, reported by the agent on it.",
    derive = "Default",
    derive = "PartialEq",
    status = "MirrorNodeStatus",
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtime.version"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Mirrors",
        type_ = "string",
        json_path = ".status.summary",
        description = "Active mirrors, of those that select this node"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Status",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    )
)]
pub struct MirrorNodeSpec {}

/// The observed state of one node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MirrorNodeStatus {
    /// The container runtime and the folder it reads mirrors from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,

    /// How many mirrors select this node and how many are active.
    #[serde(default)]
    pub observed: Observed,

    /// `observed` joined for `kubectl get`: `11/12`.
    #[serde(default)]
    pub summary: String,

    /// Registries that this node pulls through their cache, sorted.
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default)]
    pub active: Vec<String>,

    /// Mirrors that select this node and are not active, by registry; at most 50 are listed.
    #[schemars(length(max = 50))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["registry".into()]))]
    #[serde(default)]
    pub inactive: Vec<InactiveMirror>,

    /// Ready: every mirror that selects this node is active. RuntimeConfigured: the container runtime reads what the agent writes.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The container runtime of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Name and version as the kubelet reports them: `containerd://2.4.2`.
    pub version: String,
    /// The folder that the agent writes, as the node sees it.
    pub config_path: String,
}

/// Counts of mirrors on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Mirrors that select this node.
    pub mirrors: i32,
    /// Of these, the active ones.
    pub active: i32,
}

/// A mirror that selects a node and is not active there.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct InactiveMirror {
    /// The mirror's registry.
    pub registry: String,
    /// What the node does instead.
    pub state: MirrorState,
    /// Why, as one CamelCase word.
    pub reason: String,
    /// Why, in a sentence with the mend.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when.
    pub since: Time,
}

/// What a node does with a mirror that is not active.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MirrorState {
    /// The cache has not answered from this node yet; pulls go straight to the upstream.
    Pending,
    /// The cache stopped answering; pulls go straight to the upstream.
    Bypassed,
    /// The node could not be configured for this mirror.
    Failed,
}
