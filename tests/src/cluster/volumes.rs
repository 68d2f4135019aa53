//! The default StorageClass, and PersistentVolumes made by hand: folders on the nodes.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;

use super::ClusterConfig;
use super::node::{Node, VOLUMES, node_name};

const CLASS: &str = "standard";

/// Makes the StorageClass and every node's volumes. A folder has no size limit, so the capacity is only what claims are
/// compared with.
pub(super) async fn create(client: &Client, config: &ClusterConfig) -> Result<()> {
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": {
            "name": CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Retain",
    }))
    .context("describe the StorageClass")?;
    Api::all(client.clone()).create(&PostParams::default(), &class).await.context("create the StorageClass")?;

    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for node in (1..=config.nodes).map(node_name) {
        for number in 1..=config.volumes_per_node {
            let volume = volume(&node, number)?;
            volumes.create(&PostParams::default(), &volume).await.context("create a PersistentVolume")?;
        }
    }
    Ok(())
}

/// Makes the folders on the node's disk, open to every user because fsGroup is not applied to host paths.
pub(super) async fn make_folders(node: &Node, config: &ClusterConfig) -> Result<()> {
    if config.volumes_per_node > 0 {
        node.machine()?
            .sh(&format!("for i in $(seq {}); do mkdir -p -m 0777 {VOLUMES}/$i; done", config.volumes_per_node))
            .await?;
    }
    Ok(())
}

fn volume(node: &str, number: u8) -> Result<PersistentVolume> {
    serde_json::from_value(json!({
        "metadata": {"name": format!("{node}-{number}")},
        "spec": {
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": format!("{VOLUMES}/{number}"), "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]}]}},
        },
    }))
    .context("describe a PersistentVolume")
}
