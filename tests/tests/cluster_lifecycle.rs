//! Mirrors come, change, collide and go, and Breakwater itself is removed: on a real cluster.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::binaries::workspace;
use breakwater_tests::cluster::{Cluster, ClusterConfig, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig, LOGIN, PLAIN_PORT};
use breakwater_tests::images::Image;
use breakwater_tests::product::{Product, snapshot};

const LIMIT: Duration = Duration::from_secs(60);
const FOREIGN: &str = "# by hand, with\tan odd end\r\nserver = \"http://registry-b.test:5001\"\n\n[host.'https://spare.test']\ncapabilities = ['pull']";

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_change_collide_and_go() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).await?;
    let a = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let b = Distribution::start(&cluster, DistributionConfig::at("registry-b.test:5000")).await?;
    let node = cluster.node("node-1")?;
    let folder = node.certs_d().join("registry-b.test:5000");
    std::fs::create_dir_all(&folder).context("make a folder by hand")?;
    std::fs::write(folder.join("hosts.toml"), FOREIGN).context("write a file by hand")?;
    let before = snapshot(&node.certs_d())?;
    // A file may go while it is looked at.
    let as_before = async || Ok(snapshot(&node.certs_d()).is_ok_and(|now| now == before).then_some(()));

    let product = Product::install(&cluster).await?;
    product.mirror("registry-a", &a).await?;
    product.mirror("registry-b", &b).await?;
    product.ready(LIMIT).await?;
    a_younger_claim_says_so(&cluster, product, &a).await?;
    a_broken_mirror_leaves_the_others_working(&cluster, product, &a).await?;
    a_change_rolls_out(&cluster, product).await?;
    a_deselected_node_gives_its_file_back(&cluster, product).await?;
    a_private_registry_opens_to_the_mirrors_credentials(&cluster, product).await?;
    a_registry_without_a_name_works_from_memory(&cluster, product, &a).await?;

    // Everything at once: the roles go too, and the agent still gives every file back.
    let config = workspace().join("config/default");
    cluster.kubectl(&["delete", "--wait=false", "-k", &config.to_string_lossy()]).await?;
    until(LIMIT, "certs.d to be as before", as_before).await?;
    until(LIMIT, "the agent's state to be gone", async || {
        let left = node.exec(&["sh", "-c", "ls -A /var/lib/breakwater"]).await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await?;
    let image = a.push(&Image::busybox_app("team/after", 9, &[1000])?).await?;
    cluster.run_pod("after", &image, Some(node.name())).await?.running(LIMIT).await?;
    cluster.remove().await
}

async fn a_younger_claim_says_so(cluster: &Cluster, product: Product<'_>, a: &Distribution) -> Result<()> {
    product.mirror("younger", a).await?;
    let refused = product.condition("younger", "Ready", "False", LIMIT).await?;
    ensure!(refused.reason == "RegistryConflict" && refused.message.contains("registry-a"), "{refused:?}");
    let stalled = product.condition("younger", "Stalled", "True", LIMIT).await?;
    ensure!(stalled.reason == "RegistryConflict", "{stalled:?}");
    product.condition("registry-a", "Ready", "True", LIMIT).await?;
    cluster.kubectl(&["delete", "rmir", "younger"]).await.map(drop)
}

async fn a_broken_mirror_leaves_the_others_working(
    cluster: &Cluster,
    product: Product<'_>,
    a: &Distribution,
) -> Result<()> {
    let broken = "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {name: broken}, \
                  spec: {registry: nowhere.test, cache: {storage: {storageClassName: none-such}}}}";
    cluster.apply(broken).await?;
    let pending = product.condition("broken", "CacheReady", "False", LIMIT).await?;
    ensure!(!pending.message.is_empty(), "{pending:?}");
    let image = a.push(&Image::busybox_app("team/beside", 7, &[1000])?).await?;
    cluster.run_pod("beside", &image, None).await?.running(LIMIT).await?;
    product.condition("registry-a", "Ready", "True", LIMIT).await?;
    cluster.kubectl(&["delete", "rmir", "broken"]).await.map(drop)
}

async fn a_change_rolls_out(cluster: &Cluster, product: Product<'_>) -> Result<()> {
    let patch = r#"{"spec":{"freshness":{"maxStale":"24h"}}}"#;
    cluster.kubectl(&["patch", "rmir", "registry-a", "--type=merge", "-p", patch]).await?;
    until(LIMIT, "the new flag in the cache's Pod", async || {
        let template = "jsonpath={.items[*].spec.containers[0].args}";
        let selector = "breakwater.dev/mirror=registry-a";
        let flags =
            cluster.kubectl(&["-n", "breakwater-system", "get", "pods", "-l", selector, "-o", template]).await?;
        Ok((flags.contains("86400s") || flags.contains("24h")).then_some(()))
    })
    .await?;
    product.ready(LIMIT).await
}

async fn a_deselected_node_gives_its_file_back(cluster: &Cluster, product: Product<'_>) -> Result<()> {
    let file = cluster.node("node-1")?.certs_d().join("registry-a.test/hosts.toml");
    ensure!(file.exists(), "the node has no file of ours to begin with");
    let patch = r#"{"spec":{"nodes":{"selector":{"matchLabels":{"no-node":"has-this"}}}}}"#;
    cluster.kubectl(&["patch", "rmir", "registry-a", "--type=merge", "-p", patch]).await?;
    until(LIMIT, "the deselected node's file to go", async || Ok((!file.exists()).then_some(()))).await?;
    let patch = r#"{"spec":{"nodes":{"selector":{"matchLabels":null}}}}"#;
    cluster.kubectl(&["patch", "rmir", "registry-a", "--type=merge", "-p", patch]).await?;
    until(LIMIT, "its file to come back", async || Ok(file.exists().then_some(()))).await?;
    product.ready(LIMIT).await
}

/// The Secret comes after the mirror, as a GitOps tool may apply them.
async fn a_private_registry_opens_to_the_mirrors_credentials(cluster: &Cluster, product: Product<'_>) -> Result<()> {
    let upstream = Distribution::start(cluster, DistributionConfig::at("registry-c.test").private()).await?;
    let image = upstream.push(&Image::busybox_app("team/secret", 11, &[1000])?).await?;
    let mirror = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: registry-c}}, \
          spec: {{registry: registry-c.test, url: '{}', credentials: [{{secretRef: {{name: login}}}}]}}}}",
        upstream.plain_url()
    );
    cluster.apply(&mirror).await?;
    let missing = product.condition("registry-c", "UpstreamCredentialsAccepted", "False", LIMIT).await?;
    ensure!(missing.reason == "SecretNotFound" && missing.message.contains("login"), "{missing:?}");
    let (user, password) = (format!("--docker-username={}", LOGIN.0), format!("--docker-password={}", LOGIN.1));
    let secret = ["-n", "breakwater-system", "create", "secret", "docker-registry", "login"];
    cluster.kubectl(&[&secret[..], &["--docker-server=registry-c.test", &user, &password]].concat()).await?;
    // The kubelet takes up to a minute and a half to bring a Secret into a running Pod.
    product.condition("registry-c", "UpstreamCredentialsAccepted", "True", Duration::from_secs(150)).await?;
    product.ready(LIMIT).await?;
    cluster.run_pod("secret", &image, None).await?.running(LIMIT).await.map(drop)
}

/// An address and a port instead of a name, an emptyDir instead of a claim, and resources.
async fn a_registry_without_a_name_works_from_memory(
    cluster: &Cluster,
    product: Product<'_>,
    a: &Distribution,
) -> Result<()> {
    let registry = format!("{}:{PLAIN_PORT}", a.address());
    let mirror = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: by-address}}, \
          spec: {{registry: '{registry}', url: 'http://{registry}', cache: {{storage: {{ephemeral: true, size: 1Gi}}, \
                  resources: {{requests: {{cpu: 10m}}, limits: {{memory: 256Mi}}}}}}}}}}"
    );
    cluster.apply(&mirror).await?;
    product.ready(LIMIT).await?;
    let pushed = a.push(&Image::busybox_app("team/by-address", 12, &[1000])?).await?;
    let image = pushed.replace("registry-a.test", &registry);
    cluster.run_pod("by-address", &image, None).await?.running(LIMIT).await.map(drop)
}
