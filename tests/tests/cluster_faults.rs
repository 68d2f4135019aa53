//! Kills and power cuts in the middle of pulls, on a real cluster: every pull succeeds.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::cluster::{Cluster, ClusterConfig, Node, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig};
use breakwater_tests::images::Image;
use breakwater_tests::product::{AGENT_PROGRAM, CACHE_PROGRAM, OPERATOR_PROGRAM, Product};

const LIMIT: Duration = Duration::from_secs(90);
/// At [`SLOW`] this takes long enough to be killed in the middle of.
const LARGE: usize = 24 << 20;
/// A slow link, so that a pull has a middle.
const SLOW: &str = "tc qdisc replace dev eth0 root tbf rate 64mbit burst 256kb latency 50ms";
const FAST: &str = "tc qdisc del dev eth0 root";

struct Scene<'a> {
    cluster: &'a Cluster,
    upstream: &'a Distribution,
    product: Product<'a>,
}

impl Scene<'_> {
    async fn push(&self, name: &str, seed: u64, size: usize) -> Result<String> {
        self.upstream.push(&Image::busybox_app(name, seed, &[size])?).await
    }

    /// Bytes that the cache got from its registry; a cache that is just being killed does not answer.
    async fn received(&self) -> Result<f64> {
        self.product.cache_metric("registry-a", "breakwater_cache_content_bytes_total", "source=\"upstream\"").await
    }

    /// A Pod of the image runs on the node, which has to pull it.
    async fn runs(&self, name: &str, image: &str, node: &Node) -> Result<()> {
        let pod = self.cluster.run_pod(name, image, Some(node.name())).await?;
        match pod.running(LIMIT).await {
            Ok(start) => ensure!(start.pull.is_some(), "{} had the image already", node.name()),
            Err(error) => return Err(error.context(self.product.complaints().await).context(node.tails().await)),
        }
        Ok(())
    }

    /// Starts a Pod of a new large image, kills `program` when part of the image has come, and waits for the Pod.
    async fn killed_in_mid_pull(&self, program: &str, seed: u64, node: &Node) -> Result<()> {
        let name = format!("mid-pull-{seed}");
        let image = self.push(&format!("team/{name}"), seed, LARGE).await?;
        self.upstream.host().machine().sh(SLOW).await?;
        let before = until(LIMIT, "the cache to tell", async || Ok(self.received().await.ok())).await?;
        let pod = self.cluster.run_pod(&name, &image, Some(node.name())).await?;
        let has_begun = async || Ok(self.received().await.is_ok_and(|now| now > before + 2e6).then_some(()));
        until(LIMIT, "a part of the image to come", has_begun).await?;
        self.product.signal(program, "KILL").await?;
        pod.running(LIMIT).await.with_context(|| format!("{program} was killed in mid-pull"))?;
        self.upstream.host().machine().sh(FAST).await?;
        self.product.ready(LIMIT).await
    }
}

/// The registry's packets vanish without a word, which is the slowest way to fail.
async fn swallowed_packets_cost_no_pull(scene: &Scene<'_>, image: &str, node: &Node) -> Result<()> {
    scene.cluster.machine().drop_packets_to(scene.upstream.address()).await?;
    let start = scene.cluster.run_pod("swallowed", image, Some(node.name())).await?.running(LIMIT).await?;
    // Past the cache it would be containerd's 30 s for a connection.
    ensure!(start.pull.is_some_and(|pull| pull < Duration::from_secs(15)), "a cached image took {start:?}");
    scene.cluster.machine().heal_network().await?;
    scene.cluster.kubectl(&["delete", "pod", "swallowed", "--force", "--grace-period=0"]).await?;
    until(LIMIT, "the image to leave the node", async || Ok(node.remove_image(image).await.ok())).await
}

/// The nodes lose the machine with API server and name server, and their agents are killed on top; the registry is down.
async fn neither_api_server_nor_dns_is_needed(scene: &Scene<'_>, image: &str, node: &Node) -> Result<()> {
    let lost = scene.cluster.machine().address();
    for node in scene.cluster.nodes() {
        node.machine()?.drop_packets_to(lost).await?;
    }
    let dial = format!("timeout 1 bash -c 'echo >/dev/tcp/{lost}/6443'");
    ensure!(node.machine()?.sh(&dial).await.is_err(), "the API server is still in reach");
    scene.product.signal(AGENT_PROGRAM, "KILL").await?;
    // As the kubelet would have containerd do it, had it been told of a Pod.
    let pull = ["images", "pull", "--hosts-dir", "/etc/containerd/certs.d", image];
    until(LIMIT, "a pull through a new agent", async || Ok(node.ctr(&pull).await.ok())).await?;
    for node in scene.cluster.nodes() {
        node.machine()?.heal_network().await?;
    }
    node.remove_image(image).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_power_cuts_cost_no_pull() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig { nodes: 2, ..ClusterConfig::default() }).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let product = Product::install(&cluster).await?;
    product.mirror("registry-a", &upstream).await?;
    product.ready(LIMIT).await?;
    let scene = Scene { cluster: &cluster, upstream: &upstream, product };
    let (one, two) = (cluster.node("node-1")?, cluster.node("node-2")?);

    scene.killed_in_mid_pull(CACHE_PROGRAM, 1, one).await?;
    scene.killed_in_mid_pull(AGENT_PROGRAM, 2, one).await?;
    scene.killed_in_mid_pull(OPERATOR_PROGRAM, 3, one).await?;

    // A node loses its power in the outage, comes back, and pulls an image it never had.
    let cache_node = scene.product.cache_pod("registry-a").await?.node;
    let (keeps, loses) = if cache_node == one.name() { (one, two) } else { (two, one) };
    let image = scene.push("team/seen", 10, 1 << 20).await?;
    cluster.run_pod("seen", &image, Some(keeps.name())).await?.running(LIMIT).await?;
    swallowed_packets_cost_no_pull(&scene, &image, loses).await?;
    upstream.stop().await?;
    let unreachable = scene.product.condition("registry-a", "UpstreamReachable", "False", LIMIT).await?;
    ensure!(unreachable.message.contains("registry-a.test"), "{}", unreachable.message);
    neither_api_server_nor_dns_is_needed(&scene, &image, loses).await?;
    loses.power_off().await?;
    loses.power_on().await?;
    scene.runs("after-power-cut", &image, loses).await?;

    // The same for the node of the cache itself: its Pod comes back over its volume, still without a registry.
    keeps.power_off().await?;
    keeps.power_on().await?;
    cluster.kubectl(&["delete", "pod", "seen", "after-power-cut", "--force", "--grace-period=0"]).await?;
    for node in [keeps, loses] {
        until(LIMIT, "the image to leave a node", async || Ok(node.remove_image(&image).await.ok())).await?;
        scene.runs(&format!("after-{}", node.name()), &image, node).await?;
    }
    cluster.remove().await
}
