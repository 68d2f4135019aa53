//! The cache of a mirror: its replicas, their storage and their places. Holds no behaviour but defaults.

use super::rules::object_name;
use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The cache of one mirror.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
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

    /// Labels that a node must have to run a replica.
    #[schemars(schema_with = "crate::schema::node_selector")]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that replicas put up with. Replicas leave a node that is not ready or unreachable after 30 s, unless one of these
    /// is for `node.kubernetes.io/not-ready` or `node.kubernetes.io/unreachable`.
    #[schemars(schema_with = "crate::schema::tolerations")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,

    /// Further rules for the place of replicas. Several replicas already prefer a node and a zone of their own.
    #[schemars(schema_with = "crate::schema::affinity")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// PriorityClass of the replicas. Pods of others can need images from a cache to start, hence the default.
    #[schemars(length(min = 1, max = 253), extend("default" = "system-cluster-critical"))]
    #[x_kube(validation = object_name("must be the name of a PriorityClass: lower-case letters, digits, - and ."))]
    #[serde(default = "cluster_critical")]
    pub priority_class_name: String,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self {
            replicas: one(),
            storage: StorageSpec::default(),
            resources: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
            priority_class_name: cluster_critical(),
        }
    }
}

fn cluster_critical() -> String {
    "system-cluster-critical".to_owned()
}

const fn one() -> i32 {
    1
}

/// The cache's storage. A claim can grow where its class allows that; its class cannot be changed.
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
    /// Size of the volume, 100Mi to 1Pi; with `ephemeral` the limit of the emptyDir. More makes claims grow, where their
    /// StorageClass has `allowVolumeExpansion`; less is refused.
    #[schemars(with = "String", length(min = 1, max = 32))]
    #[serde(default = "default_size")]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('100Mi')) >= 0")
            .message("must be a quantity of at least 100Mi, such as 50Gi"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('1Pi')) <= 0")
            .message("must be at most 1Pi, such as 50Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("must not shrink, because a claim can only grow: delete the RegistryMirror and its claim, then create it anew")
    )]
    pub size: Quantity,

    /// StorageClass of the claim. Default: the cluster's default class.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("must be the name of a StorageClass: lower-case letters, digits, - and ."))]
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
