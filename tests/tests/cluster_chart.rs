//! The chart on a real cluster: installed, upgraded from the previous commit's, rolled back and uninstalled, with a mirror that
//! serves throughout.
#![cfg(feature = "cluster")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::binaries::workspace;
use breakwater_tests::cluster::{Cluster, ClusterConfig, until};
use breakwater_tests::distribution::{Distribution, DistributionConfig};
use breakwater_tests::gitops::assess;
use breakwater_tests::images::Image;
use breakwater_tests::product::{Product, snapshot};
use breakwater_tests::release;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const FOREIGN: &str = "# by hand\nserver = \"http://registry-a.test:5001\"\n\n[host.'http://spare.test']\n";
const RELEASE: &[&str] = &["breakwater", "--namespace=breakwater-system"];

/// The chart as the previous commit has it; the present one where that commit has none, as in a clone of depth 1.
fn previous_chart() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let archive = folder.path().join("chart.tar");
    let git = |revision: &str| {
        let output = format!("--output={}", archive.display());
        let arguments = ["archive", &output, revision, "charts/breakwater"];
        Command::new("git").args(arguments).current_dir(workspace()).output().context("run git archive")
    };
    let revision = if git("HEAD~1")?.status.success() { "HEAD~1" } else { "HEAD" };
    ensure!(git(revision)?.status.success(), "git archive has no chart of {revision}");
    println!("upgrading from the chart of {revision}");
    let file = std::fs::File::open(&archive).context("open the archive")?;
    tar::Archive::new(file).unpack(folder.path()).context("unpack the archive")?;
    let chart = folder.path().join("charts/breakwater");
    Ok((folder, chart))
}

async fn helm(cluster: &Cluster, action: &[&str], rest: &[&str]) -> Result<String> {
    cluster.helm(&[action, RELEASE, rest].concat()).await
}

/// What a replaced cache would have another of.
async fn identity_of_the_cache(cluster: &Cluster) -> Result<String> {
    let template = "jsonpath={.items[*].metadata.uid}";
    let namespace = ["-n", "breakwater-system", "get", "statefulsets,persistentvolumeclaims", "-o", template];
    cluster.kubectl(&namespace).await
}

async fn pulls(cluster: &Cluster, upstream: &Distribution, seed: u64) -> Result<()> {
    let name = format!("app-{seed}");
    let image = upstream.push(&Image::busybox_app(&format!("team/{name}"), seed, &[1000])?).await?;
    cluster.run_pod(&name, &image, None).await?.running(LIMIT).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_installed_upgraded_rolled_back_and_uninstalled() -> Result<()> {
    let archive = tokio::task::spawn_blocking(release::image_archive).await.context("build the image")??;
    let cluster = Cluster::start(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).await?;
    let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
    let node = cluster.node("node-1")?;
    node.import_image(&archive).await?;
    let folder = node.certs_d().join("registry-a.test");
    std::fs::create_dir_all(&folder).context("make a folder by hand")?;
    std::fs::write(folder.join("hosts.toml"), FOREIGN).context("write a file by hand")?;
    let before = snapshot(&node.certs_d())?;
    // A file may go while it is looked at.
    let as_before = async || Ok(snapshot(&node.certs_d()).is_ok_and(|now| now == before).then_some(()));
    let product = Product::installed(&cluster);
    let chart = workspace().join("charts/breakwater").to_string_lossy().into_owned();
    let (_folder, previous) = previous_chart()?;
    let previous = previous.to_string_lossy();

    let wait = ["--wait", "--timeout=3m"];
    let create = [&[&*previous, "--create-namespace"], &wait[..]].concat();
    let notes = helm(&cluster, &["install"], &create).await?;
    ensure!(notes.contains("kind: RegistryMirror"), "{notes}");
    product.mirror("registry-a", &upstream).await?;
    product.ready(LIMIT).await?;
    pulls(&cluster, &upstream, 1).await?;
    let cache = identity_of_the_cache(&cluster).await?;

    let judged = assess(&cluster).await?;
    ensure!(judged.iter().all(|mirror| mirror.flux == "Current" && mirror.argo == "Healthy"), "{judged:?}");

    let changed = ["--set=operator.replicas=2", "--set=nodeAgent.podAnnotations.turn=two"];
    helm(&cluster, &["upgrade"], &[&[chart.as_str()], &changed[..], &wait].concat()).await?;
    product.ready(LIMIT).await?;
    pulls(&cluster, &upstream, 2).await?;
    let log = helm(&cluster, &["test"], &["--logs"]).await?;
    for found in
        ["ok    operator: Pod breakwater-operator-", "ok    agents: 1 of 1", "ok    RegistryMirror/registry-a: "]
    {
        ensure!(log.contains(found), "{found}: {log}");
    }

    helm(&cluster, &["rollback"], &[&["1"], &wait[..]].concat()).await?;
    product.ready(LIMIT).await?;
    pulls(&cluster, &upstream, 3).await?;
    ensure!(identity_of_the_cache(&cluster).await? == cache, "an upgrade or a rollback replaced the cache");

    // With its mirror still there: the nodes are given back all the same, and mirror and cache stay.
    helm(&cluster, &["uninstall"], &["--wait", "--timeout=2m"]).await?;
    until(LIMIT, "certs.d to be as before", as_before).await?;
    pulls(&cluster, &upstream, 4).await?;
    ensure!(identity_of_the_cache(&cluster).await? == cache, "uninstalling took the cache along");

    // The definitions that were kept belong to the same release again.
    helm(&cluster, &["install"], &[&[chart.as_str()], &wait[..], &["--set=crds.keep=false"]].concat()).await?;
    product.ready(LIMIT).await?;
    ensure!(identity_of_the_cache(&cluster).await? == cache, "installing again replaced the cache");
    ensure!(snapshot(&node.certs_d())? != before, "the node has no file of ours");
    helm(&cluster, &["uninstall"], &["--wait", "--timeout=2m"]).await?;
    until(LIMIT, "certs.d to be as before", as_before).await?;
    until(LIMIT, "the caches to be gone", async || {
        let left = cluster.kubectl(&["-n", "breakwater-system", "get", "statefulsets,pods", "-o", "name"]).await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await?;
    pulls(&cluster, &upstream, 5).await?;
    cluster.remove().await
}
