//! The nodes of a mirror. Holds no behaviour but defaults.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The nodes of one mirror.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodesSpec {
    /// Nodes by label; empty selects all.
    #[schemars(schema_with = "crate::schema::node_labels")]
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
