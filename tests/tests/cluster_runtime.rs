//! A containerd that ignores hosts.toml, as it does by default, on a real cluster: the node says so with the mend, Pods start,
//! and once mended pulls go through the cache.
#![cfg(feature = "cluster")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_crds::{MirrorNode, MirrorState};
use breakwater_tests::binaries::workspace;
use breakwater_tests::cluster::{Cluster, ClusterConfig, Node, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig};
use breakwater_tests::images::Image;
use breakwater_tests::product::{AGENT_PROGRAM, Product};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
const ONE_FOLDER: &str = r#"config_path = "/etc/containerd/certs.d""#;
const PRESETS: [&str; 8] = ["k3s", "rke2", "k0s", "microk8s", "talos", "cri-o", "without-socket", "configure-runtime"];

/// Waits for the condition that tells whether the runtime reads our files.
async fn configured(cluster: &Cluster, node: &Node, reason: &str) -> Result<(Condition, MirrorNode)> {
    let nodes: Api<MirrorNode> = Api::all(cluster.client());
    let mut last = None;
    let reached = until(LIMIT, &format!("RuntimeConfigured to be {reason}"), async || {
        let Some(found) = nodes.get_opt(node.name()).await.context("get the MirrorNode")? else { return Ok(None) };
        let conditions = found.status.iter().flat_map(|status| &status.conditions);
        last = conditions.clone().find(|one| one.type_ == "RuntimeConfigured").cloned();
        Ok(last.clone().filter(|one| one.reason == reason).map(|one| (one, found)))
    })
    .await;
    reached.with_context(|| format!("RuntimeConfigured is {last:?}"))
}

/// Waits until the node pulls through its cache. Ready of the mirror would not do: it forgives a node for a while.
async fn active(cluster: &Cluster, node: &Node) -> Result<()> {
    let nodes: Api<MirrorNode> = Api::all(cluster.client());
    until(LIMIT, "the mirror to be active", async || {
        let status = nodes.get(node.name()).await.context("get the MirrorNode")?.status.unwrap_or_default();
        Ok((status.observed.mirrors == 1 && status.observed.active == 1).then_some(()))
    })
    .await
}

/// Restarts the node with another `config_path`.
async fn reboot_with(node: &Node, from: &str, to: &str) -> Result<()> {
    let path = node.containerd_config();
    let text = std::fs::read_to_string(&path).context("read config.toml")?;
    ensure!(text.contains(from), "config.toml does not say {from}");
    node.power_off().await?;
    std::fs::write(&path, text.replace(from, to)).context("write config.toml")?;
    node.power_on().await
}

async fn no_canary_is_left(node: &Node) -> Result<()> {
    let images = node.ctr(&["images", "ls"]).await?;
    ensure!(!images.contains("breakwater-canary"), "{images}");
    Ok(())
}

/// Makes an overlay of config/default with one preset.
fn overlay(preset: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let path = folder.path().canonicalize().context("find the folder")?;
    let config = workspace().join("config").canonicalize().context("find config")?;
    let (base, component) = (config.join("default"), config.join("node-agent/presets").join(preset));
    // Kustomize takes relative paths alone.
    let up = "../".repeat(path.components().count() - 1);
    let below = |path: &Path| format!("{up}{}", path.display().to_string().trim_start_matches('/'));
    let overlay = format!("resources: [{}]\ncomponents: [{}]\n", below(&base), below(&component));
    std::fs::write(path.join("kustomization.yaml"), overlay).context("write an overlay")?;
    Ok(folder)
}

/// The API server judges every field of what a preset makes of config/default.
async fn presets_are_accepted(cluster: &Cluster) -> Result<()> {
    for preset in PRESETS {
        let folder = overlay(preset)?;
        let path = folder.path().canonicalize().context("find the folder")?;
        let applied = cluster.kubectl(&["apply", "--dry-run=server", "-k", &path.to_string_lossy()]).await;
        let applied = applied.with_context(|| format!("apply the preset {preset}"))?;
        ensure!(applied.contains("daemonset.apps/breakwater-node-agent configured"), "{preset}: {applied}");
    }
    Ok(())
}

/// Pulls new images until one comes through the cache: just after a node's start the cache may not find its registry yet, and pulls
/// pass it by.
async fn pulls_go_through(cluster: &Cluster, product: Product<'_>, upstream: &Distribution) -> Result<()> {
    static SEED: AtomicU64 = AtomicU64::new(100);
    let source = "source=\"upstream\"";
    let before = product.cache_metric("registry-a", "breakwater_cache_content_bytes_total", source).await?;
    until(LIMIT, "a pull through the cache", async || {
        let seed = SEED.fetch_add(1, Ordering::Relaxed);
        let image = upstream.push(&Image::busybox_app(&format!("team/through-{seed}"), seed, &[1000])?).await?;
        cluster.run_pod(&format!("through-{seed}"), &image, None).await?.running(LIMIT).await?;
        let received = product.cache_metric("registry-a", "breakwater_cache_content_bytes_total", source).await?;
        Ok((received > before).then_some(()))
    })
    .await
}

/// A stopped process still takes connections, so only its liveness probe frees the pulls that wait for it.
async fn a_hung_agent_is_ended(cluster: &Cluster, product: Product<'_>, upstream: &Distribution) -> Result<()> {
    let image = upstream.push(&Image::busybox_app("team/hung", 99, &[1000])?).await?;
    product.signal(AGENT_PROGRAM, "STOP").await?;
    let start = cluster.run_pod("hung", &image, None).await?.running(LIMIT).await?;
    println!("pulled in {:.1?} past a stopped agent", start.pull);
    ensure!(start.total < Duration::from_secs(60), "{start:?}");
    pulls_go_through(cluster, product, upstream).await
}

/// The agent writes the drop-in itself, and containerd reads it at its next start.
async fn the_agent_configures_it(cluster: &Cluster, node: &Node) -> Result<()> {
    let table = "[plugins.'io.containerd.cri.v1.images'.registry]\n";
    let mended = format!("{table}  {ONE_FOLDER}\n");
    reboot_with(node, &mended, table).await?;
    let (ignored, _) = configured(cluster, node, "MultiplePaths").await?;
    ensure!(!ignored.message.contains("--configure-runtime"), "{ignored:?}");
    let folder = overlay("configure-runtime")?;
    let path = folder.path().canonicalize().context("find the folder")?;
    cluster.kubectl(&["apply", "-k", &path.to_string_lossy()]).await?;
    // It says what it lacks.
    until(LIMIT, "what stands in the way", async || {
        let (said, _) = configured(cluster, node, "MultiplePaths").await?;
        Ok(said.message.contains("imports = ").then_some(()))
    })
    .await?;
    let before = std::fs::read_to_string(node.containerd_config()).context("read config.toml")?;
    let imports = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{before}");
    std::fs::write(node.containerd_config(), imports).context("write config.toml")?;
    let drop_in = node.certs_d().with_file_name("conf.d").join("99-breakwater.toml");
    until(LIMIT, "the drop-in", async || Ok(drop_in.exists().then_some(()))).await?;
    node.power_off().await?;
    node.power_on().await?;
    configured(cluster, node, "Proven").await?;
    active(cluster, node).await?;
    let config = workspace().join("config/default");
    cluster.kubectl(&["-n", "breakwater-nodes", "delete", "ds", "breakwater-node-agent"]).await?;
    until(LIMIT, "the drop-in to be taken back", async || Ok((!drop_in.exists()).then_some(()))).await?;
    cluster.kubectl(&["apply", "-k", &config.to_string_lossy()]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_ignores_the_files_is_found_out_and_mended() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let node = cluster.node("node-1")?;
    let product = Product::install(&cluster).await?;
    product.mirror("registry-a", &upstream).await?;
    product.ready(LIMIT).await?;
    let (proven, _) = configured(&cluster, node, "Proven").await?;
    ensure!(proven.status == "True" && proven.message.contains("registry-a.test"), "{proven:?}");
    no_canary_is_left(node).await?;
    presets_are_accepted(&cluster).await?;

    // Without a word of its own, this containerd takes two folders and then reads neither.
    reboot_with(node, ONE_FOLDER, "").await?;
    let (ignored, found) = configured(&cluster, node, "MultiplePaths").await?;
    ensure!(ignored.status == "False", "{ignored:?}");
    for part in ["/etc/containerd/config.toml", "io.containerd.cri.v1.images", ONE_FOLDER, "restart containerd"] {
        ensure!(ignored.message.contains(part), "{part} is not in {}", ignored.message);
    }
    let inactive = found.status.unwrap_or_default().inactive;
    ensure!(inactive.len() == 1 && inactive[0].state == MirrorState::Failed, "{inactive:?}");
    let failed = product.condition("registry-a", "NodesReady", "False", LIMIT).await?;
    ensure!(failed.reason == "NodesFailed", "{failed:?}");
    let image = upstream.push(&Image::busybox_app("team/past", 1, &[1000])?).await?;
    cluster.run_pod("past", &image, None).await?.running(LIMIT).await?;

    let table = "[plugins.'io.containerd.cri.v1.images'.registry]\n";
    reboot_with(node, table, &format!("{table}  {ONE_FOLDER}\n")).await?;
    configured(&cluster, node, "Proven").await?;
    active(&cluster, node).await?;
    pulls_go_through(&cluster, product, &upstream).await?;
    a_hung_agent_is_ended(&cluster, product, &upstream).await?;
    no_canary_is_left(node).await?;

    // The folder that the agent has mounted goes; the kubelet gives a new process the new one.
    node.exec(&["rm", "-rf", "/etc/containerd/certs.d"]).await?;
    let file = node.certs_d().join("registry-a.test/hosts.toml");
    until(LIMIT, "the file in a new certs.d", async || Ok(file.exists().then_some(()))).await?;
    the_agent_configures_it(&cluster, node).await?;
    cluster.remove().await
}
