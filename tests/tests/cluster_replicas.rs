//! Two replicas of a cache, on a real cluster: the loss of one, with its node, costs no pull, in an outage of upstream too.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Result, ensure};
use breakwater_tests::cluster::{Cluster, ClusterConfig, Node, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig};
use breakwater_tests::images::Image;
use breakwater_tests::product::{CachePod, Product};

const LIMIT: Duration = Duration::from_secs(90);
const MIRROR: &str = "registry-a";
/// So many that the nodes ask each replica for some of them.
const IMAGES: u64 = 6;

/// A Pod of each image runs on the node, which has to pull all of them.
async fn runs_all(cluster: &Cluster, node: &Node, images: &[String]) -> Result<()> {
    for (index, image) in images.iter().enumerate() {
        let name = format!("app-{index}");
        cluster.kubectl(&["delete", "pod", &name, "--force", "--grace-period=0", "--ignore-not-found"]).await?;
        if node.ctr(&["images", "ls", "--quiet"]).await?.lines().any(|known| known == image) {
            until(LIMIT, "the image to leave the node", async || Ok(node.remove_image(image).await.ok())).await?;
        }
        let start = cluster.run_pod(&name, image, Some(node.name())).await?.running(LIMIT).await?;
        ensure!(start.pull.is_some(), "{} had {image} already", node.name());
    }
    Ok(())
}

/// Each replica has told the other of everything.
async fn replicated(product: &Product<'_>, pods: &[CachePod]) -> Result<()> {
    until(LIMIT, "the replicas to hold the same", async || {
        let mut queued = 0.0;
        for pod in pods {
            queued += product.pod_metric(pod, "breakwater_cache_replication_queued", "").await?;
        }
        Ok((queued == 0.0).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_replica_costs_no_pull() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig { nodes: 2, ..ClusterConfig::default() }).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let product = Product::install(&cluster).await?;
    product.mirror(MIRROR, &upstream).await?;
    product.ready(LIMIT).await?;

    let replicas = |count: u8| format!("{{\"spec\":{{\"cache\":{{\"replicas\":{count}}}}}}}");
    cluster.kubectl(&["patch", "rmir", MIRROR, "--type=merge", "-p", &replicas(2)]).await?;
    let serves = until(LIMIT, "both replicas to serve", async || {
        let condition = product.condition(MIRROR, "CacheReady", "True", LIMIT).await?;
        Ok((condition.message == "all 2 replicas of cache-registry-a-test serve").then_some(()))
    });
    if let Err(error) = serves.await {
        return Err(error.context(product.complaints().await));
    }
    let pods = product.cache_pods(MIRROR).await?;
    ensure!(pods.len() == 2 && pods[0].node != pods[1].node, "each on a node of its own: {pods:?}");
    let budget =
        ["-n", "breakwater-system", "get", "pdb", "cache-registry-a-test", "-o", "jsonpath={.spec.maxUnavailable}"];
    ensure!(cluster.kubectl(&budget).await?.trim() == "1", "drains take one Pod at a time");

    let mut images = Vec::new();
    for seed in 0..IMAGES {
        images.push(upstream.push(&Image::busybox_app(&format!("team/app-{seed}"), seed, &[256 << 10])?).await?);
    }
    runs_all(&cluster, cluster.node("node-1")?, &images).await?;
    let (lost, left) = (cluster.node("node-1")?, cluster.node("node-2")?);
    replicated(&product, &pods).await?;
    upstream.stop().await?;
    lost.power_off().await?;
    runs_all(&cluster, left, &images).await?;
    lost.power_on().await?;
    upstream.resume(&cluster).await?;
    until(LIMIT, "both replicas to serve again", async || {
        let condition = product.condition(MIRROR, "CacheReady", "True", LIMIT).await?;
        Ok(condition.message.starts_with("all 2 replicas").then_some(()))
    })
    .await?;

    cluster.kubectl(&["patch", "rmir", MIRROR, "--type=merge", "-p", &replicas(1)]).await?;
    until(LIMIT, "the peers' Services to be gone", async || {
        let services = ["-n", "breakwater-system", "get", "services", "-o", "name"];
        Ok((!cluster.kubectl(&services).await?.contains("-peer-")).then_some(()))
    })
    .await?;
    product.ready(LIMIT).await?;
    cluster.remove().await
}
