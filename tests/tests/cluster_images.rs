//! Images in use outlive their registry, on a real cluster: a node that never had one starts a Pod of it while the registry is gone.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::cluster::{Cluster, ClusterConfig, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig};
use breakwater_tests::images::Image;
use breakwater_tests::product::Product;

const LIMIT: Duration = Duration::from_secs(90);
const MIRROR: &str = "registry-a";

/// Waits until what the mirror says of the images in use is that.
async fn shown(product: Product<'_>, cluster: &Cluster, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
    let mut last = String::new();
    let shown = until(LIMIT, what, async || {
        let path = "jsonpath={.status.images.exposed[*]} {.status.summary.survivable}";
        last = cluster.kubectl(&["get", "rmir", MIRROR, "-o", path]).await?;
        Ok(fits(&last).then(|| last.clone()))
    });
    match shown.await {
        Ok(shown) => Ok(shown),
        Err(error) => Err(error.context(product.complaints().await).context(last)),
    }
}

fn deployment(name: &str, image: &str, replicas: u8) -> String {
    format!(
        "---\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}, namespace: default}}, \
         spec: {{replicas: {replicas}, selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: '{image}'}}]}}}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_never_pulled_outlives_its_registry() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig { nodes: 2, ..ClusterConfig::default() }).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let product = Product::install(&cluster).await?;
    product.mirror(MIRROR, &upstream).await?;
    product.ready(LIMIT).await?;

    // No node pulls it: the Deployment has no Pods yet.
    let image = upstream.push(&Image::busybox_app("team/app", 1, &[256 << 10])?).await?;
    let absent = format!("{}/team/none:v1", upstream.registry());
    cluster.apply(&deployment("app", &image, 0)).await?;
    // Without an image in use all of them survive: only the figures tell that this one has come.
    shown(product, &cluster, "the image to be kept", |shown| shown.trim() == "1/1").await?;
    product.condition(MIRROR, "ImagesSurvivable", "True", LIMIT).await.context("before the other")?;
    cluster.apply(&deployment("none", &absent, 0)).await?;
    let is_exposed = |shown: &str| shown.contains("\"reason\":\"NotFound\"") && shown.ends_with(" 1/2");
    let exposed = shown(product, &cluster, "the absent image to be exposed", is_exposed).await?;
    ensure!(exposed.contains(&absent), "{exposed}");
    cluster.kubectl(&["delete", "deployment", "none"]).await?;
    product.condition(MIRROR, "ImagesSurvivable", "True", LIMIT).await.context("without the other")?;

    upstream.stop().await?;
    for node in ["node-1", "node-2"] {
        let start = cluster.run_pod(&format!("on-{node}"), &image, Some(node)).await?.running(LIMIT).await;
        let start = match start {
            Ok(start) => start,
            Err(error) => return Err(error.context(product.complaints().await)),
        };
        ensure!(start.pull.is_some(), "{node} had the image already");
    }
    product.ready(LIMIT).await?;
    cluster.remove().await
}
